"""`rookery predict`: model + mosaics -> detections and counts.

Plans the patches of all mosaics, has Beam's workers search them (inference.transforms), then stitches the seams of each mosaic
(inference.stitch) and writes the detections (survey.detections) and their views (inference.views).
"""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from beam_jobs import quiet
from inference import parts, stitch, views
from survey import detections, files, flags, model, provenance
from survey import mosaics as survey_mosaics
from survey.detections import Detections, Manifest
from survey.errors import InputError
from survey.geometry import Mosaic
from survey.progress import Progress, Watch

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

    from inference.transforms import PatchRun

PROG = "rookery predict"

# Patches in a work item. Enough that opening a mosaic and spreading the work cost little beside the model, few enough that a
# small survey still keeps several workers busy and that little is lost when one of them dies.
PATCHES_PER_RUN = 16

# Objects of one kind differ more than this among themselves, and training varies the scale by more.
GSD_TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class Options:
    """Runs a trained model over mosaics and writes every object once: detections, map, and counts.

    Flags of Apache Beam (--runner, --direct_num_workers, ...) are handed on to it.
    """

    model: str = flags.flag("folder written by `rookery export`")
    mosaics: str = flags.flag("glob pattern of the images to search, quoted")
    output: str = flags.flag("folder for the detections; workers and launcher must both see it")
    overlap: int | None = flags.flag("pixels that neighbouring patches share (default: the model's own)", default=None)
    batch_size: int = flags.flag("patches per call of the model; changes speed and memory, not the result", default=8)
    score_threshold: float | None = flags.flag(
        "a detection counts from this score on (default: the model's own, chosen on validation)", default=None
    )

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"--batch_size={self.batch_size}: must be at least 1")
        if self.overlap is not None and self.overlap < 0:
            raise InputError(f"--overlap={self.overlap}: must be 0 px or more; about the size of a large object is right")
        if self.score_threshold is not None and not 0 <= self.score_threshold <= 1:
            raise InputError(f"--score_threshold={self.score_threshold}: must be from 0 to 1")


def run(argv: Sequence[str]) -> int:
    """Runs the verb.

    Args:
      argv: the arguments after `predict`.

    Returns:
      The exit code.

    Raises:
      InputError: something given cannot be used; nothing was written.
    """
    options, rest = flags.parse(Options, argv, prog=PROG, passthrough=True)
    spec = model.read(options.model)
    overlap_px = spec.overlap_px if options.overlap is None else options.overlap
    threshold = spec.score_threshold if options.score_threshold is None else options.score_threshold
    if threshold < spec.score_floor:
        raise InputError(
            f"--score_threshold={threshold}: must be at least the model's score_floor={spec.score_floor}, "
            "below which it keeps no detections"
        )
    paths = files.match(options.mosaics, "mosaics")
    mosaics = survey_mosaics.read(paths, patch_size=spec.image_size, overlap_px=overlap_px)
    _refuse_another_resolution(mosaics, spec.gsd_m)
    manifest = Manifest(
        model=options.model,
        model_digest=model.digest(options.model),
        classes=spec.classes,
        score_threshold=threshold,
        mosaics=mosaics,
        counts={},
        counters={},
        options={"overlap_px": overlap_px, "mosaics": options.mosaics, "batch_size": options.batch_size},
        versions=provenance.versions("apache-beam", "numpy", "rasterio", "tensorflow"),
    )
    chosen = _beam_options(rest, options)
    if _already_done(options.output, manifest):
        print(f"{options.output} already holds this very prediction: nothing to do")
        return 0

    _search(options, chosen, spec, mosaics, overlap_px)
    found, counters = _stitch(options.output, spec, mosaics, overlap_px)
    counters["detections"] = sum(map(len, found.values()))
    counts = views.count(found, spec.classes, threshold)
    manifest = dataclasses.replace(manifest, counts=counts, counters=counters)
    views.write(options.output, manifest, found)
    detections.write(options.output, manifest, found)  # last: its manifest says that the folder is complete
    parts.clear(options.output)
    print(_summary(options, manifest))
    return 0


def _refuse_another_resolution(mosaics: Sequence[Mosaic], gsd_m: float | None) -> None:
    """A model that was trained at one ground resolution finds objects of the size they have there.

    Raises:
      InputError: the model has a resolution, and a mosaic another one or none.
    """
    for mosaic in mosaics:
        if gsd_m is not None and (mosaic.gsd_m is None or abs(mosaic.gsd_m / gsd_m - 1) > GSD_TOLERANCE):
            has = "no known ground resolution" if mosaic.gsd_m is None else f"{mosaic.gsd_m:g} m a pixel"
            raise InputError(
                f"{mosaic.path} has {has}, the model was trained at {gsd_m:g} m (`rookery shard --gsd_m`): objects would have "
                f"another size than it knows; resample the mosaic with gdalwarp -tr {gsd_m:g} {gsd_m:g} -r average"
            )


def plan(mosaics: Sequence[Mosaic], patch_size: int, overlap_px: int) -> list[tuple[Mosaic, range]]:
    """The work items: runs of neighbouring patches, by their numbers within their mosaic.

    They follow from the survey alone, so that parts mean the same whatever the runner and the number of workers.
    """
    runs = []
    for mosaic in mosaics:
        count = len(mosaic.grid(patch_size, overlap_px))
        runs += [(mosaic, range(i, min(i + PATCHES_PER_RUN, count))) for i in range(0, count, PATCHES_PER_RUN)]
    return runs


