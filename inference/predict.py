"""`rookery predict`: model + mosaics -> detections and counts.

Plans the patches of all mosaics, has Beam's workers search them (inference.transforms), then stitches the seams of each mosaic
(inference.stitch) and writes the detections (survey.detections) and their views (inference.outputs). docs/predict.md explains it.
"""

import dataclasses
import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from beam_jobs import quiet
from inference import fuse, mismatch, parts, plan, stitch
from inference.outputs import writing
from inference.parts import Part
from inference.plan import Planned
from survey import boxes, detections, files, flags, model, provenance
from survey import mosaics as survey_mosaics
from survey.detections import Detections, Manifest
from survey.errors import InputError
from survey.model import ModelSpec
from survey.progress import Progress, Watch

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

PROG = "rookery predict"
# Half a patch and more shows training each object at many places, but makes a count neither more certain nor more repeatable
# (docs/predict.md), at up to three times the work.
MOST_OVERLAP = 1 / 4


@dataclass(frozen=True, slots=True)
class Options:
    """Runs a trained model over mosaics and writes every object once: detections, map, and counts.

    A run that was cut short goes on when the same command is given again. Flags of Apache Beam (--runner, --direct_num_workers,
    ...) are handed on to it.
    """

    model: tuple[str, ...] = flags.flag("folder written by `rookery export`; several, with commas between, are fused")
    mosaics: str = flags.flag("glob pattern of the images to search, quoted")
    output: str = flags.flag("folder for the detections; workers and launcher must both see it")
    overlap: int | None = flags.flag(
        "pixels that neighbouring patches share (default: as in training, but a quarter of a patch at most)",
        default=None,
    )
    gsd_m: float | None = flags.flag(
        "resample the mosaics to this ground resolution in metres a pixel while searching; boxes stay in their own pixels",
        default=None,
    )
    flips: str = flags.flag(
        "also look at each patch mirrored this way and fuse what is seen; twice or four times the work",
        default="none",
        choices=fuse.FLIPS,
    )
    batch_size: int = flags.flag(
        "patches per call of the model, on each core of a TPU; changes speed and memory, and scores in their last digits at most",
        default=8,
    )
    score_threshold: float | None = flags.flag(
        "a detection counts from this score on (default: the model's own, chosen on validation)", default=None
    )
    formats: tuple[str, ...] = flags.flag(
        "files to write beside the table; more can be had later with `rookery convert`", default=writing.DEFAULT_FORMATS
    )

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"--batch_size={self.batch_size}: must be at least 1")
        if self.overlap is not None and self.overlap < 0:
            raise InputError(f"--overlap={self.overlap}: must be 0 px or more; about the size of a large object is right")
        if self.gsd_m is not None and not 0 < self.gsd_m < float("inf"):
            raise InputError(f"--gsd_m={self.gsd_m}: must be above 0; model.json says what the model was trained at")
        if self.score_threshold is not None and not 0 <= self.score_threshold <= 1:
            raise InputError(f"--score_threshold={self.score_threshold}: must be from 0 to 1")
        if "" in self.model or len(set(self.model)) < len(self.model):
            raise InputError(f"--model={','.join(self.model)}: must be different folders, separated by single commas")


def default_overlap(spec: ModelSpec) -> int:
    """Pixels that neighbouring patches share where nobody says."""
    return min(spec.overlap_px, int(MOST_OVERLAP * spec.image_size))


