"""What YOLO's losses read from a level's raw head: the predictions of its slots, and how much of an object every one covers.

The gradients that darknet replaces are replaced here, too.
"""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from survey.errors import InputError
from survey.heads import SCALED, YoloHeads
from tpu_train.yolo import iou
from tpu_train.yolo.iou import Boxes
from tpu_train.yolo.targets import Slots, Targets

# A prediction is taken for an object's only if a class is at least so likely; PairWiseSearch's min_conf in yolo_loss.py.
_SURE = 0.25


class Level(NamedTuple):
    """One level: B images, side * side cells, A anchors a cell, C classes."""

    raw: tf.Tensor  # float32 [B, side * side, A * (5 + C)]
    planes: tf.Tensor  # the same as [B, A, 5 + C, side * side]: nothing here is padded much on a TPU, and cells lie side by side
    side: int
    anchors_cells: np.ndarray  # float32 [A, 2], widths and heights in cells
    box_type: str
    scale_xy: float
    slots: Slots

    def offset(self, t: tf.Tensor) -> tf.Tensor:
        """Centre within its cell, in cells; `inference.decode` has the formulas."""
        return tf.sigmoid(t) * self.scale_xy - (self.scale_xy - 1) / 2

    def growth(self, t: tf.Tensor) -> tf.Tensor:
        """Side as a multiple of the anchor's."""
        return tf.square(2 * tf.sigmoid(t)) if self.box_type == SCALED else tf.exp(t)


class Chosen(NamedTuple):
    """Predictions of the slots; those of anchors that learn nothing are made from zeros, so that no gradient can be NaN.

    Attributes:
      raw_box: x, y, w, h as the head gives them, float32 [B, R, A] each.
      logits: float32 [B, R, A, C], of the classes.
      learns: float32 [B, R, A], 0 or 1.
      row, column: float32 [B, R, 1], of the cell.
      true: the slots' boxes as shares of the image's side, each [B, R, 1].
      one_hot: float32 [B, R, C], of the slots' classes.
      shares: float32 [B, R, R], 1 where two slots have the same cell.
    """

    raw_box: Boxes
    logits: tf.Tensor
    learns: tf.Tensor
    row: tf.Tensor
    column: tf.Tensor
    true: Boxes
    one_hot: tf.Tensor
    shares: tf.Tensor


def read_level(
    heads: YoloHeads, index: int, raw: tf.Tensor, targets: Targets, num_classes: int, largest_darknet_gradient: float | None
) -> Level:
    """Checks and arranges a level's raw head.

    Args:
      heads: what the arrays are.
      index: of the level among them.
      raw: float [B, side, side, A * (5 + C)].
      targets: of the batch.
      num_classes: C.
      largest_darknet_gradient: makes the gradients of a raw value darknet's, those of boxes at most so large; None leaves them.

    Raises:
      InputError: the array does not fit the heads.
    """
    level, anchors = heads.levels[index], np.array(heads.anchors_px[index], np.float32)
    side, depth = raw.shape[1], len(anchors) * (5 + num_classes)
    if tuple(raw.shape[1:]) != (side, side, depth):
        raise InputError(
            f"raw output of level {level} is {list(raw.shape)}: must be square and {depth} deep, for {len(anchors)} anchors and "
            f"{num_classes} classes"
        )
    raw = tf.reshape(tf.cast(raw, tf.float32), [-1, side * side, depth])
    if largest_darknet_gradient is not None:
        if heads.box_type == SCALED:
            raw = _sigmoid_gradient(raw)
        raw = _limit_box_gradient(raw, 5 + num_classes, largest_darknet_gradient)
    return Level(
        raw=raw,
        planes=tf.reshape(tf.transpose(raw, [0, 2, 1]), [-1, len(anchors), 5 + num_classes, side * side]),
        side=side,
        anchors_cells=anchors / 2**level,
        box_type=heads.box_type,
        scale_xy=heads.scale_xy[index] if heads.scale_xy else 1.0,
        slots=targets.levels[level],
    )


