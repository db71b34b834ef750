"""Geometry of the report's charts; report.html draws them as inline SVG, so they are crisp, small and follow its colours."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from survey.drawing import DASHES, Style
from survey.metrics import Operating
from survey.reliability import Reliability

# The chart's own units, as in the viewBox of report.html: the plot lies from (LEFT, TOP) to (RIGHT, BOTTOM) of 480 x 350.
LEFT, TOP, RIGHT, BOTTOM = 54.0, 14.0, 466.0, 300.0
BINS = 25
# Okabe-Ito again, the ones that are dark enough for lines on white and light enough on black.
_LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


@dataclass(frozen=True, slots=True)
class Tick:
    """A labelled position along an axis, in chart units."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Line:
    """One precision-recall curve.

    Attributes:
      label: for people.
      style: how it is drawn.
      path: SVG path data.
      point: where the score threshold puts it, None if undefined.
      key: "CLASS IOU", their positions, a dash for all classes: what report.js moves the point by.
    """

    label: str
    style: Style
    path: str
    point: tuple[float, float] | None
    key: str


@dataclass(frozen=True, slots=True)
class IsoF1:
    """The line along which F1 has one value, and where its label goes."""

    label: str
    path: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class PrecisionRecall:
    """A chart of recall (across) and precision (up), both 0 to 1."""

    lines: tuple[Line, ...]
    iso_f1: tuple[IsoF1, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


@dataclass(frozen=True, slots=True)
class Bar:
    """One bin of the histogram: how many are in it, left edge and width, and the tops of its parts that count and that do not."""

    number: int
    x: float
    width: float
    counted_y: float
    counted_height: float
    rest_y: float
    rest_height: float


@dataclass(frozen=True, slots=True)
class Histogram:
    """Detections by score; the part at or above the threshold counts."""

    bars: tuple[Bar, ...]
    top: int  # what the upper end of the axis stands for
    threshold_x: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def _x(value: float) -> float:
    return round(LEFT + value * (RIGHT - LEFT), 1)


def _y(value: float) -> float:
    return round(BOTTOM - value * (BOTTOM - TOP), 1)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points) if points else ""


def precision_recall(curves: Sequence[tuple[str, Sequence[float], Sequence[float], Operating, str]]) -> PrecisionRecall:
    """The chart of up to as many curves as there are line colours.

    Args:
      curves: (label, recall [P] ascending, precision [P], operating point, key) of each.
    """
    lines = []
    for i, (label, recall, precision, at, key) in enumerate(curves[: len(_LINES)]):
        pairs = [(_x(r), _y(p)) for r, p in zip(recall, precision, strict=True) if not math.isnan(r)]
        # From recall 0 the curve runs level into its first point.
        points = [(_x(0), pairs[0][1]), *pairs] if pairs else []
        marked = not (math.isnan(at.precision) or math.isnan(at.recall))
        dash = DASHES[i % len(DASHES)]
        point = (_x(at.recall), _y(at.precision)) if marked else None
        lines.append(Line(label, Style(_LINES[i], dash), _path(points), point, key))
    ticks = [i / 5 for i in range(6)]
    return PrecisionRecall(
        lines=tuple(lines),
        iso_f1=tuple(_iso_f1(f1) for f1 in (0.2, 0.4, 0.6, 0.8)),
        x_ticks=tuple(Tick(_x(t), f"{t:g}") for t in ticks),
        y_ticks=tuple(Tick(_y(t), f"{t:g}") for t in ticks),
    )


def _iso_f1(f1: float) -> IsoF1:
    # F1 = 2 p r / (p + r), so p = f1 r / (2 r - f1): from (f1 / (2 - f1), 1) to (1, f1 / (2 - f1)).
    recall = np.linspace(f1 / (2 - f1), 1, 40)
    precision = f1 * recall / (2 * recall - f1)
    points = [(_x(r), _y(p)) for r, p in zip(recall.tolist(), precision.tolist(), strict=True)]
    return IsoF1(f"F1 {f1:g}", _path(points), *points[-1])


