"""`rookery shard`: survey mosaics and annotations to a dataset of TFRecord shards. Plan, cut, commit."""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import plan, publish, summary, work
from pipeline import split as splitting
from pipeline.patches import PlannedShard
from pipeline.records import FORMATS as IMAGE_FORMATS
from pipeline.records import SUBSAMPLINGS, Encoding
from survey import files, flags, labels, mosaics, storage
from survey.annotations import FORMATS, every, reading
from survey.annotations.reading import ReadOptions
from survey.errors import InputError
from survey.geometry import PatchGrid
from survey.mosaics import stem
from survey.progress import Progress, Watch

PROG = "rookery shard"
# These say where to write and when to give up, not what is written: a run may be completed with others.
NOT_IN_THE_BYTES = ("output", "max_bad_mosaics")


@dataclass(frozen=True, slots=True)
class Options:
    """Cuts survey mosaics into a dataset of overlapping patches with their labelled objects.

    Options of Apache Beam are passed on: --direct_num_workers=4 cuts in four processes, --runner=DataflowRunner in the cloud.
    """

    mosaics: str = flags.flag("survey images, as a quoted glob pattern")
    annotations: str = flags.flag("annotation files of these images, as a quoted glob pattern")
    output: str = flags.flag("folder of the dataset, new or empty; the same command again completes an interrupted run")
    annotation_format: str = flags.flag("format of the annotation files", default="voc", choices=sorted(FORMATS))
    class_column: str | None = reading.flag_class_column()
    class_names: str | None = reading.flag_class_names()
    box_size: str | None = reading.flag_box_size()
    origin: str = reading.flag_origin()
    label_map: str | None = flags.flag(
        "labels.pbtxt with the classes; by default all classes seen, in alphabetical order", default=None
    )
    patch_size: int = flags.flag("side of a patch in pixels", default=416)
    overlap: int = flags.flag("pixels that neighbouring patches share, at least: about the size of a large object", default=64)
    gsd_m: float | None = flags.flag(
        "resample all mosaics to this ground resolution in metres a pixel, and then cut", default=None
    )
    split: tuple[str, ...] = flags.flag("share of the patches for each split", default=("train=0.8", "val=0.2"))
    split_by: str = flags.flag(
        "whole mosaics, blocks of each mosaic with a buffer, --split_list or --folds; auto takes mosaics where there are enough",
        default="auto",
        choices=splitting.WAYS,
    )
    split_list: str | None = flags.flag("CSV file with the columns mosaic and split", default=None)
    folds: int = flags.flag("divide the survey into so many folds; --fold validates, the others train", default=0)
    fold: int = flags.flag("the fold that validates, from 0", default=0)
    # A third of an animal or a crown can still be told by eye; less of it looks like its background.
    min_visible: float = flags.flag("label an object in patches that show at least this share of its area", default=0.3)
    negatives_per_positive: float | None = flags.flag(
        "keep so many empty training patches for each with objects, chosen by a fixed hash (default: all)", default=None
    )
    skip_empty: bool = flags.flag("leave out patches of which no pixel shows anything (alpha, nodata or mask)", default=True)
    image_format: str = flags.flag("how patches are stored", default="jpeg", choices=IMAGE_FORMATS)
    # On a NEON forest survey (0.1 m, lossless) the error against the original is RMSE 3.0 of 255 at 95, 5.5 at 90, and 1.3 at
    # 98 for a third more bytes and slower decoding in training.
    jpeg_quality: int = flags.flag("JPEG quality of the patches, 1 to 100", default=95)
    jpeg_subsampling: str = flags.flag(
        "colour resolution of the JPEGs: 444 is full, 420 a quarter", default="444", choices=SUBSAMPLINGS
    )
    # About 30 MB a file: large enough for sequential reading from a bucket, small enough to share out among workers.
    records_per_shard: int = flags.flag("most patches in one file", default=256)
    max_bad_mosaics: int = flags.flag("go on without so many mosaics that cannot be read; beyond, no dataset is made", default=0)

    def __post_init__(self) -> None:
        PatchGrid(1, 1, self.patch_size, self.overlap)
        Encoding(self.image_format, self.jpeg_quality, self.jpeg_subsampling)
        self._read_options()
        if not 0 <= self.min_visible <= 1:
            raise InputError(f"--min_visible={self.min_visible}: is a share of an object's area, must be from 0 to 1")
        if self.records_per_shard < 1:
            raise InputError(f"--records_per_shard={self.records_per_shard}: must be at least 1")
        if self.negatives_per_positive is not None and not 0 <= self.negatives_per_positive < float("inf"):
            raise InputError(
                f"--negatives_per_positive={self.negatives_per_positive}: must be 0 or more; leave the flag out to keep all"
            )
        if self.gsd_m is not None and not 0 < self.gsd_m < float("inf"):
            raise InputError(f"--gsd_m={self.gsd_m}: is the side of a pixel on the ground in metres, must be above 0")
        if self.max_bad_mosaics < 0:
            raise InputError(f"--max_bad_mosaics={self.max_bad_mosaics}: must be 0 or more")
        if storage.is_remote(self.output):
            storage.split(self.output)
        if self.label_map is not None and not files.exists(self.label_map):
            raise InputError(f"--label_map={self.label_map} does not exist: name a .pbtxt file, or leave the flag out")
        self._check_split()

    def _check_split(self) -> None:
        splitting.parse(self.split)
        by = self.way
        if (self.split_list is not None) != (by == "list"):
            raise InputError(
                f"--split_by={self.split_by} with --split_list={self.split_list}: the list goes with --split_by list; "
                "give both or neither"
            )
        if (self.folds != 0) != (by == "fold"):
            raise InputError(
                f"--split_by={self.split_by} with --folds={self.folds}: folds go with --split_by fold; give both or neither"
            )
        if by == "fold" and (self.folds < 2 or not 0 <= self.fold < self.folds):
            raise InputError(f"--folds={self.folds} --fold={self.fold}: must be at least 2 folds, and a fold from 0 to folds - 1")

    @property
    def way(self) -> str:
        """How to split: --split_by, where auto gives way to a list or to folds."""
        if self.split_by != "auto":
            return self.split_by
        return "list" if self.split_list is not None else "fold" if self.folds else "auto"

    @property
    def tiling(self) -> plan.Tiling:
        """How mosaics become patches."""
        return plan.Tiling(
            self.patch_size, self.overlap, self.min_visible, self.records_per_shard, self.negatives_per_positive, self.gsd_m
        )

    def rule(self) -> splitting.Rule:
        """How patches are divided.

        Raises:
          InputError: the list of splits cannot be read.
        """
        listed = splitting.read_list(self.split_list) if self.split_list is not None else None
        return splitting.Rule(self.way, splitting.parse(self.split), listed, self.folds, self.fold)

    def _read_options(self) -> ReadOptions:
        return ReadOptions.parse(
            class_column=self.class_column, class_names=self.class_names, box_size=self.box_size, origin=self.origin
        )

    def read_annotations(self) -> reading.Reading:
        """All annotations.

        Raises:
          InputError: whatever is wrong with them.
        """
        return every.read(files.match(self.annotations, "annotations"), self.annotation_format, self._read_options())


