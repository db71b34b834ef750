"""Anchors from the shapes of a dataset's boxes: k-means with intersection over union as the measure of likeness.

Redmon and Farhadi 2017, YOLO9000, section 2 (https://arxiv.org/abs/1612.08242). A box and an anchor are laid on a common centre,
so that only their sides count:

    shared(b, a) = min(w_b, w_a) min(h_b, h_a)
    IoU(b, a)    = shared / (w_b h_b + w_a h_a - shared)
    distance     = 1 - IoU

Euclidean distance of the sides would spend most anchors on large boxes: 10 px matter to a box of 20 px and not to one of 400 px.
The first centres are drawn as k-means++ does (Arthur and Vassilvitskii 2007, SODA), each with a probability that grows with the
square of the distance to the centres already there; 1 - IoU is a metric, as that method wants it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from survey import files
from survey.errors import InputError

Anchors = tuple[tuple[float, float], ...]

FORMAT_VERSION = 1
WHAT = "a file of anchors written by `rookery anchors`"

# Boxes that take part: so many in each search, and so many when the best search's result is settled; the result is judged on all.
# IoUs with the best anchor scatter by less than 0.2, so that their mean over so many is known to 0.0014 and to 0.0005.
SEARCHED, SETTLED = 20_000, 200_000
RESTARTS = 30  # 2,804 boxes of BCCD, 9 anchors: the best of 10 searches is on average 0.0009 below the best of 100, of 30 0.0002
MOST_ROUNDS = 300  # the search ends by itself long before; a cycle between equal clusterings would not
CHUNK = 1 << 14  # boxes compared at once: their IoUs with a dozen anchors stay in the processor's cache
DECIMALS = 2  # of an anchor's sides in pixels
MATCHED = 0.5  # IoU below which an anchor is a poor start for a box


@dataclass(frozen=True, slots=True)
class Fit:
    """Anchors, and how well they suit boxes.

    Attributes:
      anchors_px: (width, height) of each, from the smallest area to the largest.
      mean_best_iou: mean over boxes of the IoU with the anchor that suits each best.
      share_below_half: share of the boxes whose best IoU is below 0.5.
      boxes: judged.
      left_out: boxes without area or with a side that is no number.
      boxes_per_anchor: boxes which each anchor suits best.
    """

    anchors_px: Anchors
    mean_best_iou: float
    share_below_half: float
    boxes: int
    left_out: int
    boxes_per_anchor: tuple[int, ...]


def fit(widths_heights: np.ndarray, k: int, seed: int = 0) -> Fit:
    """Searches the anchors that suit boxes best.

    The same boxes, k and seed give the same anchors. The best of `RESTARTS` searches is taken, each of which goes on until no box
    changes its anchor.

    Args:
      widths_heights: float [N, 2], in pixels; of more than `SEARCHED` boxes a random sample is searched.
      k: number of anchors.
      seed: of the sample and of the first centres.

    Raises:
      InputError: k is below 1 or above the number of distinct shapes, or there is no box.
    """
    usable = _usable(widths_heights)
    shapes = _distinct(usable)
    if not shapes:
        raise InputError(f"no box of {len(widths_heights):,} has a width and a height above 0: anchors need boxes to suit")
    if not 1 <= k <= shapes:
        raise InputError(f"k={k} anchors: must be from 1 to {shapes}, the number of distinct shapes of the {len(usable):,} boxes")
    random = np.random.default_rng(seed)
    searched = _sample(usable, SEARCHED, k, random)
    best, best_value = searched[:k], -1.0
    for _ in range(RESTARTS):
        centers, value = _search(searched, _first_centers(searched, k, random))
        if value > best_value:
            best, best_value = centers, value
    if len(usable) > SEARCHED:
        best, _ = _search(_sample(usable, SETTLED, k, random), best)
    rounded = np.maximum(np.round(best.astype(np.float64), DECIMALS), 10.0**-DECIMALS)
    order = np.lexsort((rounded[:, 0], rounded[:, 0] * rounded[:, 1]))
    return judge(widths_heights, tuple((float(w), float(h)) for w, h in rounded[order]))


def judge(widths_heights: np.ndarray, anchors_px: Sequence[tuple[float, float]]) -> Fit:
    """How well anchors suit boxes, in the order in which they are given.

    Args:
      widths_heights: float [N, 2], in pixels.
      anchors_px: (width, height) of each.

    Raises:
      InputError: there is no box.
    """
    usable = _usable(widths_heights)
    if not len(usable):
        raise InputError(f"no box of {len(widths_heights):,} has a width and a height above 0: anchors need boxes to suit")
    nearest, iou = best_anchors(usable, np.array(anchors_px))
    return Fit(
        anchors_px=tuple(anchors_px),
        mean_best_iou=float(iou.mean(dtype=np.float64)),
        share_below_half=float((iou < MATCHED).mean()),
        boxes=len(usable),
        left_out=len(widths_heights) - len(usable),
        boxes_per_anchor=tuple(np.bincount(nearest, minlength=len(anchors_px)).tolist()),
    )


def best_anchors(widths_heights: np.ndarray, anchors_px: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The anchor of highest IoU for each box, on a common centre.

    Args:
      widths_heights: [N, 2], sides above 0.
      anchors_px: [K, 2].

    Returns:
      (index of the anchor int64 [N], the first of equals; IoU float32 [N]).
    """
    widths, heights = np.ascontiguousarray(widths_heights.T, np.float32)  # [N] each
    anchors = anchors_px.astype(np.float32)
    nearest, best = np.empty(len(widths), np.int64), np.empty(len(widths), np.float32)
    for start in range(0, len(widths), CHUNK):
        part = slice(start, start + CHUNK)
        width, height = widths[part], heights[part]  # [n]
        # An anchor a row: numpy runs along the boxes, of which there are many.
        shared = np.minimum(width, anchors[:, :1]) * np.minimum(height, anchors[:, 1:])  # [K, n]
        iou = shared / (width * height + anchors[:, :1] * anchors[:, 1:] - shared)
        nearest[part] = iou.argmax(axis=0)
        best[part] = iou.max(axis=0)
    return nearest, best


