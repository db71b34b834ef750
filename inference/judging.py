"""Detections beside annotations -> the numbers of an evaluation and the table of matches; nothing is read or written here."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from inference import evaluation
from inference.evaluation import AtIou, AtSize, Confusion, Count, Kind, Scores, SizeScores
from survey import boxes as box_math
from survey import breakdown, metrics, reliability
from survey.breakdown import KINDS, RIGHT, Verdicts
from survey.geometry import Mosaic
from survey.labels import LabelMap
from survey.matching import Pool
from survey.metrics import COCO_IOUS, Outcomes

# Enough points for a curve 1,000 px wide; a survey with a million detections must not make a file of that many numbers.
CURVE_POINTS = 500

SIZES = ("small", "medium", "large")
SIDES = ("y0", "x0", "y1", "x1")


@dataclass(frozen=True)
class Judged:
    """Everything that is computed once and read for each class and for all together.

    Attributes:
      pool: detections and objects; frame i is mosaics[i].
      mosaics: the annotated ones.
      classes: the label map, K names.
      threshold: score from which detections count.
      counting: how many do.
      ious: the T thresholds asked for.
      outcomes: one a class, matched at ious and COCO_IOUS.
      bounds_px: sides of the squares that part the sizes, from 0 to None for no bound.
      by_size: for each size one entry a class.
      verdicts: at each of ious.
      errors: int [T, K, 6], by class and kind, of the detections that count.
      gains: float [T, K, 6], of average precision.
      over_mosaics: (found, true), each int [mosaics, K].
      over_cells: (found, true), each int [cells, K].
    """

    pool: Pool
    mosaics: tuple[Mosaic, ...]
    classes: LabelMap
    threshold: float
    counting: int
    ious: tuple[float, ...]
    outcomes: tuple[Outcomes, ...]
    bounds_px: tuple[tuple[float, float | None], ...]
    by_size: tuple[tuple[Outcomes, ...], ...]
    verdicts: tuple[Verdicts, ...]
    errors: np.ndarray
    gains: np.ndarray
    over_mosaics: tuple[np.ndarray, np.ndarray]
    over_cells: tuple[np.ndarray, np.ndarray]


def judge(
    pool: Pool,
    mosaics: Sequence[Mosaic],
    classes: LabelMap,
    threshold: float,
    ious: Sequence[float],
    sizes_px: Sequence[float],
    cell_px: int,
) -> Judged:
    """Matches detections with objects in every way that is needed.

    Args:
      pool: of one frame a mosaic.
      mosaics: in the order of the frames.
      classes: the label map.
      threshold: detections of at least this score count.
      ious: the thresholds asked for.
      sizes_px: sides of the squares that part small, medium and large.
      cell_px: side of the cells whose counts are compared.
    """
    number, counting = len(classes), pool.counting(threshold)
    everywhere = tuple(dict.fromkeys((*ious, *COCO_IOUS)))
    bounds: tuple[tuple[float, float | None], ...] = tuple(zip((0.0, *sizes_px), (*sizes_px, None), strict=True))
    areas = [(low**2, np.inf if high is None else high**2) for low, high in bounds]
    verdicts = tuple(breakdown.judge(pool, iou) for iou in ious)
    return Judged(
        pool=pool,
        mosaics=tuple(mosaics),
        classes=classes,
        threshold=threshold,
        counting=counting,
        ious=tuple(ious),
        outcomes=metrics.outcomes_of_size(pool, number, everywhere, 0.0, np.inf),
        bounds_px=bounds,
        by_size=tuple(metrics.outcomes_of_size(pool, number, everywhere, *area) for area in areas),
        verdicts=verdicts,
        errors=np.stack([breakdown.tally(pool, one, number, counting) for one in verdicts]),
        gains=np.stack([breakdown.ap_gains(pool, one, number) for one in verdicts]),
        over_mosaics=_tallies(pool, counting, [np.zeros(2)] * len(mosaics), [(1, 1)] * len(mosaics), number),
        over_cells=_cells(pool, counting, mosaics, cell_px, number),
    )


def _cells(pool: Pool, counting: int, mosaics: Sequence[Mosaic], cell_px: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    # Divided evenly: a sliver at the edge would have a count of its own as if it were a cell.
    grids = [(max(1, round(one.height / cell_px)), max(1, round(one.width / cell_px))) for one in mosaics]
    per_px = [np.array(grid) / (one.height, one.width) for grid, one in zip(grids, mosaics, strict=True)]
    return _tallies(pool, counting, per_px, grids, number)


def _tallies(
    pool: Pool, counting: int, per_px: Sequence[np.ndarray], grids: Sequence[tuple[int, int]], number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Detections that count and objects per cell and class, by the middle of the box.

    Args:
      pool: of frames.
      counting: how many detections count.
      per_px: cells (down, across) in a pixel of each frame.
      grids: cells (down, across) of each frame.
      number: classes.
    """
    shape = np.array(grids)
    first = np.concatenate([[0], np.cumsum(shape.prod(axis=1))])

    def tally(frame: np.ndarray, boxes: np.ndarray, class_ids: np.ndarray) -> np.ndarray:
        cell = (box_math.centers(boxes) * np.array(per_px)[frame]).astype(int)
        row, column = np.clip(cell, 0, shape[frame] - 1).T
        table = np.zeros((first[-1], number), int)
        np.add.at(table, (first[frame] + row * shape[frame, 1] + column, class_ids - 1), 1)
        return table

    count = slice(counting)
    return (
        tally(pool.frame[count], pool.boxes[count], pool.class_ids[count]),
        tally(pool.truth_frame, pool.truth_boxes, pool.truth_class_ids),
    )


