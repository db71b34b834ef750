"""`rookery shard`: survey mosaics and annotations to a dataset of TFRecord shards. Plan, cut, commit."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import plan, publish, split
from survey import files, flags, labels, mosaics
from survey.annotations import FORMATS
from survey.dataset import Dataset
from survey.errors import InputError
from survey.geometry import PatchGrid
from survey.progress import Progress, Watch

PROG = "rookery shard"


@dataclass(frozen=True, slots=True)
class Options:
    """Cuts survey mosaics into a dataset of overlapping patches with their labelled objects.

    Options of Apache Beam are passed on: --direct_num_workers=4 cuts in four processes, --runner=DataflowRunner in the cloud.
    """

    mosaics: str = flags.flag("survey images, as a quoted glob pattern")
    annotations: str = flags.flag("annotation files of these images, as a quoted glob pattern")
    output: str = flags.flag("folder of the dataset, new or empty; the same command again completes an interrupted run")
    annotation_format: str = flags.flag("format of the annotation files", default="voc", choices=sorted(FORMATS))
    label_map: str | None = flags.flag(
        "labels.pbtxt with the classes; by default all classes seen, in alphabetical order", default=None
    )
    patch_size: int = flags.flag("side of a patch in pixels", default=416)
    overlap: int = flags.flag("pixels that neighbouring patches share, at least: about the size of a large object", default=64)
    split: tuple[str, ...] = flags.flag("share of the patches for each split", default=("train=0.8", "val=0.2"))
    # A third of an animal or a crown can still be told by eye; less of it looks like its background.
    min_visible: float = flags.flag("label an object in patches that show at least this share of its area", default=0.3)
    # On a NEON forest survey (0.1 m, lossless) the error against the original is RMSE 3.0 of 255 at 95, 5.5 at 90, and 1.3 at
    # 98 for a third more bytes and slower decoding in training.
    jpeg_quality: int = flags.flag("JPEG quality of the patches, 1 to 100", default=95)
    # About 30 MB a file: large enough for sequential reading from a bucket, small enough to share out among workers.
    records_per_shard: int = flags.flag("most patches in one file", default=256)

    def __post_init__(self) -> None:
        PatchGrid(1, 1, self.patch_size, self.overlap)
        split.parse(self.split)
        if not 0 <= self.min_visible <= 1:
            raise InputError(f"--min_visible={self.min_visible}: is a share of an object's area, must be from 0 to 1")
        if not 1 <= self.jpeg_quality <= 100:
            raise InputError(f"--jpeg_quality={self.jpeg_quality}: must be from 1 to 100")
        if self.records_per_shard < 1:
            raise InputError(f"--records_per_shard={self.records_per_shard}: must be at least 1")
        if "://" in self.output:
            raise InputError(f"--output={self.output}: must be a local folder; copy it afterwards with gcloud storage cp -r")
        if self.label_map is not None and not os.path.isfile(self.label_map):
            raise InputError(f"--label_map={self.label_map} does not exist: name a .pbtxt file, or leave the flag out")


def run(argv: Sequence[str]) -> int:
    """Makes a dataset as the command line says."""
    options, rest = flags.parse(Options, argv, prog=PROG, passthrough=True)
    # Only now: Beam takes two seconds to import, and `--help` or a mistyped flag should not wait for it.
    from beam_jobs import quiet

    with quiet.importing():
        from beam_jobs import launch
        from pipeline import transforms
    beam_options = launch.options(rest, flags.names(Options), prog=PROG)

    planned = make_plan(options)
    manifest = manifest_options(options, planned)
    if publish.is_complete(options.output, manifest):
        print(f"{options.output} already holds this dataset, nothing to do")
        return 0
    publish.start(options.output, manifest)

    done = [shard for shard in publish.finished(options.output, names(planned)) if publish.intact(options.output, shard)]
    finished_files = {shard.file for shard in done}
    todo = [shard for shard in planned.shards if shard.file not in finished_files]
    if done:
        print(f"{len(done)} of {len(planned.shards)} shards were finished by an interrupted run")
    cut = transforms.CutShards(
        todo, planned.mosaics, folder=options.output, classes=planned.classes, jpeg_quality=options.jpeg_quality
    )
    already = sum(shard.records for shard in done)
    progress = Progress("shard", len(planned.patches), "patches", start=already)
    with Watch(progress, lambda: sum(shard.records for shard in publish.finished(options.output, names(planned)))):
        launch.run(beam_options, lambda pipeline: pipeline | cut)

    made = publish.commit(options.output, planned, patch_size=options.patch_size, overlap_px=options.overlap, options=manifest)
    print(summary(made, planned.offenders, options.output))
    return 0


def make_plan(options: Options) -> plan.Plan:
    """Reads the headers of the mosaics and all annotations, and plans the dataset.

    Raises:
      InputError: whatever is wrong with them.
    """
    found = mosaics.read(files.match(options.mosaics, "mosaics"), patch_size=options.patch_size, overlap_px=options.overlap)
    reader = FORMATS[options.annotation_format]
    paths = files.match(options.annotations, "annotations")
    classes = labels.read(options.label_map) if options.label_map is not None else None
    planned = plan.make(
        found,
        (annotation for path in paths for annotation in reader.read(path)),
        classes=classes,
        patch_size=options.patch_size,
        overlap_px=options.overlap,
        fractions=split.parse(options.split),
        min_visible=options.min_visible,
        records_per_shard=options.records_per_shard,
    )
    leaks = split.shared_pixels((patch.mosaic, patch.window, patch.split) for patch in planned.patches)
    assert not leaks, leaks[0]
    return planned


def manifest_options(options: Options, planned: plan.Plan) -> dict[str, Any]:
    """The options as dataset.json keeps them: as given, the way the split was made, and the digest of the plan."""
    given = {key: value for key, value in dataclasses.asdict(options).items() if key != "output"}
    return {
        **given,
        "split": list(options.split),
        "split_by": planned.split_by,
        "plan_sha256": planned.digest(
            patch_size=options.patch_size, overlap=options.overlap, jpeg_quality=options.jpeg_quality, split=options.split
        ),
    }


def names(planned: plan.Plan) -> list[str]:
    """File names of the planned shards."""
    return [shard.file for shard in planned.shards]


def summary(made: Dataset, offenders: dict[str, list[str]], folder: str) -> str:
    """What was made, in a few lines for the terminal."""
    counts, statistics = made.counts, made.statistics
    how = {"mosaic": "by whole mosaics", "block": "by blocks of each mosaic, no pixel shared", "all": "one split"}
    lines = [f"{_number(len(made.mosaics), 'mosaic')}, split {how[made.options['split_by']]}"]
    for name, shards in made.splits.items():
        patches, objects = _number(made.records(name), "patch", "patches"), _number(statistics.objects[name], "box", "boxes")
        lines.append(f"  {name}: {patches}, {objects}, {_number(len(shards), 'file')}")
    if counts["patches_between_splits"]:
        lines.append(f"  left out between splits: {_number(counts['patches_between_splits'], 'patch', 'patches')}")
    lines.append("classes: " + ", ".join(f"{name} {number:,}" for name, number in statistics.objects_per_class.items()))
    sides = statistics.box_sides_px
    lines.append(
        f"box side: median {sides['q50']:.0f} px, 1 to 99 % {sides['q01']:.0f} to {sides['q99']:.0f} px; at most "
        f"{statistics.max_objects_per_patch:,} boxes in a patch"
    )
    lines.append(f"objects: {counts['objects_read']:,} read, {counts['objects_labelled']:,} labelled in at least one patch")
    for reason, text in (
        ("objects_clipped_to_mosaic", "clipped, because they leave the mosaic"),
        ("objects_empty_or_outside_mosaic", "dropped, because they are empty or outside the mosaic"),
        ("objects_in_no_patch", f"in no patch: shown only between splits, or never by {made.options['min_visible']:.0%}"),
        (
            "boxes_too_little_visible_in_patch",
            f"boxes left out of a patch that shows less than {made.options['min_visible']:.0%} of them",
        ),
        ("mosaics_without_objects", "mosaics without any object: all their patches count as empty"),
    ):
        if counts.get(reason):
            lines.append(f"  {counts[reason]:,} {text}")
            lines += [f"    {case}" for case in offenders.get(reason, [])]
    lines.append(f"dataset: {folder}")
    lines.append(f"next: rookery train --dataset {folder} --model_dir {os.path.join(os.path.dirname(folder) or '.', 'run')}")
    return "\n".join(lines)


def _number(count: int, one: str, more: str = "") -> str:
    return f"{count:,} {one if count == 1 else more or one + 's'}"


if __name__ == "__main__":
    flags.exit_with(run)
