"""Views of the detections that count, for people and their tools: CSV, GeoJSON, COCO JSON, and the counts.

The table of record is `detections.parquet` (survey.detections); everything here can be made again from it.
"""

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from survey import boxes, files
from survey.detections import Detections, Manifest
from survey.geometry import Mosaic

CSV = "detections.csv"
GEOJSON = "detections.geojson"
COCO = "detections.coco.json"
COUNTS = "counts.csv"

PIXELS = "pixels (x right, y down)"


def write(folder: str, manifest: Manifest, found: dict[str, Detections]) -> None:
    """Writes all views, each in one step.

    Args:
      folder: where.
      manifest: of the detections.
      found: all detections of each mosaic, by name; those below `manifest.score_threshold` are left out here.
    """
    counted = {name: one.take(one.scores >= np.float32(manifest.score_threshold)) for name, one in found.items()}
    views: dict[str, Callable[[Manifest, dict[str, Detections]], str]] = {
        CSV: as_csv,
        GEOJSON: as_geojson,
        COCO: as_coco,
        COUNTS: counts_as_csv,
    }
    for name, view in views.items():
        files.write(os.path.join(folder, name), view(manifest, counted).encode())


def count(found: dict[str, Detections], classes: tuple[str, ...], score_threshold: float) -> dict[str, dict[str, int]]:
    """Objects per mosaic and class that reach the threshold, zeros included: {mosaic: {class: number}}."""
    counts = {}
    for name, one in found.items():
        ids = one.class_ids[one.scores >= np.float32(score_threshold)]
        tally = np.bincount(ids, minlength=len(classes) + 1)
        counts[name] = {label: int(tally[i]) for i, label in enumerate(classes, start=1)}
    return counts


def frame(mosaic: Mosaic) -> str:
    """In which coordinates GeoJSON gives the detections of a mosaic, in words.

    A position on the map needs both a CRS and an affine transform; a mosaic that lacks one of them is given in pixels.
    """
    return f"map coordinates, {mosaic.crs}" if _on_map(mosaic) else PIXELS


def as_csv(manifest: Manifest, counted: dict[str, Detections]) -> str:
    """One line an object: box in mosaic pixels, and its centre on the map where the mosaic has a CRS."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["mosaic", "class", "score", "y0", "x0", "y1", "x1", "map_x", "map_y", "crs"])
    for mosaic in manifest.mosaics:
        one = counted[mosaic.name]
        placed = _on_map(mosaic)
        centers = mosaic.to_map(boxes.centers(one.boxes_mosaic_px)) if placed else np.zeros((len(one), 2))
        for box, score, class_id, (x, y) in zip(one.boxes_mosaic_px, one.scores, one.class_ids, centers, strict=True):
            where = [_coordinate(x), _coordinate(y), mosaic.crs] if placed else ["", "", ""]
            sides = [f"{side:.2f}" for side in box]
            writer.writerow([mosaic.name, manifest.classes[class_id - 1], f"{score:.4f}", *sides, *where])
    return out.getvalue()


def as_geojson(manifest: Manifest, counted: dict[str, Detections]) -> str:
    """A FeatureCollection of box polygons, in the coordinates of the mosaics' CRS where they have one.

    The member `crs` (GeoJSON 2008; QGIS and GDAL read it) names that system, and `name` says it in words. When the mosaics do not
    share one system, no single `crs` would be true: it is left out, and each feature says its own in `frame`.
    """
    frames = {frame(mosaic) for mosaic in manifest.mosaics}
    mixed = len(frames) > 1
    head: dict[str, Any] = {"type": "FeatureCollection"}
    head["name"] = "mixed: the property `frame` of each feature says its coordinates" if mixed else next(iter(frames))
    crs = manifest.mosaics[0].crs
    if not mixed and crs is not None and _on_map(manifest.mosaics[0]):
        head["crs"] = {"type": "name", "properties": {"name": _urn(crs)}}
    features = [
        {"type": "Feature", "properties": properties | ({"frame": where} if mixed else {}), "geometry": geometry}
        for properties, geometry, where in _features(manifest, counted)
    ]
    # One feature a line: a text tool can look into a survey of a million objects.
    lines = ",\n".join(json.dumps(feature, ensure_ascii=False, allow_nan=False) for feature in features)
    return json.dumps(head, ensure_ascii=False)[:-1] + ', "features": [\n' + lines + "\n]}\n"


def as_coco(manifest: Manifest, counted: dict[str, Detections]) -> str:
    """A COCO detection file: images, categories, and annotations that carry a score; boxes [x, y, width, height] in pixels."""
    annotations: list[dict[str, Any]] = []
    for image_id, mosaic in enumerate(manifest.mosaics, start=1):
        one = counted[mosaic.name]
        for box, score, class_id in zip(one.boxes_mosaic_px.tolist(), one.scores.tolist(), one.class_ids.tolist(), strict=True):
            y0, x0, y1, x1 = box
            width, height = x1 - x0, y1 - y0
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": class_id,
                    "bbox": [x0, y0, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "score": score,
                }
            )
    images = [
        {"id": i, "file_name": os.path.basename(mosaic.path), "width": mosaic.width, "height": mosaic.height}
        for i, mosaic in enumerate(manifest.mosaics, start=1)
    ]
    categories = [{"id": i, "name": name} for i, name in enumerate(manifest.classes, start=1)]
    value = {"images": images, "categories": categories, "annotations": annotations}
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


def counts_as_csv(manifest: Manifest, counted: dict[str, Detections]) -> str:
    """One line for each mosaic and class, zeros included."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["mosaic", "class", "count"])
    for mosaic, tally in count(counted, manifest.classes, manifest.score_threshold).items():
        writer.writerows([mosaic, label, number] for label, number in tally.items())
    return out.getvalue()


