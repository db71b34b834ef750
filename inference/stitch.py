"""From what single patches saw to what the mosaic holds: each object once, no two objects fused.

*Ownership.* A patch owns what has its centre in the patch's core; cores tile the mosaic. A patch hands on its boxes that reach
into its core (`claims`): those it owns, and those whose centre it believes to lie just across a seam.

*Views.* Boxes of one class in different patches are views of one object when they agree (`agreement`): their IoU is above
`nms_iou`, or they were cut by the edges of their patches and what is left of them *within the pixels that both patches saw*
has an IoU above it. Two patches can only disagree about what both saw, so a fragment is compared with the same fragment of the
whole box, and not with the whole; and a box counts as a fragment only where its patch really ends, so a small object beside a
large one is never taken for a piece of it.

*Objects.* Views are grouped from the best agreement down, and a group takes in another only when all their boxes agree and no
patch has a box in both: two boxes that one patch told apart are two objects. A group is kept if one of its patches owns the
centre of one of its boxes. So
  - an owner's word counts: what it does not see where it sees best is not taken from a neighbour that saw it in its halo;
  - two patches that both see an object a pixel across the seam, each in the other's core, do not lose it between them;
  - two that both see it a pixel on their own side count it once, with the higher score.
The kept box is the owner's; if its patch cut it and another saw it whole, that whole box; if all cut it (an object larger than
the overlap), the hull of all views. Patches without overlap share no pixels: there, an object on a seam stays in two pieces.

Nothing here depends on the order or the grouping in which the patches were searched.
"""

import numpy as np

from survey import boxes
from survey.detections import Detections
from survey.geometry import PatchGrid, Window

# A box is cut by its patch when it ends within this share of its own side from the patch's edge. Detectors place the sides of a
# fragment about as well as any other: an IoU of 0.7 to 0.8 with the truth is some 10 % of a side.
CUT_TOLERANCE = 0.1
CUT_TOLERANCE_PX = 2.0  # and at least this, for small objects

# Pairs looked at in one piece: some 500 MB of arrays.
CANDIDATES_AT_ONCE = 2_000_000


def claims(boxes_mosaic_px: np.ndarray, core: Window) -> np.ndarray:
    """Which boxes a patch hands on: those that share area with its core.

    Args:
      boxes_mosaic_px: [N, 4].
      core: of the patch, in mosaic pixels.

    Returns:
      [N] bool. A box with its centre in the core is always among them.
    """
    y0, x0, y1, x1 = boxes_mosaic_px.T
    return (y0 < core.y1) & (y1 > core.y0) & (x0 < core.x1) & (x1 > core.x0)


def owners(boxes_mosaic_px: np.ndarray, grid: PatchGrid) -> np.ndarray:
    """The patch whose core holds each box's centre, [N], numbered within the mosaic."""
    center = boxes.centers(boxes_mosaic_px)
    tops = [grid.core(row, 0).y0 for row in range(grid.rows)]
    lefts = [grid.core(0, column).x0 for column in range(grid.columns)]
    row = np.searchsorted(tops, center[:, 0], side="right") - 1
    column = np.searchsorted(lefts, center[:, 1], side="right") - 1
    return row * grid.columns + column


def stitch(claimed: Detections, grid: PatchGrid, *, first_patch_id: int, nms_iou: float) -> tuple[Detections, dict[str, int]]:
    """The objects of one mosaic.

    Args:
      claimed: what its patches handed on, in any order, inside the mosaic; `patch_ids` are the patches that saw it.
      grid: of the mosaic.
      first_patch_id: number of the grid's first patch.
      nms_iou: views that overlap more than this are one object; the patches' own suppression used the same.

    Returns:
      (objects best score first, `patch_ids` now the patches that own them; counters by reason).
    """
    claimed = _ordered(claimed)
    seen_by = claimed.patch_ids - first_patch_id
    windows = _windows(grid)[seen_by]
    owned_by = owners(claimed.boxes_mosaic_px, grid)
    owned: np.ndarray = owned_by == seen_by

    found = claimed.boxes_mosaic_px.astype(np.float64)
    pairs, agreements = _links(found, claimed.class_ids, seen_by, windows, grid, nms_iou)
    groups = _groups(pairs, agreements, seen_by, windows)
    keep = owned.copy()
    merged = rescued = 0
    # Plain lists: a dense survey has tens of thousands of groups of two, and numpy takes longer to begin than Python to end.
    is_owned, owner, patch = owned.tolist(), owned_by.tolist(), seen_by.tolist()
    cut = set(np.flatnonzero(_cut_sides(found, windows, grid).any(axis=1)).tolist())
    for group in groups:
        keep[group] = False
        if {owner[i] for i in group}.isdisjoint(patch[i] for i in group):
            continue
        ranked = sorted(group, key=lambda i: (not is_owned[i], i))  # owners first, then by score: `claimed` is in that order
        best = ranked[0]
        whole = next((i for i in ranked if i not in cut), None)
        if whole != best:
            found[best] = _hull(found[group]) if whole is None else found[whole]
        keep[best] = True
        merged += len(group) - 1
        rescued += not is_owned[best]
    counters = {
        "detections_claimed": len(claimed),
        "detections_merged_at_seams": merged,
        "detections_disowned": len(claimed) - merged - int(keep.sum()),  # seen in a halo, not by the owner
        "objects_between_owners": rescued,  # each patch saw the centre in the other's core
    }
    objects = Detections(found[keep].astype(np.float32), claimed.scores[keep], claimed.class_ids[keep], claimed.patch_ids[keep])
    home = owners(objects.boxes_mosaic_px, grid) + first_patch_id
    return _ordered(Detections(objects.boxes_mosaic_px, objects.scores, objects.class_ids, home)), counters


