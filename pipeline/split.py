"""Splits that do not leak: no pixel of the ground is in the patches of two splits (pipeline.proof checks it afterwards).

With enough mosaics, whole mosaics go to one split or another. With few, each mosaic is cut into blocks: bands of patch rows or
columns, or rectangles in its corners, and patches that would show pixels of both sides are left out. The smaller split keeps
its patches: validation patches are few. Folds number every patch once; one fold validates, the others train.
"""

import csv
import functools
import hashlib
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from survey import files
from survey.errors import InputError
from survey.flags import nearest
from survey.geometry import PatchGrid

# Splitting by mosaic is accepted when each split gets its share of patches to within this factor of the share asked for.
TOLERANCE = 0.5
# Blocks whose shares are off by no more than this (summed over the splits) count as equal; the one that keeps most patches wins.
NEAR = 0.02
# So many heights are tried for a rectangle in a corner; between them the width makes up for it.
HEIGHTS = 12

WAYS = ("auto", "mosaic", "block", "list", "fold")
NONE = -1  # in no split

Cells = np.ndarray  # int8 [rows, columns]: index into the names of the splits, or NONE
Extent = tuple[int, int, int, int]  # patches: rows [r0, r1), columns [c0, c1) as (r0, c0, r1, c1)


@dataclass(frozen=True, slots=True)
class Rule:
    """How to divide a survey.

    Attributes:
      by: one of WAYS; "auto" takes whole mosaics where they come near the shares, and blocks otherwise.
      shares: of each split, summing to 1 (`parse`); they say nothing for "list" and "fold".
      listed: for "list", the split of each mosaic (`read_list`).
      folds: for "fold", how many.
      fold: for "fold", the one that validates, from 0.
    """

    by: str = "auto"
    shares: Mapping[str, float] = field(default_factory=lambda: {"train": 0.8, "val": 0.2})
    listed: Mapping[str, str] | None = None
    folds: int = 0
    fold: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The splits, train first where the shares do not order them."""
        if self.by == "fold":
            return ("train", "val")
        if self.by == "list":
            found = set((self.listed or {}).values()) - {""}
            return ("train", *sorted(found - {"train"}))
        return tuple(self.shares)


@dataclass(frozen=True, slots=True, eq=False)
class Assignment:
    """Which patches are in which split.

    Attributes:
      by: "mosaic", "block", "list", "fold", or "all" when there is one split only.
      names: the splits.
      cells: by mosaic name, for each patch the index of its split in `names`, or NONE.
    """

    by: str
    names: tuple[str, ...]
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
        _check_name(name, given)
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


def read_list(path: str) -> dict[str, str]:
    """The split of each mosaic from a CSV file with the columns `mosaic` and `split`; an empty split leaves the mosaic out.

    Raises:
      InputError: no such file, other columns, a mosaic twice, a name that cannot name files, or no mosaic for train.
    """
    try:
        reader = csv.DictReader(io.StringIO(files.read(path).decode("utf-8-sig"), newline=""))
        columns, rows = reader.fieldnames or [], list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"--split_list={path} cannot be read as a CSV file: {error}") from error
    if not {"mosaic", "split"} <= set(columns):
        raise InputError(
            f"--split_list={path} has the columns {', '.join(columns) or 'none'}: needs the columns mosaic and split"
        )
    result: dict[str, str] = {}
    for number, row in enumerate(rows, start=2):
        mosaic, name = (row["mosaic"] or "").strip(), (row["split"] or "").strip()
        if mosaic in result:
            raise InputError(f"--split_list={path}, line {number}: mosaic {mosaic!r} stands there twice; give it one split")
        if name:
            _check_name(name, f"--split_list={path}, line {number}")
        result[mosaic] = name
    if "train" not in result.values():
        raise InputError(f"--split_list={path} gives no mosaic to train: `rookery train` learns from that split; add one")
    return result


def assign(grids: Mapping[str, PatchGrid], rule: Rule, groups: Sequence[Sequence[str]] | None = None) -> Assignment:
    """Assigns every patch of a survey to a split, or to none where it would leak.

    Args:
      grids: the patches of each mosaic, by name.
      rule: how.
      groups: names of mosaics that show the same ground, and so must not be torn apart when whole mosaics are divided; by default
        each mosaic stands alone.

    Raises:
      InputError: a split would stay empty, or the list does not fit the mosaics.
    """
    groups = [[name] for name in grids] if groups is None else groups
    names = rule.names
    if rule.by == "list":
        by, cells = "list", _by_list(grids, rule)
    elif rule.by == "fold":
        by, cells = "fold", _by_fold(grids, rule, groups)
    elif len(names) == 1:
        by, cells = "all", {mosaic: _whole(grid, 0) for mosaic, grid in grids.items()}
    else:
        whole = None if rule.by == "block" else by_mosaic(grids, rule.shares, groups, strict=rule.by == "auto")
        if whole is not None:
            by, cells = "mosaic", {mosaic: _whole(grid, names.index(whole[mosaic])) for mosaic, grid in grids.items()}
        else:
            by, cells = "block", {mosaic: by_block(grid, rule.shares) for mosaic, grid in grids.items()}
    refuse_empty(Assignment(by, names, cells), grids)
    return Assignment(by, names, cells)


def refuse_empty(made: Assignment, grids: Mapping[str, PatchGrid]) -> None:
    """Refuses a division that leaves a split without any patch.

    Raises:
      InputError: names the split and the largest mosaic.
    """
    for i, name in enumerate(made.names):
        if not any((part == i).any() for part in made.cells.values()):
            largest = max(grids.values(), key=len)
            raise InputError(
                f"--split: no patch is left for {name}: {len(grids)} mosaics, the largest with {largest.rows} x "
                f"{largest.columns} patches, cannot be divided into {len(made.names)} splits that share no pixel; "
                "use more mosaics, a smaller --patch_size or --overlap, or fewer splits (--split train=1)"
            )


def by_mosaic(
    grids: Mapping[str, PatchGrid],
    shares: Mapping[str, float],
    groups: Sequence[Sequence[str]] | None = None,
    *,
    strict: bool = True,
) -> dict[str, str] | None:
    """The split of each mosaic.

    Largest groups first, each to the split that lacks most of its share. Equal sizes are ordered by a hash of the name, because
    names of photos follow the flight line and the last of them would all be of one place.

    Args:
      grids: the patches of each mosaic, by name.
      shares: of each split.
      groups: mosaics that must stay together; by default each stands alone.
      strict: None when whole mosaics cannot come near the shares asked for.
    """
    groups = [[name] for name in grids] if groups is None else groups
    total = sum(len(grid) for grid in grids.values())
    missing = {name: share * total for name, share in shares.items()}
    result: dict[str, str] = {}
    given: set[str] = set()
    ordered = _by_size(grids, groups)
    for i, (group, size) in enumerate(ordered):
        empty = [name for name in shares if name not in given]
        # The last groups fill the splits that have none yet: an unequal division still is one.
        name = max(empty if len(ordered) - i <= len(empty) else missing, key=lambda name: missing[name])
        result.update(dict.fromkeys(group, name))
        given.add(name)
        missing[name] -= size
    within = all(abs(missing[name]) <= TOLERANCE * share * total for name, share in shares.items())
    return result if within or not strict else None


def by_block(grid: PatchGrid, shares: Mapping[str, float]) -> Cells:
    """Blocks of one mosaic with a buffer between them: bands over its whole width or height, or rectangles in its corners.

    All orders of the bands, all corners, and all sizes near the shares are tried; the one whose shares come nearest is taken, and
    among those that come near enough the one that keeps most patches: a corner has a shorter border than a band, and the last
    row of patches snaps inward and may overlap several others, so ends differ.
    """
    return _blocks(grid.row_starts, grid.column_starts, grid.patch_size, tuple(shares.items()))


@functools.lru_cache(maxsize=256)  # photos of one camera all have the same grid
def _blocks(rows: tuple[int, ...], columns: tuple[int, ...], patch_size: int, shares: tuple[tuple[str, float], ...]) -> Cells:
    largest = max(range(len(shares)), key=lambda i: shares[i][1])
    cells = np.full((len(rows), len(columns)), largest, np.int8)
    best, found = (float("inf"), 0, 0.0), cells
    wanted = np.array([share for _, share in shares])
    down = len(rows) >= len(columns)
    for lines in _bands(rows if down else columns, patch_size, wanted):
        counts = np.array([(lines == i).sum() for i in range(len(wanted))]) * (len(columns) if down else len(rows))
        if (rank := _rank(counts, wanted)) < best:
            best, found = rank, np.ascontiguousarray(np.broadcast_to(lines[:, None] if down else lines[None, :], cells.shape))
    for blocks, counts in _corners(rows, columns, patch_size, wanted, largest):
        if (rank := _rank(counts, wanted)) < best:
            best, found = rank, cells.copy()
            for r0, c0, r1, c1 in (_touched(block, rows, columns, patch_size) for _, block in blocks):
                found[r0:r1, c0:c1] = NONE
            for i, (r0, c0, r1, c1) in blocks:
                found[r0:r1, c0:c1] = i
    found.setflags(write=False)  # shared by all callers through the cache
    return found


def _rank(counts: np.ndarray, wanted: np.ndarray) -> tuple[float, int, float]:
    if not counts.all():
        return (float("inf"), 0, 0.0)
    error = round(float(np.abs(counts / counts.sum() - wanted).sum()), 9)
    return (max(error, NEAR), -int(counts.sum()), error)


def _bands(starts: tuple[int, ...], patch_size: int, wanted: np.ndarray) -> Iterator[np.ndarray]:
    """Divisions of rows (or columns) of patches: the split of each line; lines that overlap a smaller split's are NONE."""
    first = np.array(starts)
    for order in itertools.permutations(range(len(wanted))):
        for widths in _widths(len(starts), [wanted[i] for i in order]):
            split = np.repeat(np.array(order, np.int8), widths)
            kept = np.full(len(starts), NONE, np.int8)
            for i in sorted(range(len(wanted)), key=lambda i: wanted[i]):
                mine, taken = np.flatnonzero(split == i), first[kept != NONE]
                if len(taken):  # starts are sorted: only the nearest on either side can overlap
                    place = np.searchsorted(taken, first[mine])
                    below = first[mine] - taken[np.maximum(place - 1, 0)]
                    above = taken[np.minimum(place, len(taken) - 1)] - first[mine]
                    mine = mine[(np.abs(below) >= patch_size) & (np.abs(above) >= patch_size)]
                kept[mine] = i
            yield kept


