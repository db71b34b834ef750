"""Patches with boxes drawn on them, as pixels: sheets for `rookery show-batch` and pictures for TensorBoard. No TensorFlow here.

A patch is enlarged by a whole factor, each pixel to a square, so that a picture shows what the network gets and nothing else. The
same input gives the same bytes.
"""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from survey import boxes as box_math
from survey.drawing import Style, rgb

FONTS = os.path.join(matplotlib.get_data_path(), "fonts", "ttf")  # DejaVu: Latin, Greek and Cyrillic, the same on every machine
PAPER, INK, QUIET = (250, 249, 246), (28, 28, 30), (104, 104, 108)
SHADOW, CHIP = (0, 0, 0, 130), (0, 0, 0, 180)  # around lines, under labels: legible on snow and on dark water alike
TILE_PX = 400  # least side of a patch on a sheet: its caption fits beside nothing else, and eight fill a wide screen
LARGEST_TILE_PX = 1000  # no patch is enlarged beyond it for the sake of small objects
OBJECT_PX = 20  # side that the median object should have on a sheet: smaller, its outline hides it
HIDDEN = 0.25  # share of a box that the label of another one may hide
WIDE = 1.6  # width / height of a sheet, that of most screens


@dataclass(frozen=True, slots=True)
class Layer:
    """Boxes of one kind.

    Attributes:
      boxes: [N, 4], yxyx in pixels of the patch.
      style: of their outlines.
      labels: a text for each box, or nothing. A text that would hide another one, or much of a box, is left out.
      thin: one pixel wide, for what should stay in the background.
    """

    boxes: np.ndarray
    style: Style
    labels: tuple[str, ...] = ()
    thin: bool = False


@dataclass(frozen=True, slots=True)
class Tile:
    """A patch and what is drawn on it.

    Attributes:
      pixels: uint8 [H, W, 3].
      layers: drawn in this order.
      captions: lines above it, the first one in bold.
      dots: [K, 2], (y, x) in pixels of the patch.
    """

    pixels: np.ndarray
    layers: tuple[Layer, ...]
    captions: tuple[str, ...]
    dots: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """An entry of the legend; without a style it is a dot."""

    text: str
    style: Style | None