def _features(manifest: Manifest, counted: dict[str, Detections]) -> Iterator[tuple[dict[str, Any], dict[str, Any], str]]:
    """(properties, geometry, frame) of each object."""
    for mosaic in manifest.mosaics:
        one = counted[mosaic.name]
        y0, x0, y1, x1 = one.boxes_mosaic_px.T.astype(float)
        # Down, right, up, left in pixels: counterclockwise, as RFC 7946 wants, on a map whose north is up.
        corners = np.stack([np.stack(corner, axis=1) for corner in ((y0, x0), (y1, x0), (y1, x1), (y0, x1), (y0, x0))], axis=1)
        flat = corners.reshape(-1, 2)  # [5 N, 2] (y, x)
        placed = mosaic.to_map(flat) if _on_map(mosaic) else flat[:, ::-1]
        for ring, score, class_id in zip(placed.reshape(-1, 5, 2), one.scores, one.class_ids, strict=True):
            properties = {"mosaic": mosaic.name, "class": manifest.classes[class_id - 1], "score": round(float(score), 4)}
            rounded = [[float(_coordinate(x)), float(_coordinate(y))] for x, y in _counterclockwise(ring)]
            yield properties, {"type": "Polygon", "coordinates": [rounded]}, frame(mosaic)


def _counterclockwise(ring: np.ndarray) -> np.ndarray:
    """The closed ring [5, 2] (x, y), turned if need be: a mosaic may be mirrored or have north at the bottom."""
    x, y = ring.T
    twice_area = float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))  # the shoelace formula
    return ring if twice_area >= 0 else ring[::-1]


def _coordinate(value: float) -> str:
    """Twelve digits: a tenth of a millimetre in a UTM zone, a tenth of a micron in degrees."""
    return f"{value:.12g}"


def _on_map(mosaic: Mosaic) -> bool:
    return mosaic.crs is not None and mosaic.transform is not None


def _urn(crs: str) -> str:
    """The name that GeoJSON's `crs` member wants: OGC's URN for an authority's code, the WKT itself for anything else.

    >>> _urn("EPSG:32617")
    'urn:ogc:def:crs:EPSG::32617'
    """
    authority, _, code = crs.partition(":")
    return f"urn:ogc:def:crs:{authority}::{code}" if authority.isalpha() and code.isdigit() else crs
