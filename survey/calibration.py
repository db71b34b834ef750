"""What a score is worth: the probability that a detection of that score is an object, learned on validation.

Detectors' scores only rank. Calibrated, they add up: the sum over detections is the expected number of objects found. A
calibration is a list of knots (score, probability), ascending in both, with straight lines between them.
"""

import os
from typing import Any

import numpy as np

from survey import files
from survey.errors import InputError

FILE = "calibration.json"
FORMAT_VERSION = 1
KEY = "calibration"  # of the knots among the metrics of a validation

Knots = tuple[tuple[float, float], ...]

# The steps of a fit to a thousand detections; a line through fifty of them differs from all by less than the fit itself errs.
MAX_KNOTS = 50


def fit(scores: np.ndarray, hits: np.ndarray, max_knots: int = MAX_KNOTS) -> Knots:
    """Isotonic regression: the non-decreasing function of the score that is nearest to the hits.

    Pool adjacent violators (Zadrozny and Elkan, "Transforming classifier scores into accurate multiclass probability estimates",
    KDD 2002), by scikit-learn. Each pooled block becomes one knot at its mean score, so that lines between knots keep the
    number of hits about right. A block's share of hits is shrunk to (hits + 1/2) / (detections + 1) (Krichevsky and Trofimov,
    1981): three hits of three do not make a certainty.

    Args:
      scores: float [N], in any order.
      hits: bool [N], whether the detection found an object of its own.
      max_knots: neighbouring blocks are pooled until so many are left, the smallest first.

    Returns:
      Knots; none without detections.
    """
    if not len(scores):
        return ()
    from sklearn.isotonic import IsotonicRegression

    order = np.argsort(scores, kind="stable")
    scores, hits = np.asarray(scores, np.float64)[order], np.asarray(hits, np.float64)[order]
    fitted = IsotonicRegression(out_of_bounds="clip").fit_transform(scores, hits)
    starts = np.flatnonzero(np.append(True, np.diff(fitted) > 0))
    numbers = np.diff(np.append(starts, len(scores))).astype(float)
    found, middle = np.add.reduceat(hits, starts), np.add.reduceat(scores, starts)
    while len(numbers) > max_knots:
        i = int(np.argmin(numbers[:-1] + numbers[1:]))
        for sums in (numbers, found, middle):
            sums[i] += sums[i + 1]
        numbers, found, middle = (np.delete(sums, i + 1) for sums in (numbers, found, middle))
    # Shrinking moves small blocks more than large ones, which may turn the order of neighbours.
    probabilities = np.maximum.accumulate((found + 0.5) / (numbers + 1))
    knots = {float(score): float(value) for score, value in zip(middle / numbers, probabilities, strict=True)}
    return tuple(knots.items())


def apply(knots: Knots, scores: np.ndarray) -> np.ndarray:
    """The probability that a detection is an object, float64 [N].

    Above the last knot it is that knot's. Below the first it is 0: validation keeps a limited number of detections a patch, so of
    such scores it saw too few to tell, and a survey has thousands of them.

    Raises:
      InputError: there is no calibration.
    """
    if not knots:
        raise InputError("calibration=(): this model was exported without one, so its scores say nothing about probabilities")
    x, y = np.array(knots, np.float64).T
    return np.interp(np.asarray(scores, np.float64), x, y, left=0.0)


def write(folder: str, knots: Knots) -> None:
    """Writes `calibration.json`."""
    files.write_json(os.path.join(folder, FILE), {"format_version": FORMAT_VERSION, "knots": [list(knot) for knot in knots]})


def read(folder: str) -> Knots:
    """Reads `calibration.json`; no knots where a folder has none.

    Raises:
      InputError: it is of another version, or holds something else than ascending knots.
    """
    path = os.path.join(folder, FILE)
    if not files.exists(path):
        return ()
    value = files.read_json(path, "a calibration written by `rookery train`")
    if value.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path} has format_version {value.get('format_version')}: this Rookery reads {FORMAT_VERSION}; train again with it"
        )
    return check(value.get("knots"), path)


def check(value: Any, where: str) -> Knots:
    """Knots from JSON.

    Args:
      value: what should be a list of pairs.
      where: file and field, for the error.

    Raises:
      InputError: not pairs of numbers, scores not ascending, or probabilities not ascending within 0 to 1.
    """
    try:
        knots = tuple((float(score), float(probability)) for score, probability in value)
        x, y = np.array(knots, np.float64).reshape(-1, 2).T
        good = bool((np.diff(x) > 0).all() and (np.diff(y) >= 0).all() and ((y >= 0) & (y <= 1)).all())
    except (TypeError, ValueError):
        good = False
    if not good:
        raise InputError(
            f"{where}: knots={value!r}"[:200] + ": must be pairs [score, probability] with rising scores and probabilities that "
            "never fall, within 0 to 1; train or export again"
        )
    return knots
