"""The files that `count` writes and `report` reads.

estimates.json   every estimate with its interval, how it was made and on what it rests: the fields of `Estimates`
estimates.csv    the same rows as a table: mosaic, stratum, class, counted, estimate, low, high
"""

import csv
import dataclasses
import io
import os
from dataclasses import dataclass
from typing import Any

from survey import files

FILE = "estimates.json"
TABLE = "estimates.csv"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Estimate:
    """The number of objects in a part of the survey.

    Attributes:
      mosaic: its name, "" for all mosaics.
      stratum: its name, "" for no stratum in particular.
      class_name: the class, "" for all classes.
      counted: detections at or above the score threshold, as `predict` counts.
      estimate: objects, the best guess.
      low, high: ends of the confidence interval.
    """

    mosaic: str
    stratum: str
    class_name: str
    counted: int
    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Estimates:
    """What `estimates.json` holds, beside its format_version.

    Attributes:
      confidence: of the intervals, such as 0.95.
      method: how the estimates were made, in words.
      assumptions: what must be true for the intervals to hold, in sentences.
      units: patches or mosaics that the survey consists of; 0 where no labels of this survey were used.
      labelled_units: how many of them were labelled.
      rows: the estimates: all mosaics first, then strata, then each mosaic; within each, all classes first.
      calibration: what turned scores into probabilities: "knots", "recall", "score_threshold" and the like.
      detections: sha256 of the files of the detections, by file name, as `inference.evaluate.digests` gives them.
      options: of the run.
      versions: of the packages that computed it.
    """

    confidence: float
    method: str
    assumptions: tuple[str, ...]
    units: int
    labelled_units: int
    rows: tuple[Estimate, ...]
    calibration: dict[str, Any]
    detections: dict[str, str]
    options: dict[str, Any]
    versions: dict[str, str]


def write(folder: str, estimates: Estimates) -> None:
    """Writes `estimates.csv`, then `estimates.json`, each in one step."""
    files.write(os.path.join(folder, TABLE), as_csv(estimates).encode())
    files.write_json(os.path.join(folder, FILE), {"format_version": FORMAT_VERSION, **dataclasses.asdict(estimates)})


def read(folder: str) -> Estimates:
    """Reads estimates.

    Raises:
      InputError: none there, or of another format version.
    """
    path = os.path.join(folder, FILE)
    value = files.read_json(path, "estimates written by `rookery count`")
    files.check_contract(path, value, FORMAT_VERSION, Estimates)
    rows = tuple(Estimate(**row) for row in value["rows"])
    return Estimates(**{**value, "assumptions": tuple(value["assumptions"]), "rows": rows})


def as_csv(estimates: Estimates) -> str:
    """One line an estimate; an empty cell stands for all mosaics, no stratum, all classes."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["mosaic", "stratum", "class", "counted", "estimate", "low", "high", "confidence"])
    for row in estimates.rows:
        numbers = [f"{value:.2f}" for value in (row.estimate, row.low, row.high)]
        writer.writerow([row.mosaic, row.stratum, row.class_name, row.counted, *numbers, f"{estimates.confidence:g}"])
    return out.getvalue()