def factor(side_px: int, object_sides_px: np.ndarray) -> int:
    """By how much patches are enlarged.

    Args:
      side_px: of a patch.
      object_sides_px: [N], of the objects on all of them.

    >>> factor(128, np.array([30.0])), factor(416, np.array([30.0])), factor(416, np.array([9.0])), factor(416, np.zeros(0))
    (4, 1, 2, 1)
    """
    least = -(-TILE_PX // side_px)
    if len(object_sides_px):
        wanted = int(np.ceil(OBJECT_PX / max(float(np.median(object_sides_px)), 1.0)))
        least = max(least, min(wanted, LARGEST_TILE_PX // side_px))
    return least


def draw(tile: Tile, scale: int) -> np.ndarray:
    """A patch, enlarged `scale` times, with its boxes and its captions above, as uint8 [H, W, 3]."""
    height, width = (side * scale for side in tile.pixels.shape[:2])
    size = _text_px(width)
    head = round((1.45 * len(tile.captions) + 0.5) * size) if tile.captions else 0
    picture = Image.new("RGB", (width, head + height), PAPER)
    pen = ImageDraw.Draw(picture)
    for line, caption in enumerate(tile.captions):
        font = _font(size, line == 0)
        at = (0, round((1.45 * line + 0.15) * size))
        pen.text(at, _fitted(caption, font, width), INK if line == 0 else QUIET, font=font)
    picture.paste(_drawn(tile, scale, size), (0, head))
    return np.asarray(picture)


def sheet(tiles: Sequence[Tile], scale: int, head: Sequence[str], legend: Sequence[Key]) -> np.ndarray:
    """Patches side by side under a heading.

    Args:
      tiles: with equal sizes and equally many captions.
      scale: by how much each is enlarged.
      head: lines above all; the first one in bold. Long ones are broken.
      legend: what the outlines mean.

    Returns:
      uint8 [H, W, 3].
    """
    drawn = [draw(tile, scale) for tile in tiles]
    height, width = drawn[0].shape[:2]
    size = _text_px(width)
    gap = size
    columns = min(len(drawn), max(1, round((len(drawn) * WIDE * height / width) ** 0.5)))
    columns = -(-len(drawn) // -(-len(drawn) // columns))  # as even as so many rows can be
    rows = -(-len(drawn) // columns)
    full = columns * (width + gap) + gap
    lines = [(text, i == 0) for i, line in enumerate(head) for text in _broken(line, _font(size, i == 0), full - 2 * gap)]
    keys = _flowed(legend, size, full - 2 * gap)
    line_px = round(1.5 * size)
    top = gap + line_px * (len(lines) + (1 + keys[-1][1] if keys else 0)) + gap // 2
    page = Image.new("RGB", (full, top + rows * (height + gap)), PAPER)
    pen = ImageDraw.Draw(page, "RGBA")
    for i, (text, bold) in enumerate(lines):
        pen.text((gap, gap + i * line_px), text, INK if bold else QUIET, font=_font(size, bold))
    for key, row, x in keys:
        _draw_key(pen, key, gap + x, gap + (len(lines) + row) * line_px, size)
    for i, pixels in enumerate(drawn):
        row, column = divmod(i, columns)
        page.paste(Image.fromarray(pixels), (gap + column * (width + gap), top + row * (height + gap)))
    return np.asarray(page)


def png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as a PNG file."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "png", compress_level=6)
    return out.getvalue()


def _drawn(tile: Tile, scale: int, size: int) -> Image.Image:
    """The enlarged pixels with boxes, labels and dots."""
    picture = Image.fromarray(np.ascontiguousarray(tile.pixels.repeat(scale, axis=0).repeat(scale, axis=1)))
    pen = ImageDraw.Draw(picture, "RGBA")
    wide = 2 if max(picture.size) < 800 else 3
    for layer in tile.layers:
        corners = np.round(layer.boxes * scale).astype(int).tolist()
        width = 1 if layer.thin else wide
        for y0, x0, y1, x1 in corners:
            # Around a solid line, between the dashes of a broken one.
            edge = 0 if layer.style.dash or layer.thin else 1
            _outline(pen, (x0 - edge, y0 - edge, x1 + edge, y1 + edge), SHADOW, "", 1 if edge else width)
        for y0, x0, y1, x1 in corners:
            _outline(pen, (x0, y0, x1, y1), (*rgb(layer.style.colour), 255), layer.style.dash, width)
    if tile.dots is not None:
        radius = max(1, size // 8)
        for y, x in np.round(tile.dots * scale).astype(int).tolist():
            pen.ellipse((x - radius - 1, y - radius - 1, x + radius + 1, y + radius + 1), SHADOW)
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), (255, 255, 255, 255))
    _draw_labels(pen, tile.layers, scale, _font(max(9, round(0.8 * size)), False), picture.size)
    return picture


def _outline(
    pen: ImageDraw.ImageDraw, corners: tuple[int, int, int, int], colour: tuple[int, ...], dash: str, width: int
) -> None:
    """A rectangle whose lines lie inside half-open corners (x0, y0, x1, y1), solid or in SVG's stroke-dasharray."""
    x0, y0, x1, y1 = corners
    x1, y1 = max(x0, x1 - 1), max(y0, y1 - 1)
    if not dash:
        pen.rectangle((x0, y0, x1, y1), outline=colour, width=width)
        return
    on, off = (int(part) * width for part in dash.split())
    for start in range(x0, x1 + 1, on + off):
        end = min(start + on - 1, x1)
        pen.rectangle((start, y0, end, min(y0 + width - 1, y1)), colour)
        pen.rectangle((start, max(y1 - width + 1, y0), end, y1), colour)
    for start in range(y0, y1 + 1, on + off):
        end = min(start + on - 1, y1)
        pen.rectangle((x0, start, min(x0 + width - 1, x1), end), colour)
        pen.rectangle((max(x1 - width + 1, x0), start, x1, end), colour)


def _draw_labels(
    pen: ImageDraw.ImageDraw, layers: Sequence[Layer], scale: int, font: ImageFont.FreeTypeFont, size: tuple[int, int]
) -> None:
    """Labels above, below or inside their boxes, inside the picture, where they hide neither a label nor much of a box."""
    boxes = np.concatenate([np.round(layer.boxes * scale) for layer in layers]) if layers else np.zeros((0, 4))
    area = box_math.area(boxes)
    taken, first = np.zeros((0, 4)), 0
    for layer in layers:
        for i, text in enumerate(layer.labels, start=first):
            y0, x0, y1, x1 = boxes[i].astype(int).tolist()
            width, height = round(font.getlength(text)) + 4, round(1.25 * font.size)
            others = np.arange(len(boxes)) != i
            for x, y in ((x0, y0 - height), (x0, y1), (x1 - width, y0 - height), (x1 - width, y1), (x0, y0)):
                place = np.array([[y, x, y + height, x + width]], float)
                inside = x >= 0 and y >= 0 and x + width <= size[0] and y + height <= size[1]
                if not inside or _covered(place, taken).any() or (_covered(place, boxes) > HIDDEN * area)[others].any():
                    continue
                taken = np.concatenate([taken, place])
                pen.rectangle((x, y, x + width - 1, y + height - 1), CHIP)
                pen.text((x + 2, y), text, PAPER, font=font)
                break
        first += len(layer.boxes)


def _covered(place: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """How much of each box [N, 4] a place [1, 4] covers, in square pixels, [N]."""
    return box_math.area(np.concatenate([np.maximum(place[:, :2], boxes[:, :2]), np.minimum(place[:, 2:], boxes[:, 2:])], axis=1))


def _draw_key(pen: ImageDraw.ImageDraw, key: Key, x: int, y: int, size: int) -> None:
    """A swatch on mid grey, as the outline looks on imagery, and what it means."""
    pen.rectangle((x, y, x + 2 * size, y + round(1.15 * size)), (96, 100, 96, 255))
    if key.style is None:
        radius, middle = max(1, size // 8), y + round(0.58 * size)
        pen.ellipse((x + size - radius, middle - radius, x + size + radius, middle + radius), (255, 255, 255, 255))
    else:
        colour = (*rgb(key.style.colour), 255)
        _outline(pen, (x + 3, y + 3, x + 2 * size - 2, y + round(1.15 * size) - 2), colour, key.style.dash, 2)
    pen.text((x + round(2.5 * size), y), key.text, INK, font=_font(size, False))


def _flowed(legend: Sequence[Key], size: int, width: int) -> list[tuple[Key, int, int]]:
    """Entries of a legend with the row and the x at which they stand."""
    placed, row, x = [], 0, 0
    for key in legend:
        needed = round(4.0 * size + _font(size, False).getlength(key.text))
        if x and x + needed > width:
            row, x = row + 1, 0
        placed.append((key, row, x))
        x += needed
    return placed


def _broken(line: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """A line broken at spaces into pieces of at most `width`; a word that is longer alone is shortened."""
    pieces, current = [], ""
    for word in line.split(" "):
        longer = f"{current} {word}" if current else word
        if current and font.getlength(longer) > width:
            pieces.append(current)
            longer = word
        current = longer
    return [_fitted(piece, font, width) for piece in (*pieces, current)]


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, or its two ends: names of mosaics differ at either."""
    if font.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 0, -1):
        shorter = text[: (kept + 1) // 2] + "…" + text[len(text) - kept // 2 :]
        if font.getlength(shorter) <= width:
            return shorter
    return "…"


def _text_px(width: int) -> int:
    """Height of the text that suits a patch so wide, in pixels: sheets of wide patches are looked at from further away."""
    return min(max(round(width / 30), 13), 28)


@lru_cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    # The basic layout: the other one depends on a library that machines may lack.
    return ImageFont.truetype(os.path.join(FONTS, name), size, layout_engine=ImageFont.Layout.BASIC)
