"""`rookery count`: detections, and labels where there are some -> counts with confidence intervals, and what they rest on.

    no labels of this survey      calibrated scores, and what the model's validation says of them
    --sample DIR --annotations    patches that `--label_sample` proposed and people labelled
    --annotations                 some mosaics that people annotated wholly
    --label_sample N --output DIR proposes N patches to label, and says what they will bring

Which of the estimators of `inference.counting.intervals` was used is in the output, with its assumptions.
"""

import csv
import dataclasses
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inference import estimates
from inference.counting import expected, intervals, label_sample, totals
from inference.counting.expected import Worth
from inference.counting.label_sample import Sample
from inference.estimates import Estimates
from inference.evaluate import digests
from survey import detections as detections_contract
from survey import files, flags, model, provenance, truth
from survey.annotations import FORMATS, every, reading
from survey.annotations.reading import ReadOptions
from survey.detections import Detections, Manifest
from survey.errors import InputError
from survey.model import ModelSpec
from survey.truth import Truth

# Below, the number of labels in a stratum or the number of strata is too small for the degrees of freedom to mean anything.
LEAST_PATCHES = 10


@dataclass(frozen=True)
class Options:
    """Counts objects per mosaic, class and stratum with confidence intervals, and proposes what to label to shorten them.

    rookery count --detections=found/
    rookery count --detections=found/ --label_sample=60 --output=to_label/
    rookery count --detections=found/ --sample=to_label/ --annotations='to_label/*.xml'
    """

    detections: str = flags.flag("folder that `rookery predict` wrote; the estimates are written there")
    annotations: str = flags.flag(
        "annotations of whole mosaics, or of the patches of --sample; a glob pattern, quoted", default=""
    )
    annotation_format: str = flags.flag("format of the annotations", default="voc", choices=sorted(FORMATS))
    class_column: str | None = reading.flag_class_column()
    class_names: str | None = reading.flag_class_names()
    box_size: str | None = reading.flag_box_size()
    origin: str = reading.flag_origin()
    strata: str = flags.flag("CSV with the columns mosaic,stratum: an estimate for each stratum too", default="")
    confidence: float = flags.flag("of the intervals", default=0.95)
    model: str = flags.flag("folder of the model (default: where the detections say it was)", default="")
    label_sample: int | None = flags.flag("propose so many patches to label", default=None)
    output: str = flags.flag("folder for the proposed patches; new", default="")
    seed: int = flags.flag("of the draw", default=0)
    patch_size: int | None = flags.flag("side of the proposed patches in pixels (default: the model's)", default=None)
    sample: str = flags.flag("folder of proposed patches that were labelled since", default="")

    def __post_init__(self) -> None:
        if not 0.5 <= self.confidence < 1:
            raise InputError(f"--confidence={self.confidence:g}: must be from 0.5 to below 1; 0.95 is usual")
        if self.label_sample is not None and self.label_sample < LEAST_PATCHES:
            raise InputError(f"--label_sample={self.label_sample}: at least {LEAST_PATCHES} patches are needed for an interval")
        if (self.label_sample is None) != (not self.output):
            raise InputError("--label_sample and --output go together: how many patches to propose, and the new folder for them")
        if self.label_sample is not None and (self.sample or self.annotations):
            raise InputError("--label_sample proposes patches; count with --sample and --annotations when they are labelled")
        if self.sample and not self.annotations:
            raise InputError(f"--sample={self.sample} needs its labels: --annotations='{os.path.join(self.sample, '*.xml')}'")
        self.read_options()

    def read_options(self) -> ReadOptions:
        """How to understand the annotation files."""
        return ReadOptions.parse(
            class_column=self.class_column, class_names=self.class_names, box_size=self.box_size, origin=self.origin
        )


def run(argv: Sequence[str]) -> int:
    """Counts, prints a table and writes estimates.json and estimates.csv; or proposes patches to label."""
    options, _ = flags.parse(Options, argv, prog="rookery count")
    manifest, found = detections_contract.read(options.detections)
    strata = expected.stratum_numbers(manifest.mosaics, read_strata(options.strata, manifest) if options.strata else {})
    spec, why = read_model(options, manifest)
    if options.label_sample is not None:
        propose(options, manifest, found, spec)
        return 0
    result, notes = _situation(options, manifest, found, spec, why)
    made = Estimates(
        confidence=options.confidence,
        method=result.method,
        assumptions=result.assumptions,
        units=result.units,
        labelled_units=result.labelled_units,
        rows=tuple(totals.rows(result, manifest, found, strata, options.confidence)),
        calibration={
            "knots": [list(knot) for knot in spec.calibration] if spec is not None else [],
            **({name: spec.validation[name] for name in totals.VALIDATED if name in spec.validation} if spec is not None else {}),
        },
        detections=digests(options.detections),
        options=dataclasses.asdict(options),
        versions=provenance.versions("numpy", "scipy", "ppi-python"),
    )
    estimates.write(options.detections, made)
    for note in notes:
        print(f"note: {note}")
    print(summary(made, manifest))
    print(f"\nwritten: {', '.join(os.path.join(options.detections, name) for name in (estimates.FILE, estimates.TABLE))}")
    return 0