def agreement(a: np.ndarray, b: np.ndarray, a_windows: np.ndarray, b_windows: np.ndarray) -> np.ndarray:
    """How much two patches agree that a[i] and b[i] are one object.

    Args:
      a: boxes [P, 4] in mosaic pixels.
      b: as many, each seen by another patch than its partner in a.
      a_windows: [P, 4], the pixels that the patches of a saw.
      b_windows: the same for b.

    Returns:
      [P] in [0, 1]: the IoU, or the IoU within the pixels that both saw where that explains the difference.
    """
    plain = boxes.paired_iou(a, b)
    shared = _intersect(a_windows, b_windows)
    within = boxes.paired_iou(_intersect(a, shared), _intersect(b, shared))
    # Where a goes on beyond what b's patch saw, b must end where its patch ends; and the other way round.
    explained = (~_beyond(a, b_windows) | _at_edge(b, b_windows)).all(axis=1)
    explained &= (~_beyond(b, a_windows) | _at_edge(a, a_windows)).all(axis=1)
    return np.where(explained, np.maximum(plain, within), plain)


def _links(
    found: np.ndarray, class_ids: np.ndarray, seen_by: np.ndarray, windows: np.ndarray, grid: PatchGrid, nms_iou: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of views of one object: (indices [P, 2] with the smaller first, agreements [P]), best agreement first."""
    cores = _cores(grid)[seen_by]
    # Boxes inside their cores cannot meet each other, since cores do not: one of a pair reaches over its seam.
    reaching = np.flatnonzero((found[:, :2] < cores[:, :2]).any(axis=1) | (found[:, 2:] > cores[:, 2:]).any(axis=1))
    i, j = _meeting(reaching, found, class_ids, seen_by, grid)
    value = agreement(found[i], found[j], windows[i], windows[j])
    agree = value > nms_iou
    pairs, value = np.stack([i, j], axis=1)[agree], value[agree]
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -value))
    return pairs[order], value[order]


def _meeting(
    some: np.ndarray, found: np.ndarray, class_ids: np.ndarray, seen_by: np.ndarray, grid: PatchGrid
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of boxes of one class and two patches that share area, one of them at least among `some`: i < j, each pair once.

    A sweep down the rows of strips as wide as a patch, all at once: each box stands in every strip that it touches, and meets
    those whose first row lies within it, or above it by less than the tallest box.
    """
    number, height, wide = len(found), grid.height + 1, grid.patch_size
    box, strip = _in_strips(np.arange(number), found, wide)
    key = strip * height + found[box, 0]
    order = np.argsort(key, kind="stable")
    box, key = box[order], key[order]
    tallest = float((found[:, 2] - found[:, 0]).max(initial=0.0))
    mine, strip = _in_strips(some, found, wide)
    first = np.searchsorted(key, strip * height + np.maximum(found[mine, 0] - tallest, 0.0), side="left")
    last = np.searchsorted(key, strip * height + found[mine, 2], side="left")
    length = np.maximum(last - first, 0)
    codes = [np.zeros(0, np.int64)]
    # In pieces, so that memory grows with the pairs and not with the candidates.
    for piece in np.split(np.arange(len(mine)), np.flatnonzero(np.diff(np.cumsum(length) // CANDIDATES_AT_ONCE)) + 1):
        total = length[piece]
        i = np.repeat(mine[piece], total)
        j = box[np.repeat(first[piece] - (np.cumsum(total) - total), total) + np.arange(total.sum())]
        may = (seen_by[i] != seen_by[j]) & (class_ids[i] == class_ids[j])
        i, j = i[may], j[may]
        a, b = found[i], found[j]
        meet = ((a[:, :2] < b[:, 2:]) & (b[:, :2] < a[:, 2:])).all(axis=1)
        codes.append(np.minimum(i[meet], j[meet]) * number + np.maximum(i[meet], j[meet]))
    low, high = np.divmod(np.unique(np.concatenate(codes)), max(number, 1))
    return low, high


def _in_strips(indices: np.ndarray, found: np.ndarray, wide: int) -> tuple[np.ndarray, np.ndarray]:
    """(index, strip) of every strip of columns that each of the boxes touches."""
    first = (found[indices, 1] // wide).astype(np.int64)
    number = np.maximum(np.ceil(found[indices, 3] / wide).astype(np.int64) - first, 1)
    within = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
    return np.repeat(indices, number), np.repeat(first, number) + within


def _groups(pairs: np.ndarray, agreements: np.ndarray, seen_by: np.ndarray, windows: np.ndarray) -> list[list[int]]:
    """Views of one object each, at least two, none in two groups."""
    linked = set(map(tuple, pairs.tolist()))
    group_of: dict[int, list[int]] = {}

    def compatible(a: int, b: int) -> bool:
        if (min(a, b), max(a, b)) in linked:
            return True
        # Patches far apart on a large object share no pixels, so their views cannot contradict each other.
        return bool(seen_by[a] != seen_by[b] and not boxes.area(_intersect(windows[a][None], windows[b][None]))[0])

    for i, j in pairs.tolist():
        one, other = group_of.setdefault(i, [i]), group_of.setdefault(j, [j])
        if one is not other and all(compatible(a, b) for a in one for b in other):
            one.extend(other)
            group_of.update(dict.fromkeys(other, one))
    unique = {id(group): group for group in group_of.values() if len(group) > 1}
    return [sorted(group) for group in unique.values()]


def _cut_sides(found: np.ndarray, windows: np.ndarray, grid: PatchGrid) -> np.ndarray:
    """Which sides of the boxes were made by the edge of their patch and not by the object or the edge of the mosaic, [N, 4]."""
    ends = np.array([0, 0, grid.height, grid.width])
    inner: np.ndarray = windows != ends
    return _at_edge(found, windows) & inner


def _at_edge(found: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Which sides lie at the edge of the window, within the tolerance, [N, 4]."""
    return np.abs(found - windows) <= _tolerance(found)


def _beyond(found: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Which sides lie outside the window by more than the tolerance, [N, 4]."""
    outward = np.array([-1, -1, 1, 1])
    return (found - windows) * outward > _tolerance(found)


def _tolerance(found: np.ndarray) -> np.ndarray:
    sides = np.maximum(CUT_TOLERANCE * (found[:, 2:] - found[:, :2]), CUT_TOLERANCE_PX)
    return np.concatenate([sides, sides], axis=1)


def _intersect(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Common part of a[i] and b[i], [N, 4]; turned inside out, so without area, where there is none."""
    return np.concatenate([np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])], axis=1)


def _hull(found: np.ndarray) -> np.ndarray:
    return np.concatenate([found[:, :2].min(axis=0), found[:, 2:].max(axis=0)])


def _windows(grid: PatchGrid) -> np.ndarray:
    """Pixels of the mosaic that each patch saw, [patches, 4]; the padding of a small mosaic is left out."""
    starts = np.array([(grid.row_starts[row], grid.column_starts[column]) for row, column in grid.cells()])
    ends = np.minimum(starts + grid.patch_size, [grid.height, grid.width])
    return np.concatenate([np.maximum(starts, 0), ends], axis=1)


def _cores(grid: PatchGrid) -> np.ndarray:
    """Core of each patch, [patches, 4]."""
    cores = [grid.core(row, column) for row, column in grid.cells()]
    return np.array([(core.y0, core.x0, core.y1, core.x1) for core in cores])


def _ordered(found: Detections) -> Detections:
    """Best score first; ties by patch, class and place, so that the order in which patches came in does not matter."""
    y0, x0, y1, x1 = found.boxes_mosaic_px.T
    return found.take(np.lexsort((x1, y1, x0, y0, found.class_ids, found.patch_ids, -found.scores)))
