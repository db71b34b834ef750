"""Large surveys made up in seconds: a few textured tiles, encoded once and laid out to any size, and boxes to go with them."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import simplejpeg
import tifffile

TILE = 512
# So many different tiles; the order makes neighbours differ.
TILES = 16
# Boxes in each tile, on average, as in a survey of a dense colony; 40 px is a large bird at 1 cm a pixel.
BOXES_PER_TILE = 4
BOX_PX = 40


def texture(seed: int, side: int = TILE) -> np.ndarray:
    """An image with the spectrum of natural scenes (amplitude about inverse to frequency): uint8 [side, side, 3].

    At quality 90 it takes 0.5 bytes a pixel, as aerial photographs of forest do.
    """
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = 1

    def noise(power: float) -> np.ndarray:
        field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((side, side))) / frequency**power, s=(side, side))
        return field / field.std()

    light = noise(1.1) * 38
    channels = [light + noise(1.3) * 12 + mean for mean in (110, 120, 90)]
    return np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8)


def tile_index(row: int, column: int) -> int:
    """Which of the tiles stands in a cell of the mosaic."""
    return (row * 3 + column * 7) % TILES


def write_tiled_jpeg(path: Path, side: int) -> None:
    """A BigTIFF of side x side px with JPEG tiles (quality 90, 4:2:0, as GDAL and drone software write them)."""
    encoded = [simplejpeg.encode_jpeg(texture(seed), quality=90, colorsubsampling="420") for seed in range(TILES)]
    cells = -(-side // TILE)

    def tiles() -> Iterator[bytes]:
        return (encoded[tile_index(row, column)] for row in range(cells) for column in range(cells))

    tifffile.imwrite(
        path,
        tiles(),
        shape=(side, side, 3),
        dtype="uint8",
        tile=(TILE, TILE),
        compression="jpeg",
        photometric="ycbcr",
        subsampling=(2, 2),
        bigtiff=True,
    )


def pixels(side: int) -> np.ndarray:
    """The same image in memory: uint8 [side, side, 3]."""
    tiles = [texture(seed) for seed in range(TILES)]
    cells = -(-side // TILE)
    rows = [np.concatenate([tiles[tile_index(row, column)] for column in range(cells)], axis=1) for row in range(cells)]
    return np.concatenate(rows)[:side, :side]


def write_coco(path: Path, image: str, side: int) -> int:
    """COCO JSON with boxes scattered over the image; returns how many."""
    rng = np.random.default_rng(0)
    count = BOXES_PER_TILE * (side // TILE) ** 2
    corners = rng.integers(0, side - BOX_PX, (count, 2)).tolist()
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": [x, y, BOX_PX, BOX_PX], "iscrowd": 0, "area": BOX_PX**2}
        for i, (y, x) in enumerate(corners, start=1)
    ]
    images = [{"id": 1, "file_name": image, "height": side, "width": side}]
    path.write_text(json.dumps({"images": images, "categories": [{"id": 1, "name": "bird"}], "annotations": annotations}))
    return count
