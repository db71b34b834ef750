"""The files that `evaluate` writes and `report` reads.

evaluation.json   the numbers, and what they were computed from: the fields of `Evaluation`, undefined numbers as null
matches.parquet   for each IoU threshold, one row a detection that counts (tp or fp) and one a missed object (fn): MATCHES_SCHEMA
"""

import dataclasses
import math
import os
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from survey import files
from survey.metrics import Operating

FILE = "evaluation.json"
MATCHES = "matches.parquet"
FORMAT_VERSION = 1

MATCHES_SCHEMA = pa.schema(
    [
        ("at_iou", pa.float64()),  # the IoU threshold of this row's verdict
        ("mosaic", pa.string()),
        ("class_name", pa.string()),
        ("outcome", pa.string()),  # tp: found an object; fp: found none; fn: an object that nobody found
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
class AtIou:
    """Numbers at one IoU threshold.

    Attributes:
      iou: a detection found an object when they overlap at least this much.
      ap: average precision; over all classes, its mean over those that have objects.
      at_score_threshold: when detections from Evaluation.score_threshold on count.
      optimistic_best: at the score threshold that is best on this very set. A bound that no fair choice can beat, not a result.
      recall: [P], of the precision-recall curve, ascending, thinned for drawing.
      precision: [P].
    """

    iou: float
    ap: float
    at_score_threshold: Operating
    optimistic_best: Operating
    recall: tuple[float, ...]
    precision: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Scores:
    """Numbers of one class, or of all together.

    Attributes:
      truths: annotated objects.
      detections: detections of any score.
      ap50: average precision at IoU 0.5.
      coco_ap: average precision, mean over IoU 0.50, 0.55 .. 0.95.
      at_iou: one entry for each IoU asked for, in that order.
    """

    truths: int
    detections: int
    ap50: float
    coco_ap: float
    at_iou: tuple[AtIou, ...]


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
        "overall": _scores(value["overall"]),
        "classes": {name: _scores(scores) for name, scores in value["classes"].items()},
        "counts": tuple(Count(**count) for count in value["counts"]),
        "unannotated": tuple(value["unannotated"]),
    }
    return Evaluation(**{**value, **parsed}), files.read_table(os.path.join(folder, MATCHES))


def _scores(value: dict[str, Any]) -> Scores:
    at_iou = tuple(
        AtIou(
            iou=one["iou"],
            ap=_nan(one["ap"]),
            at_score_threshold=_operating(one["at_score_threshold"]),
            optimistic_best=_operating(one["optimistic_best"]),
            recall=tuple(map(_nan, one["recall"])),
            precision=tuple(map(_nan, one["precision"])),
        )
        for one in value["at_iou"]
    )
    return Scores(value["truths"], value["detections"], _nan(value["ap50"]), _nan(value["coco_ap"]), at_iou)


def _operating(value: dict[str, Any]) -> Operating:
    return Operating(**{**value, **{name: _nan(value[name]) for name in ("precision", "recall", "f1")}})


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: null says that a number is not defined."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
