"""YOLO txt: one file an image, a line an object: class number from 0, centre x, centre y, width, height, divided by image size.

The image is the one with the stem of the txt file. The names of the classes come from --class_names, or from the first of
`classes.txt`, `obj.names`, `data.yaml` in the folder of the file or the two above it (`labels/train/a.txt` beside `data.yaml`).
A file without a line says, as in every YOLO trainer, that the image has no object.
"""

import os
from functools import lru_cache

from survey import files, labels, storage
from survey.annotations import reading
from survey.annotations.annotation import Annotation
from survey.annotations.reading import Reading, ReadOptions
from survey.errors import InputError
from survey.labels import LabelMap

NAMES = ("classes.txt", "obj.names", "data.yaml")
FIELDS = ("class", "x", "y", "width", "height")


def read(path: str, options: ReadOptions) -> Reading:
    """Annotations of one YOLO file.

    Raises:
      InputError: a line that is not five numbers (or a class and a polygon), a class number without a name, coordinates that are
        no shares of the image.
    """
    image = os.path.basename(path)
    if image in NAMES:  # LabelImg keeps it among the annotations, where the pattern finds it too
        return Reading([])
    try:
        lines = files.read(path).decode().splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a YOLO file: {error}") from error
    annotations = []
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields:
            continue
        where = f"{path}: line {number}"
        names: tuple[str, ...] = FIELDS
        if len(fields) > len(FIELDS) and len(fields) % 2:  # a class, and the corners of a polygon
            names = ("class", *(f"{axis}{i}" for i in range(1, len(fields) // 2 + 1) for axis in "xy"))
        index, *rest = reading.numbers(fields, where, names)
        if any(not -1 <= value <= 2 for value in rest):
            raise InputError(f"{where}: {' '.join(fields[1:])} must be shares of the image's width and height, from 0 to 1")
        if names is FIELDS:
            x, y, width, height = rest
            box = (y - height / 2, x - width / 2, y + height / 2, x + width / 2)
        else:
            box = reading.around(zip(rest[::2], rest[1::2], strict=True))
        annotations.append(Annotation(image, None, _name(index, path, where, options), box, path, "normalised"))
    return Reading(annotations, (image,))


def _name(index: float, path: str, where: str, options: ReadOptions) -> str:
    source = options.class_names or _beside(os.path.dirname(path))
    if source is None:
        raise InputError(f"{path} has classes by number, and none of {', '.join(NAMES)} lies beside it: give --class_names")
    names = _read_names(source)
    if not (0 <= index < len(names) and index == int(index)):
        raise InputError(f"{where}: class {index:g} has no name: {source} names 0 to {len(names) - 1} ({', '.join(names)})")
    return names[int(index)]


@lru_cache(maxsize=8192)  # a survey has a txt file for each image, in few folders
def _beside(folder: str) -> str | None:
    if storage.is_remote(folder):
        folders = [folder, os.path.dirname(folder), os.path.dirname(os.path.dirname(folder))]
        folders = [place for place in folders if place.rstrip("/") != "gs:"]
    else:
        folders = [os.path.normpath(os.path.join(folder, up)) for up in (".", "..", os.path.join("..", ".."))]
    candidates = (os.path.join(place, name) for place in folders for name in NAMES)
    return next((path for path in candidates if files.exists(path)), None)


@lru_cache(maxsize=8)
def _read_names(source: str) -> LabelMap:
    return labels.read(source)