def read_model(options: Options, manifest: Manifest) -> tuple[ModelSpec | None, str]:
    """The model's spec, or None and why there is none.

    Raises:
      InputError: --model names another model than the one that made the detections, or none.
    """
    folder = options.model or manifest.model
    try:
        spec = model.read(folder)
        if model.digest(folder) != manifest.model_digest:
            raise InputError(f"{folder} is not the model that made these detections: name its folder with --model")
    except (InputError, OSError) as error:
        if options.model:
            raise
        return None, str(error)
    return spec, ""


def read_strata(path: str, manifest: Manifest) -> dict[str, str]:
    """The stratum of every mosaic.

    Raises:
      InputError: not a table with both columns, a mosaic that was not predicted, one twice, or one without a stratum.
    """
    try:
        table = list(csv.DictReader(io.StringIO(files.read(path).decode("utf-8-sig"))))
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise InputError(f"--strata={path} cannot be read as a CSV file: {error}") from error
    known = {mosaic.name for mosaic in manifest.mosaics}
    strata: dict[str, str] = {}
    for number, row in enumerate(table, start=2):
        name, stratum = (str(row.get(column) or "").strip() for column in ("mosaic", "stratum"))
        if not name or not stratum:
            raise InputError(f"--strata={path}, line {number}: the columns mosaic and stratum are needed, with a value in each")
        if name not in known:
            near = flags.nearest(name, sorted(known))
            raise InputError(f"--strata={path}, line {number}: mosaic {name!r} was not predicted; did you mean {near!r}?")
        if name in strata:
            raise InputError(f"--strata={path}, line {number}: mosaic {name!r} has a stratum already: leave one line")
        strata[name] = stratum
    if missing := sorted(known - set(strata)):
        raise InputError(f"--strata={path} gives no stratum for {', '.join(missing)}: add a line for each")
    return strata


def propose(options: Options, manifest: Manifest, found: dict[str, Detections], spec: ModelSpec | None) -> None:
    """Draws and writes a sample to label, and says what it will bring.

    Raises:
      InputError: the survey has fewer patches than asked for.
    """
    number = options.label_sample or 0
    worth = Worth.of(spec, manifest)
    units = expected.in_cores(manifest, found, worth, *expected.patch_geometry(manifest, spec, options.patch_size))
    if number > len(units):
        raise InputError(
            f"--label_sample={number}: the survey has only {len(units)} patches; ask for fewer, for smaller ones with "
            "--patch_size, or annotate the mosaics wholly"
        )
    deviations = label_sample.uncertainty(units.numbers.sum(axis=1), units.variances.sum(axis=1), worth.recall)
    planned = label_sample.design(deviations, number)
    sample = label_sample.write(options.output, manifest, found, units, planned, options.seed, digests(options.detections))
    total = float(units.numbers.sum())
    print(
        f"proposed {len(sample.patches)} of {len(units)} patches in {len(sample.sizes)} strata: correct the boxes in "
        f"{options.output}/*.xml (they are the model's), then\n"
        f"  rookery count --detections={options.detections} --sample={options.output} --annotations='{options.output}/*.xml'"
    )
    print(f"\nexpected half width of the interval for a total of about {total:.0f} (confidence {options.confidence:g}):")
    for line in _forecast(options, manifest, found, spec, planned, total):
        print(f"  {line}")


def _forecast(
    options: Options,
    manifest: Manifest,
    found: dict[str, Detections],
    spec: ModelSpec | None,
    planned: label_sample.Design,
    total: float,
) -> list[str]:
    """What intervals may be, by the number of labels: from the model's own uncertainty, so a forecast and no promise."""
    from scipy import stats

    everything = range(len(manifest.mosaics)), range(len(manifest.classes))
    lines = []
    try:
        if spec is None:
            raise InputError("no model")
        between = intervals.interval(totals.without_labels(manifest, found, spec).total(*everything), options.confidence)
        half = (between.high - between.low) / 2
        lines.append(f"no labels     +- {half:.0f}, if the survey is like the validation data, which no label has shown yet")
    except InputError:
        lines.append("no labels     unknown: the model brings no calibration")
    population = len(planned.uncertainty)
    for number in sorted({min(k * (options.label_sample or 0), population) for k in (1, 2)}):
        design = planned if number == options.label_sample else label_sample.design(planned.uncertainty, number)
        freedom = max(number - len(design.sizes), 1)
        half = float(stats.t.ppf((1 + options.confidence) / 2, freedom)) * design.error()
        lines.append(f"{number:>5} labels  +- {half:.0f} ({100 * half / total if total else 0:.0f} %)")
    return lines


