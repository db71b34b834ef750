"""Density maps: one GeoTIFF a mosaic, one band a class, on the mosaic's own CRS and axes.

Cells are squares of the mosaic's pixels, so a map lies exactly on its mosaic, also where that is turned or mirrored. A cell's
value is the objects whose centre lies in it, divided by the ground that the mosaic shows of it: per hectare where the mosaic has
a ground resolution, else per megapixel. Where it shows less than MIN_SHARE of a cell, a count over so little ground would be
noise: the cell has no value (nodata, not a number).
"""

import math

import numpy as np
import rasterio
from affine import Affine

from inference.outputs.job import Job, open_mosaic
from inference.outputs.publishing import by_gdal
from survey import boxes
from survey.detections import Detections
from survey.errors import InputError
from survey.geometry import Mosaic, Window

FOLDER = "density"
MIN_SHARE = 0.01
# The mask of a mosaic is read in pieces of this size: 50 MB, whatever the cells are.
MASK_PX = 4096
MAX_CELLS = 100_000_000  # 400 MB a band: more is a mistake in the unit


def check(job: Job) -> None:
    """Refuses a missing or useless size of the cells.

    Raises:
      InputError: names the flag, and a size that would do.
    """
    for mosaic in job.manifest.mosaics:
        name, given, unit, scale = _asked(job, mosaic)
        longer = max(mosaic.height, mosaic.width) * scale
        usual = f"{float(f'{max(longer / 50, scale):.1g}'):g}"  # one digit
        if given is None:
            raise InputError(
                f"a density needs the size of its cells: give --{name}, for instance {usual} for mosaic {mosaic.name}, "
                f"whose longer side is {longer:g} {unit}; small enough to show patterns, large enough to hold several objects"
            )
        side_px = given / scale if math.isfinite(given) else 0
        if side_px < 1 or math.prod(_shape(mosaic, side_px)) > MAX_CELLS:
            raise InputError(
                f"--{name}={given:g}: must be at least a pixel of mosaic {mosaic.name} ({scale:g} {unit}), and give at most "
                f"{MAX_CELLS:,} cells; a fiftieth of its longer side is {usual} {unit}"
            )


def write(job: Job) -> list[str]:
    """Writes FOLDER/MOSAIC.tif for each mosaic."""
    written = []
    for mosaic in job.manifest.mosaics:
        _, given, _, scale = _asked(job, mosaic)
        assert given is not None
        side_px = given / scale
        counts = count(job.counted[mosaic.name], mosaic, len(job.manifest.classes), side_px)
        shown_px = _shown_px(job, mosaic, side_px)
        area = shown_px * scale**2 / 1e4 if mosaic.gsd_m is not None else shown_px / 1e6
        # Not of the full cell: at the far edges a cell hangs over the mosaic.
        some = shown_px >= MIN_SHARE * side_px**2
        lost = int(counts[:, ~some].sum())
        if lost:
            job.notes.append(
                f"{FOLDER}/{mosaic.name}.tif leaves out {lost} objects in cells of which the mosaic shows too little"
            )
        values = np.where(some, counts / np.where(some, area, 1), np.nan).astype(np.float32)
        name = f"{FOLDER}/{mosaic.name}.tif"
        with by_gdal(job.path(name)) as path:
            _write(path, values, mosaic, side_px, job.manifest.classes)
        written.append(name)
    return written


def count(found: Detections, mosaic: Mosaic, classes: int, side_px: float) -> np.ndarray:
    """Objects by class and cell.

    Args:
      found: the detections of one mosaic.
      mosaic: the mosaic.
      classes: how many there are.
      side_px: of a cell; need not be whole.

    Returns:
      int64 [classes, rows, columns].
    """
    rows, columns = _shape(mosaic, side_px)
    y, x = (boxes.centers(found.boxes_mosaic_px).astype(float) / side_px).astype(int).T
    cells = (found.class_ids - 1) * (rows * columns) + y.clip(0, rows - 1) * columns + x.clip(0, columns - 1)
    return np.bincount(cells, minlength=classes * rows * columns).reshape(classes, rows, columns)


def _asked(job: Job, mosaic: Mosaic) -> tuple[str, float | None, str, float]:
    """(Flag that sizes the cells of this mosaic, its value, its unit, size of a pixel in that unit)."""
    if mosaic.gsd_m is not None:
        return "density_cell_m", job.settings.density_cell_m, "m", mosaic.gsd_m
    return "density_cell_px", job.settings.density_cell_px, "px", 1.0


def _shape(mosaic: Mosaic, side_px: float) -> tuple[int, int]:
    return (math.ceil(mosaic.height / side_px), math.ceil(mosaic.width / side_px)) if side_px > 0 else (0, 0)


def _shown_px(job: Job, mosaic: Mosaic, side_px: float) -> np.ndarray:
    """Pixels of each cell that the mosaic shows, float64 [rows, columns]; from its mask where it has one."""
    rows, columns = _shape(mosaic, side_px)
    try:
        raster = open_mosaic(mosaic)
    except InputError as error:
        job.notes.append(f"{FOLDER}/{mosaic.name}.tif takes borders of the mosaic that show nothing for surveyed ground: {error}")
        return np.outer(_lengths(mosaic.height, side_px, rows), _lengths(mosaic.width, side_px, columns))
    with raster:
        if not raster.has_mask:
            return np.outer(_lengths(mosaic.height, side_px, rows), _lengths(mosaic.width, side_px, columns))
        shown = np.zeros((rows, columns))
        for y in range(0, mosaic.height, MASK_PX):
            for x in range(0, mosaic.width, MASK_PX):
                window = Window(y, x, min(y + MASK_PX, mosaic.height), min(x + MASK_PX, mosaic.width))
                valid = raster.read_valid(window)
                # A pixel belongs to the cell that holds its centre, as a detection does.
                row = np.minimum(((np.arange(window.y0, window.y1) + 0.5) / side_px).astype(int), rows - 1)
                column = np.minimum(((np.arange(window.x0, window.x1) + 0.5) / side_px).astype(int), columns - 1)
                down, across = np.flatnonzero(np.diff(row, prepend=-1)), np.flatnonzero(np.diff(column, prepend=-1))
                sums = np.add.reduceat(np.add.reduceat(valid, across, axis=1, dtype=np.int32), down, axis=0)
                shown[np.ix_(row[down], column[across])] += sums
        return shown


def _lengths(length: int, side_px: float, number: int) -> np.ndarray:
    """Pixels of each cell along one axis; the last cell may hang over."""
    starts = np.arange(number) * side_px
    return np.minimum(starts + side_px, length) - starts


def _write(path: str, values: np.ndarray, mosaic: Mosaic, side_px: float, classes: tuple[str, ...]) -> None:
    """A GeoTIFF of values [classes, rows, columns]; without a place on the map its coordinates are mosaic pixels."""
    transform = (Affine(*mosaic.transform) if mosaic.transform is not None else Affine.identity()) @ Affine.scale(side_px)
    unit = "objects per hectare" if mosaic.gsd_m is not None else "objects per megapixel"
    profile = {"driver": "GTiff", "dtype": "float32", "nodata": np.nan, "compress": "deflate", "predictor": 3, "tiled": True}
    count, height, width = values.shape
    with rasterio.open(
        path, "w", count=count, height=height, width=width, crs=mosaic.crs, transform=transform, **profile
    ) as file:
        file.write(values)
        file.units = [unit] * count
        for band, name in enumerate(classes, start=1):
            file.set_band_description(band, name)
