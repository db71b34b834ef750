"""The files that `evaluate` writes and `report` reads.

evaluation.json   the numbers, and what they were computed from: the fields of `Evaluation`, undefined numbers as null
matches.parquet   for each IoU threshold, one row a detection that counts (tp or fp) and one a missed object (fn): MATCHES_SCHEMA
"""

import dataclasses
import math
import os
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa

from survey import files
from survey.metrics import CountSpread, Operating
from survey.reliability import Reliability

T = TypeVar("T")

FILE = "evaluation.json"
MATCHES = "matches.parquet"
FORMAT_VERSION = 2

BACKGROUND = "background"  # in a confusion of classes: no object, or nothing found
NEAR_FALSE = "near_false"  # of an object that nobody found, though a false detection was near: wrong_class or localisation

MATCHES_SCHEMA = pa.schema(
    [
        ("at_iou", pa.float64()),  # the IoU threshold of this row's verdict
        ("mosaic", pa.string()),
        ("class_name", pa.string()),
        ("outcome", pa.string()),  # tp: found an object; fp: found none; fn: an object that nobody found
        ("kind", pa.string()),  # fp: the kind of error, fn: missed, or near_false beside a false detection; see survey.breakdown
        ("score", pa.float32()),  # null for fn
        ("y0", pa.float32()),  # the detection in mosaic pixels, half-open; null for fn
        ("x0", pa.float32()),
        ("y1", pa.float32()),
        ("x1", pa.float32()),
        ("iou", pa.float32()),  # of detection and object; null unless tp
        ("truth_y0", pa.float32()),  # the object in mosaic pixels; null for fp
        ("truth_x0", pa.float32()),
        ("truth_y1", pa.float32()),
        ("truth_x1", pa.float32()),
    ]
)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of error, at one IoU threshold.

    Attributes:
      kind: one of `survey.breakdown.KINDS`.
      number: detections that count (of missed: objects) of this kind; over the kinds of detections they sum to the false ones.
      ap_gain: how much the average precision over detections of any score would rise if this kind alone were put right.
    """

    kind: str
    number: int
    ap_gain: float


@dataclass(frozen=True, slots=True)
class Confusion:
    """What was taken for what, matching regardless of class; detections that count.

    Attributes:
      labels: the classes, then "background".
      counts: counts[i][j] objects of labels[i] were found as labels[j]. Last row: detections of nothing. Last column: objects
        that nothing was found on.
    """

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class AtIou:
    """Numbers at one IoU threshold.

    Attributes:
      iou: a detection found an object when they overlap at least this much.
      ap: average precision; over all classes, its mean over those that have objects.
      at_score_threshold: when detections from Evaluation.score_threshold on count.
      optimistic_best: at the score threshold that is best on this very set. A bound that no fair choice can beat, not a result.
      recall: [P], of the precision-recall curve, ascending, thinned for drawing.
      precision: [P].
      reliability: detections of any score in bins, lowest scores first, see `survey.reliability`; none without detections.
      calibration_error: expected calibration error of these bins; undefined without detections.
      errors: how many of each kind, in the order of `survey.breakdown.KINDS`.
      confusion: over all classes; None in the scores of one class.
    """

    iou: float
    ap: float
    at_score_threshold: Operating
    optimistic_best: Operating
    recall: tuple[float, ...]
    precision: tuple[float, ...]
    reliability: tuple[Reliability, ...]
    calibration_error: float
    errors: tuple[Kind, ...]
    confusion: Confusion | None


@dataclass(frozen=True, slots=True)
class AtSize:
    """Numbers at one IoU threshold for objects of one size; detections and objects of other sizes are ignored as COCO does.

    Attributes:
      iou: the threshold.
      ap: average precision.
      at_score_threshold: when detections from Evaluation.score_threshold on count.
    """

    iou: float
    ap: float
    at_score_threshold: Operating


@dataclass(frozen=True, slots=True)
class SizeScores:
    """Numbers for objects of one size.

    Attributes:
      name: small, medium or large.
      from_px: side of a square of the least area, in pixels of the mosaic.
      to_px: side of a square of the greatest area; None where there is no bound.
      truths: annotated objects of this size. One whose area lies exactly on a bound is of both sizes, as COCO has it.
      ap50: average precision at IoU 0.5.
      coco_ap: average precision, mean over IoU 0.50, 0.55 .. 0.95.
      at_iou: one entry for each IoU asked for, in that order.
    """

    name: str
    from_px: float
    to_px: float | None
    truths: int
    ap50: float
    coco_ap: float
    at_iou: tuple[AtSize, ...]


@dataclass(frozen=True, slots=True)
class Scores:
    """Numbers of one class, or of all together.

    Attributes:
      truths: annotated objects.
      detections: detections of any score.
      ap50: average precision at IoU 0.5.
      coco_ap: average precision, mean over IoU 0.50, 0.55 .. 0.95.
      at_iou: one entry for each IoU asked for, in that order.
      sizes: small, medium, large.
      over_mosaics: how far the counts of whole mosaics are off.
      over_cells: how far the counts of the cells of a grid laid over the mosaics are off, so that one mosaic gives something.
    """

    truths: int
    detections: int
    ap50: float
    coco_ap: float
    at_iou: tuple[AtIou, ...]
    sizes: tuple[SizeScores, ...]
    over_mosaics: CountSpread
    over_cells: CountSpread


@dataclass(frozen=True, slots=True)
class Count:
    """Objects of one class in one mosaic.

    Attributes:
      mosaic: its name.
      class_name: the class.
      found: detections at or above the score threshold.
      true: annotated objects.
    """

    mosaic: str
    class_name: str
    found: int
    true: int


@dataclass(frozen=True)
class Evaluation:
    """What `evaluation.json` holds, beside its format_version.

    Attributes:
      created_utc: when.
      score_threshold: of the detections manifest: the model's own, chosen on validation, unless predict was given another.
      gsd_m: (smallest, largest) metres that a pixel of the evaluated mosaics covers; None where one of them does not say.
      cell_px: side of the cells of Scores.over_cells, about: each mosaic is divided evenly.
      overall: over all classes: AP is the mean over classes, precision, recall and F1 are of all boxes pooled.
      classes: by name, every class of the model.
      counts: every class in every evaluated mosaic.
      unannotated: mosaics that were predicted but have no annotations: in no number here.
      truth: boxes read, clipped to their mosaic, and dropped because nothing of them lies in it.
      annotations: sha256 of each annotation file, by path.
      detections: sha256 of the files of the detections, by file name.
      model_digest: the model's.
      options: of the run.
      versions: of the packages that computed it.
    """

    created_utc: str
    score_threshold: float
    gsd_m: tuple[float, float] | None
    cell_px: int
    overall: Scores
    classes: dict[str, Scores]
    counts: tuple[Count, ...]
    unannotated: tuple[str, ...]
    truth: dict[str, int]
    annotations: dict[str, str]
    detections: dict[str, str]
    model_digest: str
    options: dict[str, Any]
    versions: dict[str, str]


def write(folder: str, evaluation: Evaluation, matches: pa.Table) -> None:
    """Writes `matches.parquet`, then `evaluation.json`, each in one step."""
    files.write_table(os.path.join(folder, MATCHES), matches)
    value = {"format_version": FORMAT_VERSION, **_without_nan(dataclasses.asdict(evaluation))}
    files.write_json(os.path.join(folder, FILE), value)


def read(folder: str) -> tuple[Evaluation, pa.Table]:
    """Reads an evaluation and its matches.

    Raises:
      InputError: no evaluation there, or one of another format version.
    """
    path = os.path.join(folder, FILE)
    value = files.read_json(path, "an evaluation written by `rookery evaluate`")
    files.check_contract(path, value, FORMAT_VERSION, Evaluation)
    parsed = {
        "gsd_m": value["gsd_m"] and tuple(value["gsd_m"]),
        "overall": _scores(value["overall"]),
        "classes": {name: _scores(scores) for name, scores in value["classes"].items()},
        "counts": tuple(Count(**count) for count in value["counts"]),
        "unannotated": tuple(value["unannotated"]),
    }
    return Evaluation(**{**value, **parsed}), files.read_table(os.path.join(folder, MATCHES))


def _scores(value: dict[str, Any]) -> Scores:
    return Scores(
        truths=value["truths"],
        detections=value["detections"],
        ap50=_nan(value["ap50"]),
        coco_ap=_nan(value["coco_ap"]),
        at_iou=tuple(map(_at_iou, value["at_iou"])),
        sizes=tuple(map(_size, value["sizes"])),
        over_mosaics=_plain(CountSpread, value["over_mosaics"]),
        over_cells=_plain(CountSpread, value["over_cells"]),
    )


def _at_iou(one: dict[str, Any]) -> AtIou:
    confusion = one["confusion"]
    return AtIou(
        iou=one["iou"],
        ap=_nan(one["ap"]),
        at_score_threshold=_plain(Operating, one["at_score_threshold"]),
        optimistic_best=_plain(Operating, one["optimistic_best"]),
        recall=tuple(map(_nan, one["recall"])),
        precision=tuple(map(_nan, one["precision"])),
        reliability=tuple(Reliability(**one_bin) for one_bin in one["reliability"]),
        calibration_error=_nan(one["calibration_error"]),
        errors=tuple(_plain(Kind, kind) for kind in one["errors"]),
        confusion=confusion and Confusion(tuple(confusion["labels"]), tuple(map(tuple, confusion["counts"]))),
    )


def _size(value: dict[str, Any]) -> SizeScores:
    at_iou = tuple(AtSize(o["iou"], _nan(o["ap"]), _plain(Operating, o["at_score_threshold"])) for o in value["at_iou"])
    numbers = {name: _nan(value[name]) for name in ("ap50", "coco_ap")}
    return SizeScores(**{**value, **numbers, "at_iou": at_iou})


def _plain(kind: type[T], value: dict[str, Any]) -> T:
    """A dataclass of numbers and words, of which null is a number that is not defined."""
    return kind(**{name: _nan(item) for name, item in value.items()})


def _nan(value: Any) -> Any:
    return math.nan if value is None else value


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: null says that a number is not defined."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
