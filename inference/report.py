"""`rookery report`: detections, their evaluation and their estimates -> one HTML file that opens anywhere, offline.

Nothing in it points outside: pictures are data URIs, charts are inline SVG, and a Content-Security-Policy in the page forbids
everything else. It allows one script, ours, by its hash. Size: pictures of the maps share overlays.PICTURE_BYTES, detections
in the page are at most embedded.MAX_DETECTIONS, crops at most 48 of 256 px: 2 to 4 MB for one mosaic, MAX_MB at the very
most, besides the table of counts. docs/report.md says what is shown.
"""

import base64
import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from inference import estimates, evaluation
from inference.estimates import Estimates
from inference.evaluate import digests
from inference.evaluation import Evaluation
from inference.page import charts, checks, embedded, overlays, table
from inference.page.embedded import Judged, Truths
from inference.page.overlays import Box
from survey import detections as detections_contract
from survey import drawing, files, flags, provenance, reliability
from survey import model as model_contract
from survey.detections import Detections, Manifest
from survey.errors import InputError
from survey.metrics import CountError
from survey.model import ModelSpec
from survey.raster import Raster

PAGE = os.path.join(os.path.dirname(__file__), "page")
TEMPLATE = "report.html"
SCRIPTS = ("map.js", "report.js")
# Pictures 17, detections 6, annotated objects 6, boxes for pages without scripts 1, crops 4, the rest 1 MB.
MAX_MB = 35
CALIBRATION_BINS = 5  # of the detections that count: of 200 each bin still has 40


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
class Verdicts:
    """An evaluation with its boxes.

    Attributes:
      judged: the numbers.
      boxes: verdicts at the first IoU asked for.
      truths: the annotated objects by mosaic.
    """

    judged: Evaluation
    boxes: list[Box]
    truths: dict[str, Truths]


def run(argv: Sequence[str]) -> int:
    """Writes the report."""
    options, _ = flags.parse(Options, argv, prog="rookery report")
    manifest, found = detections_contract.read(options.detections)
    verdicts = _read_evaluation(options, manifest)
    guessed = _read_estimates(options)
    paths = _find_mosaics(manifest, options.mosaics)
    page = render(manifest, found, verdicts, guessed, paths).encode()
    files.write(options.output, page)
    print(headline(manifest, None if verdicts is None else verdicts.judged))
    print(f"open {options.output} ({table.size(len(page) / 1e6)} MB, one file, needs no network)")
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


def _read_evaluation(options: Options, manifest: Manifest) -> Verdicts | None:
    """The evaluation with its boxes; None when there is none."""
    import pyarrow.compute as pc  # --help does not need it

    folder = options.evaluation or options.detections
    if not options.evaluation and not files.exists(os.path.join(folder, evaluation.FILE)):
        return None
    judged, matches = evaluation.read(folder)
    _refuse_stale(os.path.join(folder, evaluation.FILE), judged.detections, options, "evaluate")
    first = matches.filter(pc.equal(matches["at_iou"], judged.overall.at_iou[0].iou)).to_pylist()
    boxes = []
    objects: dict[str, list[tuple[float, ...]]] = {count.mosaic: [] for count in judged.counts}
    for row in first:
        truth = tuple(row["truth_" + side] for side in ("y0", "x0", "y1", "x1"))
        box = truth if row["outcome"] == "fn" else tuple(row[side] for side in ("y0", "x0", "y1", "x1"))
        kind = row["kind"] or ""
        boxes.append(Box(row["mosaic"], row["class_name"], row["outcome"], kind, row["score"], row["iou"], box))
        if row["outcome"] != "fp":
            objects[row["mosaic"]].append((*truth, manifest.classes.index(row["class_name"]) + 1))
    truths = {}
    for name, rows in objects.items():
        table = np.array(rows, float).reshape(-1, 5)
        truths[name] = Truths(table[:, :4], table[:, 4].astype(np.int32))
    return Verdicts(judged, boxes, truths)


def _read_estimates(options: Options) -> Estimates | None:
    """What `rookery count` wrote beside the detections; None when it did not."""
    path = os.path.join(options.detections, estimates.FILE)
    if not files.exists(path):
        return None
    guessed = estimates.read(options.detections)
    _refuse_stale(path, guessed.detections, options, "count")
    return guessed