def _beam_options(argv: Sequence[str], options: Options) -> "PipelineOptions":
    """Beam's options from the flags that are not ours; refuses what is not Beam's either, and paths that workers cannot see."""
    with quiet.importing():  # takes seconds: only once the rest of the input is known to be good
        from beam_jobs import dataflow, launch

    chosen = launch.options(argv, flags.names(Options), prog=PROG)
    dataflow.refuse_local(chosen, {"model": options.model, "mosaics": options.mosaics, "output": options.output})
    return chosen


def _search(
    options: Options, chosen: "PipelineOptions", spec: model.ModelSpec, mosaics: Sequence[Mosaic], overlap_px: int
) -> None:
    """Has the workers search all patches, each run of them into a part."""
    import apache_beam as beam

    from beam_jobs import launch
    from inference import transforms

    settings = transforms.SearchSettings(options.model, spec, overlap_px, options.batch_size, options.output)
    planned = plan(mosaics, spec.image_size, overlap_px)
    runs: list[PatchRun] = [transforms.PatchRun(mosaic, patches.start, patches.stop) for mosaic, patches in planned]
    wanted = _part_ids(planned)
    parts.clear(options.output)  # of a run that did not get to its end
    files.make_folder(options.output)
    progress = Progress("predict", sum(map(len, wanted)), "patches", mpx=spec.image_size**2 / 1e6)
    try:
        with Watch(progress, lambda: parts.patches_done(options.output)):
            launch.run(chosen, lambda pipeline: pipeline | "Runs" >> beam.Create(runs) | "Search" >> transforms.Search(settings))
    except InputError:  # a worker found what the headers did not show: a damaged mosaic, a model that contradicts its spec
        parts.clear(options.output)
        files.remove_empty_folder(options.output)
        raise
    lost = parts.missing(options.output, wanted)
    if lost:
        raise InputError(
            f"the workers' results are not in --output={options.output} ({len(lost)} of {len(wanted)} parts are missing, the "
            f"first for patches {lost[0].start} to {lost[0].stop - 1}): give a folder that workers and launcher both see"
        )


def _stitch(
    output: str, spec: model.ModelSpec, mosaics: Sequence[Mosaic], overlap_px: int
) -> tuple[dict[str, Detections], dict[str, int]]:
    """Stitches what lies in the parts, one mosaic at a time: (detections by mosaic, counters)."""
    found: dict[str, Detections] = {}
    counters: dict[str, int] = {}
    for mosaic in mosaics:
        pieces = []
        for patch_ids in _part_ids(plan([mosaic], spec.image_size, overlap_px)):
            piece, counted = parts.read(output, patch_ids)
            pieces.append(piece)
            _add(counters, counted)
        grid = mosaic.grid(spec.image_size, overlap_px)
        claimed = parts.concatenate(pieces)
        found[mosaic.name], counted = stitch.stitch(claimed, grid, first_patch_id=mosaic.first_patch_id, nms_iou=spec.nms_iou)
        _add(counters, counted)
    return found, counters


def _part_ids(planned: Sequence[tuple[Mosaic, range]]) -> list[range]:
    """The patches of each work item, numbered over the survey."""
    return [range(m.first_patch_id + patches.start, m.first_patch_id + patches.stop) for m, patches in planned]


def _add(total: dict[str, int], more: dict[str, int]) -> None:
    for name, value in more.items():
        total[name] = total.get(name, 0) + value


def _already_done(output: str, manifest: Manifest) -> bool:
    """Whether the folder holds the result of just this prediction.

    Raises:
      InputError: it holds another one.
    """
    path = os.path.join(output, detections.MANIFEST)
    if not files.exists(path):
        return False
    there, _ = detections.read(output)
    differing = [name for name, value in _identity(there).items() if value != _identity(manifest)[name]]
    if differing:
        raise InputError(
            f"--output={output} holds another prediction (it differs in: {', '.join(differing)}): "
            "give another folder, or remove this one"
        )
    return True


def _identity(manifest: Manifest) -> dict[str, Any]:
    """What makes two predictions the same; where files lie and the batch size do not."""
    return {
        "model": manifest.model_digest,
        "mosaics": [(mosaic.name, mosaic.sha256) for mosaic in manifest.mosaics],
        "score_threshold": manifest.score_threshold,
        "overlap": manifest.options["overlap_px"],
    }


def _summary(options: Options, manifest: Manifest) -> str:
    """The closing words: counts, what the map's coordinates are, where files lie, what comes next."""
    header = ["mosaic", *manifest.classes]
    rows = [[name, *map(str, tally.values())] for name, tally in manifest.counts.items()]
    if len(rows) > 1:
        rows.append(["all", *(str(sum(t[label] for t in manifest.counts.values())) for label in manifest.classes)])
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    table = [
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in [header, *rows]
    ]
    frames = sorted({views.frame(mosaic) for mosaic in manifest.mosaics})
    return "\n".join(
        [
            f"objects with a score of {manifest.score_threshold:g} or more:",
            *table,
            f"wrote {options.output}: {detections.TABLE}, {views.CSV}, {views.GEOJSON}, {views.COCO}, {views.COUNTS}",
            f"{views.GEOJSON} is in {'; '.join(frames)}",
            f"next: rookery evaluate --detections={options.output} --annotations='...', or "
            f"rookery report --detections={options.output}",
        ]
    )


if __name__ == "__main__":
    flags.exit_with(run)
