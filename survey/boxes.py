"""Axis-aligned boxes as float arrays [N, 4] of (y0, x0, y1, x1), half-open, in pixels of whatever frame the caller names."""

from collections.abc import Iterator

import numpy as np

# Candidate pairs looked at in one go: 4 million of two boxes in float64 are a quarter of a gigabyte.
CHUNK = 1 << 22


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


def overlapping_pairs(
    a: np.ndarray, b: np.ndarray, a_group: np.ndarray | None = None, b_group: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of boxes that share area: time and memory grow with the pairs, not with N * M.

    The frame is divided into cells, a box lies in every cell that it touches, and boxes are compared with those of their
    cells. A pair that meets in several cells is taken where the upper left corner of the shared part lies, so none comes twice.

    Args:
      a: [N, 4].
      b: [M, 4].
      a_group: int [N], from 0; boxes of different groups, of different images for instance, are not compared. None for one group.
      b_group: int [M].

    Returns:
      (i, j, iou): indices into a and b and their IoU, each [P], sorted by i, then j.
    """
    nothing = np.zeros(0, int), np.zeros(0, int), paired_iou(a[:0], b[:0])
    mine, others = (np.flatnonzero(np.isfinite(one).all(axis=1) & (area(one) > 0)) for one in (a, b))
    if not len(mine) or not len(others):
        return nothing
    if a_group is None or b_group is None:
        a_group, b_group = np.zeros(len(a), int), np.zeros(len(b), int)
    both = np.concatenate([a[mine], b[others]])
    side = both[:, 2:] - both[:, :2]
    origin = both[:, :2].min(axis=0)
    span = float((both[:, 2:].max(axis=0) - origin).max())
    # With cells of the mean side and the mean area, at least, boxes touch four cells on average, at most, however their sizes
    # differ; and no more than 2**20 cells a side, so that the number of a cell fits 64 bits.
    cell = max(float(side.mean()), float(np.sqrt(side.prod(axis=1).mean())), span / (1 << 20))
    columns = int(span / cell) + 1
    a_box, a_cell = _touched(a, mine, a_group, origin, cell, columns)
    b_box, b_cell = _touched(b, others, b_group, origin, cell, columns)
    by_cell = np.argsort(b_cell, kind="stable")
    b_box, b_cell = b_box[by_cell], b_cell[by_cell]
    first, last = np.searchsorted(b_cell, a_cell, side="left"), np.searchsorted(b_cell, a_cell, side="right")
    found = [nothing]
    for rows, j in pairs_of_ranges(first, last):
        i, j = a_box[rows], b_box[j]
        corner = np.floor((np.maximum(a[i, :2], b[j, :2]) - origin) / cell).astype(np.int64)
        here = (a_group[i] * columns + corner[:, 0]) * columns + corner[:, 1] == a_cell[rows]
        i, j = i[here], j[here]
        value = paired_iou(a[i], b[j])
        found.append((i[value > 0], j[value > 0], value[value > 0]))
    i, j, value = (np.concatenate(part) for part in zip(*found, strict=True))
    order = np.lexsort((j, i))
    return i[order], j[order], value[order]


def pairs_of_ranges(first: np.ndarray, last: np.ndarray, at_once: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every (row, position) with first[row] <= position < last[row], in pieces.

    Args:
      first: int [N].
      last: int [N], not below `first`.
      at_once: pairs in a piece, about, by default `CHUNK`; a row is never divided.

    Yields:
      (rows, positions), int [P] each, ascending.
    """
    at_once = at_once or CHUNK
    ends = np.cumsum(last - first)
    start = 0
    while start < len(first):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + at_once, side="right")))
        number = (last - first)[start:stop]
        shift_by = np.repeat(first[start:stop] - (np.cumsum(number) - number), number)
        yield np.repeat(np.arange(start, stop), number), np.arange(len(shift_by)) + shift_by
        start = stop


def _touched(
    boxes: np.ndarray, chosen: np.ndarray, group: np.ndarray, origin: np.ndarray, cell: float, columns: int
) -> tuple[np.ndarray, np.ndarray]:
    """Every (box, number of a cell) where the box touches the cell."""
    low = np.floor((boxes[chosen, :2] - origin) / cell).astype(np.int64)
    high = np.floor((boxes[chosen, 2:] - origin) / cell).astype(np.int64)
    tall, wide = (np.minimum(high, columns - 1) - low + 1).T
    which = np.repeat(np.arange(len(chosen)), tall * wide)
    rank = np.arange(len(which)) - np.repeat(np.cumsum(tall * wide) - tall * wide, tall * wide)
    row, column = low[which, 0] + rank // wide[which], low[which, 1] + rank % wide[which]
    return chosen[which], (group[chosen[which]] * columns + row) * columns + column


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
    group = None if classes is None else np.unique(classes[order], return_inverse=True)[1]
    i, j, value = overlapping_pairs(ranked, ranked, group, group)
    rival = (j > i) & (value > iou_threshold)
    i, j = i[rival], j[rival]
    bounds = np.searchsorted(i, np.arange(len(order) + 1))
    kept = np.ones(len(order), bool)
    for rank in range(len(order)):
        if kept[rank]:
            kept[j[bounds[rank] : bounds[rank + 1]]] = False
    return order[kept]
