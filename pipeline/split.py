"""Splits that do not leak: no pixel of the ground is in the patches of two splits.

With enough mosaics, whole mosaics go to one split or another. With few, each mosaic is cut into bands of patch rows or columns,
and patches that would show pixels of both sides are left out. The smaller split keeps its patches: validation patches are few.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from survey import boxes
from survey.errors import InputError
from survey.geometry import PatchGrid, Window

# Splitting by mosaic is accepted when each split gets its share of patches to within this factor of the share asked for.
TOLERANCE = 0.5

Cells = dict[tuple[int, int], str]


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which patches are in which split.

    Attributes:
      by: "mosaic", "block", or "all" when there is one split only.
      cells: by mosaic name, the split of each (row, column); patches in no split are absent.
    """

    by: str
    cells: dict[str, Cells]


def parse(texts: Iterable[str]) -> dict[str, float]:
    """Shares of the splits from the values of --split.

    >>> parse(["train=0.8", "val=0.2"])
    {'train': 0.8, 'val': 0.2}

    Raises:
      InputError: not name=share, shares that do not sum to 1, a name twice, or no train.
    """
    texts = list(texts)
    given = f"--split={','.join(texts)}"
    fractions: dict[str, float] = {}
    for text in texts:
        name, _, share = text.partition("=")
        try:
            value = float(share)
        except ValueError:
            raise InputError(f"{given}: {text!r} is not name=share; write for example --split train=0.8,val=0.2") from None
        if not (name.isascii() and name.replace("_", "").isalnum()):
            raise InputError(f"{given}: {name!r} names a split's files: use letters, digits and _ only")
        if name in fractions:
            raise InputError(f"{given}: split {name} is given twice; give each once")
        if not 0 < value <= 1:
            raise InputError(
                f"{given}: the share of {name} must be above 0 and at most 1; leave out a split that should be empty"
            )
        fractions[name] = value
    total = sum(fractions.values())
    if abs(total - 1) > 1e-6:
        raise InputError(f"{given}: shares sum to {total:g}, must sum to 1")
    if "train" not in fractions:
        raise InputError(f"{given}: one split must be named train, `rookery train` learns from it")
    return fractions


def assign(grids: Mapping[str, PatchGrid], fractions: Mapping[str, float]) -> Assignment:
    """Assigns every patch of a survey to a split, or to none where it would leak.

    Args:
      grids: the patches of each mosaic, by name.
      fractions: share of the patches for each split.

    Raises:
      InputError: a split would stay empty.
    """
    if len(fractions) == 1:
        (name,) = fractions
        return Assignment("all", {mosaic: dict.fromkeys(grid.cells(), name) for mosaic, grid in grids.items()})
    whole = by_mosaic(grids, fractions)
    if whole is not None:
        return Assignment("mosaic", {mosaic: dict.fromkeys(grid.cells(), whole[mosaic]) for mosaic, grid in grids.items()})
    cells = {mosaic: by_block(grid, fractions) for mosaic, grid in grids.items()}
    filled = {name for part in cells.values() for name in part.values()}
    for name in fractions:
        if name not in filled:
            largest = max(grids.values(), key=len)
            raise InputError(
                f"--split: no patch is left for {name}: {len(grids)} mosaics, the largest with {largest.rows} x "
                f"{largest.columns} patches, cannot be divided into {len(fractions)} splits that share no pixel; "
                "use more mosaics, a smaller --patch_size or --overlap, or fewer splits (--split train=1)"
            )
    return Assignment("block", cells)


def by_mosaic(grids: Mapping[str, PatchGrid], fractions: Mapping[str, float]) -> dict[str, str] | None:
    """The split of each mosaic, or None when whole mosaics cannot come near the shares asked for.

    Largest mosaics first, each to the split that lacks most of its share. Equal sizes are ordered by a hash of the name, because
    names of photos follow the flight line and the last of them would all be of one place.
    """
    total = sum(len(grid) for grid in grids.values())
    missing = {name: fraction * total for name, fraction in fractions.items()}
    order = sorted(grids, key=lambda name: (-len(grids[name]), hashlib.sha256(name.encode()).digest()))
    result = {}
    for mosaic in order:
        name = max(missing, key=lambda name: missing[name])
        result[mosaic] = name
        missing[name] -= len(grids[mosaic])
    within = all(abs(missing[name]) <= TOLERANCE * fraction * total for name, fraction in fractions.items())
    return result if within else None