def run(argv: Sequence[str]) -> int:
    """Makes a dataset as the command line says."""
    options, rest = flags.parse(Options, argv, prog=PROG, passthrough=True)
    # Only now: Beam takes two seconds to import, and `--help` or a mistyped flag should not wait for it.
    from beam_jobs import quiet

    with quiet.importing():
        from beam_jobs import dataflow, launch
        from pipeline import transforms
    beam_options = launch.options(rest, flags.names(Options), prog=PROG)
    dataflow.refuse_local(beam_options, {"mosaics": options.mosaics, "output": options.output})

    unreadable: dict[str, str] = {}
    planned = make_plan(options, unreadable)
    manifest = manifest_options(options, planned)
    if publish.is_complete(options.output, manifest):
        print(f"{options.output} already holds this dataset, nothing to do")
        return 0
    summary.warn_of_large_ids(planned, sys.stderr)
    publish.start(options.output, manifest)

    def cut(todo: Sequence[PlannedShard], bad: Mapping[str, str]) -> None:
        transform = transforms.CutShards(
            work.write(options.output, work.grouped(todo, planned.mosaics)),
            planned.mosaics,
            folder=options.output,
            classes=planned.classes,
            jpeg_quality=options.jpeg_quality,
            jpeg_subsampling=options.jpeg_subsampling,
            image_format=options.image_format,
            skip_empty=options.skip_empty,
            bad_mosaics=bad,
        )
        launch.run(beam_options, lambda pipeline: pipeline | transform)

    written = cut_all(planned, options.output, cut, unreadable, options.max_bad_mosaics, patch_mpx=options.patch_size**2 / 1e6)
    made = publish.commit(options.output, written, patch_size=options.patch_size, overlap_px=options.overlap, options=manifest)
    print(summary.text(made, written.offenders, options.output))
    return 0


def make_plan(options: Options, unreadable: dict[str, str] | None = None) -> plan.Plan:
    """Reads the headers of the mosaics and all annotations, and plans the dataset.

    Args:
      options: of the verb.
      unreadable: gets the mosaics whose headers cannot be read, and why.

    Raises:
      InputError: whatever is wrong with them.
    """
    unreadable = {} if unreadable is None else unreadable
    paths = files.match(options.mosaics, "mosaics")
    infos = mosaics.headers(paths, bad=unreadable)
    refuse_bad(unreadable, options.max_bad_mosaics)
    if not infos:
        raise InputError(f"--mosaics={options.mosaics!r}: none of the {len(paths)} files can be read as an image")
    with ThreadPoolExecutor(1) as aside:  # mosaics, gigabytes, are digested while annotations are parsed
        digests = aside.submit(files.fingerprints, list(infos))
        read = options.read_annotations()
    found = mosaics.numbered(
        mosaics.identified(infos, digests.result()), patch_size=options.patch_size, overlap_px=options.overlap
    )
    annotations = [one for one in read.annotations if stem(one.image) not in unreadable] if unreadable else read.annotations
    planned = plan.make(
        found,
        annotations,
        classes=labels.read(options.label_map) if options.label_map is not None else None,
        tiling=options.tiling,
        rule=options.rule(),
        images=[image for image in read.images if stem(image) not in unreadable],
    )
    counts = {**planned.counts, **read.skipped, "mosaics_unreadable": len(unreadable)}
    if unreadable:
        counts["objects_of_bad_mosaics"] = len(read.annotations) - len(annotations)
    return dataclasses.replace(planned, counts=dict(sorted(counts.items())))