def run(argv: Sequence[str]) -> int:
    """Runs the verb.

    Args:
      argv: the arguments after `predict`.

    Returns:
      The exit code.

    Raises:
      InputError: something given cannot be used. Nothing was written, or what was finished is kept and the error says so.
    """
    options, rest = flags.parse(Options, argv, prog=PROG, passthrough=True)
    specs = tuple(model.read(folder) for folder in options.model)
    together = fuse.common(specs, options.model)
    overlap_px = default_overlap(together) if options.overlap is None else options.overlap
    threshold = together.score_threshold if options.score_threshold is None else options.score_threshold
    if threshold < together.score_floor:
        raise InputError(
            f"--score_threshold={threshold}: must be at least the model's score_floor={together.score_floor}, "
            "below which it keeps no detections"
        )
    writing.check_formats(options.formats, among=writing.DEFAULT_FORMATS)
    paths = files.match(options.mosaics, "mosaics")
    found = survey_mosaics.read(paths, patch_size=together.image_size, overlap_px=overlap_px)
    pairs = plan.at_resolution(found, options.gsd_m, patch_size=together.image_size, overlap_px=overlap_px)
    mosaics = tuple(mosaic for mosaic, _ in pairs)
    warnings = [
        text
        for folder, spec in zip(options.model, specs, strict=True)
        for text in mismatch.warnings(spec, mosaics, options.gsd_m, model=folder)
    ]
    settings = {
        "model": _digest(options.model),
        "overlap_px": overlap_px,
        "patch_size": together.image_size,
        "gsd_m": options.gsd_m,
        "flips": options.flips,
    }
    manifest = Manifest(
        model=",".join(options.model),
        model_digest=str(settings["model"]),
        classes=together.classes,
        score_threshold=threshold,
        mosaics=mosaics,
        counts={},
        counters={},
        options={
            **{name: value for name, value in settings.items() if name != "model"},
            "mosaics": options.mosaics,
            "batch_size": options.batch_size,
            "warnings": warnings,
        },
        versions=provenance.versions("apache-beam", "numpy", "rasterio", "tensorflow"),
    )
    chosen = _beam_options(rest, options)
    if _already_done(options.output, manifest):
        print(f"{options.output} already holds this very prediction: nothing to do; `rookery convert` writes other formats")
        return 0
    for text in warnings:
        print(f"warning: {text}", file=sys.stderr)

    planned = [
        Planned(mosaic, searched, together.image_size, overlap_px, parts.key(settings, mosaic.sha256))
        for mosaic, searched in pairs
    ]
    _search(options, chosen, specs, planned, together=together, settings=settings)
    result, counters = _stitch(options.output, planned, together.nms_iou)
    counters["detections"] = sum(map(len, result.values()))
    counts = writing.count(result, together.classes, threshold)
    manifest = dataclasses.replace(manifest, counts=counts, counters=counters)
    notes: list[str] = []
    written = writing.write(options.output, manifest, result, options.formats, notes=notes)
    detections.write(options.output, manifest, result)  # last: its manifest says that the folder is complete
    parts.clear(options.output)
    print(_summary(options, manifest, [f"wrote {options.output}: {', '.join([detections.TABLE, *written])}", *notes]))
    return 0


def _digest(folders: Sequence[str]) -> str:
    """Names one model, or several in their order."""
    digests = [model.digest(folder) for folder in folders]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _beam_options(argv: Sequence[str], options: Options) -> "PipelineOptions":
    """Beam's options from the flags that are not ours; refuses what is not Beam's either, and paths that workers cannot see."""
    with quiet.importing():  # takes seconds: only once the rest of the input is known to be good
        from beam_jobs import dataflow, launch

    chosen = launch.options(argv, flags.names(Options), prog=PROG)
    for folder in options.model:
        dataflow.refuse_local(chosen, {"model": folder, "mosaics": options.mosaics, "output": options.output})
    return chosen