def _refuse_stale(path: str, made_of: dict[str, str], options: Options, verb: str) -> None:
    if made_of != digests(options.detections):
        raise InputError(f"{path} is about other detections than those in {options.detections}: run `rookery {verb}` again")


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
    manifest: Manifest,
    found: dict[str, Detections],
    verdicts: Verdicts | None,
    guessed: Estimates | None,
    paths: dict[str, str],
) -> str:
    """The page.

    Args:
      manifest: of the detections.
      found: detections by mosaic, best score first.
      verdicts: their evaluation, if any.
      guessed: estimates of the true numbers, if any.
      paths: where each mosaic lies.
    """
    judged = None if verdicts is None else verdicts.judged
    truths = {} if verdicts is None else verdicts.truths
    counting = {name: one.take(one.scores >= np.float32(manifest.score_threshold)) for name, one in found.items()}
    shown = [] if verdicts is None else list(verdicts.boxes)
    for mosaic in manifest.mosaics:
        if mosaic.name not in truths:
            shown.extend(overlays.unjudged(mosaic, counting[mosaic.name], manifest))
    rows = list(table.count_rows(manifest, counting, judged, guessed))
    totals = table.totals(manifest, rows, guessed)
    maps, pyramids = overlays.maps(manifest, shown, set(truths), paths)
    ious = [] if judged is None else [one.iou for one in judged.overall.at_iou][: embedded.MAX_IOUS]
    verdict_bits = {name: embedded.judge(found[name], true, len(manifest.classes), ious) for name, true in truths.items()}
    scores = np.concatenate([np.zeros(0, np.float32), *(one.scores for one in found.values())])
    data = embedded.block(manifest, found, truths, verdict_bits, ious, pyramids, most=embedded.MAX_DETECTIONS)
    model = _model(manifest)
    script = "\n".join(_source(name) for name in SCRIPTS)
    page = drawing.template(os.path.join(PAGE, TEMPLATE), table.FILTERS)
    return page.render(
        manifest=manifest,
        judged=judged,
        evaluated=set(truths),
        guessed=guessed,
        strata=table.strata(guessed),
        rows=rows,
        totals=totals,
        hectares=embedded.hectares(manifest.mosaics),
        maps=maps,
        kind_names=overlays.KIND_NAMES,
        max_maps=overlays.MAX_MAPS,
        galleries=overlays.galleries(manifest, shown, paths, judged, [one.index for one in maps]),
        pr_charts=_pr_charts(judged, manifest),
        reliability=_reliability(judged, found, verdict_bits),
        histogram=charts.histogram(scores, manifest.score_threshold),
        detections_of_any_score=len(scores),
        remarks=checks.remarks(
            manifest,
            model,
            judged,
            estimated=guessed is not None,
            at_threshold=sum(map(len, counting.values())),
            detections=len(scores),
        ),
        model=model,
        class_styles=[drawing.class_style(i) for i in range(len(manifest.classes))],
        data=data,
        data_json=embedded.as_json(data),
        held=sum(int((one.scores >= np.float32(data["lowest"])).sum()) for one in found.values()),
        slider_from=_slider_from(data),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        now=provenance.now_utc(),
        versions=provenance.versions("jinja2", "numpy", "rasterio"),
    )


def _slider_from(data: dict[str, Any]) -> float:
    """Where the slider begins: at the lowest score in the page, rounded so that all that is in it can be shown, and no less."""
    rounding = math.floor if data["complete"] else math.ceil
    return min(rounding(data["lowest"] * 1000) / 1000, 1.0)


def _source(name: str) -> str:
    with open(os.path.join(PAGE, name), encoding="utf-8") as file:
        return file.read()


def _pr_charts(judged: Evaluation | None, manifest: Manifest) -> list[tuple[str, charts.PrecisionRecall]]:
    if judged is None or not judged.overall.truths:
        return []
    overall = [
        (f"IoU {a.iou:g}", a.recall, a.precision, a.at_score_threshold, f"- {i}") for i, a in enumerate(judged.overall.at_iou)
    ]
    made = [("Precision and recall" + (", all classes" if len(judged.classes) > 1 else ""), charts.precision_recall(overall))]
    if len(judged.classes) > 1:
        largest = sorted(judged.classes.items(), key=lambda item: -item[1].truths)
        firsts = [(name, scores.at_iou[0]) for name, scores in largest if scores.truths]
        curves = [(name, a.recall, a.precision, a.at_score_threshold, f"{manifest.classes.index(name)} 0") for name, a in firsts]
        made.append((f"By class, at IoU {judged.overall.at_iou[0].iou:g}", charts.precision_recall(curves)))
    return made


def _reliability(
    judged: Evaluation | None, found: dict[str, Detections], verdicts: dict[str, Judged]
) -> charts.ReliabilityChart | None:
    """Calibration of all detections, and of those that count: most lie far below the threshold and fill most bins."""
    if judged is None or not judged.overall.at_iou[0].reliability:
        return None
    scores = np.concatenate([found[name].scores for name in verdicts]).astype(np.float64)
    hits = np.concatenate([one.hits & 1 for one in verdicts.values()]).astype(bool)
    counting = np.flatnonzero(scores >= np.float32(judged.score_threshold))
    order = counting[np.argsort(-scores[counting], kind="stable")]
    bins = reliability.reliability(scores[order], hits[order], CALIBRATION_BINS)
    return charts.reliability(
        [("detections of any score", judged.overall.at_iou[0].reliability), ("those that count in this run", bins)]
    )


def _model(manifest: Manifest) -> ModelSpec | None:
    """The model's spec, if the model that made the detections is still where it was and can be read."""
    if not files.exists(os.path.join(manifest.model, model_contract.SPEC)):
        return None
    if model_contract.digest(manifest.model) != manifest.model_digest:
        return None
    try:
        return model_contract.read(manifest.model)
    except InputError:  # written by a Rookery of another time: the page says that it is not known
        return None


if __name__ == "__main__":
    flags.exit_with(run)
