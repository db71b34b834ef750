"""The overview of a mosaic as a pyramid of JPEG pictures, within a given number of bytes.

The coarsest level is one picture, which the page shows with or without scripts. Finer levels are cut into tiles and follow, each
twice as fine as the one before, as long as the budget lasts. A level is there wholly or not at all.
"""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image

from survey.raster import Raster

BASE_PX = 1600  # longest side of the coarsest level: sharp on a screen of ordinary width, 0.3 to 0.9 MB
BASE_LEAST_PX = 64  # a budget that asks for less is not obeyed: it costs 3 kB
TILE_PX = 512  # as in maps on the web with dense screens: few enough pictures, small enough to decode in a frame
JPEG_QUALITY = 82
# No level has more pixels: 0.2 GB while it is made. With 64 million pixels a mosaic of 60,000 px is seen at 1/7.5.
MAX_LEVEL_PIXELS = 64_000_000
# JPEG of quality 82 needs 0.1 bytes a pixel for smooth water, 0.6 for a canopy: what would exceed the budget even so is not read.
LEAST_BYTES_PER_PIXEL = 0.08


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of a mosaic, cut into tiles.

    Attributes:
      height, width: in pixels of this level.
      tile_px: side of a tile in pixels of this level; tiles at the far edges are smaller.
      tiles: JPEG bytes, row by row.
    """

    height: int
    width: int
    tile_px: int
    tiles: tuple[bytes, ...]

    @property
    def columns(self) -> int:
        """Tiles in a row."""
        return -(-self.width // self.tile_px)

    @property
    def bytes(self) -> int:
        """Of all tiles."""
        return sum(map(len, self.tiles))


@dataclass(frozen=True, slots=True)
class Pyramid:
    """A mosaic at several resolutions, coarsest first; the first level is a single tile.

    Attributes:
      levels: at least one.
      full: whether the finest level has the resolution of the mosaic.
    """

    levels: tuple[Level, ...]
    full: bool

    @property
    def bytes(self) -> int:
        """Of all levels."""
        return sum(level.bytes for level in self.levels)


def data_uri(jpeg: bytes) -> str:
    """A picture as an address that holds it."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def jpeg(pixels: np.ndarray) -> bytes:
    """Pixels uint8 [h, w, 3] as JPEG."""
    encoded: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=JPEG_QUALITY, colorsubsampling="420")
    return encoded


def build(raster: Raster, height: int, width: int, max_bytes: int) -> Pyramid:
    """Reads a mosaic once, as fine as the budget can pay, and halves it down.

    Args:
      raster: the open mosaic.
      height: of it, in pixels.
      width: of it, in pixels.
      max_bytes: of all pictures together.

    Returns:
      The pyramid; its bytes are at most `max_bytes`, unless not even BASE_LEAST_PX fit.
    """
    most_pixels = min(MAX_LEVEL_PIXELS, max(int(max_bytes / LEAST_BYTES_PER_PIXEL), BASE_PX**2))
    shrink = max(1.0, math.sqrt(height * width / most_pixels))
    finest = raster.overview(max(1, int(max(height, width) / shrink)))
    sizes = [finest]
    while max(sizes[-1].shape[:2]) > BASE_PX:
        sizes.append(_halved(sizes[-1]))
    base = _base(sizes[-1], max_bytes)
    levels = [base]
    spent = base.bytes
    for pixels in sizes[-2::-1]:
        level = _tiled(pixels, max_bytes - spent)
        if level is None:
            break
        levels.append(level)
        spent += level.bytes
    return Pyramid(tuple(levels), (levels[-1].height, levels[-1].width) == (height, width))


def _base(pixels: np.ndarray, max_bytes: int) -> Level:
    longest = max(pixels.shape[:2])
    while True:
        shape = [max(1, round(side * longest / max(pixels.shape[:2]))) for side in pixels.shape[:2]]
        small = pixels if tuple(shape) == pixels.shape[:2] else _resized(pixels, shape)
        encoded = jpeg(small)
        if len(encoded) <= max_bytes or longest <= BASE_LEAST_PX:
            return Level(shape[0], shape[1], max(shape), (encoded,))
        longest = max(BASE_LEAST_PX, longest * 3 // 4)


def _tiled(pixels: np.ndarray, max_bytes: int) -> Level | None:
    """A level in tiles; None as soon as they exceed the bytes."""
    height, width = pixels.shape[:2]
    tiles, spent = [], 0
    for y in range(0, height, TILE_PX):
        for x in range(0, width, TILE_PX):
            tile = jpeg(pixels[y : y + TILE_PX, x : x + TILE_PX])
            spent += len(tile)
            if spent > max_bytes:
                return None
            tiles.append(tile)
    return Level(height, width, TILE_PX, tuple(tiles))


def _halved(pixels: np.ndarray) -> np.ndarray:
    return _resized(pixels, [-(-side // 2) for side in pixels.shape[:2]])


def _resized(pixels: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Means over the area of each new pixel, so that every level spans exactly the mosaic."""
    small = Image.fromarray(pixels).resize((shape[1], shape[0]), Image.Resampling.BOX)
    return np.asarray(small)
