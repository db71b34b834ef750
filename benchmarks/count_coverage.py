"""Do the intervals of `rookery count` hold? Simulated surveys, how often the interval covers the truth, and how wide it is.

    python benchmarks/count_coverage.py                   1,000 surveys a row, one table
    python benchmarks/count_coverage.py --surveys 200

A survey has 1,500 patches of three habitats (60, 30 and 10 %). Objects are negative binomial, more of them in the rarer habitats.
The detector misses more there and finds things that are none, at other rates in each habitat; its scores are calibrated wrongly
on purpose. Patches are drawn as `--label_sample` draws them. Surveys of mosaics have 40 of log-normal size, whose density, recall
and false detections differ from mosaic to mosaic, of which some are drawn at random.

Side by side, from the same labels: ours; the labels alone (the same design and interval without predictions; for mosaics the
ratio to their area); and for patches `ppi_py.ppi_mean_ci` with the sample's weights. "no labels" is situation 1, from 300
validation patches of the same kind and, in brackets, what is left of it where the survey's false detections are three times as
many. Width is the mean of high - low in percent of the truth. The target is 93 to 97 %.
"""

import argparse
import time
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from ppi_py import ppi_mean_ci

from inference.counting import intervals, label_sample
from inference.counting.intervals import Interval, Total
from survey import calibration

CONFIDENCE = 0.95
PATCHES, MOSAICS, VALIDATION_PATCHES = 1500, 40, 300
HABITATS = np.array([0.6, 0.3, 0.1])


@dataclass(frozen=True)
class Setting:
    """One kind of survey; tuples are by habitat.

    Attributes:
      density: objects a patch.
      shape: of the gamma distribution that spreads the density; below 1 most patches are empty and few are crowded.
      recall: share of objects that the detector sees.
      false: false detections a patch.
    """

    density: tuple[float, float, float]
    shape: float
    recall: tuple[float, float, float]
    false: tuple[float, float, float]


SETTINGS = {
    "colonies": Setting((0.3, 2, 8), 0.7, (0.9, 0.75, 0.6), (0.4, 0.2, 0.8)),
    "dense": Setting((3, 8, 15), 3.0, (0.85, 0.8, 0.6), (0.5, 0.5, 1.0)),
    "sparse": Setting((0.03, 0.2, 1.0), 0.5, (0.8, 0.7, 0.6), (0.1, 0.3, 0.3)),
    "poor detector": Setting((0.5, 2, 6), 1.0, (0.5, 0.4, 0.3), (1.0, 1.5, 2.0)),
}


@dataclass(frozen=True)
class Simulated:
    """True and detected objects of units: y int [N], and detections as unit int [D], score float [D], hit bool [D]."""

    y: np.ndarray
    unit: np.ndarray
    score: np.ndarray
    hit: np.ndarray

    def expected(self, probabilities: np.ndarray) -> np.ndarray:
        """Sum of the probabilities in each unit, [N]."""
        return np.bincount(self.unit, probabilities, len(self.y))


def patches(rng: np.random.Generator, setting: Setting, number: int = PATCHES, more_false: float = 1.0) -> Simulated:
    """A survey of patches."""
    habitat = rng.choice(3, number, p=HABITATS)
    y = rng.poisson(np.array(setting.density)[habitat] * rng.gamma(setting.shape, 1 / setting.shape, number))
    seen = rng.binomial(y, np.array(setting.recall)[habitat])
    false = rng.poisson(more_false * np.array(setting.false)[habitat] * rng.gamma(1.0, 1.0, number))
    return _detected(rng, y, seen, false)


def mosaics(rng: np.random.Generator, setting: Setting) -> tuple[Simulated, np.ndarray]:
    """A survey of mosaics, and their sizes in patches."""
    sizes = np.exp(rng.normal(4.0, 0.6, MOSAICS)).astype(int) + 5
    y, seen, false = (np.zeros(MOSAICS, int) for _ in range(3))
    for m, size in enumerate(sizes):
        habitat = rng.choice(3, size, p=rng.dirichlet(HABITATS * 6))
        density = np.array(setting.density)[habitat] * rng.gamma(4.0, 0.25)
        objects = rng.poisson(density * rng.gamma(setting.shape, 1 / setting.shape, size))
        recall = np.clip(np.array(setting.recall)[habitat] * rng.normal(1, 0.08), 0, 0.98)
        y[m], seen[m] = objects.sum(), rng.binomial(objects, recall).sum()
        false[m] = rng.poisson(np.array(setting.false)[habitat] * rng.gamma(4.0, 0.25)).sum()
    return _detected(rng, y, seen, false), sizes


def _detected(rng: np.random.Generator, y: np.ndarray, seen: np.ndarray, false: np.ndarray) -> Simulated:
    units = np.arange(len(y))
    scores = np.concatenate([rng.beta(5, 2, seen.sum()), rng.beta(2, 4, false.sum())])
    hit = np.arange(len(scores)) < seen.sum()
    return Simulated(y, np.concatenate([np.repeat(units, seen), np.repeat(units, false)]), scores, hit)


def miscalibrated(scores: np.ndarray) -> np.ndarray:
    """What a calibration from elsewhere makes of the scores: too sure, and too high."""
    return 1 / (1 + np.exp(-(1.6 * np.log(scores / (1 - scores)) + 0.2)))


