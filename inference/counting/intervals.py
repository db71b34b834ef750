"""Totals with confidence intervals: the statistics of `rookery count`, on plain arrays.

A survey consists of units (cores of patches, or mosaics). In each the model expects f objects, and truly there are y, known only
where people looked. Three estimators of the sum of y, for what is known:

    from_validation      no label of this survey: f, corrected by what validation says of the model
    stratified_total     y of units drawn at random within strata: prediction-powered inference
    ratio_total          y of some mosaics: the ratio estimator, with a variance that grows with a mosaic's size

Counts are skewed and samples small, so that normal intervals cover too seldom. What keeps coverage is in `interval` and in the
two `_total`s: leave-one-out residuals, Satterthwaite's degrees of freedom, Student's t, and the logarithm of the total
(benchmarks/count_coverage.py measures it).
"""

import math
from dataclasses import dataclass

import numpy as np

# A slope between labels and predictions beyond this is noise: the model would miss three objects of four.
MAX_SLOPE = 4.0

# The spread of a mosaic's residual grows with its expected number f: as f where objects fall singly, as f squared where the whole
# mosaic is over- or undercounted. Between the two; 1 covers 91 to 96 % and 2 up to 98 % of simulated totals.
SPREAD_POWER = 1.75


@dataclass(frozen=True, slots=True)
class Total:
    """An estimated total and how well it is known.

    Attributes:
      estimate: objects.
      variance: of the estimate.
      freedom: degrees of freedom of the variance; infinite where it is known.
      known: objects that were seen by people, below which the total cannot be.
      unseen: how many objects more there may be where no residual differs from 0 and the variance says nothing, at 95 %.
      dispersion: variance of a part's residual per expected object, for `part`.
    """

    estimate: float
    variance: float
    freedom: float
    known: float = 0.0
    unseen: float = 0.0
    dispersion: float = 0.0


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate between its limits."""

    estimate: float
    low: float
    high: float


def interval(total: Total, confidence: float) -> Interval:
    """The confidence interval of a total.

    Student's t on the logarithm of the total: when a sample happens to miss the few crowded units, both the total and its error
    come out too small, and the logarithm reaches further up. An estimate that is not above 0 has none, and t serves as it is.
    Without any residual, the rule of three (Hanley and Lippman-Hand, JAMA 249, 1983): of n units that agree, at most a share
    1 - alpha^(1/n) disagrees.

    Args:
      total: of one of the estimators.
      confidence: 0 to 1, such as 0.95.
    """
    from scipy import stats

    estimate = max(total.estimate, total.known)
    if total.variance <= 0:
        unseen = total.unseen * math.log(1 - confidence) / math.log(0.05)
        return Interval(estimate, max(estimate - unseen, total.known), estimate + unseen)
    error = math.sqrt(total.variance)
    quantile = float(stats.t.ppf((1 + confidence) / 2, total.freedom))
    if total.estimate <= 0:
        return Interval(estimate, total.known, max(total.estimate + quantile * error, estimate, total.unseen))
    exponent = quantile * error / total.estimate
    # Beyond a factor of e^3 either way the logarithm says no more than that nothing is known; t is shorter there.
    if exponent > 3:
        low, high = 0.0, total.estimate + quantile * error
    else:
        low, high = total.estimate * math.exp(-exponent), total.estimate * math.exp(exponent)
    return Interval(estimate, max(low, total.known), max(high, estimate))


def from_validation(
    expected: float, found_variance: float, *, ratio: float, ratio_error: float, dispersion: float, units: float, recall: float
) -> Total:
    """A total without a label of this survey.

    The estimate is R E, where E is the expected number of found objects and R the objects per expected one on validation, which
    corrects for recall. Its variance has two parts. Validation's: (R E)^2 times the squared relative error of R. This survey's
    own: a Poisson-binomial number of found ones, R^2 sum p (1 - p), and for each found one a geometric number of missed ones,
    E (1 - r) / r^2; or, if that is more, what validation's units differed by, R E times their dispersion.

    Args:
      expected: E, the sum of p over the detections.
      found_variance: sum of p (1 - p) over them.
      ratio: R.
      ratio_error: standard error of R, relative to R.
      dispersion: sum of squared residuals per object on validation.
      units: of validation, for the degrees of freedom.
      recall: r, share of validation's objects that were found.
    """
    estimate = ratio * expected
    missed = expected * (1 - recall) / recall**2
    own = max(ratio**2 * found_variance + missed, dispersion * estimate)
    # With recall r, alpha = (1 - r)^N objects stay hidden altogether: so many may be where nothing was found.
    unseen = math.log(0.05) / math.log(1 - recall) if 0 < recall < 1 else 0.0
    return Total(estimate, (estimate * ratio_error) ** 2 + own, max(units - 1, 1.0), unseen=unseen, dispersion=dispersion)


def stratified_total(
    labels: np.ndarray, predictions: np.ndarray, strata: np.ndarray, sizes: np.ndarray, all_predictions: np.ndarray
) -> Total:
    """A total from labelled units that were drawn at random, without replacement, within strata.

    Prediction-powered inference (Angelopoulos et al., Science 382, 2023) with power tuning (Angelopoulos, Duchi and Zrnic,
    arXiv:2311.01453, 2023) of a finite population, where it is the difference estimator of survey sampling (Saerndal, Swensson
    and Wretman, 1992, section 6.3): lambda sum(f) + sum over strata of N mean(y - lambda f), which `ppi_py` computes. Every unit
    has a prediction, so the only error is that of the mean residuals, and units that were labelled have none: the variance is
    sum N^2 (1 - n / N) s^2 / n. The slope lambda is that of least variance; a residual is taken with the slope that the other
    units give, because its own would make it look small.

    Args:
      labels: float [n], true number in each labelled unit.
      predictions: float [n], expected number there.
      strata: int [n], their strata, from 0.
      sizes: int [H], units in each stratum, labelled ones included.
      all_predictions: float [N], expected number in every unit.

    Returns:
      The total; the degrees of freedom are Satterthwaite's (Biometrics Bulletin 2, 1946).
    """
    from ppi_py import ppi_mean_pointestimate

    count = np.bincount(strata, minlength=len(sizes))
    assert (count[sizes > 0] >= np.minimum(2, sizes[sizes > 0])).all(), "a stratum has fewer than two labelled units"
    y, f = labels.astype(np.float64), predictions.astype(np.float64)
    # n / N of a stratum whose units are all labelled is 1: it adds no variance. Empty strata divide nothing.
    scale = sizes**2 * (1 - count / np.maximum(sizes, 1)) / np.maximum(count, 1)
    freedom = np.maximum(count - 1, 1)
    y_own, f_own = y - _means(y, strata, count), f - _means(f, strata, count)
    weight = (scale / freedom)[strata]
    both, square = float((weight * y_own * f_own).sum()), float((weight * f_own**2).sum())
    slope = float(_slope(np.array(both), np.array(square)))
    # Taking one of n values out lowers a sum of products of deviations by n / (n - 1) times that value's product.
    share = weight * (count / freedom)[strata]
    residuals = y_own - _slope(both - share * y_own * f_own, square - share * f_own**2) * f_own
    parts = scale * np.bincount(strata, residuals**2, len(sizes)) / freedom
    variance = float(parts.sum())
    population = int(sizes.sum())
    weights = (sizes / np.maximum(count, 1))[strata]
    mean = ppi_mean_pointestimate(y, f, all_predictions.astype(np.float64), lam=slope, w=weights)
    estimate = population * float(np.squeeze(mean))
    expected = float((weights * np.maximum(slope * f, 0)).sum())
    return Total(
        estimate=estimate,
        variance=variance,
        freedom=variance**2 / float((parts**2 / freedom).sum()) if variance > 0 else math.inf,
        known=float(y.sum()),
        unseen=_unseen(population - len(y), len(y)),
        dispersion=float((weights * residuals**2).sum()) / expected if expected > 0 else 0.0,
    )


def ratio_total(labels: np.ndarray, predictions: np.ndarray, other_predictions: np.ndarray) -> Total:
    """A total of mosaics, some of which are wholly labelled.

    R = sum(y) / sum(f) over the labelled ones, and the others have R f each (Cochran, "Sampling Techniques", 1977, chapter 6).
    Mosaics differ in size, so the error is predicted for the very mosaics that are left (Royall and Cumberland, JASA 76, 1981):
    that of R, and each mosaic's own, which grows as f to the power SPREAD_POWER. Residuals leave their own mosaic out of R.

    Args:
      labels: float [n], true number in each labelled mosaic, n at least 2.
      predictions: float [n], expected number there.
      other_predictions: float [N - n], expected number in each of the others.
    """
    y, f, others = (np.asarray(values, np.float64) for values in (labels, predictions, other_predictions))
    seen, expected, rest = float(y.sum()), float(f.sum()), float(others.sum())
    if not len(others):
        return Total(seen, 0.0, math.inf, known=seen)
    unseen = _unseen(len(others), len(y))
    if expected <= 0:
        return Total(seen, 0.0, math.inf, known=seen, unseen=unseen * max(1.0, float(y.max(initial=0.0))))
    ratio = seen / expected
    left = expected - f
    without = np.divide(seen - y, left, out=np.full(len(y), ratio), where=left > 0)
    residuals = y - without * f
    # Where next to nothing is expected, a residual of one object would be a huge multiple of it.
    floor = (expected + rest) / (len(y) + len(others)) / 10
    spread = float(np.mean(residuals**2 / np.maximum(f, floor) ** SPREAD_POWER))
    own = spread * float((np.maximum(others, floor) ** SPREAD_POWER).sum())
    variance = (rest / expected) ** 2 * float((residuals**2).sum()) + own
    dispersion = own / (ratio * rest) if ratio * rest > 0 else 0.0
    return Total(seen + ratio * rest, variance, len(y) - 1.0, known=seen, unseen=unseen, dispersion=dispersion)


def part(total: Total, expected: float, all_expected: float, units: int, labelled: int) -> Total:
    """A part of what people have not seen, with too few labels of its own: the whole survey's correction is applied to it.

    The variance of a total over M units, M^2 s^2 / n + M s^2, is the correction's error and the units' own. The former shrinks
    with the square of the part's share, the latter with the share.

    Args:
      total: of the whole survey.
      expected: what the model expects in the unlabelled units of the part.
      all_expected: and in all unlabelled units.
      units: unlabelled units in the part.
      labelled: labelled units in the whole.
    """
    share = expected / all_expected if all_expected > 0 else 0.0
    rest = max(total.estimate - total.known, 0.0)
    own = min(total.dispersion * rest, total.variance)
    variance = (total.variance - own) * share**2 + own * share
    return Total(rest * share, variance, total.freedom, unseen=_unseen(units, labelled))


def plus(total: Total, known: float) -> Total:
    """A total beside objects that were counted by people."""
    return Total(total.estimate + known, total.variance, total.freedom, total.known + known, total.unseen, total.dispersion)


def _means(values: np.ndarray, strata: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Each unit's stratum mean, [n]."""
    return (np.bincount(strata, values, len(count)) / np.maximum(count, 1))[strata]


def _slope(both: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Least squares slope within 0 to MAX_SLOPE; 1, the prediction as it is, where all predictions are alike."""
    # Rounding leaves tiny sums of squares of alike values.
    slope = np.divide(both, square, out=np.ones_like(square), where=square > 1e-9)
    return np.clip(slope, 0.0, MAX_SLOPE)


def _unseen(units: int, labelled: int) -> float:
    """Units of so many that may differ when none of the labelled ones does, at 95 %."""
    return units * (1 - 0.05 ** (1 / labelled)) if labelled else float(units)