def _widths(lines: int, shares: Sequence[float]) -> Iterator[tuple[int, ...]]:
    """Numbers of lines of each band, all near the shares asked for, that add up to all lines."""
    near = [sorted({max(1, int(share * lines) + extra) for extra in (-1, 0, 1)}) for share in shares[:-1]]
    for widths in itertools.product(*near):
        last = lines - sum(widths)
        if last >= 1:
            yield (*widths, last)


def _corners(
    rows: tuple[int, ...], columns: tuple[int, ...], patch_size: int, wanted: np.ndarray, largest: int
) -> Iterator[tuple[list[tuple[int, Extent]], np.ndarray]]:
    """Rectangles in the corners for all splits but the largest (at most two of them), and the patches that each split gets."""
    small = [i for i in range(len(wanted)) if i != largest]
    if not 1 <= len(small) <= 2:
        return
    height, width = len(rows), len(columns)
    choices = [list(_rectangles(height, width, wanted[i])) for i in small]
    for places in itertools.permutations(itertools.product((False, True), repeat=2), len(small)):
        for sizes in itertools.product(*choices):
            blocks, out = [], []
            for i, (bottom, right), (h, w) in zip(small, places, sizes, strict=True):
                r0, c0 = height - h if bottom else 0, width - w if right else 0
                blocks.append((i, (r0, c0, r0 + h, c0 + w)))
                out.append(_touched(blocks[-1][1], rows, columns, patch_size))
            counts = np.zeros(len(wanted), int)
            counts[small] = [h * w for h, w in sizes]
            gone = sum(_cells(extent) for extent in out)
            if len(small) == 2:
                if _cells(_both(out[0], blocks[1][1])):
                    continue  # the two would share pixels
                gone -= _cells(_both(*out))
            counts[largest] = height * width - gone
            yield blocks, counts


