"""What the report shows of the mosaics: overviews, crops, and boxes over them as SVG paths, each within a stated size."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import simplejpeg

from survey.drawing import PALETTE, Style, box_path
from survey.geometry import Mosaic, Window
from survey.raster import Raster

OVERVIEW_PX = 2000  # longest side: sharp on a 4K screen at half its width, about 1 MB as JPEG
JPEG_QUALITY = 82
CROP_PX = 256  # longest side stored of a crop, shown at about 180 px
CROP_CONTEXT = 2.4  # side of a crop relative to the box: enough around it to judge what it is
CROP_MIN_PX = 48  # a crop of a 10 px bird still shows some of its surroundings
CROP_MAX_PX = 1024  # read at most this much of the mosaic for one crop, whatever the size of the box


# Blue, vermillion and yellow stay apart in every kind of colour vision, and on vegetation, sand and water.
TP, FP, FN = Style(PALETTE[0], ""), Style(PALETTE[5], "7 4"), Style(PALETTE[3], "2 3")


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


def overview(raster: Raster, max_bytes: int) -> str:
    """The whole mosaic as a data URI: at most OVERVIEW_PX on a side, shrunk further until its JPEG has at most `max_bytes`."""
    longest = OVERVIEW_PX
    while True:
        encoded = _jpeg(raster.overview(longest))
        # 64 px tells nobody anything, so a budget that asks for less is not obeyed: it costs 3 kB.
        if len(encoded) <= max_bytes or longest <= 64:
            return _data_uri(encoded)
        longest = longest * 3 // 4


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
        image=_data_uri(_jpeg(_shrunk(pixels))),
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


def _jpeg(pixels: np.ndarray) -> bytes:
    encoded: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=JPEG_QUALITY, colorsubsampling="420")
    return encoded


def _data_uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
