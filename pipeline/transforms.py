"""The Beam part of `shard`: thin transforms over the pure functions of this package.

One element is one planned shard: metadata, kilobytes. The worker that gets it reads the windows and writes the whole file, so
image bytes never cross a shuffle.
"""

from collections.abc import Iterator, Sequence

import apache_beam as beam
from apache_beam.metrics.metric import Metrics
from apache_beam.pvalue import PCollection

from pipeline import publish, records
from pipeline.plan import PlannedPatch, PlannedShard
from survey.dataset import Shard
from survey.geometry import Mosaic
from survey.labels import LabelMap
from survey.raster import Raster


class CutShards(beam.PTransform):
    """Planned shards to published ones."""

    def __init__(
        self, shards: Sequence[PlannedShard], mosaics: Sequence[Mosaic], *, folder: str, classes: LabelMap, jpeg_quality: int
    ) -> None:
        super().__init__()
        self._shards = shards
        self._cut = _CutShard(mosaics, folder=folder, classes=classes, jpeg_quality=jpeg_quality)

    def expand(self, begin: beam.Pipeline) -> PCollection:
        """Create, spread over the workers, cut."""
        return begin | beam.Create(self._shards) | beam.Reshuffle() | beam.ParDo(self._cut)


class _CutShard(beam.DoFn):
    """Writes one shard. Rasters stay open from one shard to the next."""

    def __init__(self, mosaics: Sequence[Mosaic], *, folder: str, classes: LabelMap, jpeg_quality: int) -> None:
        self._mosaics = {mosaic.name: mosaic for mosaic in mosaics}
        self._folder, self._classes, self._jpeg_quality = folder, classes, jpeg_quality
        self._shards_written = Metrics.counter("rookery", "shards_written")
        self._patches_written = Metrics.counter("rookery", "patches_written")

    def setup(self) -> None:
        self._raster: Raster | None = None

    def process(self, planned: PlannedShard) -> Iterator[Shard]:
        # Windows are read in the order of their numbers, row by row, which is how rasters lie on disk, and written in the
        # shuffled order of the plan: encoded, the patches of one shard are a few tens of megabytes.
        encoded = {patch.patch_id: self._example(patch) for patch in sorted(planned.patches, key=lambda p: p.patch_id)}
        shard = publish.publish_shard(self._folder, planned.file, (encoded[patch.patch_id] for patch in planned.patches))
        self._shards_written.inc()
        self._patches_written.inc(shard.records)
        yield shard

    def teardown(self) -> None:
        if self._raster is not None:
            self._raster.__exit__(None, None, None)

    def _example(self, patch: PlannedPatch) -> bytes:
        mosaic = self._mosaics[patch.mosaic]
        pixels = self._open(mosaic.path).read(patch.window)
        return records.example(
            patch_id=patch.patch_id,
            filename=mosaic.path.rsplit("/", 1)[-1],
            jpeg=records.encode_jpeg(pixels, self._jpeg_quality),
            patch_size=patch.window.height,
            boxes_patch_px=patch.boxes_patch_px,
            class_ids=patch.class_ids,
            classes=self._classes,
        )

    def _open(self, path: str) -> Raster:
        # One open raster, not one per mosaic: patches of a shard are read mosaic by mosaic, and thousands of photos would
        # exhaust the file handles.
        if self._raster is None or self._raster.path != path:
            self.teardown()
            self._raster = Raster(path)
        return self._raster