def _rectangles(height: int, width: int, share: float) -> Iterator[tuple[int, int]]:
    # The buffer is not counted in the share, so a little less than the share of all patches is also near.
    target = share * height * width
    heights = (
        range(1, height + 1) if height <= HEIGHTS else np.unique(np.geomspace(1, height, HEIGHTS).round().astype(int)).tolist()
    )
    for h in heights:
        middle = int(target / h)
        yield from ((h, w) for w in range(middle - 1, middle + 2) if 1 <= w <= width and 0.5 * target <= h * w <= 1.5 * target)


def _touched(block: Extent, rows: tuple[int, ...], columns: tuple[int, ...], patch_size: int) -> Extent:
    """The patches that share a pixel with a block of patches."""
    r0, c0, r1, c1 = block
    spans = []
    for starts, low, high in ((rows, r0, r1), (columns, c0, c1)):
        first, last = starts[low] - patch_size, starts[high - 1] + patch_size
        spans.append((int(np.searchsorted(starts, first, side="right")), int(np.searchsorted(starts, last, side="left"))))
    return spans[0][0], spans[1][0], spans[0][1], spans[1][1]


def _both(a: Extent, b: Extent) -> Extent:
    return max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])


def _cells(extent: Extent) -> int:
    return max(0, extent[2] - extent[0]) * max(0, extent[3] - extent[1])


