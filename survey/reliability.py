"""Whether scores can be believed: of the detections that score 0.8, do four in five find an object?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BINS = 20  # at most; enough for a curve
PROMISED = 10  # at least, objects that the scores of a bin promise: the precision of fewer detections is mostly chance


@dataclass(frozen=True, slots=True)
class Reliability:
    """Detections of similar score: what they promise and what they keep.

    Attributes:
      mean_score: their mean score.
      precision: which part of them found an object.
      number: how many they are.
    """

    mean_score: float
    precision: float
    number: int


def reliability(scores: np.ndarray, hits: np.ndarray, most: int = BINS) -> tuple[Reliability, ...]:
    """Detections in bins by score, lowest first: what their scores promise and what they keep.

    The scores of each bin add up to about the same: taken as probabilities, each bin promises as many objects. Bins of equal
    width would be all but empty where scores are high, bins of equal numbers would nearly all lie where they are low, since
    `predict` keeps many detections of low score for the sake of average precision. Equal scores share a bin.

    Args:
      scores: float [N], descending, in [0, 1].
      hits: bool [N], which of them found an object.
      most: the greatest number of bins.
    """
    if not len(scores):
        return ()
    promised = np.cumsum(scores)
    bins = int(np.clip(promised[-1] / PROMISED, 1, most))
    last_of_ties = np.flatnonzero(np.append(scores[1:] < scores[:-1], True))
    # Rounding must not push an end to the next detection, nor the last one beyond them all.
    wanted = np.searchsorted(promised, promised[-1] * np.arange(1, bins) / bins * (1 - 1e-12))
    ends = np.unique(np.append(last_of_ties[np.searchsorted(last_of_ties, wanted)], len(scores) - 1)) + 1
    made = [
        Reliability(float(scores[first:end].mean()), float(hits[first:end].mean()), int(end - first))
        for first, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)
    ]
    return tuple(reversed(made))


def expected_calibration_error(bins: Sequence[Reliability]) -> float:
    """Mean distance of score and precision, each bin by its number; NaN without detections.

    Guo et al. 2017, On calibration of modern neural networks, equation 3.
    """
    number = sum(one.number for one in bins)
    return sum(one.number * abs(one.precision - one.mean_score) for one in bins) / number if number else math.nan
