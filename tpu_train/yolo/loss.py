"""YOLO's two losses inside the compiled step, equal to Model Garden's (official/projects/yolo/losses/yolo_loss.py).

"darknet" is that of YOLOv3 and v4 (Redmon and Farhadi 2018, https://arxiv.org/abs/1804.02767; Bochkovskiy et al. 2020,
https://arxiv.org/abs/2004.10934), with the gradients of the C program: they skip the sigmoid of a centre and the division by the
image's side. "scaled" is that of Scaled-YOLOv4 (Wang et al. 2021, https://arxiv.org/abs/2011.08036): plain derivatives, and the
overlap as the target of objectness. Quirks of Model Garden that are kept, because its published recipes were tuned with them:

  * "darknet": several objects on one anchor share their loss by the number of different classes, so two of one class count twice.
  * "darknet" with `update_on_repeat`: an anchor learns all classes of its objects at once; `class_weight` counts only below 1,
    and only for these classes. Objectness smoothing does nothing without an ignore threshold.
  * "scaled": `class_weight` is multiplied by classes / 80, so that the mean over classes becomes their sum / 80, as for COCO.
    Divide by it for another meaning. The target of objectness is the box loss's overlap (complete IoU), not IoU.
  * "scaled" with an ignore threshold: the comparison of classes is weaker than meant; see `predictions.best_overlap`.

What differs, on purpose: every object is considered in the search for predictions to ignore (Model Garden leaves out the last 50
to 99 rows, so all of them below 100); of objects on one anchor the last wins under "scaled" with `update_on_repeat` (there it is
whichever the device writes last); logarithms are of the logit, exact where Model Garden's darknet loss ends at -log(1e-9);
"darknet" with "ciou": a prediction with a diagonal beyond the image's side costs no more than complete IoU says. In Model Garden
its cost grows with the diagonal squared, and so does the gradient by the logarithms of its sides, which can make the box's other
side grow, too: from scratch one such box made a loss of 16,000 where 180 was usual (docs/yolo.md).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from survey.errors import InputError
from survey.heads import YoloHeads
from tpu_train.yolo import iou
from tpu_train.yolo.iou import Boxes
from tpu_train.yolo.predictions import Chosen, Level, best_overlap, chosen_by_slots, darknet_boxes, read_level
from tpu_train.yolo.targets import Targets, on_grid

# The class weight of "scaled" is meant for COCO's 80 classes, and its loss for three levels; yolo_loss.py.
_COCO_CLASSES, _USUAL_LEVELS = 80, 3


@dataclass(frozen=True, slots=True)
class LossSettings:
    """Which loss; the defaults are Model Garden's, but for `scaled`.

    Attributes:
      scaled: the loss of Scaled-YOLOv4, else darknet's.
      ignore_threshold: anchors without an object learn nothing where their prediction overlaps an object more than this; 0 for no
        such search (Model Garden's default; 0.7 in darknet's recipes).
      box_loss: "ciou", "giou" or "iou".
      box_weight, class_weight: of the parts (iou_normalizer, cls_normalizer).
      object_weights: of objectness (object_normalizer), one a level, finest first; empty for 1 everywhere.
      label_smoothing: how much of a class's target is spread evenly, from 0 to 1.
      objectness_smoothing: how much the target of objectness is the overlap instead of 1, from 0 to 1.
      update_on_repeat: how objects that share an anchor are told apart; see the top of this module.
      largest_box_gradient: limit of darknet's gradients of a raw box value (max_delta).
    """

    scaled: bool = False
    ignore_threshold: float = 0.0
    box_loss: str = iou.CIOU
    box_weight: float = 1.0
    class_weight: float = 1.0
    object_weights: tuple[float, ...] = ()
    label_smoothing: float = 0.0
    objectness_smoothing: float = 0.0
    update_on_repeat: bool = True
    largest_box_gradient: float = math.inf

    def __post_init__(self) -> None:
        if self.box_loss not in iou.KINDS:
            raise InputError(f"box_loss={self.box_loss!r}: must be one of {', '.join(iou.KINDS)}")
        for name in ("ignore_threshold", "label_smoothing", "objectness_smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}={getattr(self, name)}: must be from 0 to 1")


class Losses(NamedTuple):
    """Scalars, float32, over all levels; weighted, so that the three parts are comparable.

    Attributes:
      total: what to minimise, Model Garden's loss_val on one replica. "darknet": the mean over the replica's images; divide it by
        the number of replicas, whose gradients are summed, as DarknetLoss.cross_replica_aggregation does. "scaled": the parts'
        sum times the replica's images; ScaledLoss does not divide it.
      box, objectness, classes: the parts, Model Garden's metrics net/box, net/conf and net/class. Their sum is its total_loss.
    """

    total: tf.Tensor
    box: tf.Tensor
    objectness: tf.Tensor
    classes: tf.Tensor


_Parts = tuple[tf.Tensor, tf.Tensor, tf.Tensor]  # box, objectness, classes


def loss(heads: YoloHeads, settings: LossSettings, raw: Mapping[int, tf.Tensor], targets: Targets, *, num_classes: int) -> Losses:
    """The loss of a batch.

    Args:
      heads: what the arrays are.
      settings: which loss.
      raw: of each level, float [B, side, side, A * (5 + C)]: per anchor x, y, w, h, objectness, and a logit per class.
      targets: of the same batch and image size.
      num_classes: C, without a background.

    Raises:
      InputError: the arrays do not fit the heads, or there is not one object weight a level.
    """
    weights = settings.object_weights or (1.0,) * len(heads.levels)
    if len(weights) != len(heads.levels):
        raise InputError(f"object_weights has {len(weights)} entries for {len(heads.levels)} levels: must have one a level")
    one_level = _scaled if settings.scaled else _darknet
    limit = None if settings.scaled else settings.largest_box_gradient
    parts: list[_Parts] = []
    for index, (level, weight) in enumerate(zip(heads.levels, weights, strict=True)):
        read = read_level(heads, index, raw[level], targets, num_classes, limit)
        box, objectness, classes = one_level(read, settings, targets)
        parts.append((box, objectness * weight, classes))
    box, objectness, classes = (tf.add_n(part) for part in zip(*parts, strict=True))
    if not settings.scaled:
        return Losses(box + objectness + classes, box, objectness, classes)
    share = _USUAL_LEVELS / len(heads.levels)
    images = tf.cast(tf.shape(targets.classes)[0], tf.float32)
    return Losses((box + objectness + classes) * share * images, box * share, objectness * share, classes * share)


def _darknet(level: Level, settings: LossSettings, targets: Targets) -> _Parts:
    """DarknetLoss: means over the images of the sums over an image."""
    chosen = chosen_by_slots(level, targets)
    images = tf.cast(tf.shape(chosen.learns)[0], tf.float32)

    # Classes of all objects on a slot's anchor, 0 or 1; [B, R, A, C].
    _, slots, anchors, columns = chosen.logits.shape
    spread = tf.reshape(chosen.learns[..., None] * chosen.one_hot[:, :, None, :], [-1, slots, anchors * columns])
    together = tf.cast(tf.reshape(chosen.shares @ spread, [-1, slots, anchors, columns]) > 0, tf.float32)
    repeats = tf.maximum(tf.reduce_sum(together, axis=-1), 1.0)

    agree = iou.overlap(settings.box_loss, chosen.true, darknet_boxes(level, chosen), darknet=True)
    box = tf.reduce_sum(chosen.learns * (1 - agree) / repeats)

    if settings.update_on_repeat:
        entropy = _entropy(together, chosen.logits, settings.label_smoothing)
        if settings.class_weight < 1:
            entropy *= 1 - together + together * settings.class_weight
        # Every anchor counts once: its slots share it.
        classes = tf.reduce_sum(_once(chosen) * tf.reduce_sum(entropy, axis=-1))
    else:
        entropy = _entropy(chosen.one_hot[:, :, None, :], chosen.logits, settings.label_smoothing)
        classes = settings.class_weight * tf.reduce_sum(chosen.learns / repeats * tf.reduce_sum(entropy, axis=-1))

    has_object = _grid(level, chosen.learns)
    target = has_object
    kept = tf.ones_like(target)
    if settings.ignore_threshold > 0:
        best = best_overlap(level, targets, iou.IOU, any_class=True)
        if settings.objectness_smoothing > 0:
            smooth = 1 - settings.objectness_smoothing + settings.objectness_smoothing * best
            target = tf.where(best > settings.ignore_threshold, smooth, target)
        else:
            kept = _kept(has_object, best, settings.ignore_threshold)
    objectness = tf.reduce_sum(kept * _entropy(target, level.planes[:, :, 4], 0.0))
    return settings.box_weight * box / images, objectness / images, classes / images


def _scaled(level: Level, settings: LossSettings, targets: Targets) -> _Parts:
    """ScaledLoss: box and classes are means over the slots that learn, objectness over all anchors of the level."""
    chosen = chosen_by_slots(level, targets)
    count = tf.maximum(tf.reduce_sum(chosen.learns), 1.0)

    # In cells, from the slot's own one.
    width, height = (level.anchors_cells[:, i] for i in (0, 1))
    t = chosen.raw_box
    predicted = Boxes(level.offset(t.x), level.offset(t.y), level.growth(t.width) * width, level.growth(t.height) * height)
    x, y, true_width, true_height = (side * level.side for side in chosen.true)
    true = Boxes(x - chosen.column, y - chosen.row, true_width, true_height)
    agree = iou.overlap(settings.box_loss, true, predicted)
    box = tf.reduce_sum(chosen.learns * (1 - agree)) / count

    entropy = _entropy(chosen.one_hot[:, :, None, :], chosen.logits, settings.label_smoothing)
    classes = tf.reduce_sum(chosen.learns[..., None] * entropy) / (count * _COCO_CLASSES)

    found = tf.maximum(tf.stop_gradient(agree), 0.0)
    wanted = 1 - settings.objectness_smoothing + settings.objectness_smoothing * found
    sets = _last(chosen) if settings.update_on_repeat else chosen.learns
    entropy = _entropy(_grid(level, sets * wanted), level.planes[:, :, 4], 0.0)
    if settings.ignore_threshold > 0:
        best = best_overlap(level, targets, settings.box_loss, any_class=False)
        kept = _kept(_grid(level, chosen.learns), best, settings.ignore_threshold)
        objectness = tf.reduce_sum(kept * entropy) / tf.maximum(tf.reduce_sum(kept), 1.0)
    else:
        objectness = tf.reduce_mean(entropy)
    return settings.box_weight * box, objectness, settings.class_weight * classes


def _kept(has_object: tf.Tensor, best: tf.Tensor, threshold: float) -> tf.Tensor:
    """1 where objectness is learned: with an object, and where no object is overlapped much."""
    return has_object + (1 - has_object) * tf.cast(best < threshold, tf.float32)


def _grid(level: Level, values: tf.Tensor) -> tf.Tensor:
    """Values [B, R, A] of slots as [B, A, side * side]."""
    return tf.transpose(on_grid(level.slots.cells, values, level.side**2), [0, 2, 1])


def _once(chosen: Chosen) -> tf.Tensor:
    """1 / n for the n slots that teach one anchor, else 0; [B, R, A]."""
    return chosen.learns / tf.maximum(chosen.shares @ chosen.learns, 1.0)


def _last(chosen: Chosen) -> tf.Tensor:
    """1 for the last of the slots that teach one anchor, else 0; [B, R, A]."""
    count = chosen.shares.shape[1]
    later = np.triu(np.ones((count, count), np.float32), 1)
    return chosen.learns * tf.cast((chosen.shares * later) @ chosen.learns < 0.5, tf.float32)


def _entropy(target: tf.Tensor, logits: tf.Tensor, smoothing: float) -> tf.Tensor:
    """Binary cross-entropy, value by value."""
    target = tf.broadcast_to(target * (1 - smoothing) + smoothing / 2, tf.shape(logits))
    return tf.nn.sigmoid_cross_entropy_with_logits(labels=target, logits=logits)
