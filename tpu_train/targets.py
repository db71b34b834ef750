"""Anchor assignment inside the compiled step: padded boxes in, Model Garden's RetinaNet targets out.

The rules are those of Model Garden's `AnchorLabeler` (official/vision/ops/anchor.py, box_matcher.py), which runs on the host,
one image at a time; here a whole batch of padded boxes is assigned at once with static shapes. An anchor belongs to the box with
which its IoU is highest, if that is at least `match_threshold`; below `unmatched_threshold` it is background, in between it is
ignored. The best anchor of each box belongs to that box whatever the IoU; when two boxes share it, the first one wins.
"""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

EPSILON = 1e-8  # official/vision/utils/object_detection/faster_rcnn_box_coder.py


@dataclass(frozen=True)
class Targets:
    """What the loss compares the heads with, for a batch of B images and N anchors.

    Attributes:
      classes: int32 [B, N], the class id from 1, -1 for background and ignored anchors.
      boxes: float32 [B, N, 4], (ty, tx, th, tw) relative to the anchor; encoded from a zero box where there is none.
      class_weights: float32 [B, N], 0 where the anchor is ignored, else 1.
      box_weights: float32 [B, N], 1 for anchors that belong to a box, else 0.
    """

    classes: tf.Tensor
    boxes: tf.Tensor
    class_weights: tf.Tensor
    box_weights: tf.Tensor


def assign(
    anchors: np.ndarray, boxes: tf.Tensor, classes: tf.Tensor, *, match_threshold: float, unmatched_threshold: float
) -> Targets:
    """Assigns boxes to anchors.

    Args:
      anchors: float32 [N, 4], yxyx in image pixels.
      boxes: float32 [B, M, 4], yxyx in image pixels; rows with class 0 are padding and may hold anything finite.
      classes: int32 [B, M], ids from 1, 0 for padding.
      match_threshold: IoU from which an anchor is positive.
      unmatched_threshold: IoU below which an anchor is negative.
    """
    real = classes > 0  # [B, M]
    anchor_boxes = tf.constant(anchors)
    similarity = tf.where(real[:, None, :], _iou(anchor_boxes, boxes), -1.0)  # [B, N, M]

    best_box = tf.argmax(similarity, axis=2, output_type=tf.int32)  # [B, N]
    best_iou = tf.reduce_max(similarity, axis=2)
    # The best anchor of each real box, as [B, N, M] flags; argmax over M picks the first box of those that share an anchor.
    best_anchor = tf.argmax(similarity, axis=1, output_type=tf.int32)  # [B, M]
    forced = (tf.range(len(anchors))[None, :, None] == best_anchor[:, None, :]) & real[:, None, :]
    is_forced = tf.reduce_any(forced, axis=2)
    owner = tf.where(is_forced, tf.argmax(tf.cast(forced, tf.int8), axis=2, output_type=tf.int32), best_box)

    positive = is_forced | (best_iou >= match_threshold)
    ignored = ~positive & (best_iou >= unmatched_threshold)
    # Side by side, not box by box: a TPU pads the last dimension to 128, so rows of four took 32 times the memory, written twice.
    sides = [tf.where(positive, tf.gather(side, owner, batch_dims=1), 0.0) for side in tf.unstack(boxes, axis=-1)]
    return Targets(
        classes=tf.where(positive, tf.gather(classes, owner, batch_dims=1), -1),
        boxes=encode(tf.stack(sides, axis=-1), anchor_boxes),
        class_weights=1.0 - tf.cast(ignored, tf.float32),
        box_weights=tf.cast(positive, tf.float32),
    )


def encode(boxes: tf.Tensor, anchors: tf.Tensor) -> tf.Tensor:
    """Boxes relative to anchors, Ren et al. 2015 (https://arxiv.org/abs/1506.01497), equation 2, as Model Garden computes it.

    Args:
      boxes: float32 [..., N, 4], yxyx.
      anchors: float32 [N, 4], yxyx.

    Returns:
      float32 [..., N, 4], (ty, tx, th, tw).
    """
    size, anchor_size = boxes[..., 2:] - boxes[..., :2], anchors[..., 2:] - anchors[..., :2]
    center, anchor_center = boxes[..., :2] + size / 2, anchors[..., :2] + anchor_size / 2
    anchor_size = anchor_size + EPSILON
    return tf.concat([(center - anchor_center) / anchor_size, tf.math.log((size + EPSILON) / anchor_size)], axis=-1)


def _iou(anchors: tf.Tensor, boxes: tf.Tensor) -> tf.Tensor:
    """IoU of anchors [N, 4] with boxes [B, M, 4], as [B, N, M]."""
    y0, x0, y1, x1 = (side[None, :, None] for side in tf.unstack(anchors, axis=-1))  # [1, N, 1]
    by0, bx0, by1, bx1 = (side[:, None, :] for side in tf.unstack(boxes, axis=-1))  # [B, 1, M]
    height = tf.maximum(0.0, tf.minimum(y1, by1) - tf.maximum(y0, by0))
    width = tf.maximum(0.0, tf.minimum(x1, bx1) - tf.maximum(x0, bx0))
    shared = height * width
    union = (y1 - y0) * (x1 - x0) + (by1 - by0) * (bx1 - bx0) - shared
    return tf.where(shared > 0.0, shared / tf.where(shared > 0.0, union, 1.0), 0.0)
