"""`rookery evaluate`: detections beside annotations -> average precision, precision, recall, F1, count error.

Precision, recall, F1 and counts are taken at the score threshold of the detections, which the model brings from its own
validation split. The best F1 on the evaluated set is printed too, but as what it is: a bound that peeked at the answers.
"""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from inference import evaluation
from inference.evaluation import AtIou, Count, Evaluation, Scores
from survey import detections as detections_contract
from survey import files, flags, metrics, provenance, truth
from survey.annotations import FORMATS, every, reading
from survey.annotations.reading import ReadOptions
from survey.detections import Detections, Manifest
from survey.errors import InputError
from survey.metrics import COCO_IOUS, CountError, Frame, Operating, Outcomes
from survey.truth import Truth

# Enough points for a curve 1,000 px wide; a survey with a million detections must not make a file of that many numbers.
CURVE_POINTS = 500


@dataclass(frozen=True)
class Options:
    """Compares detections with annotations: AP, precision, recall, F1 and count error, per class and over all."""

    detections: str = flags.flag("folder that `rookery predict` wrote")
    annotations: str = flags.flag("annotation files of the predicted mosaics; a glob pattern, quoted")
    annotation_format: str = flags.flag("format of the annotations", default="voc", choices=sorted(FORMATS))
    class_column: str | None = reading.flag_class_column()
    class_names: str | None = reading.flag_class_names()
    box_size: str | None = reading.flag_box_size()
    origin: str = reading.flag_origin()
    iou: tuple[float, ...] = flags.flag(
        "IoU thresholds: how much a detection and an object must overlap to match; the report draws the first", default=(0.4, 0.5)
    )
    output: str = flags.flag("folder for evaluation.json and matches.parquet (default: the detections folder)", default="")

    def __post_init__(self) -> None:
        for iou in self.iou:
            if not 0 < iou <= 1:
                raise InputError(
                    f"--iou={iou:g}: must be above 0 and at most 1; 0.5 is usual, 0.4 for fuzzy outlines as of trees"
                )
        if len(set(self.iou)) < len(self.iou):
            raise InputError(f"--iou={','.join(f'{iou:g}' for iou in self.iou)}: gives a threshold twice")
        self.read_options()

    def read_options(self) -> ReadOptions:
        """How to understand the annotation files."""
        return ReadOptions.parse(
            class_column=self.class_column, class_names=self.class_names, box_size=self.box_size, origin=self.origin
        )


def run(argv: Sequence[str]) -> int:
    """Evaluates, prints a summary and writes evaluation.json and matches.parquet."""
    options, _ = flags.parse(Options, argv, prog="rookery evaluate")
    manifest, found = detections_contract.read(options.detections)
    paths = files.match(options.annotations, "annotations")
    marked = read_truth(paths, options.annotation_format, manifest, options.read_options())
    result, matches = evaluate(manifest, found, marked, paths, options)
    output = options.output or options.detections
    evaluation.write(output, result, matches)
    print(summary(result))
    print(f"\nwritten: {os.path.join(output, evaluation.FILE)}, {os.path.join(output, evaluation.MATCHES)}")
    return 0


def read_truth(paths: Sequence[str], annotation_format: str, manifest: Manifest, options: ReadOptions | None = None) -> Truth:
    """Reads annotations of the predicted mosaics.

    An image that a file names without objects is an empty mosaic, so that every detection there is false.

    Args:
      paths: annotation files.
      annotation_format: key of FORMATS.
      manifest: of the detections.
      options: how to understand the files.

    Raises:
      InputError: an image that was not predicted, one of another size, a class that the model lacks, or no annotated mosaic.
    """
    found = every.read(paths, annotation_format, options or ReadOptions())
    _check_classes({one.class_name for one in found.annotations}, manifest)
    marked = truth.by_mosaic(found.annotations, manifest.mosaics, manifest.classes, named_in="the model", images=found.images)
    if not marked.objects:
        names = ", ".join(sorted(mosaic.name for mosaic in manifest.mosaics))
        raise InputError(f"the {len(paths)} annotation files label no object: predicted were {names}")
    return Truth(marked.objects, {**marked.counts, **found.skipped}, marked.offenders)


def _check_classes(named: set[str], manifest: Manifest) -> None:
    if not named <= set(manifest.classes):
        raise InputError(
            f"the annotations have the classes {', '.join(sorted(named))}, the model was exported for "
            f"{', '.join(manifest.classes)}: {', '.join(sorted(named - set(manifest.classes)))} cannot be evaluated. "
            "Predict with a model trained on these classes, or rename the classes in the annotations"
        )


