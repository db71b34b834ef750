"""The Beam side of `predict`: a work item is a run of neighbouring patches, its result one small part file of detections.

Pixels are read where they are used and never cross a shuffle. Neither do detections: a worker publishes each part in one step
under a name that follows from its patches, so a repeated work item writes the same file again, and the launcher finds all parts
whatever the runner was.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import apache_beam as beam
import numpy as np
from apache_beam.metrics.metric import Metrics
from apache_beam.pvalue import PCollection
from apache_beam.utils.shared import Shared

from inference import decode, parts, stitch
from survey import boxes
from survey.detections import Detections
from survey.geometry import Mosaic
from survey.model import ModelSpec
from survey.raster import Raster

if TYPE_CHECKING:
    from inference.model_runner import ModelRunner


@dataclass(frozen=True, slots=True)
class PatchRun:
    """Neighbouring patches of one mosaic.

    Attributes:
      mosaic: where their pixels are.
      start, stop: their numbers within the mosaic, half-open.
    """

    mosaic: Mosaic
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """What every worker must know.

    Attributes:
      model: folder of the model.
      spec: its `model.json`.
      overlap_px: pixels that neighbouring patches share.
      batch_size: patches per call of the model.
      output: folder whose `parts/` takes the results.
    """

    model: str
    spec: ModelSpec
    overlap_px: int
    batch_size: int
    output: str


class Search(beam.PTransform):
    """Searches runs of patches: PCollection of PatchRun in, one part file each; nothing comes out but the files."""

    def __init__(self, settings: SearchSettings) -> None:
        super().__init__()
        self._settings = settings

    def expand(self, runs: PCollection) -> PCollection:
        """Spreads the runs over the workers and searches them."""
        return runs | "Spread" >> beam.Reshuffle() | "Detect" >> beam.ParDo(_DetectRun(self._settings))


class _DetectRun(beam.DoFn):
    """Reads the windows of a run, runs the model, decodes, keeps what the patches may own, and publishes the part."""

    def __init__(self, settings: SearchSettings) -> None:
        self._settings = settings
        self._shared = Shared()  # one model a process, however many threads Beam runs
        self._runner: ModelRunner

    def setup(self) -> None:
        """Loads the model, once per process."""
        from inference.model_runner import ModelRunner  # here, so that only workers wait for TensorFlow

        settings = self._settings
        self._runner = self._shared.acquire(lambda: ModelRunner(settings.model, settings.spec, settings.batch_size))
        self._anchors = settings.spec.anchors.boxes(settings.spec.image_size)
        self._open_rasters = ExitStack()
        self._raster: Raster | None = None

    def process(self, run: PatchRun) -> None:
        """Searches one run."""
        batches = [self._search(run, batch) for batch in _batches(run, self._runner.batch_size)]
        claimed = parts.concatenate([found for found, _ in batches])
        counters = {"patches": run.stop - run.start, "detections_in_patches": sum(count for _, count in batches)}
        first = run.mosaic.first_patch_id
        parts.write(self._settings.output, range(first + run.start, first + run.stop), claimed, counters)
        for name, value in {**counters, "detections_claimed": len(claimed)}.items():
            Metrics.counter("predict", name).inc(value)

    def teardown(self) -> None:
        """Closes the raster."""
        self._open_rasters.close()

    def _search(self, run: PatchRun, patches: range) -> tuple[Detections, int]:
        """(what some patches of a run claim, in mosaic pixels; how many detections they had in all)."""
        spec, mosaic = self._settings.spec, run.mosaic
        grid = mosaic.grid(spec.image_size, self._settings.overlap_px)
        cells = [grid.cell(index) for index in patches]
        raster = self._open(mosaic)
        images = np.stack([raster.read(grid.window(*cell)) for cell in cells])  # [n, S, S, 3]
        raw_boxes, raw_scores = self._runner(images)
        claimed, seen = [], 0
        for n, (index, cell) in enumerate(zip(patches, cells, strict=True)):
            found, scores, class_ids = decode.detect(raw_boxes[n], raw_scores[n], spec, self._anchors)
            window = grid.window(*cell)
            # A mosaic smaller than a patch is padded; what a box has there is not on the mosaic.
            found = boxes.clip(boxes.shift(found, window.y0, window.x0), mosaic.height, mosaic.width)
            keep = (boxes.area(found) > 0) & stitch.claims(found, grid.core(*cell))
            patch_ids = np.full(len(found), mosaic.first_patch_id + index, np.int64)
            claimed.append(Detections(found, scores, class_ids, patch_ids).take(keep))
            seen += len(found)
        return parts.concatenate(claimed), seen

    def _open(self, mosaic: Mosaic) -> Raster:
        """The raster of a mosaic, kept open for the next run, which is often of the same one."""
        if self._raster is None or self._raster.path != mosaic.path:
            self._open_rasters.close()
            self._raster = self._open_rasters.enter_context(Raster(mosaic.path, stretch=mosaic.stretch))
        return self._raster


def _batches(run: PatchRun, batch_size: int) -> Iterator[range]:
    return (range(i, min(i + batch_size, run.stop)) for i in range(run.start, run.stop, batch_size))
