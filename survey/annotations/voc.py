"""Pascal VOC XML: one file an image, boxes as xmin, ymin, xmax, ymax.

The corners are taken as they stand, as corners of a half-open box: the tools that write VOC today (LabelImg, CVAT, DeepForest)
count from 0, unlike the 2007 challenge, which counted pixels from 1. The difference is at most one pixel.
"""

from survey.annotations import reading
from survey.annotations.annotation import Annotation
from survey.annotations.reading import Reading, ReadOptions
from survey.errors import InputError

WHAT = "a Pascal VOC file"


def read(path: str, options: ReadOptions) -> Reading:
    """Annotations of one VOC file.

    Raises:
      InputError: not XML, XML that expands entities, or an object without name or a numeric box.
    """
    root = reading.xml(path, WHAT, "annotation")
    image = (root.findtext("filename") or "").strip()
    if not image:
        raise InputError(f"{path} is not {WHAT}: <annotation> with <filename> expected")
    size = reading.image_size(root.findtext("size/height"), root.findtext("size/width"), path)
    annotations = []
    for number, element in enumerate(root.iter("object"), start=1):
        name = (element.findtext("name") or "").strip()
        where = f"{path}: object {number} ({name or 'no name'})"
        corners = ("ymin", "xmin", "ymax", "xmax")
        if element.find("bndbox") is None:
            raise InputError(f"{where} has no <bndbox>")
        y0, x0, y1, x1 = reading.numbers((element.findtext(f"bndbox/{corner}") for corner in corners), where, corners)
        if not name:
            raise InputError(f"{path}: object {number} has no <name>")
        annotations.append(Annotation(image, size, name, (y0, x0, y1, x1), path))
    return Reading(annotations, (image,))