def from_sample(rng: np.random.Generator, setting: Setting, number: int) -> dict[str, tuple[bool, float]]:
    """One survey, `number` patches labelled."""
    one = patches(rng, setting)
    p = miscalibrated(one.score)
    f, y = one.expected(p), one.y.astype(float)
    planned = label_sample.design(label_sample.uncertainty(f, one.expected(p * (1 - p)), 0.8), number)
    i = label_sample.draw(planned, int(rng.integers(1 << 30)))
    strata, weights = planned.strata[i], (planned.sizes / planned.counts)[planned.strata[i]]
    nothing = np.zeros(PATCHES)
    low, high = ppi_mean_ci(y[i], f[i], f, alpha=1 - CONFIDENCE, w=weights)
    theirs = Interval(0.0, float(np.squeeze(low)) * PATCHES, float(np.squeeze(high)) * PATCHES)
    return {
        "ours": _judge(intervals.stratified_total(y[i], f[i], strata, planned.sizes, f), y.sum()),
        "labels alone": _judge(intervals.stratified_total(y[i], nothing[i], strata, planned.sizes, nothing), y.sum()),
        "ppi_py": _judge(theirs, y.sum()),
    }


def from_mosaics(rng: np.random.Generator, setting: Setting, number: int) -> dict[str, tuple[bool, float]]:
    """One survey, `number` mosaics labelled."""
    one, sizes = mosaics(rng, setting)
    f, y = one.expected(miscalibrated(one.score)), one.y.astype(float)
    known = np.isin(np.arange(MOSAICS), rng.choice(MOSAICS, number, replace=False))
    return {
        "ours": _judge(intervals.ratio_total(y[known], f[known], f[~known]), y.sum()),
        "labels alone": _judge(intervals.ratio_total(y[known], sizes[known], sizes[~known]), y.sum()),
    }


def from_nothing(rng: np.random.Generator, setting: Setting) -> dict[str, tuple[bool, float]]:
    """One survey without labels, like its validation data and unlike it."""
    checked = patches(rng, setting, VALIDATION_PATCHES)
    knots = calibration.fit(checked.score, checked.hit)
    # As `tpu_train.validation` computes them.
    f = checked.expected(calibration.apply(knots, checked.score))
    squares = float(((checked.y - checked.y.sum() / f.sum() * f) ** 2).sum())
    judged = {}
    for name, more_false in (("ours", 1.0), ("shifted", 3.0)):
        one = patches(rng, setting, more_false=more_false)
        p = calibration.apply(knots, one.score)
        total = intervals.from_validation(
            float(p.sum()),
            float((p * (1 - p)).sum()),
            ratio=checked.y.sum() / f.sum(),
            ratio_error=np.sqrt(len(f) / (len(f) - 1) * squares) / checked.y.sum(),
            dispersion=squares / checked.y.sum(),
            units=len(f),
            recall=float(checked.hit.sum() / checked.y.sum()),
        )
        judged[name] = _judge(total, float(one.y.sum()))
    return judged


def _judge(given: Total | Interval, truth: float) -> tuple[bool, float]:
    between = intervals.interval(given, CONFIDENCE) if isinstance(given, Total) else given
    return between.low <= truth <= between.high, (between.high - between.low) / max(truth, 1.0)


def measure(setting: Setting, kind: str, number: int, surveys: int) -> dict[str, tuple[float, float]]:
    """Coverage and mean width of each method, both as fractions."""
    judged: dict[str, list[tuple[bool, float]]] = defaultdict(list)
    for seed in range(surveys):
        rng = np.random.default_rng([seed, number, len(kind)])
        if kind == "patches":
            one = from_sample(rng, setting, number)
        else:
            one = from_mosaics(rng, setting, number) if kind == "mosaics" else from_nothing(rng, setting)
        for name, verdict in one.items():
            judged[name].append(verdict)
    return {name: tuple(np.mean(verdicts, axis=0).tolist()) for name, verdicts in judged.items()}  # type: ignore[misc]


CASES = [("patches", 30), ("patches", 60), ("patches", 120), ("mosaics", 4), ("mosaics", 8), ("mosaics", 16), ("no labels", 0)]


def main() -> None:
    """Simulates, prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--surveys", type=int, default=1000)
    options = parser.parse_args()
    began = time.perf_counter()
    print("| survey | labelled | covers % | width % | labels alone: covers % | width % | ppi_py: covers % | width % |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    inside = total = 0
    for name, setting in SETTINGS.items():
        for kind, number in CASES:
            found = measure(setting, kind, number, options.surveys)
            cells = [
                f"{100 * found[m][0]:.1f} | {100 * found[m][1]:.3g}" if m in found else "|" for m in ("labels alone", "ppi_py")
            ]
            ours = f"{100 * found['ours'][0]:.1f}" + (f" ({100 * found['shifted'][0]:.1f})" if "shifted" in found else "")
            label = f"{number} {kind}" if number else kind
            print(f"| {name} | {label} | {ours} | {100 * found['ours'][1]:.3g} | {' | '.join(cells)} |", flush=True)
            inside, total = inside + (0.93 <= round(found["ours"][0], 3) <= 0.97), total + 1
    seconds = time.perf_counter() - began
    print(f"\n{inside} of {total} rows within 93 to 97 %; {options.surveys} surveys a row, {seconds:.0f} s")


if __name__ == "__main__":
    main()
