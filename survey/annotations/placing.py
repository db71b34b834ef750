"""From the frame in which a format measures to pixels of a mosaic, many annotations at a time."""

from collections.abc import Iterator, Sequence

import numpy as np
import rasterio.warp
from affine import Affine
from rasterio.errors import CRSError

from survey import boxes
from survey.annotations.annotation import Annotation, Length
from survey.errors import InputError
from survey.geometry import Mosaic

# In float64 a UTM northing is good to 5e-9 px of 0.1 m. Rounded to a millionth of a pixel, the same object has the same box
# whatever frame it came in, and one drawn to a border ends there.
DIGITS = 6


def in_pixels(annotations: Sequence[Annotation], mosaic: Mosaic) -> np.ndarray:
    """Boxes of annotations of one mosaic whose frame is not the map.

    Args:
      annotations: N of them.
      mosaic: gives the height, the width and, for sizes in metres, the ground resolution.

    Returns:
      float64 [N, 4], yxyx in mosaic pixels, not clipped.

    Raises:
      InputError: a point's size is in metres, and the mosaic has no ground resolution.
    """
    result = np.array([one.box for one in annotations], np.float64).reshape(-1, 4)
    frames = [one.frame for one in annotations]
    if set(frames) <= {"pixels"} and all(one.side is None for one in annotations):
        return result  # as the file has them
    if "pixels_from_bottom" in frames:
        rows = np.flatnonzero([frame == "pixels_from_bottom" for frame in frames])
        result[rows] = np.array([mosaic.height, 0, mosaic.height, 0]) + np.array([-1, 1, -1, 1]) * result[rows][:, [2, 1, 0, 3]]
    if "normalised" in frames:
        rows = np.flatnonzero([frame == "normalised" for frame in frames])
        result[rows] *= (mosaic.height, mosaic.width, mosaic.height, mosaic.width)
    return _grown(result, _in_px(_sides(annotations), mosaic)).round(DIGITS)


def on_mosaics(annotations: Sequence[Annotation], mosaics: Sequence[Mosaic]) -> Iterator[tuple[Mosaic, np.ndarray, np.ndarray]]:
    """Objects in map coordinates on the mosaics that show them; where mosaics overlap, an object is on each of them.

    The corners of an outline are transformed one by one, and the box is the one around them in pixels. An edge between two
    corners is taken as straight in both systems: over the 100 m of a very large object it departs by less than a millimetre.

    Args:
      annotations: N of them, with `crs` and `outline`.
      mosaics: all of the survey.

    Yields:
      (mosaic, indices into annotations [M] rising, their boxes float64 [M, 4] in its pixels, not clipped); only boxes that share
      area with the mosaic, only mosaics with any.

    Raises:
      InputError: a mosaic that has no place on the map, a CRS that cannot be transformed, or a size in metres where a mosaic has
        no ground resolution.
    """
    for mosaic in mosaics:
        if mosaic.crs is None or mosaic.transform is None:
            raise InputError(
                f"{annotations[0].source} is in map coordinates ({_short(annotations[0].crs)}), but {mosaic.path} has no "
                f"{'CRS' if mosaic.crs is None else 'affine transform'}: georeference it (gdal_edit.py -a_srs EPSG:CODE -a_ullr "
                "X0 Y0 X1 Y1), or leave it out of --mosaics"
            )
    outlines = [_outline(one) for one in annotations]
    starts = np.concatenate([[0], np.cumsum([len(outline) for outline in outlines])])
    points = np.concatenate(outlines)  # [P, 2] (x, y)
    codes = [str(one.crs) for one in annotations]
    sides = _sides(annotations)
    largest = np.unique(sides, axis=0)
    moved: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for mosaic in mosaics:
        assert mosaic.crs is not None
        assert mosaic.transform is not None
        if mosaic.crs not in moved:
            here = _transformed(points, np.diff(starts), codes, mosaic.crs)
            moved[mosaic.crs] = (here, _around(here, starts))
        there, bounds = moved[mosaic.crs]
        reach = float(np.nanmax(_in_px(largest, mosaic), initial=0)) / 2
        frame = np.array([(y, x) for y in (-reach, mosaic.height + reach) for x in (-reach, mosaic.width + reach)])
        corners = mosaic.to_map(frame)
        (x0, y0), (x1, y1) = corners.min(axis=0), corners.max(axis=0)
        near = np.flatnonzero((bounds[:, 0] <= x1) & (bounds[:, 2] >= x0) & (bounds[:, 1] <= y1) & (bounds[:, 3] >= y0))
        if not len(near):
            continue
        lengths = np.diff(starts)[near]
        ends = np.cumsum(lengths)
        take = np.arange(ends[-1]) + np.repeat(starts[near] - (ends - lengths), lengths)
        inverse = ~Affine(*mosaic.transform)
        x, y = there[take].T
        row, column = inverse.d * x + inverse.e * y + inverse.f, inverse.a * x + inverse.b * y + inverse.c
        around = _around(np.stack([row, column], axis=1), np.concatenate([[0], ends]))
        placed = _grown(around, _in_px(sides[near], mosaic)).round(DIGITS)
        shown = boxes.area(boxes.clip(placed, mosaic.height, mosaic.width)) > 0
        if shown.any():
            yield mosaic, near[shown], placed[shown]


