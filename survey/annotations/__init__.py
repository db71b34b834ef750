"""Annotation formats, one module each, all with one signature: `read(path, options) -> Reading`.

`FORMATS` maps the value of --annotation_format to its module; `survey.annotations.every` reads many files with one of them.
"""

from typing import Protocol

from survey.annotations import coco, csv_boxes, csv_points, cvat, labelme, vector, voc, yolo
from survey.annotations.reading import Reading, ReadOptions


class Format(Protocol):
    """What each module of this package offers."""

    def read(self, path: str, options: ReadOptions) -> Reading:
        """What one file says: its objects in its order, and the images that it names."""


FORMATS: dict[str, Format] = {
    "voc": voc,
    "coco": coco,
    "cvat": cvat,
    "yolo": yolo,
    "csv_boxes": csv_boxes,
    "csv_points": csv_points,
    "vector": vector,
    "labelme": labelme,
}
