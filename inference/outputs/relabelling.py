"""Detections as labels to be corrected by hand: which images an annotation tool is given, and what each of them shows.

    relabel/images.csv             which pixels of which mosaic each image shows
    relabel/images/                tiles of the mosaics that are larger than an annotation tool opens
    relabel/labels/, data.yaml     YOLO            (inference.outputs.yolo)
    relabel/voc/                   Pascal VOC      (inference.outputs.voc)
    relabel/annotations.cvat.xml   CVAT            (inference.outputs.cvat)

A mosaic with no side above `tile_px` is one image, itself: it stays where it is. A larger one is cut into tiles of about equal
size that do not overlap, so every pixel is labelled once. A detection on a seam is on each tile that shows at least MIN_SHARE of
it, clipped to the tile, and always on the one that holds its centre: a tile's labels say what its pixels show.
"""

import csv
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import simplejpeg

from inference.outputs.job import Job, open_mosaic
from survey import boxes, files
from survey.errors import InputError
from survey.geometry import Mosaic, Window
from survey.mosaics import stem

FOLDER = "relabel"
IMAGES = f"{FOLDER}/images"
INDEX = f"{FOLDER}/images.csv"
# The share of a box that `rookery shard` asks of a patch by default before it labels it there; less tells nobody what it is.
MIN_SHARE = 0.3
# The tiles become training images once they are corrected: at 95, without chroma subsampling, JPEG's noise is below a sensor's.
JPEG_QUALITY = 95


@dataclass(frozen=True, slots=True)
class Image:
    """An image to be labelled.

    Attributes:
      mosaic: of which it shows a part.
      name: its file name.
      window: the part, in mosaic pixels.
      tile: whether it is a part, to be cut out, and not the mosaic itself.
    """

    mosaic: Mosaic
    name: str
    window: Window
    tile: bool


@dataclass(frozen=True, slots=True)
class Labels:
    """What one image shows.

    Attributes:
      image: the image.
      boxes_px: float32 [N, 4], yxyx in pixels of the image, inside it.
      class_ids: int32 [N], from 1.
      cut: bool [N], which boxes end at a border of the tile that their object crosses.
    """

    image: Image
    boxes_px: np.ndarray
    class_ids: np.ndarray
    cut: np.ndarray


def images(mosaic: Mosaic, tile_px: int) -> list[Image]:
    """The images of a mosaic, row by row."""
    if max(mosaic.height, mosaic.width) <= tile_px:
        return [Image(mosaic, os.path.basename(mosaic.path), Window(0, 0, mosaic.height, mosaic.width), False)]
    ys, xs = edges(mosaic.height, tile_px), edges(mosaic.width, tile_px)
    return [
        Image(mosaic, f"{mosaic.name}_y{y0}_x{x0}.jpg", Window(y0, x0, y1, x1), True)
        for y0, y1 in pairwise(ys)
        for x0, x1 in pairwise(xs)
    ]


