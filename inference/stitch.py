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

from collections.abc import Iterator
from dataclasses import dataclass

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
REACH_SLACK_PX, IOU_SLACK = 0.01, 1e-6  # for the rounding of sums


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
    pairs = _links(found, claimed.class_ids, seen_by, grid, nms_iou)
    member, group = _groups(pairs, windows)
    cut = np.asarray(_cut_sides(found, windows, grid).any(axis=1))
    real, best, placed = _settled(found, owned, member, group, owned_by, seen_by, cut)
    keep = owned.copy()
    keep[member] = False
    keep[best] = True
    found[best] = placed
    merged = int(real[group].sum()) - len(best)
    counters = {
        "detections_claimed": len(claimed),
        "detections_merged_at_seams": merged,
        "detections_disowned": len(claimed) - merged - int(keep.sum()),  # seen in a halo, not by the owner
        "objects_between_owners": int((~owned[best]).sum()),  # each patch saw the centre in the other's core
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


def _links(found: np.ndarray, class_ids: np.ndarray, seen_by: np.ndarray, grid: PatchGrid, nms_iou: float) -> np.ndarray:
    """Pairs of views of one object, best agreement first: indices [P, 2], the smaller first."""
    windows = _windows(grid)
    views = _overlaps(found, seen_by, grid)
    pieces = [(np.zeros((0, 2), np.int64), np.zeros(0))]
    for i, j in _near(views, nms_iou):
        i, j = views.box[i], views.box[j]
        same = class_ids[i] == class_ids[j]
        pairs = np.sort(np.stack([i[same], j[same]], axis=1), axis=1)
        i, j = pairs.T
        value = agreement(found[i], found[j], windows[seen_by[i]], windows[seen_by[j]])
        pieces.append((pairs[value > nms_iou], value[value > nms_iou]))
    pairs, value = (np.concatenate(part) for part in zip(*pieces, strict=True))
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0], -value))]


@dataclass(frozen=True, slots=True)
class _Views:
    """Boxes as far as another patch could see them, once for each such patch; sorted by `patches`, then by their middle.

    Attributes:
      box: [V], index of the box.
      patches: [V], a number for the pair of patches, the one that saw the box and the other.
      first: [V] bool, whether the one that saw it is the first of the two.
      middle: [V, 2], of the box along and across the longer side of the pixels that the two patches share.
      length: [V, 2], along the same axes.
    """

    box: np.ndarray
    patches: np.ndarray
    first: np.ndarray
    middle: np.ndarray
    length: np.ndarray


