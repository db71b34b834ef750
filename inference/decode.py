"""From a detector's raw heads to boxes: the reference, in numpy, that every other path must equal.

A RetinaNet says nothing about boxes directly. For each anchor a (centre ya, xa; sides ha, wa) it gives four regressions and one
logit per class. The box is (Faster R-CNN, Ren et al. 2015, eq. 2; Model Garden's official/vision/ops/box_ops.py, decode_boxes):

    y = ty / sy * ha + ya        h = ha * exp(min(th / sh, log(1000 / 16)))
    x = tx / sx * wa + xa        w = wa * exp(min(tw / sw, log(1000 / 16)))

with (y, x) its centre and (sy, sx, sh, sw) the box coder's scales. The score is the logit's sigmoid, one class at a time, without
a background class (focal loss, Lin et al. 2017, section 4).
"""

import math

import numpy as np

from survey import boxes
from survey.errors import InputError
from survey.model import ModelSpec

# A side grows to at most 1000 / 16 = 62.5 times its anchor's, so that exp of an untrained head cannot overflow. The number is
# Detectron's and Model Garden's (BBOX_XFORM_CLIP): a model decoded with another one would not be the model that was validated.
LARGEST_LOG_RATIO = math.log(1000.0 / 16.0)

# How far below the floor a logit may lie and still get its sigmoid computed: more than float32 rounding, less than any work.
_LOGIT_SLACK = 1e-3


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow: exp is only taken of numbers that are not positive.

    Args:
      logits: any shape, float.

    Returns:
      The same shape and type, in [0, 1].
    """
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1 / (1 + small), small / (1 + small)).astype(logits.dtype)


def decode_boxes(raw_boxes: np.ndarray, anchors: np.ndarray, box_scales: tuple[float, float, float, float]) -> np.ndarray:
    """Boxes of the regressions; the formula stands at the top of this module.

    Args:
      raw_boxes: float [..., 4], (ty, tx, th, tw).
      anchors: float32 [..., 4], yxyx in patch pixels.
      box_scales: the box coder's (sy, sx, sh, sw).

    Returns:
      float32 [..., 4], yxyx in patch pixels, not clipped to the patch.
    """
    scaled = raw_boxes.astype(np.float32) / np.array(box_scales, np.float32)
    sides = anchors[..., 2:] - anchors[..., :2]
    centers = scaled[..., :2] * sides + (anchors[..., :2] + np.float32(0.5) * sides)
    sides = np.exp(np.minimum(scaled[..., 2:], np.float32(LARGEST_LOG_RATIO))) * sides
    low = centers - np.float32(0.5) * sides
    return np.concatenate([low, low + sides], axis=-1)


def encode_boxes(boxes_px: np.ndarray, anchors: np.ndarray, box_scales: tuple[float, float, float, float]) -> np.ndarray:
    """Regressions of boxes, the inverse of `decode_boxes` for sides up to 62.5 times the anchor's.

    Args:
      boxes_px: float [..., 4], yxyx, with sides above 0.
      anchors: float [..., 4], yxyx in the same pixels.
      box_scales: the box coder's (sy, sx, sh, sw).

    Returns:
      float32 [..., 4], (ty, tx, th, tw).
    """
    sides, anchor_sides = boxes_px[..., 2:] - boxes_px[..., :2], anchors[..., 2:] - anchors[..., :2]
    offsets = ((boxes_px[..., :2] + boxes_px[..., 2:]) - (anchors[..., :2] + anchors[..., 2:])) / 2 / anchor_sides
    raw = np.concatenate([offsets, np.log(sides / anchor_sides)], axis=-1)
    return (raw * np.array(box_scales)).astype(np.float32)


def detect(
    raw_boxes: np.ndarray, raw_scores: np.ndarray, spec: ModelSpec, anchors: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What one patch shows. There is no cap on the number of objects.

    Scores come first and only survivors are decoded: of the tens of thousands of anchors of a patch, all but some hundreds are
    background, and their boxes need not exist.

    Args:
      raw_boxes: float [N, 4], (ty, tx, th, tw) of every anchor.
      raw_scores: float [N, K], logits of every anchor and class.
      spec: of the model that gave them.
      anchors: float32 [N, 4], `spec.anchors.boxes(spec.image_size)`; made once by the caller, used for every patch.

    Returns:
      (boxes_patch_px float32 [M, 4], scores float32 [M] in [spec.score_floor, 1], class_ids int32 [M] from 1), best score first.

    Raises:
      InputError: the shapes contradict the spec.
    """
    check_shapes(raw_boxes.shape, raw_scores.shape, spec)
    rows, columns = np.nonzero(raw_scores >= _least_logit(spec.score_floor))
    scores = sigmoid(raw_scores[rows, columns].astype(np.float32))
    alive = scores >= np.float32(spec.score_floor)
    rows, columns, scores = rows[alive], columns[alive], scores[alive]

    found = decode_boxes(raw_boxes[rows], anchors[rows], spec.box_scales)
    found = boxes.clip(found, spec.image_size, spec.image_size)
    solid = boxes.area(found) > 0  # a box beyond the patch shows nothing
    found, scores, class_ids = found[solid], scores[solid], (columns[solid] + 1).astype(np.int32)

    kept = boxes.nms(found, scores, spec.nms_iou, class_ids)
    return found[kept], scores[kept], class_ids[kept]


def check_shapes(boxes_shape: tuple[int, ...], scores_shape: tuple[int, ...], spec: ModelSpec) -> None:
    """Refuses raw heads that cannot belong to a spec.

    Args:
      boxes_shape: of one patch's or of a batch's `raw_boxes`.
      scores_shape: of their `raw_scores`.
      spec: what they should fit.

    Raises:
      InputError: prints both shapes and what the spec asks for.
    """
    count, classes = sum(spec.anchors.counts(spec.image_size).values()), len(spec.classes)
    if boxes_shape[-2:] != (count, 4) or scores_shape[-2:] != (count, classes) or boxes_shape[:-2] != scores_shape[:-2]:
        raise InputError(
            f"raw_boxes {list(boxes_shape)} and raw_scores {list(scores_shape)} do not fit model.json: "
            f"image_size={spec.image_size} with its anchors and {classes} classes asks for [..., {count}, 4] and "
            f"[..., {count}, {classes}]; "
            "export the model again with `rookery export`"
        )


def _least_logit(score_floor: float) -> float:
    """A logit such that every score of the floor or more lies above it."""
    if not 0 <= score_floor < 1:
        raise InputError(f"score_floor={score_floor} in model.json: must be from 0 to below 1")
    return -math.inf if score_floor == 0 else math.log(score_floor / (1 - score_floor)) - _LOGIT_SLACK
