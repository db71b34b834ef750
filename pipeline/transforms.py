"""The Beam part of `shard`: thin transforms over the pure functions of this package.

One element says where to read a few planned shards (`pipeline.work`). The worker that gets it reads the windows and writes the
whole files, so image bytes never cross a shuffle.
"""

from collections.abc import Iterator, Mapping, Sequence

import apache_beam as beam
from apache_beam.metrics.metric import Metrics
from apache_beam.pvalue import PCollection

from pipeline import publish, records, work
from pipeline.patches import PlannedPatch, PlannedShard
from pipeline.records import Encoding
from survey import resample
from survey.dataset import Shard
from survey.errors import InputError
from survey.geometry import Mosaic
from survey.labels import LabelMap
from survey.raster import Raster


class CutShards(beam.PTransform):
    """Planned shards to published ones."""

    def __init__(
        self,
        pieces: Sequence[work.Piece],
        mosaics: Sequence[Mosaic],
        *,
        folder: str,
        classes: LabelMap,
        jpeg_quality: int,
        jpeg_subsampling: str = "444",
        image_format: str = "jpeg",
        skip_empty: bool = False,
        bad_mosaics: Mapping[str, str] | None = None,
    ) -> None:
        """What to cut, and how.

        Args:
          pieces: the work.
          mosaics: of its patches.
          folder: the output folder.
          classes: the label map.
          jpeg_quality: see `records.Encoding`.
          jpeg_subsampling: the same.
          image_format: the same.
          skip_empty: leave out patches without objects of which no pixel shows anything.
          bad_mosaics: known to be unreadable, and why: their patches are left out. Others are found on the way.
        """
        super().__init__()
        self._pieces = pieces
        encoding = Encoding(image_format, jpeg_quality, jpeg_subsampling)
        self._cut = _CutShards(
            mosaics, folder=folder, classes=classes, encoding=encoding, skip_empty=skip_empty, bad_mosaics=bad_mosaics or {}
        )

    def expand(self, begin: beam.Pipeline) -> PCollection:
        """Create, spread over the workers, cut."""
        return begin | beam.Create(self._pieces) | beam.Reshuffle() | beam.ParDo(self._cut)


class _CutShards(beam.DoFn):
    """Writes the shards of a work item. Rasters stay open from one item to the next."""

    def __init__(
        self,
        mosaics: Sequence[Mosaic],
        *,
        folder: str,
        classes: LabelMap,
        encoding: Encoding,
        skip_empty: bool,
        bad_mosaics: Mapping[str, str],
    ) -> None:
        self._skip_empty, self._bad_mosaics = skip_empty, bad_mosaics
        self._mosaics = {mosaic.name: mosaic for mosaic in mosaics}
        self._folder, self._classes, self._encoding = folder, classes, encoding
        self._shards_written = Metrics.counter("rookery", "shards_written")
        self._patches_written = Metrics.counter("rookery", "patches_written")
        self._patches_empty = Metrics.counter("rookery", "patches_empty")
        self._pixels_written = Metrics.counter("rookery", "pixels_written")

    def setup(self) -> None:
        self._raster: Raster | None = None

    def process(self, piece: work.Piece) -> Iterator[Shard]:
        item = work.read(piece)
        # Windows are read in the order of their numbers, row by row, which is how rasters lie on disk, and written in the
        # shuffled order of the plan: encoded, the patches of one shard are a few tens of megabytes. A shard is written as soon
        # as its last patch is there, so of many shards in one pass only those at the current row are held.
        todo = sorted(((patch, i) for i, shard in enumerate(item) for patch in shard.patches), key=lambda todo: todo[0].patch_id)
        missing = [len(shard) for shard in item]
        encoded: list[dict[int, bytes | None]] = [{} for _ in item]
        bad: dict[str, str] = {}
        for patch, i in todo:
            if patch.mosaic in self._bad_mosaics:
                bad[patch.mosaic] = self._bad_mosaics[patch.mosaic]
            elif patch.mosaic not in bad:
                try:
                    encoded[i][patch.patch_id] = self._example(patch)
                except InputError as error:  # the file, not the work, is at fault: the other mosaics go on
                    bad[patch.mosaic] = str(error)
            missing[i] -= 1
            if not missing[i]:
                yield self._publish(item[i], encoded[i], bad)
                encoded[i] = {}

    def teardown(self) -> None:
        if self._raster is not None:
            self._raster.__exit__(None, None, None)

    def _publish(self, planned: PlannedShard, encoded: Mapping[int, bytes | None], bad: Mapping[str, str]) -> Shard:
        # All patches of a bad mosaic go, those too that could be read: half a mosaic would be a biased one.
        kept = [patch for patch in planned.patches if patch.mosaic not in bad]
        empty = [patch.patch_id for patch in kept if encoded[patch.patch_id] is None]
        examples = [example for patch in kept if (example := encoded[patch.patch_id]) is not None]
        mine = {name: reason for name, reason in bad.items() if name in planned.mosaics}
        shard = publish.publish_shard(self._folder, planned.file, examples, empty=empty, bad_mosaics=mine)
        self._shards_written.inc()
        self._patches_written.inc(shard.records)
        self._patches_empty.inc(len(empty))
        self._pixels_written.inc(sum(patch.window.area for patch in kept if encoded[patch.patch_id] is not None))
        return shard

    def _example(self, patch: PlannedPatch) -> bytes | None:
        """The record, or None for a patch that shows nothing."""
        mosaic = self._mosaics[patch.mosaic]
        raster = self._open(mosaic)
        if self._skip_empty and not len(patch.class_ids) and not raster.valid_fraction(patch.source):
            return None
        pixels = resample.resize(raster.read(patch.source), patch.window, patch.scale)
        return records.example(
            patch_id=patch.patch_id,
            filename=mosaic.path.rsplit("/", 1)[-1],
            encoded=self._encoding.encode(pixels),
            image_format=self._encoding.image_format,
            patch_size=patch.window.height,
            boxes_patch_px=patch.boxes_patch_px,
            class_ids=patch.class_ids,
            classes=self._classes,
        )

    def _open(self, mosaic: Mosaic) -> Raster:
        # One open raster, not one per mosaic: patches of a shard are read mosaic by mosaic, and thousands of photos would
        # exhaust the file handles.
        if self._raster is None or self._raster.path != mosaic.path:
            self.teardown()
            self._raster = Raster(mosaic.path, stretch=mosaic.stretch)
        return self._raster