def chosen_by_slots(level: Level, targets: Targets) -> Chosen:
    """One row of the head a slot, whatever the number of anchors: rows are what a gather, and its gradient, cost."""
    cells, learns = level.slots
    anchors, classes = level.planes.shape[1], level.planes.shape[2] - 5
    rows = tf.reshape(tf.gather(level.raw, cells, batch_dims=1), [-1, cells.shape[1], anchors, 5 + classes])
    rows = tf.where(learns[..., None], rows, 0.0)
    per_object = cells.shape[1] // targets.classes.shape[1]
    return Chosen(
        raw_box=Boxes(*(rows[..., i] for i in range(4))),
        logits=rows[..., 5:],
        learns=tf.cast(learns, tf.float32),
        row=tf.cast(cells // level.side, tf.float32)[..., None],
        column=tf.cast(cells % level.side, tf.float32)[..., None],
        true=Boxes(*(tf.repeat(side, per_object, axis=1)[..., None] for side in _sides(targets))),
        one_hot=tf.one_hot(tf.repeat(targets.classes, per_object, axis=1), classes),
        shares=tf.cast(cells[:, :, None] == cells[:, None, :], tf.float32),
    )


def darknet_boxes(level: Level, chosen: Chosen) -> Boxes:
    """Predictions as shares of the image's side, with darknet's derivatives by the raw values.

    They are 1 for centres, and for sides exp of the raw value, without the anchor, or 1 in the scaled form (_darknet_boxes and
    _darknet_new_coord_boxes in official/projects/yolo/ops/loss_utils.py).
    """
    t, side = chosen.raw_box, level.side
    width, height = (level.anchors_cells[:, i] / side for i in (0, 1))
    one = tf.ones_like(t.x)
    return Boxes(
        _with_slope((level.offset(t.x) + chosen.column) / side, t.x, one),
        _with_slope((level.offset(t.y) + chosen.row) / side, t.y, one),
        _with_slope(level.growth(t.width) * width, t.width, one if level.box_type == SCALED else tf.exp(t.width)),
        _with_slope(level.growth(t.height) * height, t.height, one if level.box_type == SCALED else tf.exp(t.height)),
    )


def best_overlap(level: Level, targets: Targets, kind: str, *, any_class: bool) -> tf.Tensor:
    """How much of an object each prediction covers at most, float32 [B, A, side * side], 0 for none; without a gradient.

    Each value of the [B, A, M, side * side] overlaps is computed from sides that need no such space and goes straight into a
    maximum, so that XLA keeps none of them in memory.

    Args:
      level: with the predictions.
      targets: with the objects.
      kind: of overlap.
      any_class: count predictions that are sure of some class. Else Model Garden compares the classes that a prediction is sure
        of with the object's one-hot class and is content if a single one of the C flags is equal: an object is passed over only
        by predictions that are sure of all other classes and not of its own.
    """
    planes = tf.stop_gradient(level.planes)
    cells = np.arange(level.side**2)
    column, row = (cells % level.side).astype(np.float32), (cells // level.side).astype(np.float32)
    width, height = (level.anchors_cells[:, i, None] / level.side for i in (0, 1))
    predicted = Boxes(
        (level.offset(planes[:, :, 0]) + column) / level.side,
        (level.offset(planes[:, :, 1]) + row) / level.side,
        level.growth(planes[:, :, 2]) * width,
        level.growth(planes[:, :, 3]) * height,
    )
    objects = Boxes(*(side[:, None, :, None] for side in _sides(targets)))
    overlap = iou.overlap(kind, objects, Boxes(*(side[:, :, None, :] for side in predicted)))
    sure = tf.sigmoid(planes[:, :, 5:]) > _SURE  # [B, A, C, side * side]
    if any_class:
        best = tf.where(tf.reduce_any(sure, axis=2), tf.reduce_max(overlap, axis=2), 0.0)
    else:
        missing = tf.argmin(tf.cast(sure, tf.int8), axis=2, output_type=tf.int32)
        only = tf.reduce_sum(tf.cast(sure, tf.int32), axis=2) == sure.shape[2] - 1
        passes = tf.where(only, missing, -2)[:, :, None, :] == targets.classes[:, None, :, None]
        best = tf.reduce_max(tf.where(passes, 0.0, overlap), axis=2)
    return tf.stop_gradient(tf.maximum(best, 0.0))


def _sides(targets: Targets) -> Boxes:
    return Boxes(targets.x, targets.y, targets.width, targets.height)


def _with_slope(value: tf.Tensor, source: tf.Tensor, slope: tf.Tensor) -> tf.Tensor:
    """`value`, with `slope` as its derivative by `source`."""

    @tf.custom_gradient
    def swap(source: tf.Tensor) -> tuple[tf.Tensor, Any]:
        del source
        return tf.stop_gradient(value), lambda dy: dy * slope

    return swap(source)


@tf.custom_gradient
def _sigmoid_gradient(raw: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """The same values; gradients as if a sigmoid had been applied, which darknet does for the scaled form (grad_sigmoid)."""

    def backward(dy: tf.Tensor) -> tf.Tensor:
        sigmoid = tf.sigmoid(raw)
        return dy * sigmoid * (1 - sigmoid)

    return tf.identity(raw), backward


def _limit_box_gradient(raw: tf.Tensor, values: int, largest: float) -> tf.Tensor:
    """The same values [..., A * values]; gradients of the first four of each anchor limited, 0 where they are not numbers.

    It is done here, where the gradients of objects that share an anchor have been summed, as Model Garden's are.
    """
    is_box = np.arange(raw.shape[-1]) % values < 4

    @tf.custom_gradient
    def limit(raw: tf.Tensor) -> tuple[tf.Tensor, Any]:
        def backward(dy: tf.Tensor) -> tf.Tensor:
            limited = tf.where(tf.math.is_finite(dy), tf.clip_by_value(dy, -largest, largest), 0.0)
            return tf.where(is_box, limited, dy)

        return tf.identity(raw), backward

    return limit(raw)
