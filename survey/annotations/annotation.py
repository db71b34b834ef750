"""One labelled object, whatever format it came from and in whatever frame that format measures."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Box = tuple[float, float, float, float]

# pixels: rows down and columns right from the top left corner of the image. pixels_from_bottom: rows counted upward from the
# bottom left corner, as plotting programs and some GIS exports do. normalised: pixels divided by height and width. map:
# coordinates of a CRS.
Frame = Literal["pixels", "pixels_from_bottom", "normalised", "map"]


@dataclass(frozen=True, slots=True)
class Length:
    """The side of the square that stands for a point: so many pixels, or metres on the ground."""

    value: float
    unit: Literal["px", "m"] = "px"


@dataclass(frozen=True, slots=True)
class Annotation:
    """A labelled box, or a point with the size of its object. Formats only read; `survey.truth` turns the frame into pixels.

    Attributes:
      image: the image's file name as the annotation file gives it, a path or a bare name; it is compared by stem and never
        opened. "" for objects in map coordinates, which belong to whichever mosaics show them.
      image_size: (height, width) in pixels as the annotation file claims, None where it does not say.
      class_name: the label.
      box: (y0, x0, y1, x1) in `frame`, half-open. Not yet clipped: it may leave the image. A point has y0 == y1 and x0 == x1.
      source: the annotation file, for errors.
      frame: what `box` is measured in.
      side: for a point, the square to draw around it; None for a box.
      crs: of the frame "map", None for the others.
      outline: float64 [N, 2] (x, y) in the CRS: the corners of an object in map coordinates. Its box in pixels is taken from
        these, because on a map that is turned against the pixels the box around `box` would be too large.
    """

    image: str
    image_size: tuple[int, int] | None
    class_name: str
    box: Box
    source: str
    frame: Frame = "pixels"
    side: Length | None = None
    crs: str | None = None
    outline: np.ndarray | None = field(default=None, compare=False)