def by_block(grid: PatchGrid, fractions: Mapping[str, float]) -> Cells:
    """Bands of rows or columns of one mosaic, whichever there are more of, with a buffer between them.

    All orders of the bands and all widths near the shares are tried; the one whose shares come nearest is taken, and among equals
    the one that keeps most patches: the last row of patches snaps inward and may overlap several others, so ends differ.
    """
    down = grid.rows >= grid.columns
    starts = grid.row_starts if down else grid.column_starts
    lines = _bands(starts, grid.patch_size, fractions)
    return {cell: lines[cell[0 if down else 1]] for cell in grid.cells() if (cell[0 if down else 1]) in lines}


def _bands(starts: tuple[int, ...], patch_size: int, fractions: Mapping[str, float]) -> dict[int, str]:
    """The split of each row (or column) of patches; those that overlap a smaller split's are absent."""
    largest = max(fractions, key=lambda name: fractions[name])
    if len(starts) < 2:
        return dict.fromkeys(range(len(starts)), largest)
    best: tuple[tuple[float, int], dict[int, str]] = ((float("inf"), 0), {})
    for names in itertools.permutations(fractions):
        for widths in _widths(len(starts), names, fractions):
            kept = _without_overlap(starts, patch_size, names, widths, fractions)
            shares = {name: sum(value == name for value in kept.values()) / len(kept) for name in fractions}
            error = sum(abs(shares[name] - fraction) for name, fraction in fractions.items())
            if (rank := (round(error, 9), -len(kept))) < best[0]:
                best = (rank, kept)
    return best[1] or dict.fromkeys(range(len(starts)), largest)


def _widths(lines: int, names: tuple[str, ...], fractions: Mapping[str, float]) -> Iterator[tuple[int, ...]]:
    """Numbers of lines of each band, all near the shares asked for, that add up to all lines."""
    near = [sorted({max(1, int(fractions[name] * lines) + extra) for extra in (-1, 0, 1)}) for name in names[:-1]]
    for widths in itertools.product(*near):
        last = lines - sum(widths)
        if last >= 1:
            yield (*widths, last)


def _without_overlap(
    starts: tuple[int, ...], patch_size: int, names: tuple[str, ...], widths: tuple[int, ...], fractions: Mapping[str, float]
) -> dict[int, str]:
    line_split = [name for name, width in zip(names, widths, strict=True) for _ in range(width)]
    kept: dict[int, str] = {}
    for i in sorted(range(len(starts)), key=lambda i: fractions[line_split[i]]):
        if all(name == line_split[i] or abs(starts[i] - starts[j]) >= patch_size for j, name in kept.items()):
            kept[i] = line_split[i]
    return kept


def shared_pixels(patches: Iterable[tuple[str, Window, str]]) -> list[tuple[str, Window, Window]]:
    """Proof that splits do not leak: pairs of patches of different splits that share a pixel. Must be empty.

    Args:
      patches: (mosaic name, window, split) of every patch.

    Returns:
      (mosaic name, window, window) of each such pair.
    """
    per_mosaic: dict[str, dict[str, list[Window]]] = {}
    for mosaic, window, name in patches:
        per_mosaic.setdefault(mosaic, {}).setdefault(name, []).append(window)
    found = []
    for mosaic, per_split in per_mosaic.items():
        for one, other in itertools.combinations(per_split.values(), 2):
            i, j, _ = boxes.overlapping_pairs(_frames(one), _frames(other))
            found += [(mosaic, one[a], other[b]) for a, b in zip(i, j, strict=True)]
    return found


def _frames(windows: list[Window]) -> np.ndarray:
    return np.array([(w.y0, w.x0, w.y1, w.x1) for w in windows], float)