def evaluate(
    manifest: Manifest, found: dict[str, Detections], marked: Truth, paths: Sequence[str], options: Options
) -> tuple[Evaluation, pa.Table]:
    """Computes everything; nothing is printed or written.

    Args:
      manifest: of the detections.
      found: detections by mosaic.
      marked: what `read_truth` gave.
      paths: the annotation files, for provenance.
      options: of the run.

    Returns:
      (what evaluation.json holds, the table of matches).
    """
    names = [mosaic.name for mosaic in manifest.mosaics if mosaic.name in marked.objects]
    frames = {
        name: Frame(
            found[name].boxes_mosaic_px,
            found[name].scores,
            found[name].class_ids,
            marked.objects[name].boxes_mosaic_px,
            marked.objects[name].class_ids,
        )
        for name in names
    }
    ious = (*options.iou, *COCO_IOUS)
    per_class = metrics.outcomes(frames.values(), len(manifest.classes), ious)
    result = Evaluation(
        created_utc=provenance.now_utc(),
        score_threshold=manifest.score_threshold,
        overall=_scores(per_class, manifest.score_threshold, options.iou),
        classes={
            name: _scores([one], manifest.score_threshold, options.iou)
            for name, one in zip(manifest.classes, per_class, strict=True)
        },
        counts=tuple(_counts(frames, manifest)),
        unannotated=tuple(mosaic.name for mosaic in manifest.mosaics if mosaic.name not in frames),
        truth=marked.counts,
        annotations={path: files.sha256(path) for path in paths},
        detections=digests(options.detections),
        model_digest=manifest.model_digest,
        options=dataclasses.asdict(options),
        versions=provenance.versions("numpy", "pyarrow"),
    )
    return result, _matches(frames, manifest, options.iou)


def digests(folder: str) -> dict[str, str]:
    """sha256 of the contract files of a folder of detections, by file name: names the detections that an evaluation is of."""
    return {name: files.sha256(os.path.join(folder, name)) for name in (detections_contract.MANIFEST, detections_contract.TABLE)}


def _scores(per_class: Sequence[Outcomes], threshold: float, ious: Sequence[float]) -> Scores:
    together = metrics.pooled(per_class)
    at_iou = []
    for iou in ious:
        curve = metrics.precision_recall(together, iou)
        steps = min(CURVE_POINTS, len(curve.recall))
        drawn = np.linspace(0, len(curve.recall) - 1, steps).round().astype(int)
        at_iou.append(
            AtIou(
                iou=iou,
                ap=metrics.mean_average_precision(per_class, (iou,)),
                at_score_threshold=metrics.at_threshold(together, iou, threshold),
                optimistic_best=metrics.best_f1(together, iou),
                recall=tuple(curve.recall[drawn].tolist()),
                precision=tuple(curve.precision[drawn].tolist()),
            )
        )
    return Scores(
        truths=together.truths,
        detections=len(together.scores),
        ap50=metrics.ap50(per_class),
        coco_ap=metrics.coco_ap(per_class),
        at_iou=tuple(at_iou),
    )


def _counting(frame: Frame, threshold: float) -> np.ndarray:
    """Detections that count, bool [N]; compared as `metrics.at_threshold` does."""
    return frame.scores.astype(np.float64) >= min(threshold, float(np.float32(threshold)))


def _counts(frames: dict[str, Frame], manifest: Manifest) -> Iterable[Count]:
    for mosaic, frame in frames.items():
        counting = frame.class_ids[_counting(frame, manifest.score_threshold)]
        for class_id, name in enumerate(manifest.classes, start=1):
            yield Count(mosaic, name, int((counting == class_id).sum()), int((frame.truth_class_ids == class_id).sum()))


def _matches(frames: dict[str, Frame], manifest: Manifest, ious: Sequence[float]) -> pa.Table:
    rows: list[dict[str, object]] = []
    sides = ("y0", "x0", "y1", "x1")
    for mosaic, frame in frames.items():
        counting = _counting(frame, manifest.score_threshold)
        for class_id, class_name in enumerate(manifest.classes, start=1):
            mine = counting & (frame.class_ids == class_id)
            boxes, scores = frame.boxes[mine], frame.scores[mine]
            true = frame.truth_boxes[frame.truth_class_ids == class_id]
            true_sides = [dict(zip((f"truth_{side}" for side in sides), box, strict=True)) for box in true.tolist()]
            matched = metrics.match(boxes, scores, true, ious)
            for iou, objects, overlaps in zip(ious, matched.truth_index.tolist(), matched.overlap.tolist(), strict=True):
                common = {"at_iou": iou, "mosaic": mosaic, "class_name": class_name}
                for score, box, j, overlap in zip(scores.tolist(), boxes.tolist(), objects, overlaps, strict=True):
                    row = {**common, "outcome": "fp", "score": score, **dict(zip(sides, box, strict=True))}
                    rows.append(row if j < 0 else {**row, "outcome": "tp", "iou": overlap, **true_sides[j]})
                missed = sorted(set(range(len(true))) - set(objects))
                rows.extend({**common, "outcome": "fn", **true_sides[j]} for j in missed)
    return pa.Table.from_pylist(rows, evaluation.MATCHES_SCHEMA)


