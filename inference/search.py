"""Searches patches of one raster: pixels are read ahead while the model works, boxes come out.

    reading threads  ──batches of pixels──▶  two looking threads: model, then raw heads to boxes  ──▶  claims

A few batches are under way at a time, so memory does not grow with the raster. What is found in a patch depends on its pixels
alone, and comes out in the order asked for.
"""

import math
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from inference import fuse, stitch
from inference.decode import Found
from inference.fuse import Flip
from survey import boxes, resample
from survey.detections import Detections
from survey.geometry import PatchGrid, Window

# Batches that are looked at together: where the model leaves cores idle, or an accelerator has them all, the other is decoded.
LOOKS = 2
# Batches being read meanwhile. More are no faster: pixels that wait have left the processor's cache.
BATCHES_AHEAD = 1
# Threads that decode image tiles, one more than cores, since neighbouring patches wait for each other's tiles. A CPU's forward
# pass wants the same cores; an accelerator is fed by about so many.
MOST_READERS = 8
# Bytes, of the address of a batch: with it TensorFlow and others take an array where it lies (Eigen's EIGEN_MAX_ALIGN_BYTES).
ALIGNMENT = 64


class Pixels(Protocol):
    """What is searched; `survey.raster.Raster` is one."""

    @property
    def concurrent(self) -> bool:
        """Whether several threads may read at once."""
        ...

    def read(self, window: Window, out: np.ndarray | None = None) -> np.ndarray:
        """Pixels of a window, uint8 [h, w, 3], put into `out` where it is given; black beyond the raster."""
        ...


class Runner(Protocol):
    """What turns pixels into raw heads; `inference.model_runner.ModelRunner` is one."""

    batch_size: int

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Raw arrays by name of uint8 [n, S, S, 3]."""
        ...


class Decodes(Protocol):
    """What turns raw heads into boxes; `inference.decode.Decoder` is one."""

    def __call__(self, raw: Mapping[str, np.ndarray]) -> list[Found]:
        """What each image of the batch shows."""
        ...


@dataclass(frozen=True, slots=True)
class Detector:
    """One or several models, looking at patches one or several ways.

    Attributes:
      models: (runner, decoder) of each.
      looks: mirror images that each model is shown.
      patch_size: side of the patches in pixels.
      nms_iou, score_floor: of `fuse.fuse`; not used for a single look of a single model.
    """

    models: Sequence[tuple[Runner, Decodes]]
    looks: Sequence[Flip] = (Flip(),)
    patch_size: int = 0
    nms_iou: float = 0.5
    score_floor: float = 0.0

    @property
    def batch_size(self) -> int:
        """Patches that are read together."""
        return max(runner.batch_size for runner, _ in self.models)

    def run(self, images: np.ndarray) -> list[dict[str, np.ndarray]]:
        """Raw heads of each model and look, model by model."""
        return [runner(look.images(images)) for runner, _ in self.models for look in self.looks]

    def decode(self, raws: Sequence[Mapping[str, np.ndarray]]) -> list[Found]:
        """What each image shows, of the raw heads that `run` gave."""
        ways = [(decoder, look) for _, decoder in self.models for look in self.looks]
        views = [
            [look.undo(found, self.patch_size) for found in decoder(raw)] if look != Flip() else decoder(raw)
            for (decoder, look), raw in zip(ways, raws, strict=True)
        ]
        return [
            fuse.fuse(seen, patch_size=self.patch_size, nms_iou=self.nms_iou, score_floor=self.score_floor)
            for seen in zip(*views, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Claim:
    """What one patch hands on.

    Attributes:
      index: number of the patch in its grid.
      found: its boxes that reach into its core, in pixels of the grid's mosaic; patch_ids are `index`.
      seen: how many boxes it had in all.
    """

    index: int
    found: Detections
    seen: int


def search(
    raster: Pixels, grid: PatchGrid, indices: Sequence[int], detector: Detector, *, scale: tuple[float, float] = (1.0, 1.0)
) -> Iterator[Claim]:
    """Searches patches.

    Args:
      raster: the pixels.
      grid: the patches, in pixels of the mosaic as it is searched.
      indices: which of them, best in ascending order.
      detector: the models.
      scale: pixels of the raster for one of the grid, down and across; other than 1 the patches are resampled.

    Yields:
      What each patch hands on, in the order of `indices`.

    Raises:
      InputError: the raster is damaged, or the models contradict their specs.
    """
    threads = min(MOST_READERS, (os.cpu_count() or 1) + 1) if raster.concurrent else 1
    size = detector.batch_size
    batches = deque(indices[i : i + size] for i in range(0, len(indices), size))
    reading = ThreadPoolExecutor(threads, thread_name_prefix="read")
    looking = ThreadPoolExecutor(LOOKS, thread_name_prefix="look")
    under_way: deque[tuple[Sequence[int], Future[list[Found]]]] = deque()

    def look(batch: _Batch) -> list[Found]:
        return detector.decode(detector.run(batch.images()))

    try:
        while batches or under_way:
            while batches and len(under_way) < LOOKS + BATCHES_AHEAD:
                batch = _Batch(reading, raster, grid, batches.popleft(), scale)
                under_way.append((batch.indices, looking.submit(look, batch)))
            yield from _claims(grid, *under_way.popleft())
    finally:
        reading.shutdown(cancel_futures=True)
        looking.shutdown(cancel_futures=True)


def aligned(shape: tuple[int, ...]) -> np.ndarray:
    """An array of uint8, not yet filled, that a `Runner` need not copy."""
    room = np.empty(math.prod(shape) + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + math.prod(shape)].reshape(shape)


class _Batch:
    """Patches being read into one array, which is the model's input."""

    def __init__(
        self, pool: ThreadPoolExecutor, raster: Pixels, grid: PatchGrid, indices: Sequence[int], scale: tuple[float, float]
    ) -> None:
        self.indices = indices
        self._images = aligned((len(indices), grid.patch_size, grid.patch_size, 3))
        windows = [grid.window(*grid.cell(index)) for index in indices]
        self._reads = [pool.submit(self._read, raster, n, window, scale) for n, window in enumerate(windows)]

    def images(self) -> np.ndarray:
        """The patches, uint8 [n, S, S, 3], once they are all there."""
        for read in self._reads:
            read.result()
        return self._images

    def _read(self, raster: Pixels, n: int, window: Window, scale: tuple[float, float]) -> None:
        if scale == (1.0, 1.0):
            raster.read(window, self._images[n])
        else:
            self._images[n] = resample.resize(raster.read(resample.source(window, scale)), window, scale)


def _claims(grid: PatchGrid, indices: Sequence[int], decoded: Future[list[Found]]) -> Iterator[Claim]:
    for index, found in zip(indices, decoded.result(), strict=True):
        cell = grid.cell(index)
        window = grid.window(*cell)
        # A mosaic smaller than a patch is padded; what a box has there is not on the mosaic.
        placed = boxes.clip(boxes.shift(found.boxes_patch_px, window.y0, window.x0), grid.height, grid.width)
        keep = (boxes.area(placed) > 0) & stitch.claims(placed, grid.core(*cell))
        patch_ids = np.full(len(placed), index, np.int64)
        yield Claim(index, Detections(placed, found.scores, found.class_ids, patch_ids).take(keep), len(placed))
