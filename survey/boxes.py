"""Axis-aligned boxes as float arrays [N, 4] of (y0, x0, y1, x1), half-open, in pixels of whatever frame the caller names."""

import numpy as np


def area(boxes: np.ndarray) -> np.ndarray:
    """Areas in square pixels, [N]; 0 for boxes turned inside out."""
    size = np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0)
    return size[:, 0] * size[:, 1]


def centers(boxes: np.ndarray) -> np.ndarray:
    """Centres (y, x), [N, 2]."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def shift(boxes: np.ndarray, dy: float, dx: float) -> np.ndarray:
    """Boxes moved by (dy, dx): from patch to mosaic pixels with the patch's first row and column."""
    return boxes + np.array([dy, dx, dy, dx], boxes.dtype)


def clip(boxes: np.ndarray, height: float, width: float) -> np.ndarray:
    """The part of each box inside a frame of height x width; a box outside it becomes empty, on the border."""
    return np.clip(boxes, 0, np.array([height, width, height, width], boxes.dtype))


def inside(points: np.ndarray, y0: float, x0: float, y1: float, x1: float) -> np.ndarray:
    """Which of the (y, x) points [N, 2] lie in the half-open rectangle, [N] bool."""
    y, x = points[:, 0], points[:, 1]
    return (y >= y0) & (y < y1) & (x >= x0) & (x < x1)


def paired_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of a[i] with b[i], [N], in [0, 1]; 0 where both are empty."""
    size = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    shared = np.prod(np.maximum(size, 0.0), axis=1)
    union = area(a) + area(b) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of every a [N, 4] with every b [M, 4], as [N, M]. For many boxes use `overlapping_pairs`."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0.0), axis=2)
    union = area(a)[:, None] + area(b)[None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def overlapping_pairs(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of boxes that share area, found by a sweep down the rows: memory grows with the pairs, not with N * M.

    Args:
      a: [N, 4].
      b: [M, 4].

    Returns:
      (i, j, iou): indices into a and b and their IoU, each [P], sorted by i, then j.
    """
    order = np.argsort(b[:, 0], kind="stable")
    tops = b[order, 0]
    tallest = float((b[:, 2] - b[:, 0]).max()) if len(b) else 0.0
    first = np.searchsorted(tops, a[:, 0] - tallest, side="left")
    last = np.searchsorted(tops, a[:, 2], side="left")
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for i in range(len(a)):
        j = order[first[i] : last[i]]
        near = b[j]
        j = np.sort(j[(near[:, 2] > a[i, 0]) & (near[:, 1] < a[i, 3]) & (near[:, 3] > a[i, 1])])
        value = paired_iou(np.broadcast_to(a[i], (len(j), 4)), b[j])
        keep = value > 0
        found.append((np.full(int(keep.sum()), i), j[keep], value[keep]))
    if not found:
        return np.zeros(0, int), np.zeros(0, int), np.zeros(0)
    rows, columns, values = zip(*found, strict=True)
    return np.concatenate(rows), np.concatenate(columns), np.concatenate(values)


def nms(boxes: np.ndarray, scores: np.ndarray, iou_threshold: float, classes: np.ndarray | None = None) -> np.ndarray:
    """Greedy non-maximum suppression, without a cap on the number of boxes.

    Args:
      boxes: [N, 4].
      scores: [N]; ties go to the smaller index.
      iou_threshold: a box is dropped when its IoU with a kept box of higher score is above this.
      classes: [N]; boxes of different classes never suppress each other. None for class-agnostic.

    Returns:
      Indices of the kept boxes, highest score first.
    """
    order = np.lexsort((np.arange(len(scores)), -scores))
    ranked = boxes[order]
    i, j, value = overlapping_pairs(ranked, ranked)
    rival = (j > i) & (value > iou_threshold)
    if classes is not None:
        rival &= classes[order][i] == classes[order][j]
    i, j = i[rival], j[rival]
    bounds = np.searchsorted(i, np.arange(len(order) + 1))
    kept = np.ones(len(order), bool)
    for rank in range(len(order)):
        if kept[rank]:
            kept[j[bounds[rank] : bounds[rank + 1]]] = False
    return order[kept]
