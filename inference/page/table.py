"""The report's table of counts, and how its numbers are written. report.js writes the same numbers the same way."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from inference.estimates import Estimate, Estimates
from inference.evaluation import Evaluation
from inference.page.embedded import hectares
from survey.detections import Detections, Manifest
from survey.metrics import CountError


@dataclass(frozen=True)
class CountRow:
    """A line of the table of counts.

    Attributes:
      mosaic: its name, or "all mosaics".
      class_name: the class, or "all classes".
      found: detections that count.
      error: None where there are no annotations.
      per_ha: found per hectare, None where the pixel size is unknown.
      estimate: the count with its interval, None where none was made.
      key: "MOSAIC CLASS", their positions, a dash for all: what report.js counts for this line.
    """

    mosaic: str
    class_name: str
    found: int
    error: CountError | None
    per_ha: float | None
    estimate: Estimate | None
    key: str


def count_rows(
    manifest: Manifest, counting: dict[str, Detections], judged: Evaluation | None, estimates: Estimates | None
) -> Iterator[CountRow]:
    """One row a mosaic and class.

    Args:
      manifest: of the detections.
      counting: the detections that count, by mosaic.
      judged: their evaluation, if any.
      estimates: of their numbers, if any.
    """
    true = {} if judged is None else {(count.mosaic, count.class_name): count.true for count in judged.counts}
    for m, mosaic in enumerate(manifest.mosaics):
        area = hectares([mosaic])
        for c, name in enumerate(manifest.classes):
            number = int((counting[mosaic.name].class_ids == c + 1).sum())
            objects = true.get((mosaic.name, name))
            error = None if objects is None else CountError(number, objects)
            estimate = _estimate(estimates, mosaic.name, name, manifest)
            yield CountRow(mosaic.name, name, number, error, number / area if area else None, estimate, f"{m} {c}")


def totals(manifest: Manifest, rows: Sequence[CountRow], estimates: Estimates | None) -> list[CountRow]:
    """One row a class over all mosaics, after one over everything where there are several. Errors are over annotated mosaics."""
    groups = [(name, f"- {c}", [row for row in rows if row.class_name == name]) for c, name in enumerate(manifest.classes)]
    if len(manifest.classes) > 1:
        groups.insert(0, ("all classes", "- -", list(rows)))
    area = hectares(manifest.mosaics)
    made = []
    for name, key, members in groups:
        errors = [row.error for row in members if row.error is not None]
        error = CountError(sum(e.found for e in errors), sum(e.true for e in errors)) if errors else None
        number = sum(row.found for row in members)
        estimate = _estimate(estimates, "", "" if key == "- -" else name, manifest)
        made.append(CountRow("all mosaics", name, number, error, number / area if area else None, estimate, key))
    return made


def strata(estimates: Estimates | None) -> list[Estimate]:
    """The estimates of strata, which are no rows of the table of mosaics."""
    return [] if estimates is None else [row for row in estimates.rows if row.stratum]


def _estimate(estimates: Estimates | None, mosaic: str, class_name: str, manifest: Manifest) -> Estimate | None:
    if estimates is None:
        return None
    made = {(row.mosaic, row.class_name): row for row in estimates.rows if not row.stratum}
    # Of one mosaic or one class there may be only the row that stands for all.
    one = len(manifest.classes) == 1
    return made.get((mosaic, class_name)) or (made.get((mosaic, "")) if one else None)


def rounded(value: float, digits: int) -> float:
    """A number rounded half up, as report.js does it: Python's own rounding goes to the even digit."""
    return math.floor(value * 10**digits + 0.5) / 10**digits


def number(value: float) -> str:
    """Thousands apart: 12,345."""
    return f"{value:,}"


def percent(value: float) -> str:
    """A share in whole percent."""
    return "–" if math.isnan(value) else f"{rounded(100 * value, 0):.0f}\N{NO-BREAK SPACE}%"


def width(value: float) -> str:
    """A share of 1 as a CSS width; an undefined one is empty."""
    return "0" if math.isnan(value) else f"{100 * value:.1f}%"


def ratio(value: float) -> str:
    """Three decimals."""
    return "–" if math.isnan(value) else f"{rounded(value, 3):.3f}"


def signed(error: CountError) -> str:
    """-51 (-18.3 %), with a real minus sign."""
    if error.signed == 0:
        return "±0"
    share = "" if math.isnan(error.relative) else f" ({rounded(100 * error.relative, 1):+.1f}\N{NO-BREAK SPACE}%)"
    return f"{error.signed:+,}{share}".replace("-", "−")


def size(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    if math.isnan(value):
        return "–"
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{rounded(value, digits):,.{digits}f}"


def plus(value: float) -> str:
    """Three significant digits with a sign."""
    return ("+" if value > 0 else "−" if value < 0 else "") + size(abs(value))


def whole(value: float) -> str:
    """An estimate of a number of objects: nobody counts tenths of them, unless there are fewer than ten."""
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.1f}"


FILTERS: dict[str, Callable[..., str]] = {
    "number": number,
    "percent": percent,
    "signed": signed,
    "ratio": ratio,
    "size": size,
    "width": width,
    "plus": plus,
    "whole": whole,
}
