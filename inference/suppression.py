"""Which of the boxes on one object stay: greedy non-maximum suppression of one image's candidates, and its soft variants.

Candidates are walked from the best score down. In the hard variants a box goes when its IoU with a box that stays is above the
threshold; "class" compares boxes of one class only, "agnostic" all. Soft-NMS (Bodla et al. 2017,
https://arxiv.org/abs/1704.04503, eq. 3 and the Gaussian below it) lowers its score instead, for every box M that stays, within
its class, and the next best is chosen by the lowered scores:

    soft_linear    s <- s * (1 - IoU(M, b))  where IoU(M, b) >= the threshold
    soft_gaussian  s <- s * exp(-IoU(M, b)^2 / SIGMA)
"""

import math
from collections.abc import Iterator

import numpy as np

from survey import boxes as box_math

CLASS, AGNOSTIC, SOFT_LINEAR, SOFT_GAUSSIAN = "class", "agnostic", "soft_linear", "soft_gaussian"
METHODS = (CLASS, AGNOSTIC, SOFT_LINEAR, SOFT_GAUSSIAN)

SIGMA = 0.5  # of soft_gaussian, as in the paper's experiments

# Candidates of a group that are settled at once: few, so that the best remove most others before those are compared at all.
_BLOCK = 8
_FEW = 24  # but groups as small as this are settled whole: one look at all pairs costs less than three at some
_AT_ONCE = 1024  # candidates settled at once where there are few groups
_SPREAD_AT_ONCE, _SPREAD_EACH = 2048, 512  # and where only neighbours are compared, and of these a group
_PRICE, _PRICE_EACH = 128, 16  # of that, in comparisons of all with all
_BINS = 16  # of longer sides, by a factor of 2: from an image down to a pixel, and some more
_WINDOW_ROWS = 4  # of a grid, that the neighbours of a box lie in
_CELLS_PER_BOX, _CELLS_MORE = 1, 1 << 13  # of all grids together: counting them is to cost less than the boxes do
_PAIRS = 1 << 15  # pairs of neighbours in one array, likewise
_CELLS = 1 << 18  # pairs in one array, so that it stays in the processor's cache


def hard(boxes: np.ndarray, scores: np.ndarray, groups: np.ndarray | None, iou_threshold: float) -> np.ndarray:
    """Greedy suppression, block by block: the same boxes as one by one, with arrays instead of a loop over boxes.

    The best few of each group are settled first; what stays of them removes its rivals from all the others; and so on. Within a
    block, a box stays unless a better one that stays is too close. Starting from "all stay" and applying that sentence until
    nothing changes settles at least one more box a round, the best first, so it ends with the greedy answer; as a rule after two
    or three rounds (Model Garden's official/vision/ops/nms.py does the same in tiles). Where many boxes lie on one object, a
    block removes most of the others. Where it does not, boxes lie apart, and only neighbours are compared.

    Args:
      boxes: float32 [N, 4], yxyx.
      scores: float32 [N]; ties go to the smaller index.
      groups: int [N], from 0; boxes of different groups (images, classes) never suppress each other. None to compare all.
      iou_threshold: a box goes when its IoU with one that stays is above this.

    Returns:
      Indices of the boxes that stay, best first.
    """
    if groups is None:
        groups = np.zeros(len(scores), int)
    order = _best_first(scores, groups)
    kept = np.sort(order[_stays(boxes[order], groups[order], iou_threshold)])
    return kept[_best_first(scores[kept], np.zeros(len(kept), int))]


def soft(
    boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, iou_threshold: float, score_floor: float, method: str
) -> tuple[np.ndarray, np.ndarray]:
    """Soft-NMS within each class; the formulas stand at the top of this module.

    Args:
      boxes: float32 [N, 4], yxyx.
      scores: float32 [N]; ties go to the smaller index.
      classes: int [N].
      iou_threshold: from this IoU on, soft_linear lowers a score; soft_gaussian has no threshold.
      score_floor: a box goes when its lowered score is below this.
      method: "soft_linear" or "soft_gaussian".

    Returns:
      (indices of the boxes that stay, their lowered scores float32), best first.
    """
    left, lowered = np.flatnonzero(scores >= score_floor), scores.astype(np.float32).copy()
    kept = []
    while len(left):
        best = left[np.argmax(lowered[left])]
        kept.append(best)
        left = left[left != best]
        rivals = left[classes[left] == classes[best]]
        overlap = box_math.iou(boxes[best][None], boxes[rivals])[0]
        lowered[rivals] *= weights(overlap, iou_threshold, method)
        left = left[lowered[left] >= score_floor]
    chosen = np.array(kept, np.intp)
    return chosen, lowered[chosen]


