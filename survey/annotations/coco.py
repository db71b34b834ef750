"""COCO JSON: one file for many images, boxes as [x, y, width, height] in pixels.

A crowd (`iscrowd` 1) is one box around an uncounted number of objects: it is left out and counted, because a detector taught
that box would learn that a flock is one bird.
"""

import json
import math
from collections import Counter
from typing import Any

from survey.annotations import reading
from survey.annotations.annotation import Annotation
from survey.annotations.reading import Reading, ReadOptions
from survey.errors import InputError

WHAT = "a COCO annotation file"
CROWDS = "crowd_annotations_left_out"


def read(path: str, options: ReadOptions) -> Reading:
    """Annotations of one COCO file. Images without annotations are named in `Reading.images`.

    Raises:
      InputError: not COCO JSON, an annotation of an image or category that the file does not list, or one without a box.
    """
    try:
        value = json.loads(reading.content(path, WHAT))
    except ValueError as error:
        raise InputError(f"{path} is not {WHAT}: {error}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(value, dict) or not isinstance(value.get(key), list):
            raise InputError(f"{path} is not {WHAT}: it has no list {key!r}; the file of a dataset is expected, not of results")
    images: dict[Any, tuple[str, tuple[int, int] | None]] = {}
    for one in value["images"]:
        where = f"{path}: image {_get(one, 'id', path)}"
        size = reading.image_size(one.get("height"), one.get("width"), where)
        if images.setdefault(one["id"], (str(_get(one, "file_name", where)), size)) != (str(one["file_name"]), size):
            raise InputError(f"{where} is listed twice, as {images[one['id']][0]!r} and {one['file_name']!r}")
    categories = {_get(one, "id", path): str(_get(one, "name", path)).strip() for one in value["categories"]}
    annotations: list[Annotation] = []
    skipped: Counter[str] = Counter()
    entries = value.pop("annotations")[::-1]
    number = 0
    while entries:  # each is let go once it is read: a million of them are half a GiB
        one, number = entries.pop(), number + 1
        try:
            (image, size), name = images[one["image_id"]], categories[one["category_id"]]
            if one.get("iscrowd"):
                skipped[CROWDS] += 1
                continue
            x, y, width, height = map(float, one["bbox"])
            if not math.isfinite(x + y + width + height):
                raise ValueError
        except (KeyError, TypeError, ValueError, AttributeError):
            raise _mistake(one, number, path, images, categories) from None
        annotations.append(Annotation(image, size, name, (y, x, y + height, x + width), path))
    return Reading(annotations, tuple(image for image, _ in images.values()), skipped)


def _mistake(one: Any, number: int, path: str, images: dict[Any, Any], categories: dict[Any, str]) -> InputError:
    """What is wrong with an annotation that could not be read, in words."""
    where = f"{path}: annotation {one.get('id', f'number {number}') if isinstance(one, dict) else number}"
    try:
        if _get(one, "image_id", where) not in images:
            return InputError(
                f"{where} is of image_id {one['image_id']!r}, which is not among the {len(images)} images of the file"
            )
        if _get(one, "category_id", where) not in categories:
            known = ", ".join(f"{i} {name}" for i, name in categories.items())
            return InputError(f"{where} has category_id {one['category_id']!r}, which the file does not name (it has {known})")
        box = _get(one, "bbox", where)
        reading.numbers(box if isinstance(box, list) else [box], where, ("x", "y", "width", "height"))
    except InputError as error:
        return error
    return InputError(f"{where} cannot be read: {json.dumps(one)[:80]}")


def _get(one: Any, key: str, where: str) -> Any:
    if not isinstance(one, dict) or one.get(key) is None:
        raise InputError(f"{where} has an entry without {key!r}: {json.dumps(one)[:80]}")
    return one[key]