def cut_all(
    planned: plan.Plan,
    folder: str,
    cut: Callable[[Sequence[PlannedShard], Mapping[str, str]], None],
    unreadable: Mapping[str, str],
    max_bad_mosaics: int,
    *,
    patch_mpx: float,
) -> plan.Plan:
    """Cuts whatever is not finished, until no shard holds patches of a mosaic that turned out to be unreadable.

    Args:
      planned: what to cut.
      folder: the output folder.
      cut: cuts some shards, without the mosaics known to be bad.
      unreadable: mosaics that are not even in the plan, and why.
      max_bad_mosaics: so many may be left out.
      patch_mpx: megapixels of a patch, for the rate.

    Returns:
      The plan as it was carried out.

    Raises:
      InputError: too many mosaics cannot be read. Finished shards stay.
    """
    names = [shard.file for shard in planned.shards]
    # Shards without a mosaic that was bad last time are cut again: perhaps it was only the network.
    done = [receipt for receipt in publish.receipts(folder, names) if not receipt.bad_mosaics]
    finished = publish.intact(folder, (receipt.shard for receipt in done))
    todo = [shard for shard in planned.shards if shard.file not in finished]
    if finished:
        print(f"{len(finished)} of {len(planned.shards)} shards were finished by an interrupted run")
    for name in publish.finished_names(folder) - finished:
        publish.forget(folder, name)
    sizes = {shard.file: len(shard) for shard in planned.shards}
    already = sum(sizes[name] for name in finished)
    progress = Progress("shard", len(planned.table), "patches", mpx=patch_mpx, start=already)
    with Watch(progress, lambda: sum(sizes.get(name, 0) for name in publish.finished_names(folder))):
        if todo:
            cut(todo, {})
    bad: dict[str, str] = {}
    while True:
        receipts = {receipt.shard.file: receipt for receipt in publish.receipts(folder, names)}
        for name in names:
            bad = {**receipts[name].bad_mosaics, **bad}
        refuse_bad({**unreadable, **bad}, max_bad_mosaics)
        stale = [s for s in planned.shards if not set(bad).intersection(s.mosaics) <= set(receipts[s.file].bad_mosaics)]
        if not stale:
            break
        print(f"{len(stale)} shards are cut again without {', '.join(sorted(bad))}", file=sys.stderr)
        for shard in stale:
            publish.forget(folder, shard.file)
        cut(stale, bad)
    summary.name_bad({**unreadable, **bad}, sys.stderr)
    empty = np.array([patch for name in names for patch in receipts[name].empty], np.int64)
    of_bad = np.isin(planned.table.mosaics, [i for i, mosaic in enumerate(planned.mosaics) if mosaic.name in bad])
    counts = {
        "patches_empty": len(empty),
        "patches_of_bad_mosaics": int(of_bad.sum()),
        "mosaics_unreadable": len(bad),
    }
    return planned.without(np.concatenate([empty, planned.table.patch_ids[of_bad]]), counts)


def refuse_bad(bad: Mapping[str, str], most: int) -> None:
    """Refuses to go on without more mosaics than the user allows.

    Raises:
      InputError: names all of them.
    """
    if len(bad) > most:
        listed = "".join(f"\n  {bad[name]}" for name in sorted(bad))
        raise InputError(
            f"{len(bad)} mosaics cannot be read, --max_bad_mosaics={most}:{listed}\nrepair them or leave them out of "
            f"--mosaics; or go on without them: the same command with --max_bad_mosaics {len(bad)}"
        )


def manifest_options(options: Options, planned: plan.Plan) -> dict[str, Any]:
    """The options as dataset.json keeps them: as given, the way the split was made, and the digest of the plan."""
    given = {key: value for key, value in dataclasses.asdict(options).items() if key not in NOT_IN_THE_BYTES}
    return {
        **given,
        "split": list(options.split),
        "split_by": planned.split_by,
        "plan_sha256": planned.digest(
            image_format=options.image_format,
            jpeg_quality=options.jpeg_quality,
            jpeg_subsampling=options.jpeg_subsampling,
            skip_empty=options.skip_empty,
            split=options.split,
        ),
    }


if __name__ == "__main__":
    flags.exit_with(run)
