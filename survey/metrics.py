"""How good detections are, against annotated objects: matching, average precision, precision, recall, F1, count error.

Matching and average precision are COCO's, as in `pycocotools/cocoeval.py`, with two differences: there is no cap on the number
of objects per image (COCO keeps the best 100 detections, which makes no sense on a mosaic with thousands of birds), and memory
grows with the pairs of boxes that overlap, not with detections times objects.

The path through this module: `Frame`s (one mosaic or patch each) -> `outcomes` (one `Outcomes` a class) -> numbers.
A number that is not defined, such as the precision of nothing, is NaN.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from survey import boxes as box_math

# The IoU thresholds of COCO AP and the recalls at which it reads precision, made as pycocotools makes them: 0.5, 0.55 .. 0.95
# and 0, 0.01 .. 1. Same floats, so that a box whose IoU lies exactly on a threshold falls on the same side.
COCO_IOUS = tuple(float(t) for t in np.linspace(0.5, 0.95, 10))
RECALL_POINTS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, slots=True)
class Frame:
    """Detections and annotated objects of one image, be it a mosaic or a patch, in pixels of that image.

    Attributes:
      boxes: float [N, 4], yxyx, the detections.
      scores: float [N], in [0, 1], in any order.
      class_ids: int [N], from 1.
      truth_boxes: float [M, 4], yxyx, the annotated objects.
      truth_class_ids: int [M], from 1.
    """

    boxes: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    truth_boxes: np.ndarray
    truth_class_ids: np.ndarray


@dataclass(frozen=True, slots=True)
class Matches:
    """Which detection found which object, in one image and class.

    Attributes:
      ious: the T IoU thresholds.
      truth_index: int [T, N], the object that each detection found, -1 where it found none.
      overlap: float [T, N], IoU with that object, 0 where there is none.
    """

    ious: tuple[float, ...]
    truth_index: np.ndarray
    overlap: np.ndarray


@dataclass(frozen=True, slots=True)
class Outcomes:
    """All detections of one class over all images, best score first, and whether each found an object of its own.

    Attributes:
      ious: the T IoU thresholds.
      scores: float64 [N], descending.
      hits: bool [T, N].
      truths: number of annotated objects.
    """

    ious: tuple[float, ...]
    scores: np.ndarray
    hits: np.ndarray
    truths: int

    def at(self, iou: float) -> np.ndarray:
        """Hits at one of the thresholds, bool [N]."""
        nearest = int(np.argmin(np.abs(np.array(self.ious) - iou)))
        assert math.isclose(self.ious[nearest], iou), f"matched at IoU {self.ious}, asked for {iou}"
        row: np.ndarray = self.hits[nearest]
        return row


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


def match(boxes: np.ndarray, scores: np.ndarray, truth: np.ndarray, ious: Sequence[float]) -> Matches:
    """COCO's greedy matching in one image and class.

    By descending score, each detection takes the free object of highest IoU, if that reaches the threshold. Of equal scores
    the first detection chooses first; of objects with equal IoU the last one is taken (cocoeval.py, `evaluateImg`).

    Args:
      boxes: [N, 4], yxyx pixels.
      scores: [N].
      truth: [M, 4], yxyx pixels of the same frame.
      ious: T thresholds, each in (0, 1].

    Returns:
      The matches, in the order of `boxes`.
    """
    rank = np.empty(len(scores), int)
    rank[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
    i, j, overlap = box_math.overlapping_pairs(boxes.astype(np.float64), truth.astype(np.float64))
    # In this order each detection meets its candidates from the best on, after all detections of higher score have chosen.
    order = np.lexsort((-j, -overlap, rank[i]))
    i, j, overlap = i[order], j[order], overlap[order]
    truth_index = np.full((len(ious), len(scores)), -1)
    found = np.zeros((len(ious), len(scores)))
    for row, threshold in enumerate(ious):
        # COCO lets IoU 1 tolerate rounding.
        near = overlap >= min(threshold, 1 - 1e-10)
        taken: set[int] = set()
        for d, t, value in zip(i[near].tolist(), j[near].tolist(), overlap[near].tolist(), strict=True):
            if truth_index[row, d] < 0 and t not in taken:
                taken.add(t)
                truth_index[row, d], found[row, d] = t, value
    return Matches(tuple(ious), truth_index, found)


def outcomes(frames: Iterable[Frame], num_classes: int, ious: Sequence[float]) -> tuple[Outcomes, ...]:
    """Matches every frame and class, and pools the frames.

    Args:
      frames: the images, read once.
      num_classes: classes of the label map; ids run from 1 to this.
      ious: thresholds, each in (0, 1].

    Returns:
      One entry a class, in the order of ids.
    """
    scores: list[list[np.ndarray]] = [[] for _ in range(num_classes)]
    hits: list[list[np.ndarray]] = [[] for _ in range(num_classes)]
    truths = [0] * num_classes
    for frame in frames:
        for k in range(num_classes):
            mine, true = frame.class_ids == k + 1, frame.truth_class_ids == k + 1
            matched = match(frame.boxes[mine], frame.scores[mine], frame.truth_boxes[true], ious)
            scores[k].append(frame.scores[mine].astype(np.float64))
            hits[k].append(matched.truth_index >= 0)
            truths[k] += int(true.sum())
    return tuple(_ranked(ious, scores[k], hits[k], truths[k]) for k in range(num_classes))


def pooled(per_class: Sequence[Outcomes]) -> Outcomes:
    """All classes as one, for precision and recall over everything. Boxes were matched within their class."""
    return _ranked(
        per_class[0].ious,
        [one.scores for one in per_class],
        [one.hits for one in per_class],
        sum(one.truths for one in per_class),
    )


def _ranked(ious: Sequence[float], scores: list[np.ndarray], hits: list[np.ndarray], truths: int) -> Outcomes:
    joined = np.concatenate([np.zeros(0), *scores])
    order = np.argsort(-joined, kind="stable")
    return Outcomes(tuple(ious), joined[order], np.concatenate([np.zeros((len(ious), 0), bool), *hits], axis=1)[:, order], truths)


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
    hits = one.at(iou)
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
    last = _last_of_ties(one.scores)
    found = np.cumsum(one.at(iou))[last]
    recall = found / one.truths if one.truths else np.full(len(last), math.nan)
    return Curve(one.scores[last], found / (last + 1), recall)


def at_threshold(one: Outcomes, iou: float, threshold: float) -> Operating:
    """Precision, recall and F1 when detections with score >= threshold count.

    Greedy matching goes by score, so detections below the threshold cannot have taken an object from one above it: the hits
    are those that matching only the detections above the threshold would give.
    """
    # Scores travel as float32; a threshold compared in float64 would exclude the very score that it was copied from.
    count = int(np.count_nonzero(one.scores >= min(threshold, float(np.float32(threshold)))))
    return _operating(threshold, int(one.at(iou)[:count].sum()), count, one.truths)


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
    if not len(one.scores):
        return _operating(1.0, 0, 0, one.truths)
    last = _last_of_ties(one.scores)
    found = np.cumsum(one.at(iou))[last]
    f1 = 2 * found / (last + 1 + one.truths)
    good = np.flatnonzero(f1 >= f1.max() * (1 - f1_slack))
    cut = int(good[np.argmin(np.abs(last[good] + 1 - one.truths))] if f1_slack else np.argmax(f1))
    lowest = threshold = float(one.scores[last[cut]])
    if cut + 1 < len(last):
        below = float(one.scores[last[cut + 1]])
        # Rounded to float32 as scores are, or a comparison in float32 could let the one below in.
        middle = float(np.float32((lowest + below) / 2))
        threshold = middle if below < middle <= lowest else lowest
    return _operating(threshold, int(found[cut]), int(last[cut]) + 1, one.truths)


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
