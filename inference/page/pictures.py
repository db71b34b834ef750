"""What the report shows of single boxes: crops of the mosaic around them, and layers of boxes as SVG paths."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inference.page.tiles import data_uri, jpeg
from survey.drawing import FALSE, FOUND, MISSED, Style, box_path
from survey.geometry import Mosaic, Window
from survey.raster import Raster

CROP_PX = 256  # longest side stored of a crop, shown at about 180 px
CROP_CONTEXT = 2.4  # side of a crop relative to the box: enough around it to judge what it is
CROP_MIN_PX = 48  # a crop of a 10 px bird still shows some of its surroundings
CROP_MAX_PX = 1024  # read at most this much of the mosaic for one crop, whatever the size of the box

TP, FP, FN = FOUND, FALSE, MISSED


@dataclass(frozen=True, slots=True)
class Layer:
    """Boxes that are shown and hidden together.

    Attributes:
      label: for people.
      count: boxes in it, drawn or not.
      style: how they are drawn.
      path: SVG path data in mosaic pixels.
    """

    label: str
    count: int
    style: Style
    path: str


@dataclass(frozen=True, slots=True)
class Crop:
    """A piece of a mosaic around one box.

    Attributes:
      image: data URI.
      height, width: of the piece in mosaic pixels.
      path: the box, SVG path data in pixels of the piece.
      style: how it is drawn.
      mosaic, class_name: where and what.
      score: None for a missed object.
      iou: with the object it found; None otherwise.
      y, x: centre in mosaic pixels.
    """

    image: str
    height: int
    width: int
    path: str
    style: Style
    mosaic: str
    class_name: str
    score: float | None
    iou: float | None
    y: int
    x: int


def layer(label: str, boxes: np.ndarray, style: Style, most: int) -> Layer:
    """A layer of the first `most` of the boxes [N, 4], yxyx mosaic pixels."""
    return Layer(label, len(boxes), style, box_path(boxes[:most]))


def crop(
    raster: Raster,
    mosaic: Mosaic,
    box: Sequence[float],
    style: Style,
    class_name: str,
    score: float | None = None,
    iou: float | None = None,
) -> Crop:
    """Reads the surroundings of one box.

    Args:
      raster: the open mosaic.
      mosaic: what it is.
      box: (y0, x0, y1, x1) in mosaic pixels.
      style: how to draw the box.
      class_name: what it is said to be.
      score: of the detection.
      iou: with the object that it found.
    """
    y0, x0, y1, x1 = box
    side = round(min(max(CROP_CONTEXT * max(y1 - y0, x1 - x0), CROP_MIN_PX), CROP_MAX_PX))
    height, width = min(side, mosaic.height), min(side, mosaic.width)
    # The piece moves inward at the edge of the mosaic rather than showing black.
    top = min(max(round((y0 + y1 - height) / 2), 0), mosaic.height - height)
    left = min(max(round((x0 + x1 - width) / 2), 0), mosaic.width - width)
    pixels = raster.read(Window(top, left, top + height, left + width))
    moved = np.array([[y0 - top, x0 - left, y1 - top, x1 - left]])
    return Crop(
        image=data_uri(jpeg(_shrunk(pixels))),
        height=height,
        width=width,
        path=box_path(moved),
        style=style,
        mosaic=mosaic.name,
        class_name=class_name,
        score=score,
        iou=iou,
        y=round((y0 + y1) / 2),
        x=round((x0 + x1) / 2),
    )


def _shrunk(pixels: np.ndarray) -> np.ndarray:
    """Means of k x k pixels, for the smallest k that brings both sides to CROP_PX or less."""
    k = -(-max(pixels.shape[:2]) // CROP_PX)
    if k == 1:
        return pixels
    height, width = (max(1, side // k) for side in pixels.shape[:2])
    blocks = pixels[: height * k, : width * k]
    kh, kw = blocks.shape[0] // height, blocks.shape[1] // width
    means: np.ndarray = blocks[: height * kh, : width * kw].reshape(height, kh, width, kw, 3).mean(axis=(1, 3))
    return means.round().astype(np.uint8)