def _by_list(grids: Mapping[str, PatchGrid], rule: Rule) -> dict[str, Cells]:
    listed = rule.listed or {}
    for mosaic in grids:
        if mosaic not in listed:
            near = f" (nearest there: {nearest(mosaic, listed)!r})" if listed else ""
            raise InputError(f"--split_list lacks mosaic {mosaic!r}{near}: add it; an empty split leaves it out")
    unknown = [mosaic for mosaic in listed if mosaic not in grids]
    if unknown:
        raise InputError(
            f"--split_list names mosaic {unknown[0]!r}, which is not among the {len(grids)} mosaics (nearest: "
            f"{nearest(unknown[0], grids)!r}): correct the name, which has no folder and no ending, or widen --mosaics"
        )
    names = rule.names
    return {mosaic: _whole(grid, names.index(listed[mosaic]) if listed[mosaic] else NONE) for mosaic, grid in grids.items()}


def _by_fold(grids: Mapping[str, PatchGrid], rule: Rule, groups: Sequence[Sequence[str]]) -> dict[str, Cells]:
    """Fold by fold every patch validates once: val is the whole fold, and only train gives up the patches between them."""
    train, val = 0, 1
    number = {name: i % rule.folds for i, (group, _) in enumerate(_by_size(grids, groups)) for name in group}
    whole = by_mosaic(grids, {str(i): 1 / rule.folds for i in range(rule.folds)}, groups) if len(groups) >= rule.folds else None
    if whole is not None:
        return {mosaic: _whole(grid, val if int(whole[mosaic]) == rule.fold else train) for mosaic, grid in grids.items()}
    cells = {}
    for mosaic, grid in grids.items():
        down = grid.rows >= grid.columns
        starts = np.array(grid.row_starts if down else grid.column_starts)
        if len(starts) < rule.folds:  # too small to be cut: it goes to one fold as a whole
            cells[mosaic] = _whole(grid, val if number[mosaic] == rule.fold else train)
            continue
        lines = np.where(np.arange(len(starts)) * rule.folds // len(starts) == rule.fold, val, train).astype(np.int8)
        held = starts[lines == val]  # contiguous
        near = (starts + grid.patch_size > held[0]) & (starts < held[-1] + grid.patch_size)
        lines[near & (lines == train)] = NONE
        cells[mosaic] = np.ascontiguousarray(
            np.broadcast_to(lines[:, None] if down else lines[None, :], (grid.rows, grid.columns))
        )
    return cells


def _by_size(grids: Mapping[str, PatchGrid], groups: Sequence[Sequence[str]]) -> list[tuple[list[str], int]]:
    sized = [(sorted(group), sum(len(grids[name]) for name in group)) for group in groups]
    return sorted(sized, key=lambda pair: (-pair[1], hashlib.sha256("\n".join(pair[0]).encode()).digest()))


def _whole(grid: PatchGrid, index: int) -> Cells:
    return np.full((grid.rows, grid.columns), index, np.int8)


def _check_name(name: str, given: str) -> None:
    if not (name.isascii() and name.replace("_", "").isalnum()):
        raise InputError(f"{given}: {name!r} names a split's files: use letters, digits and _ only")
