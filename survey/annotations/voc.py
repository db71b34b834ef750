"""Pascal VOC XML: one file an image, boxes as xmin, ymin, xmax, ymax.

The corners are taken as they stand, as corners of a half-open box: the tools that write VOC today (LabelImg, CVAT, DeepForest)
count from 0, unlike the 2007 challenge, which counted pixels from 1. The difference is at most one pixel.
"""

from collections.abc import Iterator
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from survey import files
from survey.annotations.annotation import Annotation
from survey.errors import InputError


def read(path: str) -> Iterator[Annotation]:
    """Annotations of one VOC file.

    Raises:
      InputError: not XML, XML that expands entities, or an object without name or a numeric box.
    """
    try:
        root = fromstring(files.read(path))
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise InputError(f"{path} is not a Pascal VOC file: {error}") from error
    image = (root.findtext("filename") or "").strip()
    if root.tag != "annotation" or not image:
        raise InputError(f"{path} is not a Pascal VOC file: <annotation> with <filename> expected, found <{root.tag}>")
    image_size = _image_size(root)
    for number, element in enumerate(root.iter("object"), start=1):
        name = (element.findtext("name") or "").strip()
        try:
            y0, x0, y1, x1 = (float(element.findtext(f"bndbox/{corner}") or "") for corner in ("ymin", "xmin", "ymax", "xmax"))
        except ValueError:
            raise InputError(f"{path}: object {number} ({name or 'no name'}) has no numeric <bndbox>") from None
        if not name:
            raise InputError(f"{path}: object {number} has no <name>")
        yield Annotation(image, image_size, name, (y0, x0, y1, x1), path)


def _image_size(root: Element) -> tuple[int, int] | None:
    height, width = (root.findtext(f"size/{side}") for side in ("height", "width"))
    return (int(height), int(width)) if height and width and int(height) and int(width) else None
