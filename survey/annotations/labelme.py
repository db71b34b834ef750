"""LabelMe JSON: one file an image; rectangles, polygons and circles (as the box around them), and points."""

import json
import math
from collections import Counter

from survey.annotations import reading
from survey.annotations.annotation import Annotation
from survey.annotations.reading import Reading, ReadOptions
from survey.errors import InputError

WHAT = "a LabelMe file"
SKIPPED = "shapes_left_out"


def read(path: str, options: ReadOptions) -> Reading:
    """Annotations of one LabelMe file.

    Raises:
      InputError: not LabelMe JSON, a shape without label or numeric points, or points of a class without a box size.
    """
    try:
        value = json.loads(reading.content(path, WHAT))
    except ValueError as error:
        raise InputError(f"{path} is not {WHAT}: {error}") from error
    if not isinstance(value, dict) or not isinstance(value.get("shapes"), list) or not value.get("imagePath"):
        raise InputError(f"{path} is not {WHAT}: 'imagePath' and a list 'shapes' expected")
    image = str(value["imagePath"])
    size = reading.image_size(value.get("imageHeight"), value.get("imageWidth"), path)
    annotations: list[Annotation] = []
    skipped: Counter[str] = Counter()
    for number, shape in enumerate(value["shapes"], start=1):
        label = str(shape.get("label") or "").strip() if isinstance(shape, dict) else ""
        where = f"{path}: shape {number} ({label or 'no label'})"
        if not label:
            raise InputError(f"{where} has no label")
        kind = shape.get("shape_type", "polygon")  # before LabelMe 3.16 there was nothing else
        if kind not in ("rectangle", "polygon", "circle", "point"):
            skipped[SKIPPED] += 1
            continue
        given = shape.get("points")
        points = [_pair(pair, where) for pair in given] if isinstance(given, list) else []
        if len(points) < {"point": 1, "polygon": 3}.get(kind, 2):
            raise InputError(f"{where} is a {kind} of {len(points)} points")
        if kind == "circle":  # the centre, and a point of the circle
            (x, y), rim = points[:2]
            radius = math.dist((x, y), rim)
            points = [(x - radius, y - radius), (x + radius, y + radius)]
        side = options.side(label, path) if kind == "point" else None
        annotations.append(Annotation(image, size, label, reading.around(points), path, side=side))
    return Reading(annotations, (image,), skipped)


def _pair(pair: object, where: str) -> tuple[float, float]:
    x, y = reading.numbers(pair if isinstance(pair, list) else [pair], where, ("x", "y"))
    return x, y