def weights(iou: np.ndarray, iou_threshold: float, method: str) -> np.ndarray:
    """What a score is multiplied by, float32 [N], for the IoU [N] with a better box."""
    if method == SOFT_LINEAR:
        return np.where(iou >= np.float32(iou_threshold), 1 - iou, 1).astype(np.float32)
    return np.exp(-np.square(iou) / np.float32(SIGMA)).astype(np.float32)


def _stays(boxes: np.ndarray, groups: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Which boxes stay, bool [N]; boxes [N, 4] group by group, groups [N] ascending, in each the best first."""
    planes = _planes(boxes)
    stays = np.zeros(len(boxes), bool)
    left, each = np.arange(len(boxes)), _BLOCK
    near: _Near | None = None
    while len(left):
        starts = np.flatnonzero(np.diff(groups[left], prepend=-1))
        sizes = np.diff(starts, append=len(left))
        each = max(each, _FEW) if sizes.max() <= _FEW else each
        in_block = np.arange(len(left)) - np.repeat(starts, sizes) < each
        rest = left[~in_block]
        if near:
            block = left[in_block]
            settled = block[_settled_apart(near, block)]
            gone = np.zeros(len(boxes), bool)
            if len(rest):
                for _, worse in near.pairs(settled, rest):
                    gone[worse] = True
            left = rest[~gone[rest]]
        else:
            settled, gone = _settled_together(planes, left, starts, sizes, each, iou_threshold)
            left = left[~(in_block | gone)]
        stays[settled] = True
        # A box that stays is compared with all others of its group, or with its neighbours at a price of some, and of some for
        # each that it removes. The best boxes of few objects remove many others each; boxes that lie apart do not.
        if near is None and len(left) > _AT_ONCE:
            removed = (len(rest) - len(left)) / len(settled)
            if _PRICE + _PRICE_EACH * removed < len(rest) / len(starts) or removed < 2:
                near = _Near(planes, groups, iou_threshold)
        each = min(_SPREAD_AT_ONCE // len(starts), _SPREAD_EACH) if near else min(_AT_ONCE // len(starts), 12 * _BLOCK)
        each = max(each, _BLOCK)
    return stays


def _settled_together(
    planes: np.ndarray, left: np.ndarray, starts: np.ndarray, sizes: np.ndarray, each: int, iou_threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Settles the first `each` of each group, comparing all with all.

    Args:
      planes: float32 [5, N], of `_planes`.
      left: int [L], the boxes that are left, group by group.
      starts: int [G], where each group begins in `left`.
      sizes: int [G], how many each has there.
      each: how many of each group.
      iou_threshold: as in `hard`.

    Returns:
      (those that stay, int [S]; which of `left` are too close to one of them, bool [L]).
    """
    settled, gone = [], np.zeros(len(left), bool)
    by_size = np.argsort(sizes, kind="stable")  # groups of like sizes together: less padding
    start = 0
    while start < len(by_size):
        room = np.flatnonzero(sizes[by_size[start:]] * np.arange(1, len(by_size) - start + 1) * each <= _CELLS)
        some = by_size[start : start + max(1, len(room))]
        start += len(some)
        places = starts[some, None] + np.arange(min(each, sizes[some].max()))  # [G, E]
        there = places < (starts + sizes)[some, None]
        first = planes[:, left[np.minimum(places, len(left) - 1)]]
        close = _close(first[:, :, :, None], first[:, :, None, :], iou_threshold)
        close &= np.triu(np.ones(close.shape[1:], bool), k=1)
        before, stays = np.zeros(0, bool), there
        while not np.array_equal(before, stays):
            before, stays = stays, there & ~(close & stays[:, :, None]).any(axis=1)
        settled.append(left[places[stays]])
        others = starts[some, None] + np.arange(each, max(each, sizes[some].max()))  # [G, M]
        there = others < (starts + sizes)[some, None]
        most = int(stays.sum(axis=1).max())
        front = np.argsort(~stays, axis=1, kind="stable")[:, :most]  # [G, S]
        winners = np.where(np.take_along_axis(stays, front, 1), np.take_along_axis(first, front[None], 2), np.float32(0))
        rivals = planes[:, left[np.minimum(others, len(left) - 1)]]
        hit = _close(winners[:, :, :, None], rivals[:, :, None, :], iou_threshold).any(axis=1)
        gone[others[hit & there]] = True
    return np.concatenate(settled), gone


def _settled_apart(near: "_Near", block: np.ndarray) -> np.ndarray:
    """Which of a block stay, bool [B], comparing neighbours only; block ascending, and so the best of each group first."""
    place = np.zeros(near.boxes, int)
    place[block] = np.arange(len(block))
    better, worse = (place[np.concatenate(part)] for part in zip(*near.pairs(block), strict=True))
    before, stays = np.zeros(0, bool), np.ones(len(block), bool)
    while not np.array_equal(before, stays):
        before, stays = stays, np.ones(len(block), bool)
        stays[worse[before[better]]] = False
    return stays


class _Near:
    """Finds the pairs of boxes that are too close without a look at all pairs.

    An IoU above t needs the sides of both boxes to share more than t of their common length, in y and in x. So their longer sides
    differ by a factor of 1 / t at most, and for sides of m and n the centres are at most (m + n) / 2 * (1 - t) / (1 + t) apart.
    Boxes are sorted by their longer sides into bins of a factor, each with a grid of its own, coarser for larger boxes. They are
    put into its cells once, and what is left of them later keeps that order.

    Args:
      planes: float32 [5, N], of `_planes`.
      groups: int [N], ascending.
      iou_threshold: as in `hard`.
    """

    def __init__(self, planes: np.ndarray, groups: np.ndarray, iou_threshold: float) -> None:
        self.boxes = planes.shape[1]
        self._planes, self._iou_threshold = planes, iou_threshold
        self._reach = 1.001 * (1 - iou_threshold) / (1 + iou_threshold) + 1e-6  # a little more, for rounding
        self._groups = np.cumsum(np.diff(groups, prepend=groups[:1]) > 0)
        centers = (planes[:2].astype(np.float64) + planes[2:4]) / 2
        self._centers = centers - centers.min(axis=1, keepdims=True)
        self._longest = (planes[2:4] - planes[:2]).max(axis=0).astype(np.float64)
        span, largest = float(self._centers.max()), max(float(self._longest.max()), float(np.finfo(np.float32).tiny))
        # Counted down from the largest, the last for all that are smaller still. Of boxes of any ratio: one bin.
        factor, bins = max(2.0, 1 / max(iou_threshold, 1e-3)), _BINS
        if factor > _BINS:
            bins = 1
        ratio = np.log(largest / np.maximum(self._longest, largest * factor**-bins)) / np.log(factor)
        self._bins = np.minimum(ratio.astype(int), bins - 1)
        self._tops = largest * factor ** -np.arange(bins, dtype=np.float64)  # the largest longer side of each bin
        # A neighbour's longer side is `factor` times the top at most: no window is higher than three cells, or touches five rows.
        most = max(1, int(math.sqrt((_CELLS_PER_BOX * self.boxes + _CELLS_MORE) / (bins * (int(self._groups[-1]) + 1)))))
        self._cells = np.maximum(1.0001 * self._reach * self._tops * (factor + 1) / 3, 1.0001 * span / most)
        self._rows = (span / self._cells).astype(int) + 1
        each = self._rows * self._rows
        self._first = np.cumsum(each * (self._groups[-1] + 1)) - each * (self._groups[-1] + 1)
        self._number = int((each * (self._groups[-1] + 1)).sum())
        row, column = (self._centers / self._cells[self._bins]).astype(int)
        rows = self._rows[self._bins]
        self._cell = self._first[self._bins] + (self._groups * rows + row) * rows + column
        bits = self.boxes.bit_length()
        self._order = np.sort(self._cell << bits | np.arange(self.boxes)) & ((1 << bits) - 1)

    def pairs(self, a: np.ndarray, b: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All pairs of one of a [A] and one of b [B] of the same group that are too close, in pieces, one at least.

        Without b, the pairs within a, each once, the smaller index first.
        """
        there = np.zeros(self.boxes, bool)
        there[a if b is None else b] = True
        others = self._order[there[self._order]]
        ends = np.cumsum(np.bincount(self._cell[others] + 1, minlength=self._number + 1))
        # Of three bins, the own and both beside it, four rows each. Within a, the larger one of two bins looks for the smaller.
        bins = self._bins[a] + np.array([[-1], [0], [1]] if b is not None else [[0], [1]])  # [3 or 2, A]
        known = (bins >= 0) & (bins < len(self._tops))
        bins = np.clip(bins, 0, len(self._tops) - 1)
        size, rows = self._cells[bins], self._rows[bins]
        reach = self._reach / 2 * (self._longest[a] + self._tops[bins])
        low, high = (self._centers[:, None, a] - reach) / size, (self._centers[:, None, a] + reach) / size
        (row, column), (last_row, last_column) = np.maximum(low, 0).astype(int), np.minimum(high.astype(int), rows - 1)
        last_row[~known] = -1
        row = row + np.arange(_WINDOW_ROWS)[:, None, None]  # [4, 3 or 2, A]
        which = np.flatnonzero(row <= last_row)
        start = self._first[bins] + self._groups[a] * rows * rows
        first, last = ((start + row * rows + x).ravel()[which] for x in (column, last_column + 1))
        first, last = ends[first], ends[last]
        some = np.flatnonzero(first < last)
        mine, beside = a[which[some] % len(a)], which[some] // len(a) % 2 == 1  # whether in the smaller bin, of two
        yield np.zeros(0, int), np.zeros(0, int)
        my_planes, their_planes = self._planes.take(mine, axis=1), self._planes.take(others, axis=1)
        for ranges, places in box_math.pairs_of_ranges(first[some], last[some], _PAIRS):
            if b is None:
                once = np.flatnonzero((mine[ranges] < others[places]) | beside[ranges])
                ranges, places = ranges[once], places[once]
            close = _close(my_planes.take(ranges, axis=1), their_planes.take(places, axis=1), self._iou_threshold)
            i, j = mine[ranges[close]], others[places[close]]
            yield (np.minimum(i, j), np.maximum(i, j)) if b is None else (i, j)


def _best_first(scores: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Indices by group, then by score from the best down, then by index: numpy.lexsort's answer in a tenth of its time.

    Group, score and index make one integer, and integers are what numpy sorts fastest. The bits of a float32 that is not negative
    grow with it; those of a negative one, all turned over, too.
    """
    bits = np.maximum(len(scores), 1).item().bit_length()
    if not len(scores) or int(groups.max()).bit_length() + 32 + bits > 63:
        return np.lexsort((-scores, groups))
    as_int = (scores.astype(np.float32) + np.float32(0)).view(np.int32).astype(np.int64)  # + 0: -0 becomes 0
    rising = np.where(as_int < 0, -0x80000000 - as_int, as_int)
    key = (groups.astype(np.int64) << 32) + (0x7FFFFFFF - rising)
    chosen: np.ndarray = np.sort(key << bits | np.arange(len(scores))) & ((1 << bits) - 1)
    return chosen


def _planes(boxes: np.ndarray) -> np.ndarray:
    """y0, x0, y1, x1 and the area of boxes [N, 4], float32 [5, N]."""
    y0, x0, y1, x1 = boxes.astype(np.float32).T
    return np.stack([y0, x0, y1, x1, (y1 - y0) * (x1 - x0)])


def _close(a: np.ndarray, b: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Whether the IoU is above the threshold, of `_planes` a with b, broadcast. Arrays are used again: here most time goes."""
    shared, low = np.minimum(a[2], b[2]), np.maximum(a[0], b[0])
    shared -= low
    wide, low = np.minimum(a[3], b[3]), np.maximum(a[1], b[1], out=low)
    wide -= low
    np.maximum(shared, 0, out=shared)
    shared *= np.maximum(wide, 0, out=wide)
    union = np.add(a[4], b[4], out=wide)
    union -= shared
    with np.errstate(invalid="ignore"):  # two empty boxes: 0 / 0 is not above any threshold
        shared /= union
    close: np.ndarray = shared > np.float32(iou_threshold)
    return close
