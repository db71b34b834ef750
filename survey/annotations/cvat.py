"""CVAT XML 1.1, "CVAT for images": boxes, polygons (as the box around them) and points, one file for many images."""

import math
from collections import Counter
from xml.etree.ElementTree import Element

from survey.annotations import reading
from survey.annotations.annotation import Annotation
from survey.annotations.reading import Reading, ReadOptions
from survey.errors import InputError

WHAT = "a CVAT file (CVAT for images 1.1)"
SHAPES = ("polyline", "ellipse", "mask", "cuboid", "skeleton")  # which box they mean is not for us to say
SKIPPED = "shapes_left_out"


def read(path: str, options: ReadOptions) -> Reading:
    """Annotations of one CVAT file.

    A box that was turned in CVAT becomes the upright box around it. Each point of a `points` shape is one object.

    Raises:
      InputError: not CVAT XML, XML that expands entities, a video export, a shape without label or numeric corners, or points
        of a class without a box size.
    """
    root = reading.xml(path, WHAT, "annotations")
    if root.find("track") is not None:
        raise InputError(f"{path} holds the tracks of a video: export it as 'CVAT for images 1.1', where each frame is an image")
    annotations: list[Annotation] = []
    images: list[str] = []
    skipped: Counter[str] = Counter()
    for number, image in enumerate(root.iter("image"), start=1):
        name = (image.get("name") or "").strip()
        if not name:
            raise InputError(f"{path}: image {number} has no name")
        images.append(name)
        size = reading.image_size(image.get("height"), image.get("width"), f"{path}: image {name}")
        for shape in image:
            where = f"{path}: <{shape.tag}> {shape.get('label') or 'without label'} of image {name}"
            if shape.tag in SHAPES:
                skipped[SKIPPED] += 1
                continue
            if shape.tag not in ("box", "polygon", "points"):
                continue  # a tag of the whole image
            label = (shape.get("label") or "").strip()
            if not label:
                raise InputError(f"{where} has no label")
            if shape.tag == "box":
                annotations.append(Annotation(name, size, label, reading.around(_corners(shape, where)), path))
            elif shape.tag == "polygon":
                annotations.append(Annotation(name, size, label, reading.around(_points(shape, where)), path))
            else:
                side = options.side(label, path)
                annotations += [Annotation(name, size, label, (y, x, y, x), path, side=side) for x, y in _points(shape, where)]
    return Reading(annotations, tuple(images), skipped)


def _corners(shape: Element, where: str) -> list[tuple[float, float]]:
    """The four (x, y) corners of a box; `rotation` is in degrees, clockwise as the image is seen, about the centre."""
    names = ("xtl", "ytl", "xbr", "ybr")
    x0, y0, x1, y1 = reading.numbers((shape.get(name) for name in names), where, names)
    if not shape.get("rotation"):
        return [(x0, y0), (x1, y1)]
    (degrees,) = reading.numbers([shape.get("rotation")], where, ["rotation"])
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    corners = [(u - x, v - y) for u in (x0, x1) for v in (y0, y1)]
    return [(x + u * cosine - v * sine, y + u * sine + v * cosine) for u, v in corners]


def _points(shape: Element, where: str) -> list[tuple[float, float]]:
    result = []
    for pair in (shape.get("points") or "").split(";"):
        x, y = reading.numbers(pair.split(","), where, ("x", "y"))
        result.append((x, y))
    return result
