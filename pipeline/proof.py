"""The proof that splits do not leak: every pair of patches of different splits that could share a pixel is compared.

It knows nothing of how the splits were made: it looks at the final windows only. Within a mosaic they are compared in its own
pixels; between georeferenced mosaics of one CRS, on the map, because two flights over one colony show the same animals.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from survey import boxes
from survey.geometry import Mosaic

# On the map a pair must share more than this part of a pixel: affines are floating point, and mosaics cut edge to edge by GIS
# software meet to within rounding only.
TOLERANCE_PX = 0.5
PAIRS_AT_ONCE = 4_000_000  # a few hundred megabytes of indices


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """Where patches lie.

    Attributes:
      mosaics: int [N], index of the mosaic.
      windows_mosaic_px: int [N, 4], yxyx.
      splits: int [N], index of the split.
    """

    mosaics: np.ndarray
    windows_mosaic_px: np.ndarray
    splits: np.ndarray


@dataclass(frozen=True, slots=True)
class Proof:
    """What was compared; written to dataset.json as `no_shared_pixels`.

    Attributes:
      holds: no pair of patches of different splits shares a pixel, and none shares ground.
      method: how it was checked.
      patches: windows looked at.
      pairs_compared: of patches of different splits of one mosaic, near enough to share a pixel.
      pairs_sharing: of these, how many do.
      overlapping_mosaics: pairs of mosaics of one CRS whose extents on the map overlap.
      ground_pairs_compared: of patches of different splits in two such mosaics, near enough to share ground.
      ground_pairs_sharing: of these, how many do.
      mosaics_without_place: mosaics without CRS and affine, of which the map says nothing.
    """

    holds: bool
    method: str
    patches: int
    pairs_compared: int
    pairs_sharing: int
    overlapping_mosaics: int
    ground_pairs_compared: int
    ground_pairs_sharing: int
    mosaics_without_place: int


METHOD = (
    "final windows of all patches in mosaic pixels, every pair of different splits that falls into one square of the patch size; "
    f"between mosaics of one CRS the bounding rectangles on the map, shared beyond {TOLERANCE_PX} px"
)


def check(mosaics: Sequence[Mosaic], shown: Shown) -> Proof:
    """Compares all patches.

    Args:
      mosaics: as `shown.mosaics` counts them.
      shown: the patches.
    """
    within, compared = sharing_pixels(shown)
    pairs = overlapping_mosaics(mosaics)
    on_ground, ground_compared = sharing_ground(mosaics, shown, pairs)
    return Proof(
        holds=not len(within) and not len(on_ground),
        method=METHOD,
        patches=len(shown.splits),
        pairs_compared=compared,
        pairs_sharing=len(within),
        overlapping_mosaics=len(pairs),
        ground_pairs_compared=ground_compared,
        ground_pairs_sharing=len(on_ground),
        mosaics_without_place=sum(mosaic.crs is None or mosaic.transform is None for mosaic in mosaics),
    )


def sharing_pixels(shown: Shown) -> tuple[np.ndarray, int]:
    """Patches of one mosaic that are in different splits and share a pixel.

    Returns:
      (pairs of indices int [P, 2], number of pairs compared).
    """
    return _sharing(shown.windows_mosaic_px.astype(float), shown.splits, shown.mosaics, 0.0)


def sharing_ground(mosaics: Sequence[Mosaic], shown: Shown, pairs: Sequence[tuple[int, int]]) -> tuple[np.ndarray, int]:
    """Patches of different mosaics of one CRS that are in different splits and show the same ground.

    Args:
      mosaics: as `shown.mosaics` counts them.
      shown: the patches.
      pairs: of mosaics, from `overlapping_mosaics`.

    Returns:
      (pairs of indices int [P, 2], number of pairs compared).
    """
    order = np.argsort(shown.mosaics, kind="stable")
    bounds = np.searchsorted(shown.mosaics[order], np.arange(len(mosaics) + 1))
    frames: dict[int, np.ndarray] = {}
    found, compared = [np.zeros((0, 2), int)], 0
    for pair in pairs:
        for i in pair:
            if i not in frames:
                frames[i] = map_frames(mosaics[i], shown.windows_mosaic_px[order[bounds[i] : bounds[i + 1]]])
        members = [order[bounds[i] : bounds[i + 1]] for i in pair]
        if not all(len(part) for part in members):
            continue
        # Only what reaches into the other mosaic's extent.
        near = [_reaching(frames[i], frames[j]) for i, j in (pair, pair[::-1])]
        members = [part[keep] for part, keep in zip(members, near, strict=True)]
        rectangles = np.concatenate([frames[i][keep] for i, keep in zip(pair, near, strict=True)])
        both = np.concatenate(members)
        side = np.repeat([0, 1], [len(part) for part in members])
        # Splits and sides together: a pair of one mosaic is not this function's.
        tolerance = TOLERANCE_PX * min(_pixel(mosaics[i]) for i in pair)
        hits, number = _sharing(rectangles, shown.splits[both], np.zeros(len(both), int), tolerance, sides=side)
        found.append(both[hits])
        compared += number
    return np.concatenate(found), compared


def overlapping_mosaics(mosaics: Sequence[Mosaic]) -> list[tuple[int, int]]:
    """Pairs of mosaics of one CRS whose extents on the map overlap."""
    by_crs: dict[str, list[int]] = {}
    for i, mosaic in enumerate(mosaics):
        if mosaic.crs is not None and mosaic.transform is not None:
            by_crs.setdefault(mosaic.crs, []).append(i)
    result = []
    for members in by_crs.values():
        extents = np.concatenate([map_frames(m, np.array([[0, 0, m.height, m.width]])) for m in (mosaics[i] for i in members)])
        tolerance = TOLERANCE_PX * min(_pixel(mosaics[i]) for i in members)
        shrunk = extents + np.array([tolerance, tolerance, -tolerance, -tolerance]) / 2
        a, b, _ = boxes.overlapping_pairs(shrunk, shrunk)
        result += [(members[i], members[j]) for i, j in zip(a.tolist(), b.tolist(), strict=True) if i < j]
    return sorted(result)


def groups(mosaics: Sequence[Mosaic]) -> list[list[str]]:
    """Names of mosaics that overlap on the map, directly or through others; those that do not are alone."""
    parent = list(range(len(mosaics)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for i, j in overlapping_mosaics(mosaics):
        parent[root(j)] = root(i)
    found: dict[int, list[str]] = {}
    for i, mosaic in enumerate(mosaics):
        found.setdefault(root(i), []).append(mosaic.name)
    return list(found.values())


def map_frames(mosaic: Mosaic, windows_mosaic_px: np.ndarray) -> np.ndarray:
    """Bounding rectangles of windows on the map.

    Args:
      mosaic: with an affine.
      windows_mosaic_px: [N, 4], yxyx.

    Returns:
      [N, 4] (y0, x0, y1, x1) in map units, y0 <= y1 whichever way the map's axes run.
    """
    y0, x0, y1, x1 = np.asarray(windows_mosaic_px, float).T
    corners = np.stack([mosaic.to_map(np.stack(corner, axis=1)) for corner in ((y0, x0), (y0, x1), (y1, x0), (y1, x1))])
    low, high = corners.min(axis=0), corners.max(axis=0)  # [N, 2] (x, y)
    return np.concatenate([low[:, ::-1], high[:, ::-1]], axis=1)


def _pixel(mosaic: Mosaic) -> float:
    """Shorter side of a pixel in map units."""
    assert mosaic.transform is not None
    a, b, _, d, e, _ = mosaic.transform
    return float(min(np.hypot(a, d), np.hypot(b, e)))


def _reaching(frames: np.ndarray, others: np.ndarray) -> np.ndarray:
    low, high = others[:, :2].min(axis=0), others[:, 2:].max(axis=0)
    reaching: np.ndarray = (frames[:, :2] < high).all(axis=1) & (frames[:, 2:] > low).all(axis=1)
    return reaching


def _sharing(
    frames: np.ndarray, splits: np.ndarray, keys: np.ndarray, tolerance: float, sides: np.ndarray | None = None
) -> tuple[np.ndarray, int]:
    """Pairs of rectangles of one key, and different splits (and sides), that share more than the tolerance in both directions."""
    found, compared = [np.zeros((0, 2), int)], 0
    for i, j in _neighbours(frames, splits, keys):
        if sides is not None:
            other = sides[i] != sides[j]
            i, j = i[other], j[other]
        compared += len(i)
        shared = np.minimum(frames[i, 2:], frames[j, 2:]) - np.maximum(frames[i, :2], frames[j, :2])
        hit = (shared > tolerance).all(axis=1)
        found.append(np.stack([i[hit], j[hit]], axis=1))
    pairs = np.concatenate(found)
    return pairs[np.lexsort(pairs.T[::-1])], compared


def _neighbours(frames: np.ndarray, splits: np.ndarray, keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of different splits in one square of the map: squares as large as the largest rectangle, so each lies in 4 at most.

    A square whose patches are all of one split, which is nearly every one, costs nothing beyond a sort.
    """
    if not len(frames):
        return
    square = float((frames[:, 2:] - frames[:, :2]).max())
    origin = frames[:, :2].min(axis=0)
    first = np.floor((frames[:, :2] - origin) / square).astype(np.int64)
    last = np.floor((frames[:, 2:] - origin) / square).astype(np.int64)  # one too far where a border is met exactly: harmless
    across = last.max(axis=0) + 1
    members, cells, places = [], [], []
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        place = first + np.array([down, right])
        inside = np.flatnonzero((place <= last).all(axis=1))
        members.append(inside)
        places.append(place[inside])
        cells.append((keys[inside] * across[0] + place[inside, 0]) * across[1] + place[inside, 1])
    member, cell, where = np.concatenate(members), np.concatenate(cells), np.concatenate(places)
    order = np.argsort(cell, kind="stable")
    member, cell, where = member[order], cell[order], where[order]
    begins = np.flatnonzero(np.r_[True, cell[1:] != cell[:-1]])
    sizes = np.diff(np.r_[begins, len(cell)])
    mixed = np.minimum.reduceat(splits[member], begins) != np.maximum.reduceat(splits[member], begins)
    begins, sizes = begins[mixed], sizes[mixed]
    number = sizes.astype(np.int64) ** 2
    chunk = np.cumsum(number) // PAIRS_AT_ONCE
    for part in np.unique(chunk):
        chosen = chunk == part
        b, s, n = begins[chosen], sizes[chosen], number[chosen]
        offset = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
        width = np.repeat(s, n)
        one, other = np.repeat(b, n) + offset // width, np.repeat(b, n) + offset % width
        i, j = member[one], member[other]
        different = splits[i] < splits[j]
        one, i, j = one[different], i[different], j[different]
        # A pair that shares several squares counts in the first of them only.
        once = (where[one] == np.maximum(first[i], first[j])).all(axis=1)
        yield i[once], j[once]
