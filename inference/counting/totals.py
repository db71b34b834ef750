"""The rows of `rookery count`: which estimator of `intervals` for which mosaics and classes, and on what it rests."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from inference.counting import intervals
from inference.counting.expected import Units, Worth
from inference.counting.intervals import Total
from inference.counting.label_sample import Sample
from inference.estimates import Estimate
from survey.detections import Detections, Manifest
from survey.errors import InputError
from survey.model import ModelSpec

# With fewer labelled patches of its own, a mosaic or stratum gets the whole survey's correction.
OWN_LABELS = 10
# Four mosaics give three degrees of freedom, a factor of 3.2 instead of 2; with three it is 4.3 and the interval says nothing.
LEAST_MOSAICS = 4

VALIDATED = ("objects_found", "true_count", "calibrated_count", "count_error", "count_dispersion", "count_units")


@dataclass(frozen=True)
class Result:
    """What a situation gives.

    Attributes:
      method: in words.
      assumptions: in sentences.
      units, labelled_units: of the survey; 0 without labels.
      total: the total of some mosaics (positions) and classes (ids from 0).
    """

    method: str
    assumptions: tuple[str, ...]
    units: int
    labelled_units: int
    total: Callable[[Sequence[int], Sequence[int]], Total]


def rows(
    result: Result, manifest: Manifest, found: dict[str, Detections], strata: dict[str, list[int]], confidence: float
) -> Iterator[Estimate]:
    """All mosaics, then strata, then each mosaic; within each all classes, then each class.

    Args:
      result: of one of the situations.
      manifest: of the detections.
      found: all of them, by mosaic.
      strata: positions of mosaics, by stratum.
      confidence: of the intervals.
    """
    names = [mosaic.name for mosaic in manifest.mosaics]
    counted = np.zeros((len(names), len(manifest.classes)), np.int64)
    for i, name in enumerate(names):
        ids = found[name].class_ids[found[name].scores >= np.float32(manifest.score_threshold)]
        counted[i] = np.bincount(ids - 1, minlength=len(manifest.classes))
    parts = [("", "", list(range(len(names)))), *(("", stratum, members) for stratum, members in strata.items())]
    parts += [(name, "", [i]) for i, name in enumerate(names)]
    everything = list(range(len(manifest.classes)))
    for mosaic, stratum, members in parts:
        for class_name, classes in [("", everything), *((name, [k]) for k, name in enumerate(manifest.classes))]:
            between = intervals.interval(result.total(members, classes), confidence)
            number = int(counted[np.ix_(members, classes)].sum())
            yield Estimate(mosaic, stratum, class_name, number, between.estimate, between.low, between.high)


def without_labels(manifest: Manifest, found: dict[str, Detections], spec: ModelSpec) -> Result:
    """Situation 1: nobody labelled anything of this survey.

    Raises:
      InputError: the model lacks what its validation should say.
    """
    lacking = [name for name in VALIDATED if name not in spec.validation] + ["calibration"] * (not spec.calibration)
    if lacking or min(spec.validation[name] for name in ("objects_found", "calibrated_count", "count_units")) <= 0:
        why = f"lacks {', '.join(lacking)}" if lacking else "was validated on too few objects"
        raise InputError(
            f"the model {manifest.model} {why}: without labels of this survey an interval comes from the model's validation; "
            "train and export again with this Rookery, or label some patches: rookery count --label_sample"
        )
    at = spec.validation
    recall = at["objects_found"] / at["true_count"]
    sums = np.zeros((2, len(manifest.mosaics), len(manifest.classes)))
    worth = Worth(spec.calibration, manifest.score_threshold, recall)
    for i, mosaic in enumerate(manifest.mosaics):
        one = found[mosaic.name]
        for side, values in enumerate(worth.of_scores(one.scores)):
            sums[side, i] = np.bincount(one.class_ids - 1, values, len(manifest.classes))

    def total(mosaics: Sequence[int], classes: Sequence[int]) -> Total:
        expected, variance = (float(side[np.ix_(mosaics, classes)].sum()) for side in sums)
        return intervals.from_validation(
            expected,
            variance,
            ratio=at["true_count"] / at["calibrated_count"],
            ratio_error=at["count_error"],
            dispersion=at["count_dispersion"],
            units=at["count_units"],
            recall=recall,
        )

    return Result(
        "no labels of this survey: calibrated scores, corrected for recall by the model's validation",
        (
            "The survey looks like the model's validation data: same kind of place, season, camera, ground resolution and "
            "density. Nothing in these numbers can notice if it does not.",
            f"Validation was labelled completely: {at['true_count']:.0f} objects, of which {100 * recall:.0f} % were found, "
            "with whatever score.",
            f"The {at['count_units']:.0f} parts of the validation data err independently of each other.",
            "All classes are found and confused alike: calibration and recall are those of all classes together.",
        ),
        0,
        0,
        total,
    )


def labelled_patches(manifest: Manifest, units: Units, sample: Sample, labels: np.ndarray) -> Result:
    """Situation 2: the patches of a random sample were labelled.

    Args:
      manifest: of the detections.
      units: all patches, in the grid of the sample.
      sample: the design.
      labels: float [n, C], objects of each class in the cores of the sample's patches.
    """
    chosen = np.array([patch.patch_id for patch in sample.patches])
    strata = np.array([patch.stratum for patch in sample.patches])
    sizes = np.array(sample.sizes)
    mosaic_of = np.repeat(np.arange(len(manifest.mosaics)), np.diff(units.first))

    def total(mosaics: Sequence[int], classes: Sequence[int]) -> Total:
        here = np.isin(mosaic_of, mosaics)
        expected, true = units.numbers[:, classes].sum(axis=1), labels[:, classes].sum(axis=1)
        own = here[chosen]
        if here.all() or own.sum() >= OWN_LABELS:
            return intervals.stratified_total(true * own, expected[chosen] * own, strata, sizes, expected * here)
        whole = intervals.stratified_total(true, expected[chosen], strata, sizes, expected)
        rest = np.ones(len(expected), bool)
        rest[chosen] = False
        shared = intervals.part(
            whole, float(expected[here & rest].sum()), float(expected[rest].sum()), int((here & rest).sum()), len(chosen)
        )
        return intervals.plus(shared, float(true[own].sum()))

    return Result(
        "labelled patches: prediction-powered inference, stratified",
        (
            "The patches of the sample were labelled completely and correctly: every object whose centre lies in the core, and "
            "nothing else. Boxes left as the model drew them make the interval too short.",
            "No patch was left out or exchanged: the sample is random within its strata.",
            f"Parts of the survey with fewer than {OWN_LABELS} labelled patches take the whole survey's correction: there, the "
            "detector errs as it does on the average of the survey.",
            "Objects that nobody can see in the images are in no number.",
        ),
        len(units),
        len(chosen),
        total,
    )


def labelled_mosaics(manifest: Manifest, expected: np.ndarray, labels: dict[int, np.ndarray]) -> Result:
    """Situation 3: some mosaics were labelled wholly.

    Args:
      manifest: of the detections.
      expected: float [mosaics, C].
      labels: float [C] of each labelled mosaic, by its position.

    Raises:
      InputError: some are labelled, but too few.
    """
    every, known = len(manifest.mosaics), sorted(labels)
    if known != list(range(every)) and len(known) < LEAST_MOSAICS:
        raise InputError(
            f"{len(known)} of {every} mosaics are annotated: at least {min(LEAST_MOSAICS, every)} wholly annotated ones are "
            "needed for an interval; annotate more, or label patches all over the survey instead: rookery count --label_sample"
        )
    rest = np.setdiff1d(np.arange(every), known)
    true = np.array([labels[i] for i in known])

    def total(mosaics: Sequence[int], classes: Sequence[int]) -> Total:
        mine = float(sum(labels[i][list(classes)].sum() for i in mosaics if i in labels))
        unlabelled = [i for i in mosaics if i not in labels]
        if not unlabelled:
            return Total(mine, 0.0, float("inf"), known=mine)
        f = expected[:, classes].sum(axis=1)
        whole = intervals.ratio_total(true[:, classes].sum(axis=1), f[known], f[rest])
        if len(unlabelled) == len(rest) and len(mosaics) == every:
            return whole
        shared = intervals.part(whole, float(f[unlabelled].sum()), float(f[rest].sum()), len(unlabelled), len(known))
        return intervals.plus(shared, mine)

    if not len(rest):
        return Result("every mosaic is annotated: nothing is estimated", ("The annotations are complete.",), every, every, total)
    return Result(
        "labelled mosaics: ratio of true to expected numbers, applied to the others",
        (
            "The annotated mosaics were chosen at random, not because they are full, empty, easy or near: on the others the "
            "detector errs in the same way.",
            "The annotated mosaics were annotated completely.",
            "A mosaic's error grows with its size, and mosaics err independently of each other.",
            "Objects that nobody can see in the images are in no number.",
        ),
        every,
        len(known),
        total,
    )
