"""GeoJSON by RFC 7946: longitude and latitude in WGS 84, whatever CRS the mosaics have.

Rings are counterclockwise (section 3.1.6); a box that crosses the antimeridian is cut there into two polygons (3.1.9); `bbox` of
the collection runs from west to east, so that west is the larger number where it crosses the antimeridian (5.2); there is no
`crs` member (4). A mosaic without a place on the earth cannot be in such a file: its detections are left out, and a note and the
member `not_on_the_map` name it.
"""

import json
from typing import Any

import numpy as np
import pyarrow as pa

from inference.outputs import lines, placing
from inference.outputs.job import Block, Job
from inference.outputs.publishing import stream

FILE = "detections.geojson"
DIGITS = 9  # of a degree: 0.1 mm on the ground


def check(job: Job) -> None:
    """Nothing can be wrong with it; mosaics without a place on the earth are noted."""


def write(job: Job) -> list[str]:
    """Writes FILE, one feature a line; nothing where no mosaic has a place on the earth."""
    elsewhere = [mosaic.name for mosaic in job.manifest.mosaics if not placing.on_earth(mosaic)]
    if len(elsewhere) == len(job.manifest.mosaics):
        job.notes.append(f"{FILE} was not written: no mosaic has a place on the earth (CRS and affine transform)")
        return []
    head: dict[str, Any] = {"type": "FeatureCollection"}
    if elsewhere:
        job.notes.append(f"{FILE} lacks the mosaics that have no place on the earth: {', '.join(elsewhere)}")
        head["not_on_the_map"] = elsewhere
    labels = [json.dumps(name, ensure_ascii=False) for name in job.manifest.classes]
    extents: dict[str, np.ndarray] = {}
    written = lost = 0
    with stream(job.path(FILE)) as out:
        out(json.dumps(head, ensure_ascii=False)[:-1].encode() + b', "features": [')
        for block in job.blocks():
            if not placing.on_earth(block.mosaic):
                continue
            rings = _rings(block)
            there = np.isfinite(rings).all(axis=(1, 2))
            lost += int((~there).sum())
            rings = rings[there]
            if not len(rings):
                continue
            name = json.dumps(block.mosaic.name, ensure_ascii=False)
            properties = lines.joined(
                f',\n{{"type": "Feature", "properties": {{"mosaic": {name}, "class": ',
                job.class_names(block.found.class_ids[there], labels),
                ', "score": ',
                lines.numbers(block.found.scores[there]),
                '}, "geometry": ',
            )
            rows = lines.encoded(lines.joined(properties, _geometries(rings), "}"))
            out(rows if written else rows[1:])
            written += len(rings)
            extents[block.mosaic.name] = _wider(extents.get(block.mosaic.name), rings)
        out(b"\n]")
        if extents:
            out(b', "bbox": ' + json.dumps(bbox(np.stack(list(extents.values())))).encode())
        out(b"}\n")
    if lost:
        job.notes.append(f"{FILE} lacks {lost} detections whose places the projection of their mosaic cannot express in degrees")
    return [FILE]


def _rings(block: Block) -> np.ndarray:
    """Outlines in degrees, counterclockwise, with longitudes that run on over the antimeridian: float64 [N, 5, 2]."""
    planar = placing.outlines(block.mosaic, block.found.boxes_mosaic_px)
    rings = placing.degrees(block.mosaic, planar.reshape(-1, 2)).reshape(-1, 5, 2)
    # A corner more than half the globe from the first lies on its other side of the antimeridian.
    with np.errstate(invalid="ignore"):  # infinite corners are left out by the caller
        turns = np.round((rings[..., 0] - rings[:, :1, 0]) / 360)
        rings[..., 0] -= 360 * turns
        return placing.counterclockwise(rings.round(DIGITS))


def _geometries(rings: np.ndarray) -> pa.Array:
    """JSON geometries [N] of rings [N, 5, 2]."""
    parts: list[lines.Column] = ['{"type": "Polygon", "coordinates": [[']
    for corner in range(5):
        x, y = rings[:, corner].T
        parts += [", [" if corner else "[", lines.numbers(x), ", ", lines.numbers(y), "]"]
    polygons = lines.joined(*parts, "]]}")
    west, east = rings[..., 0].min(axis=1), rings[..., 0].max(axis=1)
    crossing = (west < -180) | (east > 180)
    if not crossing.any():
        return polygons
    import pyarrow.compute as pc  # as in `lines.joined`

    cut = [json.dumps(_cut(ring)) for ring in rings[crossing]]
    return pc.replace_with_mask(polygons, pa.array(crossing), pa.array(cut, pa.string()))


def _cut(ring: np.ndarray) -> dict[str, Any]:
    """A ring [5, 2] that passes the antimeridian as a geometry on both its sides, every longitude from -180 to 180."""
    import shapely

    pieces = []
    for turn in (-360, 0, 360):
        half = shapely.intersection(shapely.Polygon(ring + np.array([turn, 0])), shapely.box(-180, -90, 180, 90))
        if half.geom_type == "Polygon" and half.area > 0:
            # `shapely.box` and intersections may turn either way round.
            pieces.append([shapely.get_coordinates(shapely.orient_polygons(half, exterior_cw=False)).round(DIGITS).tolist()])
    if len(pieces) == 1:  # it lies beyond the antimeridian as a whole
        return {"type": "Polygon", "coordinates": pieces[0]}
    return {"type": "MultiPolygon", "coordinates": pieces}


def _wider(extent: np.ndarray | None, rings: np.ndarray) -> np.ndarray:
    """The box (west, south, east, north) around what a mosaic had so far and around rings; longitudes may pass 180."""
    (west, south), (east, north) = rings.min(axis=(0, 1)), rings.max(axis=(0, 1))
    if rings[..., 0].max() - rings[..., 0].min() > 180:  # boxes on both sides of the antimeridian, none or some across it
        x = np.mod(rings[..., 0], 360)
        west, east = x.min(), x.max()
    here = np.array([west, south, east, north])
    if extent is None:
        return here
    turn = 360 * np.round((here[0] - extent[0]) / 360)
    here[[0, 2]] -= turn
    return np.concatenate([np.minimum(extent[:2], here[:2]), np.maximum(extent[2:], here[2:])])


def bbox(extents: np.ndarray) -> list[float]:
    """The smallest box (west, south, east, north) around several, over the antimeridian where that is shorter.

    Args:
      extents: [M, 4] such boxes; longitudes may pass 180.

    Returns:
      With longitudes from -180 to 180; west is larger than east where the box crosses the antimeridian (RFC 7946, 5.2).

    >>> bbox(np.array([[177.0, -20, 178, -18], [-179.5, -17, -179, -16]]))
    [177.0, -20.0, -179.0, -16.0]
    """
    south, north = float(extents[:, 1].min()), float(extents[:, 3].max())
    lengths = extents[:, 2] - extents[:, 0]
    starts = np.mod(extents[:, 0] + 180, 360)  # 0 is the antimeridian
    order = np.argsort(starts)
    starts, ends = starts[order], (starts + lengths)[order]
    reach = np.maximum.accumulate(ends)
    # The gap before each box; before the first one, the gap is from the farthest reach on, round the globe.
    gaps = starts - np.concatenate([[reach[-1] - 360], reach[:-1]])
    widest = int(np.argmax(gaps))
    if gaps[widest] <= 0:
        return [-180.0, south, 180.0, north]
    west = starts[widest]
    east = reach[-1] if widest == 0 else reach[widest - 1] + 360
    west, east = west - 180, east - 180
    return [round(float(west), DIGITS), south, round(float(east - 360 if east > 180 else east), DIGITS), north]
