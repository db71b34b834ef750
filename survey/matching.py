"""Which detection found which object: all images at once, in vectors, with the outcome of COCO's loop.

COCO walks through the detections of an image by falling score, and each takes the free object that it overlaps most
(`pycocotools/cocoeval.py`, `evaluateImg`). `assign` gets there without the walk, see there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from survey import boxes as box_math


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
class Pool:
    """The detections and objects of all frames in one list each, and which of them overlap, whatever their classes.

    Attributes:
      frame: int [N], number of the frame of each detection.
      boxes: float64 [N, 4], yxyx, in pixels of its frame.
      scores: float64 [N], descending; of equal ones the frame given first, then the detection given first.
      class_ids: int [N], from 1.
      truth_frame: int [M], frame of each object; objects are in the order given.
      truth_boxes: float64 [M, 4].
      truth_class_ids: int [M], from 1.
      i, j: int [P], the detection and the object of each pair that shares area, sorted by i, then j.
      iou: float64 [P], of the pair.
    """

    frame: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    truth_frame: np.ndarray
    truth_boxes: np.ndarray
    truth_class_ids: np.ndarray
    i: np.ndarray
    j: np.ndarray
    iou: np.ndarray

    @property
    def same_class(self) -> np.ndarray:
        """Which pairs are of one class, bool [P]."""
        same: np.ndarray = self.class_ids[self.i] == self.truth_class_ids[self.j]
        return same

    def counting(self, threshold: float) -> int:
        """How many detections have at least this score: the first so many."""
        # Scores travel as float32; a threshold compared in float64 would exclude the very score that it was copied from.
        return int(np.count_nonzero(self.scores >= min(threshold, float(np.float32(threshold)))))


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


def pool(frames: Iterable[Frame]) -> Pool:
    """Brings the frames together; read once."""
    given = list(frames)
    scores = np.concatenate([np.zeros(0), *(one.scores for one in given)]).astype(np.float64)
    order = np.argsort(-scores, kind="stable")
    frame = np.repeat(np.arange(len(given)), [len(one.scores) for one in given])[order]
    boxes = np.concatenate([np.zeros((0, 4)), *(one.boxes for one in given)]).astype(np.float64)[order]
    truth_frame = np.repeat(np.arange(len(given)), [len(one.truth_boxes) for one in given])
    truth_boxes = np.concatenate([np.zeros((0, 4)), *(one.truth_boxes for one in given)]).astype(np.float64)
    i, j, iou = box_math.overlapping_pairs(boxes, truth_boxes, frame, truth_frame)
    return Pool(
        frame=frame,
        boxes=boxes,
        scores=scores[order],
        class_ids=np.concatenate([np.zeros(0, int), *(one.class_ids for one in given)])[order],
        truth_frame=truth_frame,
        truth_boxes=truth_boxes,
        truth_class_ids=np.concatenate([np.zeros(0, int), *(one.truth_class_ids for one in given)]),
        i=i,
        j=j,
        iou=iou,
    )


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
    everything = pool([Frame(boxes, scores, np.ones(len(boxes), int), truth, np.ones(len(truth), int))])
    order = np.argsort(-scores.astype(np.float64), kind="stable")
    truth_index = np.full((len(ious), len(scores)), -1)
    truth_index[:, order] = matched(everything, ious)
    overlap = np.zeros(truth_index.shape)
    for row, found in enumerate(truth_index):
        hit = found >= 0
        overlap[row, hit] = box_math.paired_iou(boxes[hit].astype(np.float64), truth[found[hit]].astype(np.float64))
    return Matches(tuple(ious), truth_index, overlap)


def matched(pool: Pool, ious: Sequence[float], ignored: np.ndarray | None = None) -> np.ndarray:
    """The object that each detection found, by COCO's greedy matching within its frame and class.

    Args:
      pool: of frames.
      ious: T thresholds, each in (0, 1].
      ignored: bool [M], objects that are taken only where no other will do; None for none.

    Returns:
      int [T, N], -1 where a detection found none.
    """
    same = pool.same_class
    i, j, iou = pool.i[same], pool.j[same], pool.iou[same]
    order = np.lexsort((-j, -iou, np.zeros(len(j)) if ignored is None else ignored[j], i))
    i, j, iou = i[order], j[order], iou[order]
    found = np.full((len(ious), len(pool.scores)), -1)
    for row, threshold in enumerate(ious):
        near = reaches(iou, threshold)
        found[row] = assign(i[near], j[near], len(pool.scores), len(pool.truth_boxes))
    return found


def assign(i: np.ndarray, j: np.ndarray, detections: int, truths: int) -> np.ndarray:
    """Lets the detections choose one after another, each its best object that is still free.

    Every detection asks for its best object; an object keeps the first in line of those that ask, and the others ask for their
    next best, until nobody asks. Where all objects prefer the same order of detections, this deferred acceptance ends where
    choosing in turn does (Gale and Shapley 1962, College admissions and the stability of marriage: the stable assignment is
    the only one then), in a few rounds over vectors.

    Args:
      i: int [P], detections, ascending; a smaller number chooses earlier.
      j: int [P], objects that the detection may take, best first.
      detections: N.
      truths: M.

    Returns:
      int [N], the object of each detection, -1 where it got none.
    """
    start = np.searchsorted(i, np.arange(detections + 1))
    following, end = start[:-1].copy(), start[1:]
    holder = np.full(truths, detections)
    asking = np.flatnonzero(following < end)
    while len(asking):
        wanted = j[following[asking]]
        following[asking] += 1
        before = holder[wanted]
        np.minimum.at(holder, wanted, asking)
        now = holder[wanted]
        turned_away = np.concatenate([asking[now != asking], before[(now != before) & (before < detections)]])
        asking = np.unique(turned_away)
        asking = asking[following[asking] < end[asking]]
    found = np.full(detections, -1)
    taken = np.flatnonzero(holder < detections)
    found[holder[taken]] = taken
    return found


def reaches(iou: np.ndarray, threshold: float) -> np.ndarray:
    """Which overlaps are enough, bool. COCO lets IoU 1 tolerate rounding."""
    enough: np.ndarray = iou >= min(threshold, 1 - 1e-10)
    return enough