def _situation(
    options: Options, manifest: Manifest, found: dict[str, Detections], spec: ModelSpec | None, why: str
) -> tuple[totals.Result, list[str]]:
    """Chooses the situation by what is there, and reads it: (result, notes)."""
    if not options.annotations:
        if spec is None:
            raise InputError(f"without labels of this survey the model's calibration is needed: {why}")
        return totals.without_labels(manifest, found, spec), []
    notes = []
    if spec is None:
        notes.append(f"scores are not calibrated ({why}); the interval holds but may be longer")
    elif not spec.calibration:
        notes.append("the model has no calibration; the interval holds but may be longer")
    paths, worth = files.match(options.annotations, "annotations"), Worth.of(spec, manifest)
    read = every.read(paths, options.annotation_format, options.read_options())
    if options.sample:
        sample = label_sample.read(options.sample, digests(options.detections))
        images = label_sample.as_mosaics(sample)
        marked = truth.by_mosaic(read.annotations, images, manifest.classes, named_in="the model", images=read.images)
        labels = _patch_labels(sample, marked, len(manifest.classes), options)
        same = label_sample.untouched(sample, paths)
        if same == len(sample.patches):
            raise InputError(
                f"--annotations={options.annotations}: all {same} files are just as the model wrote them: correct them first, or "
                "its errors count as truth"
            )
        if same:
            notes.append(f"{same} of {len(sample.patches)} annotation files are just as the model wrote them: were they checked?")
        units = expected.in_cores(manifest, found, worth, sample.patch_size, sample.overlap_px)
        return totals.labelled_patches(manifest, units, sample, labels), notes
    marked = truth.by_mosaic(read.annotations, manifest.mosaics, manifest.classes, named_in="the model", images=read.images)
    position = {mosaic.name: i for i, mosaic in enumerate(manifest.mosaics)}
    by_mosaic = {
        position[name]: np.bincount(objects.class_ids - 1, minlength=len(manifest.classes)).astype(np.float64)
        for name, objects in marked.objects.items()
    }
    return totals.labelled_mosaics(manifest, expected.in_mosaics(manifest, found, worth), by_mosaic), notes


def _patch_labels(sample: Sample, marked: Truth, classes: int, options: Options) -> np.ndarray:
    """Objects of each class in the core of every patch of the sample, float64 [n, C].

    Raises:
      InputError: a patch has no labels, not even an empty file.
    """
    names = [mosaic.name for mosaic in label_sample.as_mosaics(sample)]
    if missing := [name for name in names if name not in marked.objects]:
        raise InputError(
            f"--annotations={options.annotations} lacks {len(missing)} of the {len(names)} patches of the sample: "
            f"{', '.join(missing[:5])}{', ...' * (len(missing) > 5)}. All {len(names)} are needed, or the sample is not random; "
            "a patch without objects needs a file that names it and has no objects"
        )
    rows = []
    for name, patch in zip(names, sample.patches, strict=True):
        objects = marked.objects[name]
        mine = objects.class_ids[label_sample.in_core(patch, objects.boxes_mosaic_px)]
        rows.append(np.bincount(mine - 1, minlength=classes))
    return np.array(rows, np.float64)


def summary(made: Estimates, manifest: Manifest) -> str:
    """The estimates as aligned text, with method and assumptions."""
    labelled = f" ({made.labelled_units} of {made.units} labelled)" if made.units else ""
    lines = [f"method: {made.method}{labelled}", ""]
    head = ["mosaic", "stratum", "class", "counted", "estimate", f"{100 * made.confidence:g} % interval"]
    cells = [head]
    for row in made.rows:
        if len(manifest.classes) == 1 and not row.class_name:
            continue  # all classes are that one
        if len(manifest.mosaics) == 1 and row.mosaic:
            continue
        between = f"{row.low:.0f} to {row.high:.0f}"
        cells.append(
            [row.mosaic or "all", row.stratum, row.class_name or "all", str(row.counted), f"{row.estimate:.0f}", between]
        )
    used = [i for i in range(len(head)) if i != 1 or any(row.stratum for row in made.rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    for line_cells in cells:
        line = "  ".join(line_cells[i].ljust(widths[i]) if i < 3 else line_cells[i].rjust(widths[i]) for i in used)
        lines.append(f"  {line}".rstrip())
    return "\n".join([*lines, "", "the intervals hold if:", *(f"  - {one}" for one in made.assumptions)])


if __name__ == "__main__":
    flags.exit_with(run)
