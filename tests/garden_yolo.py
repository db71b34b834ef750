"""Model Garden's YOLO labels and loss for the same boxes and heads as ours: what the tests of parity compare with."""

from typing import Any

import numpy as np
import tensorflow as tf
from official.projects.yolo.losses import yolo_loss
from official.projects.yolo.ops import anchor

from survey.heads import YoloHeads
from tpu_train.yolo.loss import LossSettings

# One level, two and three; sides that random boxes of 4 to 90 px meet.
HEADS = {
    "one": YoloHeads((4,), (((10, 14), (30, 22), (50, 60)),), "original", (1.05,)),
    "two": YoloHeads((3, 4), (((8, 12), (22, 16)), ((30, 34), (70, 55))), "scaled", (2.0, 2.0)),
    "three": YoloHeads(
        (3, 4, 5),
        (((7, 9), (14, 12), (12, 24)), ((25, 18), (28, 36), (48, 30)), ((40, 60), (75, 50), (90, 88))),
        "original",
        (1.2, 1.1, 1.05),
    ),
}


def batch(rng: np.random.Generator, counts: list[int], rows: int, size: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Random boxes float32 [B, rows, 4] in pixels and ids int32 [B, rows] from 1; rows after the count are padding."""
    boxes, ids = np.zeros((len(counts), rows, 4), np.float32), np.zeros((len(counts), rows), np.int32)
    for i, count in enumerate(counts):
        sides = rng.uniform(4, 90, (count, 2))
        low = rng.uniform(0, size - sides)
        boxes[i, :count] = np.concatenate([low, low + sides], axis=1)
        ids[i, :count] = rng.integers(1, classes + 1, count)
    return boxes, ids


def raw_heads(rng: np.random.Generator, heads: YoloHeads, images: int, size: int, classes: int) -> dict[int, np.ndarray]:
    """Random raw heads, float32, by level."""
    shapes = heads.shapes(size, classes)
    return {
        level: rng.normal(0, 1, (images, *shapes[f"raw_output_{level}"])).astype(np.float32) for level in heads.levels
    }  # fmt: skip


def labels(
    heads: YoloHeads,
    boxes: np.ndarray,
    classes: np.ndarray,
    size: int,
    *,
    match: float,
    best_only: bool = False,
    tie_breaker: bool = True,
    darknet: bool = True,
) -> dict[str, Any]:
    """Labels of a batch, as Model Garden's parser makes them image by image and its input stacks them."""
    scale_xy = heads.scale_xy or (1.0,) * len(heads.levels)
    labeler = anchor.YoloAnchorLabeler(
        anchors={str(level): [list(one) for one in each] for level, each in zip(heads.levels, heads.anchors_px, strict=True)},
        level_strides={str(level): 2**level for level in heads.levels},
        center_radius={str(level): scale for level, scale in zip(heads.levels, scale_xy, strict=True)},
        max_num_instances=400,
        match_threshold=match,
        best_matches_only=best_only,
        use_tie_breaker=tie_breaker,
        darknet=darknet,
    )
    parts = []
    for each, ids in zip(boxes, classes, strict=True):
        real = ids > 0
        parts.append(labeler(tf.constant(each[real] / size), tf.constant(ids[real] - 1, tf.float32), size, size))
    inds, upds, conf = ({key: tf.stack([part[i][key] for part in parts]) for key in parts[0][i]} for i in range(3))
    # The search leaves out the last 50 to 99 rows: give it a multiple of 50 and 50 more.
    rows = -(-boxes.shape[1] // 50) * 50 + 50
    padding = rows - boxes.shape[1]
    ids = np.where(classes > 0, classes - 1, -1)
    return {
        "inds": inds,
        "upds": upds,
        "true_conf": conf,
        "bbox": tf.constant(
            np.pad(np.where(classes[..., None] > 0, boxes / np.float32(size), 0), ((0, 0), (0, padding), (0, 0)))
        ),
        "classes": tf.constant(np.pad(ids, ((0, 0), (0, padding)), constant_values=-1), tf.float32),
    }


def loss(heads: YoloHeads, settings: LossSettings, classes: int) -> yolo_loss.YoloLoss:
    """Model Garden's loss with our settings."""
    keys = [str(level) for level in heads.levels]

    def every(value: Any) -> dict[str, Any]:
        return dict.fromkeys(keys, value)

    return yolo_loss.YoloLoss(
        keys=keys,
        classes=classes,
        anchors={key: [list(map(float, one)) for one in each] for key, each in zip(keys, heads.anchors_px, strict=True)},
        path_strides={key: 2**level for key, level in zip(keys, heads.levels, strict=True)},
        truth_thresholds=every(1.0),
        ignore_thresholds=every(settings.ignore_threshold),
        loss_types=every(settings.box_loss),
        iou_normalizers=every(settings.box_weight),
        cls_normalizers=every(settings.class_weight),
        object_normalizers=dict(zip(keys, settings.object_weights or (1.0,) * len(keys), strict=True)),
        objectness_smooths=every(settings.objectness_smoothing),
        box_types=every(heads.box_type),
        max_deltas=every(settings.largest_box_gradient),
        scale_xys=dict(zip(keys, heads.scale_xy or (1.0,) * len(keys), strict=True)),
        label_smoothing=settings.label_smoothing,
        use_scaled_loss=settings.scaled,
        update_on_repeat=settings.update_on_repeat,
    )
