"""Which of the boxes on one object stay: greedy non-maximum suppression of one image's candidates, and its soft variants.

Candidates are walked from the best score down. In the hard variants a box goes when its IoU with a box that stays is above the
threshold; "class" compares boxes of one class only, "agnostic" all. Soft-NMS (Bodla et al. 2017,
https://arxiv.org/abs/1704.04503, eq. 3 and the Gaussian below it) lowers its score instead, for every box M that stays, within
its class, and the next best is chosen by the lowered scores:

    soft_linear    s <- s * (1 - IoU(M, b))  where IoU(M, b) >= the threshold
    soft_gaussian  s <- s * exp(-IoU(M, b)^2 / SIGMA)
"""

import numpy as np

from survey import boxes as box_math

CLASS, AGNOSTIC, SOFT_LINEAR, SOFT_GAUSSIAN = "class", "agnostic", "soft_linear", "soft_gaussian"
METHODS = (CLASS, AGNOSTIC, SOFT_LINEAR, SOFT_GAUSSIAN)

SIGMA = 0.5  # of soft_gaussian, as in the paper's experiments

# Candidates that are compared with each other at once: enough to be worth the calls, few enough that the best of them remove most
# of the others before those are compared at all.
_BLOCK = 96
_ABOVE = np.triu(np.ones((_BLOCK, _BLOCK), bool), k=1)  # [better, worse]
_FEW = 256  # candidates of all classes that are not worth a loop over classes


def hard(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray | None, iou_threshold: float) -> np.ndarray:
    """Greedy suppression, block by block: the same boxes as one by one, with arrays instead of a loop over boxes.

    The best block is settled first; what stays of it removes its rivals from all the others; and so on. Within a block, a box
    stays unless a better one that stays is too close. Starting from "all stay" and applying that sentence until nothing changes
    settles at least one more box a round, the best first, so it ends with the greedy answer; as a rule after two or three rounds
    (Model Garden's official/vision/ops/nms.py does the same in tiles).

    Args:
      boxes: float32 [N, 4], yxyx.
      scores: float32 [N]; ties go to the smaller index.
      classes: int [N]; boxes of different classes never suppress each other. None to compare all.
      iou_threshold: a box goes when its IoU with one that stays is above this.

    Returns:
      Indices of the boxes that stay, best first.
    """
    order = np.argsort(-scores, kind="stable")
    boxes = boxes[order]
    if classes is None or len(order) <= _FEW:
        ranks = _stays(boxes, None if classes is None else classes[order], iou_threshold)
    else:  # fewer comparisons when each class is alone
        classes = classes[order]
        members = [np.flatnonzero(classes == one) for one in np.unique(classes)]
        ranks = np.sort(np.concatenate([mine[_stays(boxes[mine], None, iou_threshold)] for mine in members]))
    return order[ranks]


def soft(
    boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, iou_threshold: float, score_floor: float, method: str
) -> tuple[np.ndarray, np.ndarray]:
    """Soft-NMS within each class; the formulas stand at the top of this module.

    Args:
      boxes: float32 [N, 4], yxyx.
      scores: float32 [N]; ties go to the smaller index.
      classes: int [N].
      iou_threshold: from this IoU on, soft_linear lowers a score; soft_gaussian has no threshold.
      score_floor: a box goes when its lowered score is below this.
      method: "soft_linear" or "soft_gaussian".

    Returns:
      (indices of the boxes that stay, their lowered scores float32), best first.
    """
    left, lowered = np.flatnonzero(scores >= score_floor), scores.astype(np.float32).copy()
    kept = []
    while len(left):
        best = left[np.argmax(lowered[left])]
        kept.append(best)
        left = left[left != best]
        rivals = left[classes[left] == classes[best]]
        overlap = box_math.iou(boxes[best][None], boxes[rivals])[0]
        lowered[rivals] *= weights(overlap, iou_threshold, method)
        left = left[lowered[left] >= score_floor]
    chosen = np.array(kept, np.intp)
    return chosen, lowered[chosen]


def weights(iou: np.ndarray, iou_threshold: float, method: str) -> np.ndarray:
    """What a score is multiplied by, float32 [N], for the IoU [N] with a better box."""
    if method == SOFT_LINEAR:
        return np.where(iou >= np.float32(iou_threshold), 1 - iou, 1).astype(np.float32)
    return np.exp(-np.square(iou) / np.float32(SIGMA)).astype(np.float32)


def _stays(boxes: np.ndarray, classes: np.ndarray | None, iou_threshold: float) -> np.ndarray:
    """Ranks of the boxes that stay, ascending; boxes [N, 4] best first."""
    left, kept = np.arange(len(boxes)), []
    while len(left):
        ranks, left = left[:_BLOCK], left[_BLOCK:]
        rivals = _rivals(boxes, classes, ranks, ranks, iou_threshold)
        rivals &= _ABOVE[: len(ranks), : len(ranks)]
        stays, settled = np.zeros(0, bool), np.ones(len(ranks), bool)
        while not np.array_equal(settled, stays):
            stays, settled = settled, np.logical_not(rivals[settled].any(axis=0))
        kept.append(ranks[stays])
        if len(left):
            left = left[~_rivals(boxes, classes, kept[-1], left, iou_threshold).any(axis=0)]
    return np.concatenate(kept) if kept else left


def _rivals(boxes: np.ndarray, classes: np.ndarray | None, a: np.ndarray, b: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Which of a [A] and b [B] are too close to stay both, bool [A, B]. Arrays are used again: most of the time goes here."""
    y0, x0, y1, x1 = boxes[a].T[:, :, None]
    v0, u0, v1, u1 = boxes[b].T[:, None, :]
    shared, low = np.minimum(y1, v1), np.maximum(y0, v0)
    shared -= low
    wide, low = np.minimum(x1, u1), np.maximum(x0, u0, out=low)
    wide -= low
    np.maximum(shared, 0, out=shared)
    shared *= np.maximum(wide, 0, out=wide)
    union = np.add((y1 - y0) * (x1 - x0), (v1 - v0) * (u1 - u0), out=wide)
    union -= shared
    with np.errstate(invalid="ignore"):  # two empty boxes: 0 / 0 is not above any threshold
        shared /= union
    close: np.ndarray = shared > np.float32(iou_threshold)
    if classes is not None:
        close &= classes[a][:, None] == classes[b][None, :]
    return close