def histogram(scores: np.ndarray, threshold: float) -> Histogram:
    """Detections by score.

    Args:
      scores: [N], in [0, 1].
      threshold: a detection counts from this score on.
    """
    edges = np.linspace(0, 1, BINS + 1)
    everything = np.histogram(scores, edges)[0]
    counted = np.histogram(scores[scores >= np.float32(threshold)], edges)[0]
    step = _round_step(max(1, int(everything.max())) / 4)
    top = step * max(1, math.ceil(int(everything.max()) / step))
    bars = []
    for i in range(BINS):
        high, low = _y(everything[i] / top), _y(counted[i] / top)
        left, wide = round(_x(i / BINS) + 0.8, 1), round(_x(1 / BINS) - LEFT - 1.6, 1)
        bars.append(Bar(int(everything[i]), left, wide, low, round(BOTTOM - low, 1), high, round(BOTTOM - high, 1)))
    return Histogram(
        bars=tuple(bars),
        top=top,
        threshold_x=_x(min(max(threshold, 0.0), 1.0)),
        x_ticks=tuple(Tick(_x(i / 5), f"{i / 5:g}") for i in range(6)),
        y_ticks=tuple(Tick(_y(value / top), f"{value:,}") for value in range(0, top + 1, step)),
    )


def _round_step(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50 .. that is at least this."""
    power = 10 ** max(0, math.floor(math.log10(least)))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= least)


@dataclass(frozen=True, slots=True)
class Mark:
    """One bin of the reliability chart: the point, and the ends of the interval about its precision."""

    x: float
    y: float
    low_y: float
    high_y: float
    label: str


@dataclass(frozen=True, slots=True)
class Series:
    """One calibration curve: a mark a bin, and SVG path data through them."""

    label: str
    style: Style
    marks: tuple[Mark, ...]
    path: str


@dataclass(frozen=True, slots=True)
class ReliabilityChart:
    """A chart of mean score (across) and share that is right (up), both 0 to 1.

    Attributes:
      series: the curves.
      diagonal: where scores are probabilities.
      x_ticks: along the lower side.
      y_ticks: along the left side.
    """

    series: tuple[Series, ...]
    diagonal: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def reliability(curves: Sequence[tuple[str, Sequence[Reliability]]]) -> ReliabilityChart:
    """The chart of calibration curves.

    Args:
      curves: (label, bins of detections of similar score, lowest first) of each.
    """
    series = []
    for i, (name, bins) in enumerate(curves):
        marks = []
        for one in bins:
            low, high = wilson(one.precision, one.number)
            label = f"mean score {one.mean_score:.3f}: {100 * one.precision:.0f} % of {one.number:,} right"
            marks.append(Mark(_x(one.mean_score), _y(one.precision), _y(low), _y(high), label))
        path = _path([(mark.x, mark.y) for mark in marks])
        series.append(Series(name, Style(_LINES[i], DASHES[i % len(DASHES)]), tuple(marks), path))
    ticks = [i / 5 for i in range(6)]
    return ReliabilityChart(
        series=tuple(series),
        diagonal=_path([(_x(0), _y(0)), (_x(1), _y(1))]),
        x_ticks=tuple(Tick(_x(t), f"{t:g}") for t in ticks),
        y_ticks=tuple(Tick(_y(t), f"{t:g}") for t in ticks),
    )


def wilson(share: float, number: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927, Probable inference, the law of succession, and statistical inference).

    >>> [round(end, 3) for end in wilson(0.5, 10)]
    [0.237, 0.763]
    """
    z = 1.959964
    middle = (share + z * z / (2 * number)) / (1 + z * z / number)
    half = z / (1 + z * z / number) * math.sqrt(share * (1 - share) / number + z * z / (4 * number * number))
    return max(0.0, middle - half), min(1.0, middle + half)