def _outline(one: Annotation) -> np.ndarray:
    if one.outline is not None:
        return one.outline
    y0, x0, y1, x1 = one.box
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def _around(points: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Bounding boxes (min, min, max, max) [N, 4] of runs of points; run i is points[starts[i]:starts[i + 1]]."""
    return np.concatenate([np.minimum.reduceat(points, starts[:-1]), np.maximum.reduceat(points, starts[:-1])], axis=1)


def _transformed(points: np.ndarray, lengths: np.ndarray, codes: Sequence[str], target: str) -> np.ndarray:
    """Points [P, 2] (x, y) in the target CRS; a point that it cannot express is infinite, so it lies on no mosaic."""
    result = points.copy()
    for code in dict.fromkeys(codes):
        if code == target:
            continue
        mine = np.repeat([one == code for one in codes], lengths)
        try:
            x, y = rasterio.warp.transform(code, target, points[mine, 0], points[mine, 1])
        except CRSError as error:
            raise InputError(f"annotations in {_short(code)} cannot be brought to {_short(target)}: {error}") from error
        result[mine] = np.stack([x, y], axis=1)
    return result


def _sides(annotations: Sequence[Annotation]) -> np.ndarray:
    """Sides of the squares around points, [N, 2] as (pixels, metres): one is a number, the other is not; for boxes neither."""
    none = (np.nan, np.nan)
    return np.array([none if (side := one.side) is None else _pair(side) for one in annotations]).reshape(-1, 2)


def _pair(side: Length) -> tuple[float, float]:
    return (side.value, np.nan) if side.unit == "px" else (np.nan, side.value)


def _in_px(sides: np.ndarray, mosaic: Mosaic) -> np.ndarray:
    """Sides in pixels of the mosaic, [N]; not a number for boxes."""
    px, metres = sides.T
    if mosaic.gsd_m is None and not np.isnan(metres).all():
        raise InputError(
            f"--box_size gives {np.nanmax(metres):g} m, but {mosaic.path} has no ground resolution in metres (CRS "
            f"{_short(mosaic.crs)}): give the size in pixels"
        )
    return np.where(np.isnan(px), metres / (mosaic.gsd_m or np.nan), px)


def _grown(around: np.ndarray, sides_px: np.ndarray) -> np.ndarray:
    """Points become squares of their side about their centre; boxes, whose side is not a number, stay."""
    half = np.where(np.isnan(sides_px), 0, sides_px)[:, None] / 2
    return np.concatenate([around[:, :2] - half, around[:, 2:] + half], axis=1)


def _short(crs: str | None) -> str:
    """A CRS in an error line: its code, or the beginning of its WKT."""
    return "none" if crs is None else crs if len(crs) <= 60 else crs[:60] + "..."
