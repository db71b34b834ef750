"""Which of the boxes on one object stay: greedy non-maximum suppression of one image's candidates, and its soft variants.

Candidates are walked from the best score down. In the hard variants a box goes when its IoU with a box that stays is above the
threshold; "class" compares boxes of one class only, "agnostic" all. Soft-NMS (Bodla et al. 2017,
https://arxiv.org/abs/1704.04503, eq. 3 and the Gaussian below it) lowers its score instead, for every box M that stays, within
its class, and the next best is chosen by the lowered scores:

    soft_linear    s <- s * (1 - IoU(M, b))  where IoU(M, b) >= the threshold
    soft_gaussian  s <- s * exp(-IoU(M, b)^2 / SIGMA)
"""

from collections.abc import Iterator

import numpy as np

from survey import boxes as box_math

CLASS, AGNOSTIC, SOFT_LINEAR, SOFT_GAUSSIAN = "class", "agnostic", "soft_linear", "soft_gaussian"
METHODS = (CLASS, AGNOSTIC, SOFT_LINEAR, SOFT_GAUSSIAN)

SIGMA = 0.5  # of soft_gaussian, as in the paper's experiments

# Candidates of a group that are settled at once: few, so that the best remove most others before those are compared at all.
_BLOCK = 8
_AT_ONCE = 1024  # candidates settled at once where there are few groups
_SPREAD_AT_ONCE = 16384  # and where they are spread out, so that few of them are compared
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
    order = np.lexsort((-scores, groups))  # stable: of equal scores the smaller index comes first
    kept = np.sort(order[_stays(boxes[order], groups[order], iou_threshold)])
    return kept[np.argsort(-scores[kept], kind="stable")]


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
    left, each, spread = np.arange(len(boxes)), _BLOCK, False
    while len(left):
        starts = np.flatnonzero(np.diff(groups[left], prepend=-1))
        sizes = np.diff(starts, append=len(left))
        in_block = np.arange(len(left)) - np.repeat(starts, sizes) < each
        rest = left[~in_block]
        if spread:
            block = left[in_block]
            settled = block[_settled_apart(planes, groups, block, iou_threshold)]
            gone = np.zeros(len(boxes), bool)
            if len(rest):
                for _, worse in _near(planes, groups, settled, rest, iou_threshold):
                    gone[worse] = True
            left = rest[~gone[rest]]
        else:
            settled, gone = _settled_together(planes, left, starts, sizes, each, iou_threshold)
            left = left[~(in_block | gone)]
        stays[settled] = True
        # The best boxes of objects remove many others each; boxes that lie apart do not.
        spread = spread or (len(left) > _AT_ONCE and len(rest) - len(left) < 2 * len(settled))
        each = _SPREAD_AT_ONCE // len(starts) if spread else min(_AT_ONCE // len(starts), 12 * _BLOCK)
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


def _settled_apart(planes: np.ndarray, groups: np.ndarray, block: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Which of a block stay, bool [B], comparing neighbours only; block ascending, and so the best of each group first."""
    none = np.zeros(0, int)
    pairs = [(none, none), *_near(planes, groups, block, None, iou_threshold)]
    better, worse = (np.searchsorted(block, np.concatenate(part)) for part in zip(*pairs, strict=True))
    before, stays = np.zeros(0, bool), np.ones(len(block), bool)
    while not np.array_equal(before, stays):
        before, stays = stays, np.ones(len(block), bool)
        stays[worse[before[better]]] = False
    return stays


def _near(
    planes: np.ndarray, groups: np.ndarray, a: np.ndarray, b: np.ndarray | None, iou_threshold: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of one of a [A] and one of b [B] of the same group that are too close, in pieces.

    Without b, the pairs within a, each once, the smaller index first.

    An IoU above t needs the sides of both boxes to share more than t of their common length, in y and in x. So their longer sides
    differ by a factor of 1 / t at most, and for sides of m and n the centres are at most (m + n) / 2 * (1 - t) / (1 + t) apart.
    Boxes are sorted by their longer sides into bins of a factor, and looked for in a grid of that distance.
    """
    centers = (planes[:2].astype(np.float64) + planes[2:4]) / 2
    longest = (planes[2:4] - planes[:2]).max(axis=0)
    factor = max(2.0, 1 / max(iou_threshold, 1e-3))
    bins = np.floor(np.log(np.maximum(longest, np.finfo(np.float32).tiny)) / np.log(factor)).astype(int)
    reach = 1.001 * (1 - iou_threshold) / (1 + iou_threshold) + 1e-6  # a little more, for rounding
    within = b is None
    b = a if b is None else b
    low = centers[:, b].min(axis=1, keepdims=True)
    for one in np.unique(bins[b]):
        for other in (one, one + 1) if within else (one - 1, one, one + 1):
            theirs, mine = b[bins[b] == one], a[bins[a] == other]
            if not len(mine):
                continue
            cell = reach * (factor ** (one + 1) + factor ** (other + 1)) / 2
            (row, column), (their_row, their_column) = (
                np.floor((centers[:, which] - low) / cell).astype(np.int64) for which in (mine, theirs)
            )
            # Two empty rows and columns, so that a step beyond the last cell does not lead to another row or group.
            rows, columns = (int(max(x.max(), y.max())) + 3 for x, y in ((row, their_row), (column, their_column)))
            key = (groups[mine] * rows + row) * columns + column
            their_key = (groups[theirs] * rows + their_row) * columns + their_column
            # Sorted by cell, so that both the search and the boxes that it finds are near in memory.
            by_key, by_their_key = np.argsort(key, kind="stable"), np.argsort(their_key, kind="stable")
            mine, key, theirs, their_key = mine[by_key], key[by_key], theirs[by_their_key], their_key[by_their_key]
            steps = np.array([[-1], [0], [1]]) * columns  # the row above, the same and the row below
            first = np.searchsorted(their_key, key + steps - 1, side="left")
            last = np.searchsorted(their_key, key + steps + 1, side="right")
            if within and one == other:  # each pair once: what comes later in the row, and the row below
                first[1], last[0] = np.arange(len(mine)) + 1, first[0]
            my_planes, their_planes = planes[:, mine], planes[:, theirs]
            for ranges, places in box_math.pairs_of_ranges(first.ravel(), last.ravel()):
                ranges %= len(mine)
                close = _close(my_planes.take(ranges, axis=1), their_planes.take(places, axis=1), iou_threshold)
                i, j = mine[ranges[close]], theirs[places[close]]
                yield (np.minimum(i, j), np.maximum(i, j)) if within else (i, j)


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