def summary(result: Evaluation) -> str:
    """The evaluation as aligned text."""
    mosaics = list(dict.fromkeys(count.mosaic for count in result.counts))
    counting = sum(count.found for count in result.counts)
    lines = [
        f"evaluated {len(mosaics)} mosaic{'s' * (len(mosaics) > 1)}: {result.overall.truths} annotated objects, "
        f"{result.overall.detections} detections, of which {counting} count (score >= {result.score_threshold:.3g})"
    ]
    read, clipped, dropped = (result.truth[f"objects_{k}"] for k in ("read", "clipped_to_mosaic", "empty_or_outside_mosaic"))
    if clipped or dropped:
        lines.append(
            f"note: of {read} annotated boxes {clipped} were clipped to their mosaic and "
            f"{dropped} dropped, because nothing of them lies inside it"
        )
    told = ("objects_read", "objects_clipped_to_mosaic", "objects_empty_or_outside_mosaic")
    lines += [f"note: {number} {reason.replace('_', ' ')}" for reason, number in result.truth.items() if reason not in told]
    if result.unannotated:
        lines.append(f"note: no annotations for {', '.join(result.unannotated)}: in no number below")
    rows = dict(result.classes) if len(result.classes) == 1 else {**result.classes, "all": result.overall}
    asked = [one.iou for one in result.overall.at_iou]
    head = ["class", "objects", *(f"AP@{iou:g}" for iou in asked), "AP50", "COCO AP"]
    lines += ["", *_table(head, [_ap_row(name, scores) for name, scores in rows.items()])]
    head = ["class", "IoU", "score >=", "precision", "recall", "F1", "right", "false", "missed"]
    lines += ["", "at the score threshold of these detections (the model's own, unless predict was given another)"]
    lines += _table(head, [_point(n, a.iou, a.at_score_threshold) for n, s in rows.items() for a in s.at_iou])
    lines += ["", "best F1 on this very set: an optimistic bound, its threshold was chosen with the answers at hand"]
    lines += _table(head, [_point(n, a.iou, a.optimistic_best) for n, s in rows.items() for a in s.at_iou])
    lines += ["", "counts", *_table(["mosaic", "class", "found", "true", "error", "error %"], list(_count_rows(result)))]
    return "\n".join(lines)


def _ap_row(name: str, scores: Scores) -> list[str]:
    values = [*(one.ap for one in scores.at_iou), scores.ap50, scores.coco_ap]
    return [name, str(scores.truths), *map(_number, values)]


def _count_rows(result: Evaluation) -> Iterable[list[str]]:
    counts = list(result.counts)
    if len(result.classes) < len(counts):  # several mosaics
        for name in result.classes:
            mine = [count for count in result.counts if count.class_name == name]
            counts.append(Count("all", name, sum(c.found for c in mine), sum(c.true for c in mine)))
    if len(result.classes) > 1:
        counts.append(Count("all", "all", sum(c.found for c in result.counts), sum(c.true for c in result.counts)))
    for count in counts:
        error = CountError(count.found, count.true)
        percent = _number(100 * error.relative, "+.1f")
        yield [count.mosaic, count.class_name, str(count.found), str(count.true), f"{error.signed:+d}", percent]


def _point(name: str, iou: float, at: Operating) -> list[str]:
    rates = [_number(value) for value in (at.precision, at.recall, at.f1)]
    return [name, f"{iou:g}", f"{at.threshold:.3f}", *rates, str(at.tp), str(at.fp), str(at.fn)]


def _number(value: float, spec: str = ".3f") -> str:
    return "-" if np.isnan(value) else format(value, spec)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Columns as wide as their widest cell: text to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    text = [head[i] in ("mosaic", "class") for i in range(len(head))]
    return [
        "  "
        + "  ".join(f"{cell:<{w}}" if left else f"{cell:>{w}}" for cell, w, left in zip(row, widths, text, strict=True)).rstrip()
        for row in [head, *rows]
    ]


if __name__ == "__main__":
    flags.exit_with(run)
