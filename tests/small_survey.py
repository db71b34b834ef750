"""Small mosaics and detections that the tests of the outputs share."""

from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import Affine

from survey.detections import Detections, Manifest
from survey.geometry import Mosaic
from survey.raster import Raster

CLASSES = ("bird", "tree")
HEIGHT, WIDTH = 50, 100
# 0.1 m a pixel, north up, the upper left corner at (500000, 4000000).
NORTH_UP = Affine(0.1, 0, 500000, 0, -0.1, 4000000)

FOUND = Detections(
    np.array([[10, 20, 30, 60], [0, 0, 5, 8], [1, 1, 2, 2]], np.float32),
    np.array([0.9, 0.5, 0.49], np.float32),  # the last one does not count
    np.array([2, 1, 1], np.int32),
    np.array([3, 4, 5], np.int64),
)


def on_map(path: Path, *, crs: str = "EPSG:32617", transform: Affine = NORTH_UP) -> Mosaic:
    """Writes a GeoTIFF of HEIGHT x WIDTH px and describes it by its header, as `predict` does."""
    with rasterio.open(
        path, "w", driver="GTiff", height=HEIGHT, width=WIDTH, count=3, dtype="uint8", crs=crs, transform=transform
    ) as file:
        file.write(np.zeros((3, HEIGHT, WIDTH), np.uint8))
    return described(path)


def described(path: Path) -> Mosaic:
    """A mosaic by its header."""
    with Raster(str(path)) as raster:
        info = raster.info()
    return Mosaic(path.stem, str(path), info.height, info.width, info.bands, info.crs, info.transform, info.gsd_m)


def placed(name: str, crs: str, transform: Affine, size: tuple[int, int] = (1000, 1000)) -> Mosaic:
    """A mosaic that has a place on the map and no file."""
    return Mosaic(name, f"survey/{name}.tif", *size, crs=crs, transform=tuple(transform)[:6])


def plain(name: str = "photo", size: tuple[int, int] = (HEIGHT, WIDTH)) -> Mosaic:
    """A mosaic without a place on the map, and without a file."""
    return Mosaic(name, f"data/{name}.jpg", *size)


def manifest_of(*mosaics: Mosaic, threshold: float = 0.5) -> Manifest:
    """A manifest of CLASSES."""
    return Manifest("model", "0" * 64, CLASSES, threshold, mosaics, {}, {}, {}, {})


def detections_at(*boxes: tuple[float, float, float, float], class_ids: tuple[int, ...] = ()) -> Detections:
    """Detections of score 0.9, of class 1 unless said otherwise."""
    ids = class_ids or (1,) * len(boxes)
    sides = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(sides, np.full(len(boxes), 0.9, np.float32), np.array(ids, np.int32), np.arange(len(boxes)))


def scattered(number: int, height: int, width: int, seed: int = 0) -> Detections:
    """Random detections inside a mosaic, of 2 to 60 px, with all the digits that float32 has."""
    random = np.random.default_rng(seed)
    size = random.uniform(2, 60, (number, 2))
    corner = random.random((number, 2)) * ([height, width] - size)
    boxes = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
    scores = np.sort(random.uniform(0.5, 1, number).astype(np.float32))[::-1]
    return Detections(boxes, scores, random.integers(1, 3, number).astype(np.int32), np.arange(number))