def _overlaps(found: np.ndarray, seen_by: np.ndarray, grid: PatchGrid) -> _Views:
    """The parts of all boxes that other patches could see."""
    spans = []
    for axis, (starts, size) in enumerate(((grid.row_starts, grid.height), (grid.column_starts, grid.width))):
        ends = np.minimum(np.array(starts) + grid.patch_size, size)
        first = np.searchsorted(ends, found[:, axis], side="right")
        spans.append((first, np.maximum(np.searchsorted(starts, found[:, axis + 2], side="left") - first, 0)))
    (top, tall), (left, wide) = spans
    number = tall * wide
    box = np.repeat(np.arange(len(found)), number)
    rank = np.arange(len(box)) - np.repeat(np.cumsum(number) - number, number)
    other = (top[box] + rank // wide[box]) * grid.columns + left[box] + rank % wide[box]
    mine = seen_by[box]
    box, mine, other = (one[mine != other] for one in (box, mine, other))
    windows = _windows(grid)
    shared = _intersect(windows[mine], windows[other])
    part = _intersect(found[box], shared)
    # Sorted along a seam, few boxes lie at one place; across it, all do.
    along = np.where(shared[:, 2] - shared[:, 0] > shared[:, 3] - shared[:, 1], 0, 1)
    axes = np.stack([along, 1 - along], axis=1)
    low, high = np.take_along_axis(part[:, :2], axes, axis=1), np.take_along_axis(part[:, 2:], axes, axis=1)
    patches = np.minimum(mine, other) * len(grid) + np.maximum(mine, other)
    middle = (low + high) / 2
    order = np.lexsort((middle[:, 0], patches))
    return _Views(box[order], patches[order], (mine < other)[order], middle[order], (high - low)[order])


def _near(views: _Views, nms_iou: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of views by the same two patches that may overlap by more than `nms_iou`: indices into `views`, piece by piece.

    Where two boxes have an IoU above t, so have their shadows on each axis. Shadows of lengths p and q whose middles are d apart
    then have (p + q) / 2 - d > t ((p + q) / 2 + d) and t p < q < p / t, hence d < p (1 - t) / 2 t. What two patches agree on lies
    within the pixels that both saw, where their IoU is largest: pairs that are near are compared there.
    """
    mine, others = np.flatnonzero(views.first), np.flatnonzero(~views.first)
    if not len(mine) or not len(others):
        return
    ratio = (1 - nms_iou) / (2 * max(nms_iou, 1e-9))
    reach = np.minimum(views.length * ratio, (views.length + views.length.max(axis=0)) / 2) + REACH_SLACK_PX
    # One number for the pair of patches and the place within it: pairs are further apart than any place is from another.
    pair = np.cumsum(np.diff(views.patches, prepend=views.patches[0]) != 0)
    apart = float(np.ptp(views.middle[:, 0]) + 2 * reach.max() + 1)
    place = pair * apart + (views.middle[:, 0] - views.middle[:, 0].min())
    first = np.searchsorted(place[others], place[mine] - reach[mine, 0], side="left")
    number = np.searchsorted(place[others], place[mine] + reach[mine, 0], side="right") - first
    across, far = views.middle[:, 1], reach[:, 1]
    # In pieces, so that memory grows with the pairs and not with the candidates.
    for piece in np.split(np.arange(len(mine)), np.flatnonzero(np.diff(np.cumsum(number) // CANDIDATES_AT_ONCE)) + 1):
        total = number[piece]
        rank = np.arange(total.sum()) - np.repeat(np.cumsum(total) - total, total)
        i, j = np.repeat(mine[piece], total), others[np.repeat(first[piece], total) + rank]
        near = np.abs(across[i] - across[j]) <= far[i]
        i, j = i[near], j[near]
        shared = np.ones(len(i))
        for middle, length in zip(views.middle.T, views.length.T, strict=True):
            touching = (length[i] + length[j]) / 2 - np.abs(middle[i] - middle[j])
            shared *= np.maximum(np.minimum(touching, np.minimum(length[i], length[j])), 0)
        area = views.length[:, 0] * views.length[:, 1]
        close = shared * (1 + nms_iou) >= (nms_iou - IOU_SLACK) * (area[i] + area[j])
        yield i[close], j[close]


def _groups(pairs: np.ndarray, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Views of one object each, at least two, none in two groups: (members [M], number of the group of each from 0 up [M])."""
    # The great majority: two views that agree with no third.
    degree = np.bincount(pairs.ravel())
    alone = (degree[pairs] == 1).all(axis=1)
    more = _entangled(pairs[~alone], windows)
    member = np.concatenate([pairs[alone].ravel(), *map(np.array, more)]).astype(np.int64)
    sizes = [2] * int(alone.sum()) + [len(group) for group in more]
    return member, np.repeat(np.arange(len(sizes)), sizes)


def _entangled(pairs: np.ndarray, windows: np.ndarray) -> list[list[int]]:
    """Groups of views, from the best pair down."""
    # Plain numbers, one for a pair: numpy takes longer to begin than Python to compare two windows, and objects would be counted
    # by the garbage collector, which then walks through all that TensorFlow has made.
    number = len(windows)
    linked = set((pairs[:, 0] * number + pairs[:, 1]).tolist())
    involved = np.unique(pairs)
    top, left, bottom, right = (dict(zip(involved.tolist(), side, strict=True)) for side in windows[involved].T.tolist())
    group_of: dict[int, list[int]] = {}

    def compatible(a: int, b: int) -> bool:
        if (a * number + b if a < b else b * number + a) in linked:
            return True
        # Patches far apart on a large object share no pixels, so their views cannot contradict each other.
        return bottom[a] <= top[b] or bottom[b] <= top[a] or right[a] <= left[b] or right[b] <= left[a]

    for i, j in zip(*pairs.T.tolist(), strict=True):
        one, other = group_of.get(i), group_of.get(j)
        if one is None and other is None:
            group_of[i] = group_of[j] = [i, j]
        elif one is not other and all(compatible(a, b) for a in one or [i] for b in other or [j]):
            joined = one or other or []
            added = (other or [j]) if one else [i]
            joined.extend(added)
            group_of.update(dict.fromkeys(added, joined))
    return list({id(group): group for group in group_of.values()}.values())


def _settled(
    found: np.ndarray,
    owned: np.ndarray,
    member: np.ndarray,
    group: np.ndarray,
    owned_by: np.ndarray,
    seen_by: np.ndarray,
    cut: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What becomes of the groups: (which are kept [G] bool, the box that stands for each of those, where it lies [kept, 4])."""
    # Of each group, owners first, then by score: boxes are in that order.
    order = np.lexsort((member, ~owned[member], group))
    member, group = member[order], group[order]
    start = np.flatnonzero(np.diff(group, prepend=-1))
    if not len(start):
        return np.zeros(0, bool), np.zeros(0, np.int64), np.zeros((0, 4))
    # A group is kept if one of its patches owns the centre of one of its boxes.
    codes = group * (max(owned_by.max(), seen_by.max()) + 1)
    speaks: np.ndarray = np.isin(codes + seen_by[member], codes + owned_by[member])
    real = np.logical_or.reduceat(speaks, start)
    # The first whole box of each group, or else the hull of all.
    placed = np.concatenate(
        [np.minimum.reduceat(found[member, :2], start), np.maximum.reduceat(found[member, 2:], start)], axis=1
    )
    whole = np.flatnonzero(~cut[member])
    which, first = np.unique(group[whole], return_index=True)
    placed[which] = found[member[whole[first]]]
    return real, member[start][real], placed[real]


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
    order = np.argsort(-found.scores, kind="stable")
    ranked = found.scores[order]
    same = ranked[1:] == ranked[:-1]
    tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
    few = found.take(order[tied])  # most scores are no other box's
    y0, x0, y1, x1 = few.boxes_mosaic_px.T
    order[tied] = order[tied][np.lexsort((x1, y1, x0, y0, few.class_ids, few.patch_ids, -few.scores))]
    return found.take(order)