def scores(judged: Judged, class_row: int | None = None) -> Scores:
    """The numbers of one class, its place in the label map from 0; None for all together."""
    overall = class_row is None
    chosen = list(range(len(judged.classes))) if class_row is None else [class_row]
    per_class = [judged.outcomes[row] for row in chosen]
    together = metrics.pooled(per_class)
    return Scores(
        truths=together.truths,
        detections=len(together.scores),
        ap50=metrics.ap50(per_class),
        coco_ap=metrics.coco_ap(per_class),
        at_iou=tuple(_at_iou(judged, chosen, per_class, together, t, overall) for t in range(len(judged.ious))),
        sizes=tuple(_size(judged, chosen, size) for size in range(len(SIZES))),
        over_mosaics=metrics.count_spread(*(side[:, chosen].sum(axis=1) for side in judged.over_mosaics)),
        over_cells=metrics.count_spread(*(side[:, chosen].sum(axis=1) for side in judged.over_cells)),
    )


def _at_iou(judged: Judged, rows: list[int], per_class: Sequence[Outcomes], together: Outcomes, t: int, overall: bool) -> AtIou:
    iou = judged.ious[t]
    curve = metrics.precision_recall(together, iou)
    drawn = np.linspace(0, len(curve.recall) - 1, min(CURVE_POINTS, len(curve.recall))).round().astype(int)
    bins = reliability.reliability(*together.counted(iou))
    numbers, gains = judged.errors[t, rows].sum(axis=0), judged.gains[t, rows]
    gains = gains[~np.isnan(gains[:, 0])]
    gain = gains.mean(axis=0) if len(gains) else np.full(len(KINDS), np.nan)
    confusion = None
    if overall:
        table = breakdown.confusion(judged.pool, len(judged.classes), iou, judged.counting)
        confusion = Confusion((*judged.classes, evaluation.BACKGROUND), tuple(map(tuple, table.tolist())))
    return AtIou(
        iou=iou,
        ap=metrics.mean_average_precision(per_class, (iou,)),
        at_score_threshold=metrics.at_threshold(together, iou, judged.threshold),
        optimistic_best=metrics.best_f1(together, iou),
        recall=tuple(curve.recall[drawn].tolist()),
        precision=tuple(curve.precision[drawn].tolist()),
        reliability=bins,
        calibration_error=reliability.expected_calibration_error(bins),
        errors=tuple(Kind(*one) for one in zip(KINDS, numbers.tolist(), gain.tolist(), strict=True)),
        confusion=confusion,
    )


