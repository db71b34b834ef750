"""How good detections are, against annotated objects: matching, average precision, precision, recall, F1, count error.

Matching and average precision are COCO's, as in `pycocotools/cocoeval.py`, with two differences: there is no cap on the number
of objects per image (COCO keeps the best 100 detections, which makes no sense on a mosaic with thousands of birds), and memory
grows with the pairs of boxes that overlap, not with detections times objects.

The path through this module: `Frame`s (one mosaic or patch each) -> `outcomes` (one `Outcomes` a class) -> numbers. The matching
itself is done by `survey.matching`.
A number that is not defined, such as the precision of nothing, is NaN.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from survey import boxes as box_math
from survey import matching
from survey.matching import Frame as Frame
from survey.matching import Pool
from survey.matching import match as match

# The IoU thresholds of COCO AP and the recalls at which it reads precision, made as pycocotools makes them: 0.5, 0.55 .. 0.95
# and 0, 0.01 .. 1. Same floats, so that a box whose IoU lies exactly on a threshold falls on the same side.
COCO_IOUS = tuple(float(t) for t in np.linspace(0.5, 0.95, 10))
RECALL_POINTS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, slots=True)
class Outcomes:
    """All detections of one class over all images, best score first, and whether each found an object of its own.

    Attributes:
      ious: the T IoU thresholds.
      scores: float64 [N], descending.
      hits: bool [T, N].
      truths: number of annotated objects.
      ignored: bool [T, N], detections that count neither as right nor as false; None where all count.
    """

    ious: tuple[float, ...]
    scores: np.ndarray
    hits: np.ndarray
    truths: int
    ignored: np.ndarray | None = None

    def at(self, iou: float) -> np.ndarray:
        """Hits at one of the thresholds, bool [N]."""
        row: np.ndarray = self.hits[self._row(iou)]
        return row

    def counted(self, iou: float) -> tuple[np.ndarray, np.ndarray]:
        """Scores, descending, and hits of the detections that are not ignored at one of the thresholds, each [up to N]."""
        if self.ignored is None:
            return self.scores, self.at(iou)
        kept = ~self.ignored[self._row(iou)]
        return self.scores[kept], self.at(iou)[kept]

    def _row(self, iou: float) -> int:
        nearest = int(np.argmin(np.abs(np.array(self.ious) - iou)))
        assert math.isclose(self.ious[nearest], iou), f"matched at IoU {self.ious}, asked for {iou}"
        return nearest


@dataclass(frozen=True, slots=True)
class Curve:
    """Precision and recall of every cut-off that the scores allow, from the strictest to the loosest; equal scores share one.

    Attributes:
      thresholds: float [P], descending: detections with at least this score count.
      precision: float [P].
      recall: float [P].
    """

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray


@dataclass(frozen=True, slots=True)
class Operating:
    """What counting the detections of at least one score gives.

    Attributes:
      threshold: that score.
      tp: detections that found an object.
      fp: detections that found none, or one that a better detection had found already.
      fn: objects that nobody found.
      precision: tp / (tp + fp); NaN without detections.
      recall: tp / (tp + fn); NaN without objects.
      f1: 2 tp / (2 tp + fp + fn), the harmonic mean of the two; NaN without either.
    """

    threshold: float
    tp: int
    fp: int
    fn: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class CountSpread:
    """How far the counts of several areas are off.

    Attributes:
      number: areas.
      mean_true: annotated objects an area, mean.
      mean_error: found minus annotated, mean: what is systematic.
      mean_absolute_error: mean of its size.
      rmse: root of the mean of its square.
    """

    number: int
    mean_true: float
    mean_error: float
    mean_absolute_error: float
    rmse: float


@dataclass(frozen=True, slots=True)
class CountError:
    """A count beside the truth.

    Attributes:
      found: objects counted.
      true: objects annotated.
    """

    found: int
    true: int

    @property
    def signed(self) -> int:
        """Objects too many (positive) or too few (negative)."""
        return self.found - self.true

    @property
    def relative(self) -> float:
        """The same as a fraction of the truth; NaN when there is nothing to find."""
        return self.signed / self.true if self.true else math.nan


def outcomes(frames: Iterable[Frame], num_classes: int, ious: Sequence[float]) -> tuple[Outcomes, ...]:
    """Matches every frame and class, and pools the frames.

    Args:
      frames: the images, read once.
      num_classes: classes of the label map; ids run from 1 to this.
      ious: thresholds, each in (0, 1].

    Returns:
      One entry a class, in the order of ids.
    """
    return outcomes_of_size(matching.pool(frames), num_classes, ious, 0.0, math.inf)


def outcomes_of_size(pool: Pool, num_classes: int, ious: Sequence[float], from_px2: float, to_px2: float) -> tuple[Outcomes, ...]:
    """Matches every frame and class where only objects of some size matter, as COCO does it (cocoeval.py, `evaluateImg`).

    Objects of other sizes are neither to be found nor in the way: a detection takes one only where none of the size will do,
    and is then left out, as is a detection of another size that found nothing. A detection of another size that found an
    object of this one counts.

    Args:
      pool: of the frames.
      num_classes: classes of the label map; ids run from 1 to this.
      ious: thresholds, each in (0, 1].
      from_px2: the least area of an object, inclusive.
      to_px2: the greatest, inclusive.

    Returns:
      One entry a class, in the order of ids.
    """

    def outside(boxes: np.ndarray) -> np.ndarray:
        area = box_math.area(boxes)
        return (area < from_px2) | (area > to_px2)

    unasked = outside(pool.truth_boxes)
    found = matching.matched(pool, ious, unasked)
    # The last row of `unasked` stands for the -1 of a detection that found nothing.
    took_unasked = np.append(unasked, False)[found]
    ignored = took_unasked | ((found < 0) & outside(pool.boxes))
    made = []
    for class_id in range(1, num_classes + 1):
        mine = pool.class_ids == class_id
        truths = int(((pool.truth_class_ids == class_id) & ~unasked).sum())
        hits = (found[:, mine] >= 0) & ~took_unasked[:, mine]
        made.append(Outcomes(tuple(ious), pool.scores[mine], hits, truths, ignored[:, mine] if ignored.any() else None))
    return tuple(made)


def pooled(per_class: Sequence[Outcomes]) -> Outcomes:
    """All classes as one, for precision and recall over everything. Boxes were matched within their class."""
    joined = np.concatenate([one.scores for one in per_class])
    order = np.argsort(-joined, kind="stable")
    hits = np.concatenate([one.hits for one in per_class], axis=1)[:, order]
    ignored = None
    if any(one.ignored is not None for one in per_class):
        parts = [np.zeros_like(one.hits) if one.ignored is None else one.ignored for one in per_class]
        ignored = np.concatenate(parts, axis=1)[:, order]
    return Outcomes(per_class[0].ious, joined[order], hits, sum(one.truths for one in per_class), ignored)


def average_precision(one: Outcomes, iou: float) -> float:
    """COCO's 101-point interpolated average precision of one class (cocoeval.py, `accumulate`).

    The mean over recall r = 0, 0.01 .. 1 of the best precision at a recall of at least r, 0 where r is never reached.

    Args:
      one: a class.
      iou: one of its thresholds.

    Returns:
      A number in [0, 1]; NaN without annotated objects.
    """
    if one.truths == 0:
        return math.nan
    _, hits = one.counted(iou)
    found = np.cumsum(hits)
    recall = found / one.truths
    precision = found / np.arange(1, len(hits) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, RECALL_POINTS, side="left")
    return float(np.append(best_from_here, 0.0)[np.minimum(at, len(hits))].mean())


def mean_average_precision(per_class: Sequence[Outcomes], ious: Sequence[float]) -> float:
    """Mean of `average_precision` over IoU thresholds and over the classes that have objects; NaN when none has."""
    values = [average_precision(one, iou) for one in per_class if one.truths for iou in ious]
    return float(np.mean(values)) if values else math.nan


def ap50(per_class: Sequence[Outcomes]) -> float:
    """Mean average precision at IoU 0.5."""
    return mean_average_precision(per_class, COCO_IOUS[:1])


def coco_ap(per_class: Sequence[Outcomes]) -> float:
    """COCO AP: mean average precision over IoU 0.50, 0.55 .. 0.95. The outcomes must have been matched at COCO_IOUS."""
    return mean_average_precision(per_class, COCO_IOUS)


def precision_recall(one: Outcomes, iou: float) -> Curve:
    """Precision and recall at every distinct score; not interpolated."""
    scores, hits = one.counted(iou)
    last = _last_of_ties(scores)
    found = np.cumsum(hits)[last]
    recall = found / one.truths if one.truths else np.full(len(last), math.nan)
    return Curve(scores[last], found / (last + 1), recall)


def at_threshold(one: Outcomes, iou: float, threshold: float) -> Operating:
    """Precision, recall and F1 when detections with score >= threshold count.

    Greedy matching goes by score, so detections below the threshold cannot have taken an object from one above it: the hits
    are those that matching only the detections above the threshold would give.
    """
    scores, hits = one.counted(iou)
    # Scores travel as float32; a threshold compared in float64 would exclude the very score that it was copied from.
    count = int(np.count_nonzero(scores >= min(threshold, float(np.float32(threshold)))))
    return _operating(threshold, int(hits[:count].sum()), count, one.truths)


def best_f1(one: Outcomes, iou: float) -> Operating:
    """The cut-off that makes F1 highest; of equal ones the strictest.

    Args:
      one: a class, or classes pooled, of the validation split.
      iou: one of its thresholds.

    Returns:
      The operating point. Its threshold lies midway between the lowest score that counts and the next one below, so that
      neither rounding nor a tiny change of scores moves a detection across; it is that lowest score when nothing lies below.
      Without detections it is 1.
    """
    return best_count(one, iou, f1_slack=0.0)


def best_count(one: Outcomes, iou: float, *, f1_slack: float) -> Operating:
    """The cut-off that counts best among those whose F1 is as good as the best, within a tolerance.

    F1 is flat about its maximum: on a hundred objects, cut-offs that differ by a fifth in the count differ by a hundredth in F1,
    which is noise. Of those, the one whose count is nearest the truth errs least when counting is the purpose.

    Args:
      one: a class, or classes pooled, of the validation split.
      iou: one of its thresholds.
      f1_slack: relative loss of F1 that is tolerated; 0 for the cut-off of highest F1.

    Returns:
      The operating point, the strictest of equal ones; its threshold as `best_f1` places it.
    """
    scores, hits = one.counted(iou)
    if not len(scores):
        return _operating(1.0, 0, 0, one.truths)
    last = _last_of_ties(scores)
    found = np.cumsum(hits)[last]
    f1 = 2 * found / (last + 1 + one.truths)
    good = np.flatnonzero(f1 >= f1.max() * (1 - f1_slack))
    cut = int(good[np.argmin(np.abs(last[good] + 1 - one.truths))] if f1_slack else np.argmax(f1))
    lowest = threshold = float(scores[last[cut]])
    if cut + 1 < len(last):
        below = float(scores[last[cut + 1]])
        # Rounded to float32 as scores are, or a comparison in float32 could let the one below in.
        middle = float(np.float32((lowest + below) / 2))
        threshold = middle if below < middle <= lowest else lowest
    return _operating(threshold, int(found[cut]), int(last[cut]) + 1, one.truths)


def count_spread(found: np.ndarray, true: np.ndarray) -> CountSpread:
    """How far the counts of several areas are off: int [A] found beside int [A] annotated; NaN without areas."""
    if not len(found):
        return CountSpread(0, math.nan, math.nan, math.nan, math.nan)
    error = found.astype(float) - true
    return CountSpread(
        number=len(error),
        mean_true=float(true.mean()),
        mean_error=float(error.mean()),
        mean_absolute_error=float(np.abs(error).mean()),
        rmse=float(np.sqrt(np.mean(error**2))),
    )


def _last_of_ties(scores: np.ndarray) -> np.ndarray:
    """Positions in descending scores after which the next score is lower: the only places where a threshold can cut."""
    return np.flatnonzero(np.append(scores[1:] < scores[:-1], np.full(min(1, len(scores)), True)))


def _operating(threshold: float, tp: int, count: int, truths: int) -> Operating:
    return Operating(
        threshold=threshold,
        tp=tp,
        fp=count - tp,
        fn=truths - tp,
        precision=tp / count if count else math.nan,
        recall=tp / truths if truths else math.nan,
        f1=2 * tp / (count + truths) if count + truths else math.nan,
    )
