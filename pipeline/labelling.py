"""Which patches show which objects, for a whole mosaic at once."""

import dataclasses
from collections import Counter
from dataclasses import dataclass

import numpy as np

from pipeline import split
from pipeline.patches import PatchTable
from survey import boxes, resample
from survey.geometry import PatchGrid, Window


def label(window: Window, boxes_mosaic_px: np.ndarray, min_visible: float) -> tuple[np.ndarray, np.ndarray]:
    """What a patch shows of boxes.

    Args:
      window: the patch.
      boxes_mosaic_px: [N, 4], yxyx.
      min_visible: share of a box's area, 0 to 1.

    Returns:
      (boxes in patch pixels, clipped, [N, 4]; which of them are visible enough to be labelled, [N] bool). A sliver of an
      object at the border looks like nothing, and teaching the model to find it costs it precision everywhere.
    """
    clipped = boxes.clip(boxes.shift(boxes_mosaic_px, -window.y0, -window.x0), window.height, window.width)
    return clipped, _visible(clipped, boxes_mosaic_px, min_visible)


def _visible(clipped: np.ndarray, whole: np.ndarray, min_visible: float) -> np.ndarray:
    area = boxes.area(clipped)
    visible: np.ndarray = (area > 0) & (area >= min_visible * boxes.area(whole))
    return visible


@dataclass(frozen=True, slots=True)
class Place:
    """One mosaic's part in the plan: its index, first number, grid, source pixels for one of the grid's, and splits."""

    mosaic: int
    first_patch_id: int
    grid: PatchGrid
    scale: tuple[float, float]
    cells: split.Cells


def patches(
    place: Place, boxes_px: np.ndarray, class_ids: np.ndarray, first_object: int, min_visible: float, counts: Counter[str]
) -> PatchTable:
    """The patches of a mosaic that are in a split, with the objects that they show.

    Args:
      place: the mosaic's part in the plan.
      boxes_px: [N, 4], yxyx in pixels of the grid.
      class_ids: int [N], from 1.
      first_object: number of the mosaic's first object within the survey.
      min_visible: an object is labelled in a patch that shows at least this share of its area.
      counts: gets boxes_too_little_visible_in_patch, objects_in_no_patch and objects_labelled.
    """
    grid, cells = place.grid, place.cells.ravel()
    indices = np.flatnonzero(cells != split.NONE)
    rows, columns = indices // grid.columns, indices % grid.columns
    corner = np.stack([np.array(grid.row_starts)[rows], np.array(grid.column_starts)[columns]], axis=1)
    windows = np.concatenate([corner, corner + grid.patch_size], axis=1)

    # Every (object, patch) that share a pixel: a rectangle of cells for each object, unrolled.
    spans = []
    for starts, low, high in ((grid.row_starts, 0, 2), (grid.column_starts, 1, 3)):
        first = np.searchsorted(starts, boxes_px[:, low] - grid.patch_size, side="right")
        spans.append((first, np.searchsorted(starts, boxes_px[:, high], side="left") - first))
    (first_row, tall), (first_column, wide) = spans
    number = tall * wide
    objects = np.repeat(np.arange(len(boxes_px)), number)
    step = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
    cell = (first_row[objects] + step // wide[objects]) * grid.columns + first_column[objects] + step % wide[objects]
    chosen = cells[cell] != split.NONE
    objects, cell = objects[chosen], cell[chosen]

    patch = np.searchsorted(indices, cell)
    origin = np.concatenate([windows[patch, :2], windows[patch, :2]], axis=1)
    clipped = np.clip(boxes_px[objects] - origin, 0, grid.patch_size)
    kept = _visible(clipped, boxes_px[objects], min_visible)
    counts["boxes_too_little_visible_in_patch"] += int((~kept).sum())
    objects, patch, clipped = objects[kept], patch[kept], clipped[kept]
    labelled = len(np.unique(objects))
    counts["objects_in_no_patch"] += len(boxes_px) - labelled
    counts["objects_labelled"] += labelled
    order = np.argsort(patch, kind="stable")  # within a patch, objects stay in the order of the annotations
    return PatchTable(
        patch_ids=place.first_patch_id + indices.astype(np.int64),
        mosaics=np.full(len(indices), place.mosaic, np.int32),
        rows=rows.astype(np.int32),
        columns=columns.astype(np.int32),
        windows=windows.astype(np.int32),
        sources=windows.astype(np.int32) if place.scale == (1.0, 1.0) else _sources(grid, rows, columns, place.scale),
        splits=cells[indices].astype(np.int8),
        first_box=np.r_[0, np.cumsum(np.bincount(patch, minlength=len(indices)))].astype(np.int64),
        boxes_patch_px=clipped[order].reshape(-1, 4),
        class_ids=class_ids[objects[order]].astype(np.int32),
        object_ids=(first_object + objects[order]).astype(np.int64),
    )


def _sources(grid: PatchGrid, rows: np.ndarray, columns: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    # One row's and one column's windows say all: a grid is their product.
    down = np.array([dataclasses.astuple(resample.source(grid.window(row, 0), scale)) for row in range(grid.rows)])
    across = np.array([dataclasses.astuple(resample.source(grid.window(0, column), scale)) for column in range(grid.columns)])
    return np.stack([down[rows, 0], across[columns, 1], down[rows, 2], across[columns, 3]], axis=1).astype(np.int32)


def count_large(boxes_px: np.ndarray, overlap_px: int, counts: Counter[str]) -> None:
    """Counts objects_larger_than_overlap, and keeps the largest_object_px.

    Args:
      boxes_px: [N, 4], yxyx in pixels of the grid.
      overlap_px: pixels that neighbouring patches share.
      counts: gets both.
    """
    # An object no larger than the overlap is whole in at least one patch; a larger one may be cut by every patch that shows it.
    sides = np.ceil((boxes_px[:, 2:] - boxes_px[:, :2]).max(axis=1, initial=0)).astype(int)
    counts["objects_larger_than_overlap"] += int((sides > overlap_px).sum())
    counts["largest_object_px"] = max(counts["largest_object_px"], int(sides.max(initial=0)))