def _size(judged: Judged, rows: list[int], size: int) -> SizeScores:
    per_class = [judged.by_size[size][row] for row in rows]
    together = metrics.pooled(per_class)
    low, high = judged.bounds_px[size]
    at_iou = tuple(
        AtSize(iou, metrics.mean_average_precision(per_class, (iou,)), metrics.at_threshold(together, iou, judged.threshold))
        for iou in judged.ious
    )
    return SizeScores(
        name=SIZES[size],
        from_px=low,
        to_px=high,
        truths=together.truths,
        ap50=metrics.ap50(per_class),
        coco_ap=metrics.coco_ap(per_class),
        at_iou=at_iou,
    )


def counts(judged: Judged) -> Iterator[Count]:
    """Every class in every mosaic."""
    for mosaic, found, true in zip(judged.mosaics, *judged.over_mosaics, strict=True):
        for row, name in enumerate(judged.classes):
            yield Count(mosaic.name, name, int(found[row]), int(true[row]))


def matches(judged: Judged) -> pa.Table:
    """What became of every detection that counts and every object: `evaluation.MATCHES_SCHEMA`.

    By mosaic, class and IoU threshold; of each the detections, best first, then the objects that nobody found.
    """
    pool, count = judged.pool, judged.counting
    keys, parts = [], []
    for t, verdicts in enumerate(judged.verdicts):
        found = verdicts.truth_index[:count]
        lost = np.ones(len(pool.truth_boxes), bool)
        lost[found[found >= 0]] = False
        left = np.flatnonzero(lost)
        gone = breakdown.missed(pool, verdicts, count)[left]
        kind = np.where(gone, breakdown.MISSED, len(KINDS))
        detection, truth = np.append(np.arange(count), np.full(len(left), -1)), np.append(found, left)
        frame = np.append(pool.frame[:count], pool.truth_frame[left])
        class_id = np.append(pool.class_ids[:count], pool.truth_class_ids[left])
        keys.append(np.stack([frame, class_id, np.full(len(frame), t), np.append(np.zeros(count, int), np.ones(len(left), int))]))
        parts.append(np.stack([detection, truth, np.append(verdicts.kind[:count], kind)]))
    # A stable sort: within one key they stay by falling score, or as annotated.
    key, part = np.concatenate(keys, axis=1), np.concatenate(parts, axis=1)
    order = np.lexsort(key[::-1])
    (frame, class_id, t, _), (detection, truth, kind) = key[:, order], part[:, order]
    is_found, has_truth = detection >= 0, truth >= 0
    both = is_found & has_truth
    iou = np.zeros(len(frame))
    iou[both] = box_math.paired_iou(pool.boxes[detection[both]], pool.truth_boxes[truth[both]])
    words = np.array([*KINDS, evaluation.NEAR_FALSE])
    outcome = np.where(both, "tp", np.where(is_found, "fp", "fn"))
    columns: dict[str, Any] = {
        "at_iou": np.array(judged.ious)[t],
        "mosaic": np.array([mosaic.name for mosaic in judged.mosaics], object)[frame],
        "class_name": np.array(judged.classes, object)[class_id - 1],
        "outcome": outcome.astype(object),
        "kind": np.where(kind == RIGHT, None, words.astype(object)[kind]),
        "score": _where(is_found, pool.scores, detection),
        "iou": pa.array(iou, pa.float32(), mask=~both),
    }
    for side, name in enumerate(SIDES):
        columns[name] = _where(is_found, pool.boxes[:, side], detection)
        columns[f"truth_{name}"] = _where(has_truth, pool.truth_boxes[:, side], truth)
    schema = evaluation.MATCHES_SCHEMA
    return pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


def _where(there: np.ndarray, values: np.ndarray, index: np.ndarray) -> pa.Array:
    """Values by index as float32, null where they are not there."""
    return pa.array(np.append(values, 0.0)[index], pa.float32(), mask=~there)
