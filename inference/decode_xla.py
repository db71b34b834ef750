"""Decoding on the accelerator: `inference.decode` in TensorFlow with static shapes, for a TPU as for any other device.

XLA compiles one program for one shape, so nothing here depends on what the model found: a fixed number of candidates goes into
suppression (the best `top_k` pairs of anchor and class), a fixed number of rows comes out, and the rest is padding. While no more
than `top_k` candidates reach the score floor and no more than `max_detections` stay, the answer is that of the reference.

Suppression takes the best candidate that is left, compares it with all others at once, and repeats: a loop of
`max_detections` steps at most, which serves greedy and soft-NMS alike (`inference.suppression` has the formulas) and treats a
batch in parallel. It ends as soon as no image has a candidate left.

    decoder = XlaDecoder(spec)
    step = tf.function(lambda raw: decoder(raw), jit_compile=True)
"""

import os

# Before TensorFlow is imported; see inference/model_runner.py.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from inference import suppression
from inference.decode import DecodeSpec
from survey.errors import InputError
from survey.heads import FLAT, SCALED, RetinaNetHeads, YoloHeads
from survey.model import ModelSpec

GONE = -1.0  # the score of a candidate that is not there, or no more


class XlaDecoder(tf.Module):
    """Turns a batch of raw heads into padded boxes.

    Args:
      spec: of the model that gives the heads.
      top_k: candidates of an image that go into suppression, the best of all classes together.
      max_detections: rows of the answer.

    Raises:
      InputError: a number that is not above 0, or an unknown suppression.
    """

    def __init__(self, spec: ModelSpec | DecodeSpec, top_k: int = 5000, max_detections: int = 500) -> None:
        super().__init__()
        self._spec, self._heads = spec, spec.heads
        self._method = spec.suppression if isinstance(spec, DecodeSpec) else suppression.CLASS
        if self._method not in suppression.METHODS:
            raise InputError(f"suppression={self._method!r}: must be one of {', '.join(suppression.METHODS)}")
        if min(top_k, max_detections) < 1:
            raise InputError(f"top_k={top_k}, max_detections={max_detections}: both must be 1 or more")
        self._shapes = spec.heads.shapes(spec.image_size, len(spec.classes))
        self._max_detections = max_detections
        if isinstance(spec.heads, RetinaNetHeads):
            self._anchors = spec.heads.anchors.boxes(spec.image_size)
            rows = len(self._anchors)
        else:
            self._cells, self._sides, self._strides, self._scale_xy = _yolo_grid(spec.heads, spec.image_size)
            rows = len(self._cells)
        self._top_k = min(top_k, rows * len(spec.classes))

    def __call__(self, raw: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The boxes of each image.

        Args:
          raw: heads by name, float32, float16 or bfloat16, with the shapes of `survey.heads` and a static batch.

        Returns:
          boxes_patch_px float32 [B, max_detections, 4], yxyx, clipped to the patch; scores float32 [B, max_detections], best
          first; class_ids int32 [B, max_detections], from 1; counts int32 [B]. Rows from the count on are 0.

        Raises:
          InputError: an array is missing or of another shape.
        """
        if wrong := [name for name, shape in self._shapes.items() if name not in raw or tuple(raw[name].shape[1:]) != shape]:
            found = {name: raw[name].shape.as_list() for name in wrong if name in raw}
            wanted = {name: ["B", *self._shapes[name]] for name in wrong}
            raise InputError(f"the raw tensors do not fit the spec: it asks for {wanted}, found {found}: correct the spec")
        floats = {name: tf.cast(raw[name], tf.float32) for name in self._shapes}
        heads = self._heads
        candidates = self._retinanet(floats, heads) if isinstance(heads, RetinaNetHeads) else self._yolo(floats, heads)
        boxes, scores, columns = candidates
        size = tf.constant(float(self._spec.image_size))
        boxes = tf.clip_by_value(boxes, 0.0, size)
        sides = boxes[..., 2:] - boxes[..., :2]
        alive = (sides[..., 0] * sides[..., 1] > 0) & (scores >= self._spec.score_floor)  # a box beyond the patch shows nothing
        return self._suppress(boxes, tf.where(alive, scores, GONE), columns)

    def _retinanet(self, raw: dict[str, tf.Tensor], heads: RetinaNetHeads) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Boxes [B, T, 4], scores [B, T] and class columns from 0 [B, T] of the best candidates, best first."""
        suffixes = [""] if heads.layout == FLAT else [f"_{level}" for level in heads.levels]
        box_name, class_name = ("raw_boxes", "raw_scores") if heads.layout == FLAT else ("box_outputs", "cls_outputs")
        regressions = _joined([raw[box_name + suffix] for suffix in suffixes], 4)
        logits = _joined([raw[class_name + suffix] for suffix in suffixes], len(self._spec.classes) + heads.background)
        scores, rows, columns = self._best(tf.sigmoid(logits[..., 1:] if heads.background else logits))
        scaled = tf.gather(regressions, rows, batch_dims=1) / tf.constant(heads.box_scales, tf.float32)
        anchors = tf.gather(tf.constant(self._anchors), rows)
        sides = anchors[..., 2:] - anchors[..., :2]
        centers = scaled[..., :2] * sides + (anchors[..., :2] + 0.5 * sides)
        sides = tf.exp(tf.minimum(scaled[..., 2:], heads.largest_log_ratio)) * sides
        low = centers - 0.5 * sides
        return tf.concat([low, low + sides], axis=-1), scores, columns

    def _yolo(self, raw: dict[str, tf.Tensor], heads: YoloHeads) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """As `_retinanet`."""
        values = _joined([raw[name] for name in self._shapes], 5 + len(self._spec.classes))
        scores, rows, columns = self._best(tf.sigmoid(values[..., 4:5]) * tf.sigmoid(values[..., 5:]))
        regressions = tf.gather(values[..., :4], rows, batch_dims=1)
        cells, sides, strides, scale = (
            tf.gather(tf.constant(one), rows) for one in (self._cells, self._sides, self._strides, self._scale_xy)
        )
        t_center, t_side = tf.reverse(regressions[..., :2], [-1]), tf.reverse(regressions[..., 2:], [-1])  # (y, x), (h, w)
        centers = (cells + tf.sigmoid(t_center) * scale - 0.5 * (scale - 1)) * strides
        factor = tf.square(2 * tf.sigmoid(t_side)) if heads.box_type == SCALED else tf.exp(t_side)
        half = factor * sides / 2
        return tf.concat([centers - half, centers + half], axis=-1), scores, columns

    def _best(self, scores: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Scores, rows and columns, each [B, T], of the best of [B, N, K].

        Selection is a sort on a TPU, and the compiler's time grows with what is sorted: so the best anchors by their best class
        come first, which hold the best pairs, then the best of their pairs. Anchors stay in their order, for the sake of ties.
        """
        batch, anchors, classes = scores.shape
        first = min(self._top_k, anchors)
        rows = tf.sort(tf.math.top_k(tf.reduce_max(scores, axis=2), first, sorted=False).indices, axis=1)  # [B, F]
        pairs = tf.reshape(tf.gather(scores, rows, batch_dims=1), [batch, first * classes])
        best, index = tf.math.top_k(pairs, self._top_k)
        return best, tf.gather(rows, index // classes, batch_dims=1), index % classes

    def _suppress(self, boxes: tf.Tensor, scores: tf.Tensor, columns: tf.Tensor) -> dict[str, tf.Tensor]:
        """Suppression of candidates in the order of their scores; shapes as in `_retinanet`."""
        most, floor = self._max_detections, self._spec.score_floor
        areas = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
        ranks = tf.range(self._top_k)[None]  # [1, T]

        def any_left(step: tf.Tensor, left: tf.Tensor, *_: tf.TensorArray) -> tf.Tensor:
            return (step < most) & tf.reduce_any(left >= floor)

        def keep_the_best(
            step: tf.Tensor, left: tf.Tensor, kept: tf.TensorArray, values: tf.TensorArray
        ) -> tuple[tf.Tensor, tf.Tensor, tf.TensorArray, tf.TensorArray]:
            best = tf.argmax(left, axis=1, output_type=tf.int32)  # [B]; of equals the first
            value = tf.reduce_max(left, axis=1)
            box, area = tf.gather(boxes, best, batch_dims=1)[:, None], tf.gather(areas, best, batch_dims=1)[:, None]
            shared = tf.maximum(tf.minimum(box[..., 2:], boxes[..., 2:]) - tf.maximum(box[..., :2], boxes[..., :2]), 0.0)
            shared = shared[..., 0] * shared[..., 1]
            iou = tf.math.divide_no_nan(shared, area + areas - shared)  # [B, T]
            factor = self._factor(iou)
            if self._method != suppression.AGNOSTIC:
                factor = tf.where(columns == tf.gather(columns, best, batch_dims=1)[:, None], factor, 1.0)
            # A score below the floor is gone for good; GONE times a factor stays below it, too.
            left = tf.where(ranks == best[:, None], GONE, left * factor)
            return step + 1, left, kept.write(step, best), values.write(step, value)

        batch = scores.shape[0]
        kept = tf.TensorArray(tf.int32, most, element_shape=[batch])
        values = tf.TensorArray(tf.float32, most, element_shape=[batch])
        _, _, kept, values = tf.while_loop(any_left, keep_the_best, (0, scores, kept, values), maximum_iterations=most)
        chosen, found = tf.transpose(kept.stack()), tf.transpose(values.stack())  # [B, M]
        there = found >= max(floor, np.finfo(np.float32).tiny)  # steps that were not taken left 0
        return {
            "boxes_patch_px": tf.where(there[..., None], tf.gather(boxes, chosen, batch_dims=1), 0.0),
            "scores": tf.where(there, found, 0.0),
            "class_ids": tf.where(there, tf.gather(columns, chosen, batch_dims=1) + 1, 0),
            "counts": tf.reduce_sum(tf.cast(there, tf.int32), axis=1),
        }

    def _factor(self, iou: tf.Tensor) -> tf.Tensor:
        """What scores are multiplied by; the counterpart of `suppression.weights`, with 0 for the hard variants."""
        if self._method == suppression.SOFT_GAUSSIAN:
            return tf.exp(-tf.square(iou) / suppression.SIGMA)
        if self._method == suppression.SOFT_LINEAR:
            return tf.where(iou >= self._spec.nms_iou, 1 - iou, 1.0)
        return tf.where(iou > self._spec.nms_iou, 0.0, 1.0)


def _joined(arrays: list[tf.Tensor], depth: int) -> tf.Tensor:
    """Arrays of each level as one [B, N, depth]."""
    return tf.concat([tf.reshape(array, [array.shape[0], -1, depth]) for array in arrays], axis=1)


def _yolo_grid(heads: YoloHeads, image_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Cell (row, column), sides (height, width) px, stride, scale_xy of each anchor; float32 [N, 2], [N, 2], [N, 1], [N, 1]."""
    cells, sides, strides, scales = [], [], [], []
    for i, (level, anchors) in enumerate(zip(heads.levels, heads.anchors_px, strict=True)):
        side, each = image_size >> level, len(anchors)
        grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), axis=-1).reshape(-1, 2)
        cells.append(np.repeat(grid, each, axis=0))
        sides.append(np.tile(np.array(anchors)[:, ::-1], (side * side, 1)))
        strides.append(np.full((side * side * each, 1), 2**level))
        scales.append(np.full((side * side * each, 1), heads.scale_xy[i] if heads.scale_xy else 1.0))
    found = [np.concatenate(parts).astype(np.float32) for parts in (cells, sides, strides, scales)]
    return found[0], found[1], found[2], found[3]