def _search(
    options: Options,
    chosen: "PipelineOptions",
    specs: tuple[ModelSpec, ...],
    planned: Sequence[Planned],
    *,
    together: ModelSpec,
    settings: dict[str, Any],
) -> None:
    """Has the workers search the patches of all parts that are not there yet.

    Raises:
      InputError: the folder belongs to another run, or a worker found what the headers did not show.
    """
    import apache_beam as beam

    from beam_jobs import launch
    from inference import transforms

    wanted = [part for one in planned for part in one.parts]
    try:
        changed = parts.begin(options.output, settings, {one.mosaic.name: one.mosaic.sha256 for one in planned})
    except OSError as error:
        raise InputError(f"--output={options.output} cannot be written to: {error}; give a folder that can") from error
    if changed:
        print(f"changed since the run that was cut short, searched anew: {', '.join(changed)}")
    missing = parts.missing(options.output, wanted)
    total = sum(map(len, wanted))
    done = total - sum(map(len, missing))
    if done:
        print(f"going on: {done:,} of {total:,} patches were finished by a run that was cut short")
    if missing:
        work = transforms.SearchSettings(options.model, specs, together, options.flips, options.batch_size, options.output)
        runs = plan.items(planned, missing)
        progress = Progress("predict", total, "patches", mpx=together.image_size**2 / 1e6, start=done)
        try:
            with Watch(progress, lambda: parts.patches_done(options.output, wanted)):
                launch.run(chosen, lambda pipeline: pipeline | "Runs" >> beam.Create(runs) | "Search" >> transforms.Search(work))
        except InputError as error:
            raise _with_what_is_kept(options.output, wanted, error) from error
    if lost := parts.missing(options.output, wanted):
        raise InputError(
            f"the workers' results are not in --output={options.output} ({len(lost)} of {len(wanted)} parts are missing, the "
            f"first is {lost[0].file}): give a folder that workers and launcher both see"
        )


def _with_what_is_kept(output: str, wanted: Sequence[Part], error: InputError) -> InputError:
    """The error of a worker, with what becomes of the work done until then."""
    done = parts.patches_done(output, wanted)
    if not done:
        parts.clear(output)
        files.remove_empty_folder(output)
        return error
    return InputError(
        f"{error}. {done:,} of {sum(map(len, wanted)):,} patches are finished and kept in {os.path.join(output, parts.FOLDER)}: "
        "mend that, or leave the file out of --mosaics, and run the same command again; it goes on from there"
    )


def _stitch(output: str, planned: Sequence[Planned], nms_iou: float) -> tuple[dict[str, Detections], dict[str, int]]:
    """Stitches what lies in the parts, one mosaic at a time: (detections by mosaic, in its own pixels; counters)."""
    result: dict[str, Detections] = {}
    counters: dict[str, int] = {}
    for one in planned:
        claimed, counted = parts.read(output, one.parts)
        parts.add(counters, counted)
        found, counted = stitch.stitch(claimed, one.grid, first_patch_id=0, nms_iou=nms_iou)
        parts.add(counters, counted)
        own_px = found.boxes_mosaic_px
        if one.scale != (1.0, 1.0):
            own_px = (own_px.astype(np.float64) * [*one.scale, *one.scale]).astype(np.float32)
            own_px = boxes.clip(own_px, one.mosaic.height, one.mosaic.width)
        patch_ids = found.patch_ids + one.mosaic.first_patch_id
        result[one.mosaic.name] = dataclasses.replace(found, boxes_mosaic_px=own_px, patch_ids=patch_ids)
    return result, counters


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
    """What makes two predictions the same; where files lie, their formats and the batch size do not."""
    return {
        "model": manifest.model_digest,
        "mosaics": [(mosaic.name, mosaic.sha256) for mosaic in manifest.mosaics],
        "score_threshold": manifest.score_threshold,
        "overlap": manifest.options.get("overlap_px"),
        "gsd_m": manifest.options.get("gsd_m"),
        "flips": manifest.options.get("flips", "none"),
    }


def _summary(options: Options, manifest: Manifest, about_files: Sequence[str]) -> str:
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
    frames = sorted({writing.frame(mosaic) for mosaic in manifest.mosaics})
    warnings = len(manifest.options["warnings"])
    return "\n".join(
        [
            f"objects with a score of {manifest.score_threshold:g} or more:",
            *table,
            *([f"mind the {warnings} warning{'s' * (warnings > 1)} above"] if warnings else []),
            *about_files,
            f"coordinates: {'; '.join(frames)}",
            f"next: rookery evaluate --detections={options.output} --annotations='...', or "
            f"rookery report --detections={options.output}",
        ]
    )


if __name__ == "__main__":
    flags.exit_with(run)