def edges(length: int, tile_px: int) -> list[int]:
    """Where the tiles along one axis begin and end: as few as cover it, of sizes that differ by a pixel at most.

    >>> edges(1000, 400)
    [0, 333, 667, 1000]
    """
    number = -(-length // tile_px)
    return [round(i * length / number) for i in range(number + 1)]


def labels(job: Job) -> Iterator[Labels]:
    """What each image shows of the detections that count, image by image, best score first."""
    for mosaic in job.manifest.mosaics:
        found = job.counted[mosaic.name]
        shown = images(mosaic, job.settings.tile_px)
        if len(shown) == 1:
            whole = boxes.clip(found.boxes_mosaic_px, mosaic.height, mosaic.width)
            rows = np.flatnonzero(boxes.area(whole) > 0)
            yield Labels(shown[0], whole[rows], found.class_ids[rows], np.zeros(len(rows), bool))
            continue
        owners, tiles = _on_tiles(found.boxes_mosaic_px, mosaic, job.settings.tile_px)
        starts = np.searchsorted(tiles, np.arange(len(shown) + 1))
        for i, image in enumerate(shown):
            rows = owners[starts[i] : starts[i + 1]]
            whole = found.boxes_mosaic_px[rows]
            clipped, enough = _clipped(whole, image.window)
            moved = clipped - np.array([image.window.y0, image.window.x0] * 2, np.float32)
            cut = (clipped != whole).any(axis=1)
            yield Labels(image, moved[enough], found.class_ids[rows][enough], cut[enough])


def _clipped(whole: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """(Boxes [N, 4] clipped to a window, whether enough is left of each to be labelled there [N])."""
    low = np.array([window.y0, window.x0] * 2, np.float32)
    high = np.array([window.y1, window.x1] * 2, np.float32)
    clipped = np.clip(whole, low, high)
    area = boxes.area(clipped)
    center = boxes.centers(whole)
    inside = ((center >= low[:2]) & (center < high[:2])).all(axis=1)
    return clipped, (area > 0) & (inside | (area >= MIN_SHARE * boxes.area(whole)))


def _on_tiles(boxes_mosaic_px: np.ndarray, mosaic: Mosaic, tile_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Which detections touch which tiles: (detections [P], tiles [P] rising), detections in their order within a tile."""
    y0, x0, y1, x1 = boxes_mosaic_px.T
    (top, bottom), (left, right) = _spans(edges(mosaic.height, tile_px), y0, y1), _spans(edges(mosaic.width, tile_px), x0, x1)
    columns = len(edges(mosaic.width, tile_px)) - 1
    wide = right - left + 1
    number = wide * (bottom - top + 1)
    owners = np.repeat(np.arange(len(boxes_mosaic_px)), number)
    k = np.arange(len(owners)) - np.repeat(np.cumsum(number) - number, number)
    tiles = (top[owners] + k // wide[owners]) * columns + left[owners] + k % wide[owners]
    order = np.argsort(tiles, kind="stable")
    return owners[order], tiles[order]


def _spans(starts: list[int], low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last tile that each half-open interval [low, high) meets along one axis."""
    last = len(starts) - 2
    first = np.clip(np.searchsorted(starts, low, side="right") - 1, 0, last)
    return first, np.maximum(np.clip(np.searchsorted(starts, high, side="left") - 1, 0, last), first)


def check(job: Job, name: str) -> None:
    """Refuses to write labels over others, which a person may have corrected; and tiles of mosaics that are not there.

    Args:
      job: the outputs.
      name: of the file or folder that holds the labels.

    Raises:
      InputError: says what is in the way, or which mosaic is missing.
    """
    if job.settings.tile_px < 1:
        raise InputError(f"--tile_px={job.settings.tile_px}: must be at least 1 px; 4096 is what annotation tools open well")
    path = job.path(name)
    if files.names(path) or files.exists(path):
        raise InputError(
            f"{path} is there already, and somebody may have corrected labels in it: move it away, or give another --output"
        )
    index = job.path(INDEX)
    if files.exists(index) and files.read(index) != _index(job):
        raise InputError(
            f"{index} is of other tiles or mosaics: give the same --tile_px={job.settings.tile_px} as before, or another --output"
        )
    every = [image for mosaic in job.manifest.mosaics for image in images(mosaic, job.settings.tile_px)]
    seen: dict[str, Image] = {}
    for image in every:
        other = seen.setdefault(stem(image.name), image)
        if other is not image:
            raise InputError(
                f"mosaic {image.mosaic.name} and a tile of {other.mosaic.name} would both be labelled as {stem(image.name)!r}: "
                "rename one mosaic, or give another --tile_px"
            )
    for mosaic in {image.mosaic.name: image.mosaic for image in every if image.tile}.values():
        with open_mosaic(mosaic):
            pass  # opening checks it


def write_images(job: Job) -> list[str]:
    """Writes the tiles of large mosaics, then INDEX, unless another format did: (names of the files written)."""
    if files.exists(job.path(INDEX)):
        return []
    written = []
    for mosaic in job.manifest.mosaics:
        tiles = [image for image in images(mosaic, job.settings.tile_px) if image.tile]
        if not tiles:
            continue
        with open_mosaic(mosaic) as raster:
            for image in tiles:
                pixels = np.ascontiguousarray(raster.read(image.window))
                name = f"{IMAGES}/{image.name}"
                files.write(job.path(name), simplejpeg.encode_jpeg(pixels, quality=JPEG_QUALITY, colorsubsampling="444"))
                written.append(name)
    files.write(job.path(INDEX), _index(job))
    return [*written, INDEX]


def _index(job: Job) -> bytes:
    """CSV: image, mosaic, first row and column in mosaic pixels, height, width."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["image", "mosaic", "y0", "x0", "height", "width"])
    for mosaic in job.manifest.mosaics:
        for image in images(mosaic, job.settings.tile_px):
            window = image.window
            writer.writerow([image.name, mosaic.name, window.y0, window.x0, window.height, window.width])
    return out.getvalue().encode()