def read_anchors(path: str) -> Anchors:
    """The anchors of a file that `rookery anchors` wrote.

    Returns:
      (width, height) in pixels of each, from the smallest area to the largest.

    Raises:
      InputError: no such file, another format version, or entries that are no sides above 0.
    """
    value = files.read_json(path, WHAT)
    if value.get("format_version") != FORMAT_VERSION:
        found = value.get("format_version")
        raise InputError(f"{path} has format_version {found}: must be {FORMAT_VERSION}; write it again with `rookery anchors`")
    given = value.get("anchors_px")
    if not isinstance(given, list) or not given or not all(_is_shape(entry) for entry in given):
        raise InputError(f"{path}: anchors_px={given!r}: must be a list of [width, height] in pixels, above 0")
    anchors = [(float(width), float(height)) for width, height in given]
    return tuple(sorted(anchors, key=lambda sides: (sides[0] * sides[1], sides[0])))


def to_json(found: Fit, *, image_size: int | None, seed: int, source: Mapping[str, Any], made_with: Mapping[str, str]) -> dict:
    """What `read_anchors` reads, with where it comes from.

    Args:
      found: the anchors.
      image_size: side of the images in which they are measured, None where the images keep their own sizes.
      seed: of the search.
      source: the boxes: names of files and their digests.
      made_with: versions of software.
    """
    return {
        "format_version": FORMAT_VERSION,
        "anchors_px": [list(sides) for sides in found.anchors_px],
        "image_size": image_size,
        "k": len(found.anchors_px),
        "seed": seed,
        "mean_best_iou": round(found.mean_best_iou, 6),
        "share_below_half": round(found.share_below_half, 6),
        "boxes": found.boxes,
        "left_out": found.left_out,
        "boxes_per_anchor": list(found.boxes_per_anchor),
        "source": dict(source),
        "versions": dict(made_with),
    }


def _usable(widths_heights: np.ndarray) -> np.ndarray:
    """Boxes that have an area, float32 [N, 2], to a hundredth of a pixel: a normalised box of 20 px comes back as 19.99999."""
    sides = np.round(np.asarray(widths_heights, np.float32).reshape(-1, 2), DECIMALS)
    return sides[np.isfinite(sides).all(axis=1) & (sides > 0).all(axis=1)]


def _sample(sides: np.ndarray, number: int, k: int, random: np.random.Generator) -> np.ndarray:
    """At most so many of the boxes; each shape once where nearly all boxes are alike and a sample has too few shapes."""
    if len(sides) <= number:
        return sides
    chosen = sides[np.sort(random.choice(len(sides), number, replace=False))]
    return chosen if _distinct(chosen) >= k else np.unique(sides, axis=0)


def _distinct(sides: np.ndarray) -> int:
    """How many shapes there are: pairs as complex numbers sort a hundred times faster than as rows."""
    return len(np.unique(sides[:, 0] + 1j * sides[:, 1].astype(np.complex128)))


def _first_centers(sides: np.ndarray, k: int, random: np.random.Generator) -> np.ndarray:
    """Centres [k, 2], all different: k-means++."""
    chosen = [int(random.integers(len(sides)))]
    distance = np.ones(len(sides))
    while len(chosen) < k:
        distance = np.minimum(distance, 1.0 - best_anchors(sides, sides[chosen[-1:]])[1].astype(np.float64))
        # A shape that is a centre is at distance 0 but for rounding, and must not be drawn twice.
        distance[(sides == sides[chosen[-1]]).all(axis=1)] = 0.0
        reach = np.cumsum(distance**2)
        chosen.append(int(np.searchsorted(reach, random.uniform(0.0, reach[-1]), side="right")))
    return sides[chosen]


def _search(sides: np.ndarray, centers: np.ndarray) -> tuple[np.ndarray, float]:
    """Moves centres until no box changes its nearest one: the centres [k, 2] and the mean best IoU of the best round.

    The median of a cluster need not be what brings its IoUs highest, so that a round may be worse than the one before it.
    """
    before = np.full(len(sides), -1)
    best, best_value = centers, -1.0
    for _ in range(MOST_ROUNDS):
        nearest, iou = best_anchors(sides, centers)
        value = float(iou.mean(dtype=np.float64))
        if value > best_value:
            best, best_value = centers, value
        if (nearest == before).all():
            break
        before = nearest
        centers = _moved(sides, nearest, iou, centers)
    return best, best_value


def _moved(sides: np.ndarray, nearest: np.ndarray, iou: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Each centre at the median width and height of its boxes; one that lost all of its boxes at the box that fares worst.

    The median, and not the mean of the paper: half a cluster's boxes being wider and half narrower suits IoU, which counts
    ratios, and a mean follows the few largest boxes. It brought the mean best IoU higher on every set of boxes it was tried on.
    """
    moved = centers.copy()
    number = np.bincount(nearest, minlength=len(centers))
    for i in np.flatnonzero(number):
        moved[i] = np.median(sides[nearest == i], axis=0)
    empty = np.flatnonzero(number == 0)
    if len(empty):
        moved[empty] = sides[np.argsort(iou, kind="stable")[: len(empty)]]
    return moved


def _is_shape(value: Any) -> bool:
    numbers = isinstance(value, list) and len(value) == 2 and all(type(side) in (int, float) for side in value)
    return numbers and all(math.isfinite(side) and side > 0 for side in value)
