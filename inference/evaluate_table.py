"""An evaluation as aligned text: what `rookery evaluate` prints."""

from collections.abc import Iterable

import numpy as np

from inference.evaluation import AtIou, Count, Evaluation, Scores, SizeScores
from survey.breakdown import KINDS
from survey.metrics import CountError, Operating


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
    ap = [*(f"AP@{iou:g}" for iou in asked), "AP50", "COCO AP"]
    lines += ["", *_aligned(["class", "objects", *ap], [_ap_row(name, scores) for name, scores in rows.items()])]
    head = ["class", "IoU", "score >=", "precision", "recall", "F1", "right", "false", "missed"]
    lines += ["", "at the score threshold of these detections (the model's own, unless predict was given another)"]
    lines += _aligned(head, [_point(n, a.iou, a.at_score_threshold) for n, s in rows.items() for a in s.at_iou])
    lines += ["", "best F1 on this very set: an optimistic bound, its threshold was chosen with the answers at hand"]
    lines += _aligned(head, [_point(n, a.iou, a.optimistic_best) for n, s in rows.items() for a in s.at_iou])
    head = ["class", "size", *["sides m"] * (result.gsd_m is not None), "objects", *ap, "precision", "recall", "F1"]
    lines += ["", f"by size: sides of squares of the same area, in px; precision, recall and F1 at IoU {asked[0]:g}"]
    lines += _aligned(head, [_size_row(n, size, result.gsd_m) for n, s in rows.items() for size in s.sizes], words=2)
    lines += [
        "",
        "why detections are false, and objects missed, among those that count; and what AP would gain without each kind",
    ]
    lines += _aligned(["class", "IoU", "", *(kind.replace("_", " ") for kind in KINDS)], list(_error_rows(rows)))
    if len(result.classes) > 1:
        lines += ["", *_confusion(result.overall.at_iou[0])]
    lines += ["", "mean distance of score and precision (expected calibration error), over detections of any score"]
    head = ["class", *(f"IoU {iou:g}" for iou in asked)]
    lines += _aligned(head, [[n, *(_number(a.calibration_error) for a in s.at_iou)] for n, s in rows.items()])
    lines += ["", "counts"]
    lines += _aligned(["mosaic", "class", "found", "true", "error", "error %"], list(_count_rows(result)), words=2)
    lines += ["", f"errors of counts, per mosaic and per cell of about {result.cell_px} px"]
    head = ["class", "over", "areas", "true, mean", "error, mean", "absolute, mean", "RMSE"]
    lines += _aligned(head, [row for n, s in rows.items() for row in _spread_rows(n, s)], words=2)
    return "\n".join(lines)


def _size_row(name: str, size: SizeScores, gsd_m: tuple[float, float] | None) -> list[str]:
    at = size.at_iou[0].at_score_threshold
    values = [*(one.ap for one in size.at_iou), size.ap50, size.coco_ap, at.precision, at.recall, at.f1]
    sides = [f"{size.name} {_span(size.from_px, size.to_px)}"]
    if gsd_m is not None:
        # Where mosaics differ in resolution, the same pixels are a range of metres: from the finest to the coarsest.
        ranges = [_span(size.from_px * gsd, None if size.to_px is None else size.to_px * gsd) for gsd in gsd_m]
        sides.append(" / ".join(dict.fromkeys(ranges)))
    return [name, *sides, str(size.truths), *map(_number, values)]


def _span(low: float, high: float | None) -> str:
    return f"{low:.3g}+" if high is None else f"{low:.3g}-{high:.3g}"


def _error_rows(rows: dict[str, Scores]) -> Iterable[list[str]]:
    for name, scores in rows.items():
        for one in scores.at_iou:
            yield [name, f"{one.iou:g}", "number", *(str(kind.number) for kind in one.errors)]
            yield [name, f"{one.iou:g}", "AP gain", *(_number(kind.ap_gain, "+.3f") for kind in one.errors)]


def _confusion(at: AtIou) -> list[str]:
    assert at.confusion is not None, "the overall scores have one"
    labels = at.confusion.labels
    rows = [[label, *map(str, row)] for label, row in zip(labels, at.confusion.counts, strict=True)]
    title = f"objects of the class to the left, found as the class above, at IoU {at.iou:g}; matched regardless of class"
    return [title, *_aligned(["", *labels], rows)]


def _spread_rows(name: str, scores: Scores) -> Iterable[list[str]]:
    for over, spread in (("mosaics", scores.over_mosaics), ("cells", scores.over_cells)):
        values = [_number(spread.mean_true, ".2f"), _number(spread.mean_error, "+.2f")]
        values += [_number(value, ".2f") for value in (spread.mean_absolute_error, spread.rmse)]
        yield [name, over, str(spread.number), *values]


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


def _aligned(head: list[str], rows: list[list[str]], words: int = 1) -> list[str]:
    """Columns as wide as their widest cell: the first `words` to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = []
    for row in [head, *rows]:
        cells = [f"{row[i]:<{width}}" if i < words else f"{row[i]:>{width}}" for i, width in enumerate(widths)]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines
