"""Why detections are wrong: TIDE's kinds of error and what each costs in average precision, and the confusion of classes.

Bolya, Foley, Hays and Hoffman 2020, TIDE: A general toolbox for identifying object detection errors (ECCV), section 2, in the
order of questions of their program (github.com/dbolya/tide, tidecv/quantify.py, `_eval_image`), so that every false detection is
of one kind. With t the IoU threshold asked for and b = 0.1, a false detection is

  localisation   if it overlaps an object of its class by b up to t: the right thing, the wrong outline
  wrong_class    else if it overlaps an object of another class by t or more: the right place, the wrong name
  duplicate      else if it overlaps an object of its class by t or more: a better detection has found that one
  background     else if it overlaps no object by b or more
  both           else: outline and name are wrong

and an object is missed if no detection found it and none of the first two kinds would have found it when put right.
"""

import math
from dataclasses import dataclass

import numpy as np

from survey import matching, metrics
from survey.matching import Pool
from survey.metrics import Outcomes

# In the order of TIDE's plots.
KINDS = ("wrong_class", "localisation", "both", "duplicate", "background", "missed")
WRONG_CLASS, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(len(KINDS))
RIGHT = -1

BACKGROUND_IOU = 0.1  # TIDE section 2.2: below it a detection has nothing to do with an object


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What became of every detection of a pool.

    Attributes:
      iou: the threshold t.
      truth_index: int [N], the object of its class that a detection found, -1 where it found none.
      kind: int [N], index into KINDS, RIGHT where it found an object.
      meant: int [N], for wrong_class and localisation the object that it would have found; else -1.
    """

    iou: float
    truth_index: np.ndarray
    kind: np.ndarray
    meant: np.ndarray


def judge(pool: Pool, iou: float) -> Verdicts:
    """Says of every detection whether it is right, or which kind of error.

    The verdict does not depend on detections of lower score: leaving those out changes nothing.

    Args:
      pool: of the frames.
      iou: the threshold t. With one of 0.1 or less nothing is of the kinds localisation and both.
    """
    number = len(pool.scores)
    found = matching.matched(pool, [iou])[0]
    same = pool.same_class
    own, own_object = _most(pool.i[same], pool.j[same], pool.iou[same], number)
    other, other_object = _most(pool.i[~same], pool.j[~same], pool.iou[~same], number)
    # Where t is lower than b, an overlap of t is as good as it gets.
    least = min(BACKGROUND_IOU, iou)
    reached, other_reached = matching.reaches(own, iou), matching.reaches(other, iou)
    kind = np.select(
        [found >= 0, (own >= least) & ~reached, other_reached, reached, np.maximum(own, other) < least],
        [RIGHT, LOCALISATION, WRONG_CLASS, DUPLICATE, BACKGROUND],
        default=BOTH,
    )
    meant = np.select([kind == LOCALISATION, kind == WRONG_CLASS], [own_object, other_object], default=-1)
    return Verdicts(iou, found, kind, meant)


def _most(i: np.ndarray, j: np.ndarray, iou: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The greatest overlap of each detection [N], 0 without any, and the first object that has it [N], -1 without."""
    value, which = np.zeros(number), np.full(number, -1)
    # Assigned from the worst to the best, so that the best stays.
    order = np.lexsort((-j, iou))
    value[i[order]], which[i[order]] = iou[order], j[order]
    return value, which


def missed(pool: Pool, verdicts: Verdicts, count: int) -> np.ndarray:
    """Which objects are missed when only the first `count` detections count, bool [M].

    Of the objects that nobody found these are the ones that no detection was near, see the top of this module.
    """
    gone = ~_found(pool, verdicts, count)
    gone[verdicts.meant[:count][verdicts.meant[:count] >= 0]] = False
    return gone


def _found(pool: Pool, verdicts: Verdicts, count: int) -> np.ndarray:
    index = verdicts.truth_index[:count]
    found = np.zeros(len(pool.truth_boxes), bool)
    found[index[index >= 0]] = True
    return found


def tally(pool: Pool, verdicts: Verdicts, num_classes: int, count: int) -> np.ndarray:
    """Errors by class and kind when only the first `count` detections count.

    Args:
      pool: of the frames.
      verdicts: what `judge` gave for it.
      num_classes: classes of the label map.
      count: detections that count, see `Pool.counting`.

    Returns:
      int [num_classes, 6]; false detections belong to the class that they claim, missed objects to their own.
    """
    table = np.zeros((num_classes, len(KINDS)), int)
    false = np.flatnonzero(verdicts.kind[:count] != RIGHT)
    np.add.at(table, (pool.class_ids[false] - 1, verdicts.kind[false]), 1)
    np.add.at(table[:, MISSED], pool.truth_class_ids[missed(pool, verdicts, count)] - 1, 1)
    return table


def ap_gains(pool: Pool, verdicts: Verdicts, num_classes: int) -> np.ndarray:
    """How much the average precision of each class would rise if one kind of error alone were put right (TIDE section 2.3).

    wrong_class, localisation: of the false detections that mean the same object nobody found, the one of highest score becomes
    right, under the object's class; the others go. both, duplicate, background: they go. missed: the objects are not
    asked for. The gains do not add up: put right together, kinds gain more or less than one by one.

    Args:
      pool: of the frames; detections of any score take part.
      verdicts: what `judge` gave for it.
      num_classes: classes of the label map.

    Returns:
      float [num_classes, 6]; NaN for classes without objects. A class of which every object is missed has no objects left when
      that is put right, and gains 0.
    """
    everything = len(pool.scores)
    open_objects = ~_found(pool, verdicts, everything)
    right = verdicts.kind == RIGHT
    would = np.flatnonzero(verdicts.meant >= 0)
    would = would[open_objects[verdicts.meant[would]]]
    # Detections are in the order of their scores: the first that means an object is the best.
    _, first = np.unique(verdicts.meant[would], return_index=True)
    chosen = np.zeros(everything, bool)
    chosen[would[first]] = True
    truths = np.bincount(pool.truth_class_ids, minlength=num_classes + 1)[1:]
    before = [_average_precision(pool, right, pool.class_ids, truths, k, verdicts.iou) for k in range(num_classes)]
    gains = np.full((num_classes, len(KINDS)), math.nan)
    for kind in range(len(KINDS)):
        mine = verdicts.kind == kind
        put_right = mine & chosen
        kept = ~mine | put_right
        class_ids = pool.class_ids.copy()
        class_ids[put_right] = pool.truth_class_ids[verdicts.meant[put_right]]
        # Class 0 is none: those detections are gone.
        class_ids[~kept] = 0
        asked = truths.copy()
        if kind == MISSED:
            gone = pool.truth_class_ids[missed(pool, verdicts, everything)]
            asked -= np.bincount(gone, minlength=num_classes + 1)[1:]
        for k in range(num_classes):
            if truths[k]:
                after = _average_precision(pool, right | put_right, class_ids, asked, k, verdicts.iou)
                gains[k, kind] = after - before[k] if asked[k] else 0.0
    return gains


def _average_precision(pool: Pool, hits: np.ndarray, class_ids: np.ndarray, truths: np.ndarray, row: int, iou: float) -> float:
    mine = class_ids == row + 1
    return metrics.average_precision(Outcomes((iou,), pool.scores[mine], hits[None, mine], int(truths[row])), iou)


def confusion(pool: Pool, num_classes: int, iou: float, count: int) -> np.ndarray:
    """What was taken for what, by matching regardless of class.

    By descending score each detection takes the free object of highest IoU, of equal ones that of its class.

    Args:
      pool: of the frames.
      num_classes: classes of the label map.
      iou: the threshold.
      count: detections that count, see `Pool.counting`.

    Returns:
      int [num_classes + 1, num_classes + 1]: objects of class row + 1 found as class column + 1. The last column holds objects
      found by nobody, the last row detections that found nothing; the last number of both is 0.
    """
    near = matching.reaches(pool.iou, iou) & (pool.i < count)
    i, j, value, same = pool.i[near], pool.j[near], pool.iou[near], pool.same_class[near]
    order = np.lexsort((-j, ~same, -value, i))
    found = matching.assign(i[order], j[order], count, len(pool.truth_boxes))
    truth_of = np.append(pool.truth_class_ids - 1, num_classes)[found]
    table = np.zeros((num_classes + 1, num_classes + 1), int)
    np.add.at(table, (truth_of, pool.class_ids[:count] - 1), 1)
    free = np.ones(len(pool.truth_boxes), bool)
    free[found[found >= 0]] = False
    np.add.at(table[:, num_classes], pool.truth_class_ids[free] - 1, 1)
    return table
