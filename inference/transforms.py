"""The Beam side of `predict`: a work item is a few rows of patches of one mosaic, its results are small part files of detections.

Pixels are read where they are used and never cross a shuffle. Neither do detections: a worker publishes each part in one step
under a name that follows from what is in it, so a repeated work item writes the same files again, and the launcher finds all
parts whatever the runner was.
"""

import itertools
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import apache_beam as beam
from apache_beam.metrics.metric import Metrics
from apache_beam.pvalue import PCollection
from apache_beam.utils.shared import Shared

from inference import fuse, parts
from inference.plan import SearchItem
from inference.search import Claim, Detector, search
from survey import tpu_environment
from survey.detections import Detections
from survey.errors import InputError
from survey.geometry import Mosaic
from survey.model import ModelSpec
from survey.raster import Raster

if TYPE_CHECKING:
    from inference.search import Decodes, Runner


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """What every worker must know.

    Attributes:
      models: folders of the models.
      specs: their `model.json`.
      together: what holds for all of them (`fuse.common`).
      flips: mirror images that they look at, one of `fuse.FLIPS`.
      batch_size: patches per call of a model.
      output: folder whose `parts/` takes the results.
    """

    models: tuple[str, ...]
    specs: tuple[ModelSpec, ...]
    together: ModelSpec
    flips: str
    batch_size: int
    output: str


class Search(beam.PTransform):
    """Searches work items: PCollection of SearchItem in, part files; nothing comes out but the files."""

    def __init__(self, settings: SearchSettings) -> None:
        super().__init__()
        self._settings = settings

    def expand(self, items: PCollection) -> PCollection:
        """Spreads the items over the workers and searches them."""
        return items | "Spread" >> beam.Reshuffle() | "Detect" >> beam.ParDo(_SearchItem(self._settings))


class _SearchItem(beam.DoFn):
    """Has the process's worker search an item, and counts."""

    def __init__(self, settings: SearchSettings) -> None:
        self._settings = settings
        self._shared = Shared()
        self._worker: Worker

    def setup(self) -> None:
        """Loads the models, once per process."""
        self._worker = self._shared.acquire(lambda: Worker(self._settings))

    def process(self, item: SearchItem) -> None:
        """Searches one item."""
        for name, value in self._worker.search(item).items():
            Metrics.counter("predict", name).inc(value)

    def teardown(self) -> None:
        """Closes the raster."""
        self._worker.close()


class Worker:
    """What a process has once, however many threads Beam runs in it: the models and one open raster.

    Items take turns. The model uses all cores or the whole accelerator anyway, and two open rasters would hold twice the tiles.
    """

    def __init__(self, settings: SearchSettings) -> None:
        from inference.decode import Decoder

        tpu_environment.prepare(os.environ)  # before TensorFlow is imported
        from inference.model_runner import ModelRunner  # here, so that only workers wait for TensorFlow

        together = settings.together
        models: list[tuple[Runner, Decodes]] = [
            (ModelRunner(folder, spec, settings.batch_size), Decoder(spec))
            for folder, spec in zip(settings.models, settings.specs, strict=True)
        ]
        self._detector = Detector(
            models,
            fuse.looks(settings.flips),
            patch_size=together.image_size,
            nms_iou=together.nms_iou,
            score_floor=together.score_floor,
        )
        self._output = settings.output
        self._turn = threading.Lock()
        self._raster: Raster | None = None

    def search(self, item: SearchItem) -> dict[str, int]:
        """Searches the patches of an item and publishes its parts, each as soon as it is finished.

        Returns:
          Counters, by name.

        Raises:
          InputError: the mosaic is damaged, the model contradicts its spec, or the output cannot be written to; parts finished
            until then are published.
        """
        indices = [index for part in item.parts for index in range(part.start, part.stop)]
        total: dict[str, int] = {}
        written: list[Future[None]] = []
        # Published beside the search: in a bucket that takes a tenth of a second.
        with self._turn, ThreadPoolExecutor(1, thread_name_prefix="publish") as publishing:
            raster = self._open(item.planned.mosaic)
            claims = search(raster, item.planned.grid, indices, self._detector, scale=item.planned.scale)
            for part in item.parts:
                found, counters = _gathered(itertools.islice(claims, len(part)))
                written.append(publishing.submit(parts.write, self._output, part, found, counters))
                parts.add(total, {**counters, "detections_claimed": len(found)})
        try:
            for publication in written:
                publication.result()
        except OSError as error:
            raise InputError(f"--output={self._output} cannot take the parts any more ({error}): free some space") from error
        return total

    def close(self) -> None:
        """Closes the raster; the next search opens it again."""
        with self._turn:
            self._let_go()

    def _open(self, mosaic: Mosaic) -> Raster:
        """The raster of a mosaic, kept open for the next item: often the same one, and its first tiles are decoded already."""
        if self._raster is None or self._raster.path != mosaic.path:
            self._let_go()
            self._raster = Raster(mosaic.path, stretch=mosaic.stretch)
        return self._raster

    def _let_go(self) -> None:
        if self._raster is not None:
            self._raster.__exit__(None, None, None)
        self._raster = None


def _gathered(claims: Iterator[Claim]) -> tuple[Detections, dict[str, int]]:
    """The content of a part."""
    there = list(claims)
    counters = {"patches": len(there), "detections_in_patches": sum(claim.seen for claim in there)}
    return parts.concatenate([claim.found for claim in there]), counters
