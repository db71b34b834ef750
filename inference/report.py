"""`rookery report`: detections (and their evaluation) -> one HTML file that opens anywhere, offline.

Nothing in it points outside: pictures are data URIs, charts are inline SVG, there is no script, and a Content-Security-Policy in
the page forbids everything else. Size: overviews of at most MAX_MAPS mosaics share OVERVIEW_BYTES, drawn boxes are at most
MAX_BOXES, crops at most 24 of 256 px: about 2 MB for one mosaic, 30 MB at the very most, besides the table of counts.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inference import charts, evaluation, pictures
from inference.evaluate import digests
from inference.evaluation import Evaluation
from inference.pictures import FN, FP, TP, Crop, Layer
from survey import detections as detections_contract
from survey import drawing, files, flags, provenance
from survey import model as model_contract
from survey.detections import Detections, Manifest
from survey.errors import InputError
from survey.geometry import Mosaic
from survey.metrics import CountError
from survey.raster import Raster

TEMPLATE = "report.html"
MAX_MAPS = 40  # more are listed in the table of counts, but not drawn
OVERVIEW_BYTES = 16 << 20  # JPEG bytes of all overviews together; base64 adds a third
MAX_BOXES = 100_000  # drawn over all maps; the page says so where some are left out
CROPS = 8  # in each row of examples


@dataclass(frozen=True)
class Options:
    """Writes one self-contained HTML page about a folder of detections: counts, maps, quality, examples, provenance."""

    detections: str = flags.flag("folder that `rookery predict` wrote")
    output: str = flags.flag("the HTML file to write", default="report.html")
    evaluation: str = flags.flag(
        "folder that `rookery evaluate` wrote (default: the detections folder, if there is an evaluation)", default=""
    )
    mosaics: str = flags.flag("where the mosaics lie now, if they moved since; a glob pattern, quoted", default="")

    def __post_init__(self) -> None:
        if not self.output.lower().endswith((".html", ".htm")):
            raise InputError(f"--output={self.output!r}: must be a file name ending in .html")


@dataclass(frozen=True)
class CountRow:
    """A line of the table of counts. `error` is None where there are no annotations, `per_ha` where the pixel size is unknown."""

    mosaic: str
    class_name: str
    found: int
    error: CountError | None
    per_ha: float | None


@dataclass(frozen=True)
class Map:
    """A mosaic with its boxes.

    Attributes:
      mosaic: what it is.
      image: overview, a data URI.
      layers: boxes over it.
      drawn: boxes drawn at most per layer.
      evaluated: whether layers are outcomes (else classes).
    """

    mosaic: Mosaic
    image: str
    layers: tuple[Layer, ...]
    drawn: int
    evaluated: bool


@dataclass(frozen=True)
class Gallery:
    """A row of examples."""

    title: str
    note: str
    crops: tuple[Crop, ...]


@dataclass(frozen=True)
class Box:
    """One box to show, from a detection or from a match."""

    mosaic: str
    class_name: str
    outcome: str  # tp, fp, fn; "" where it was not judged
    score: float | None
    iou: float | None
    box: tuple[float, float, float, float]


def run(argv: Sequence[str]) -> int:
    """Writes the report."""
    options, _ = flags.parse(Options, argv, prog="rookery report")
    manifest, found = detections_contract.read(options.detections)
    judged, boxes = _read_evaluation(options)
    paths = _find_mosaics(manifest, options.mosaics)
    page = render(manifest, found, judged, boxes, paths)
    files.write(options.output, page.encode())
    print(headline(manifest, judged))
    print(f"open {options.output} ({_size(len(page) / 1e6)} MB, one file, needs no network)")
    return 0


def headline(manifest: Manifest, judged: Evaluation | None) -> str:
    """The result in a line or two: the count, and beside annotations how far off it is and why."""
    if judged is None:
        totals = {label: sum(tally[label] for tally in manifest.counts.values()) for label in manifest.classes}
        return "counted " + ", ".join(f"{number:,} {label}" for label, number in totals.items())
    at = judged.overall.at_iou[0]
    chosen = at.at_score_threshold
    count = CountError(chosen.tp + chosen.fp, judged.overall.truths)
    percent = "" if math.isnan(count.relative) else f" ({100 * count.relative:+.1f} %)"
    return (
        f"counted {count.found:,} objects, people marked {count.true:,}{percent}\n"
        f"F1 {chosen.f1:.3f} at IoU {at.iou:g} (precision {chosen.precision:.3f}, recall {chosen.recall:.3f}), AP {at.ap:.3f}"
    )


def _read_evaluation(options: Options) -> tuple[Evaluation | None, list[Box]]:
    """The evaluation and its boxes at the first IoU asked for; (None, []) when there is none."""
    folder = options.evaluation or options.detections
    if not options.evaluation and not files.exists(os.path.join(folder, evaluation.FILE)):
        return None, []
    judged, matches = evaluation.read(folder)
    if judged.detections != digests(options.detections):
        raise InputError(
            f"{os.path.join(folder, evaluation.FILE)} is about other detections than those in {options.detections}: "
            "run `rookery evaluate` again"
        )
    first = judged.overall.at_iou[0].iou
    boxes = []
    for row in matches.to_pylist():
        if row["at_iou"] == first:
            prefix = "truth_" if row["outcome"] == "fn" else ""
            box = tuple(row[prefix + side] for side in ("y0", "x0", "y1", "x1"))
            boxes.append(Box(row["mosaic"], row["class_name"], row["outcome"], row["score"], row["iou"], box))
    return judged, boxes


def _find_mosaics(manifest: Manifest, pattern: str) -> dict[str, str]:
    """Where each mosaic lies, by name.

    Raises:
      InputError: one is not there, or is another picture than the one that was searched.
    """
    moved = {os.path.splitext(os.path.basename(path))[0]: path for path in files.match(pattern, "mosaics")} if pattern else {}
    paths = {mosaic.name: moved.get(mosaic.name, mosaic.path) for mosaic in manifest.mosaics}
    for mosaic in manifest.mosaics:
        path = paths[mosaic.name]
        # Object stores and GDAL's virtual files are for the raster library to open.
        if "://" not in path and not path.startswith("/vsi") and not os.path.isfile(path):
            raise InputError(
                f"mosaic {mosaic.name} is not at {path} any more, and the report shows its pixels: put it back, or give its new "
                'place with --mosaics="FOLDER/*"'
            )
        with Raster(path) as raster:
            info = raster.info()
        if (info.height, info.width) != (mosaic.height, mosaic.width):
            raise InputError(
                f"{path} is {info.height} px high and {info.width} wide, but the mosaic {mosaic.name} that was searched is "
                f"{mosaic.height} high and {mosaic.width} wide: give the right file with --mosaics"
            )
    return paths


def render(
    manifest: Manifest, found: dict[str, Detections], judged: Evaluation | None, boxes: list[Box], paths: dict[str, str]
) -> str:
    """The page.

    Args:
      manifest: of the detections.
      found: detections by mosaic, best score first.
      judged: their evaluation, if any.
      boxes: the evaluation's verdicts.
      paths: where each mosaic lies.
    """
    counting = {name: one.take(one.scores >= np.float32(manifest.score_threshold)) for name, one in found.items()}
    evaluated = set() if judged is None else {count.mosaic for count in judged.counts}
    shown = boxes + [
        box
        for mosaic in manifest.mosaics
        if mosaic.name not in evaluated
        for box in _unjudged(mosaic, counting[mosaic.name], manifest)
    ]
    rows = list(_count_rows(manifest, counting, judged))
    scores = np.concatenate([np.zeros(0, np.float32), *(one.scores for one in found.values())])
    page = drawing.template(os.path.join(os.path.dirname(__file__), TEMPLATE), FILTERS)
    return page.render(
        manifest=manifest,
        judged=judged,
        evaluated=evaluated,
        rows=rows,
        totals=_totals(manifest, rows),
        hectares=_hectares(manifest.mosaics),
        maps=list(_maps(manifest, shown, evaluated, paths)),
        galleries=list(_galleries(manifest, shown, paths, judged)),
        pr_charts=_pr_charts(judged),
        histogram=charts.histogram(scores, manifest.score_threshold),
        detections_of_any_score=len(scores),
        max_maps=MAX_MAPS,
        model=_model(manifest),
        now=provenance.now_utc(),
        versions=provenance.versions("jinja2", "numpy", "rasterio"),
    )


def _unjudged(mosaic: Mosaic, one: Detections, manifest: Manifest) -> Iterator[Box]:
    for box, score, class_id in zip(one.boxes_mosaic_px.tolist(), one.scores.tolist(), one.class_ids.tolist(), strict=True):
        yield Box(mosaic.name, manifest.classes[class_id - 1], "", score, None, tuple(box))


def _count_rows(manifest: Manifest, counting: dict[str, Detections], judged: Evaluation | None) -> Iterator[CountRow]:
    true = {} if judged is None else {(count.mosaic, count.class_name): count.true for count in judged.counts}
    for mosaic in manifest.mosaics:
        area = _hectares([mosaic])
        for class_id, name in enumerate(manifest.classes, start=1):
            number = int((counting[mosaic.name].class_ids == class_id).sum())
            objects = true.get((mosaic.name, name))
            error = None if objects is None else CountError(number, objects)
            yield CountRow(mosaic.name, name, number, error, number / area if area else None)


def _totals(manifest: Manifest, rows: Sequence[CountRow]) -> list[CountRow]:
    """One row a class over all mosaics, after one over everything where there are several. Errors are over annotated mosaics."""
    groups = [(name, [row for row in rows if row.class_name == name]) for name in manifest.classes]
    if len(manifest.classes) > 1:
        groups.insert(0, ("all classes", list(rows)))
    area = _hectares(manifest.mosaics)
    totals = []
    for name, members in groups:
        errors = [row.error for row in members if row.error is not None]
        error = CountError(sum(e.found for e in errors), sum(e.true for e in errors)) if errors else None
        number = sum(row.found for row in members)
        totals.append(CountRow("all mosaics", name, number, error, number / area if area else None))
    return totals


def _hectares(mosaics: Sequence[Mosaic]) -> float | None:
    """Area of the rasters, None when the pixel size of one is unknown. Pixels without data are part of it."""
    if any(mosaic.gsd_m is None for mosaic in mosaics):
        return None
    return sum(mosaic.height * mosaic.width * (mosaic.gsd_m or 0) ** 2 for mosaic in mosaics) / 1e4


def _maps(manifest: Manifest, shown: list[Box], evaluated: set[str], paths: dict[str, str]) -> Iterator[Map]:
    by_mosaic: dict[str, list[Box]] = {mosaic.name: [] for mosaic in manifest.mosaics}
    for box in shown:
        by_mosaic[box.mosaic].append(box)
    chosen = sorted(manifest.mosaics, key=lambda mosaic: -len(by_mosaic[mosaic.name]))[:MAX_MAPS]
    for mosaic in sorted(chosen, key=manifest.mosaics.index):
        here = sorted(by_mosaic[mosaic.name], key=_best_first)
        judged = mosaic.name in evaluated
        if judged:
            groups = [("found, right", "tp", TP), ("found, false", "fp", FP), ("missed", "fn", FN)]
            parts = [(label, [box for box in here if box.outcome == outcome], style) for label, outcome, style in groups]
        else:
            parts = [
                (name, [box for box in here if box.class_name == name], drawing.class_style(i))
                for i, name in enumerate(manifest.classes)
            ]
        most = MAX_BOXES // len(chosen) // len(parts)
        layers = tuple(pictures.layer(label, _array(members), style, most) for label, members, style in parts)
        with Raster(paths[mosaic.name]) as raster:
            image = pictures.overview(raster, OVERVIEW_BYTES // len(chosen))
        yield Map(mosaic, image, layers, most, judged)


def _best_first(box: Box) -> tuple[float, float]:
    y0, x0, y1, x1 = box.box
    return (-(box.score or 0.0), -(y1 - y0) * (x1 - x0))


def _array(boxes: Iterable[Box]) -> np.ndarray:
    return np.array([box.box for box in boxes], float).reshape(-1, 4)


def _galleries(manifest: Manifest, shown: list[Box], paths: dict[str, str], judged: Evaluation | None) -> Iterator[Gallery]:
    ranked = sorted(shown, key=_best_first)
    rows: list[tuple[str, str, list[Box]]]
    if judged is None:
        rows = [
            ("Most certain", "The highest scores.", ranked[:CROPS]),
            ("Least certain that still count", "The lowest scores above the threshold.", ranked[::-1][:CROPS]),
        ]
    else:
        kinds = {kind: [box for box in ranked if box.outcome == kind] for kind in ("tp", "fp", "fn")}
        rows = [
            ("Best: found, right", "Highest scores among the detections that match an annotated object.", kinds["tp"][:CROPS]),
            (
                "Worst: found, false",
                "Highest scores among the detections that match none. Look twice: some may be real objects nobody annotated.",
                kinds["fp"][:CROPS],
            ),
            ("Missed", "The largest annotated objects that no detection matches.", kinds["fn"][:CROPS]),
        ]
    mosaics = {mosaic.name: mosaic for mosaic in manifest.mosaics}
    styles = {"tp": TP, "fp": FP, "fn": FN}
    for title, note, members in rows:
        crops = []
        for box in members:
            style = styles.get(box.outcome) or drawing.class_style(manifest.classes.index(box.class_name))
            with Raster(paths[box.mosaic]) as raster:
                crops.append(pictures.crop(raster, mosaics[box.mosaic], box.box, style, box.class_name, box.score, box.iou))
        yield Gallery(title, note, tuple(crops))


def _pr_charts(judged: Evaluation | None) -> list[tuple[str, charts.PrecisionRecall]]:
    if judged is None or not judged.overall.truths:
        return []
    overall = [(f"IoU {a.iou:g}", a.recall, a.precision, a.at_score_threshold) for a in judged.overall.at_iou]
    made = [("Precision and recall" + (", all classes" if len(judged.classes) > 1 else ""), charts.precision_recall(overall))]
    if len(judged.classes) > 1:
        largest = sorted(judged.classes.items(), key=lambda item: -item[1].truths)
        firsts = [(name, scores.at_iou[0]) for name, scores in largest if scores.truths]
        curves = [(name, a.recall, a.precision, a.at_score_threshold) for name, a in firsts]
        made.append((f"By class, at IoU {judged.overall.at_iou[0].iou:g}", charts.precision_recall(curves)))
    return made


def _model(manifest: Manifest) -> dict[str, Any] | None:
    """The model's spec, if the model that made the detections is still where it was."""
    if not files.exists(os.path.join(manifest.model, model_contract.SPEC)):
        return None
    if model_contract.digest(manifest.model) != manifest.model_digest:
        return None
    return dataclasses.asdict(model_contract.read(manifest.model))


def _number(value: float) -> str:
    """Thousands apart: 12,345."""
    return f"{value:,}"


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.0f}\N{NO-BREAK SPACE}%"


def _width(value: float) -> str:
    """A share of 1 as a CSS width; an undefined one is empty."""
    return "0" if math.isnan(value) else f"{100 * value:.1f}%"


def _ratio(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _signed(error: CountError) -> str:
    """-51 (-18.3 %), with a real minus sign."""
    if error.signed == 0:
        return "±0"
    share = "" if math.isnan(error.relative) else f" ({100 * error.relative:+.1f}\N{NO-BREAK SPACE}%)"
    return f"{error.signed:+,}{share}".replace("-", "−")


def _size(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    if value == 0:
        return "0"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


FILTERS: dict[str, Callable[..., str]] = {
    "number": _number,
    "percent": _percent,
    "signed": _signed,
    "ratio": _ratio,
    "size": _size,
    "width": _width,
}


if __name__ == "__main__":
    flags.exit_with(run)
