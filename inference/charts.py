"""Geometry of the report's two charts; report.html draws them as inline SVG, so they are crisp, small and follow its colours."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from survey.drawing import DASHES, Style
from survey.metrics import Operating

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
    """One precision-recall curve: SVG path data, and the point where the score threshold puts it (None if undefined)."""

    label: str
    style: Style
    path: str
    point: tuple[float, float] | None


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
    """One bin of the histogram: left edge and width, and the tops of its parts that count and that do not."""

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
    threshold_x: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def _x(value: float) -> float:
    return round(LEFT + value * (RIGHT - LEFT), 1)


def _y(value: float) -> float:
    return round(BOTTOM - value * (BOTTOM - TOP), 1)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points) if points else ""


def precision_recall(curves: Sequence[tuple[str, Sequence[float], Sequence[float], Operating]]) -> PrecisionRecall:
    """The chart of up to as many curves as there are line colours.

    Args:
      curves: (label, recall [P] ascending, precision [P], operating point) of each.
    """
    lines = []
    for i, (label, recall, precision, at) in enumerate(curves[: len(_LINES)]):
        pairs = [(_x(r), _y(p)) for r, p in zip(recall, precision, strict=True) if not math.isnan(r)]
        # From recall 0 the curve runs level into its first point.
        points = [(_x(0), pairs[0][1]), *pairs] if pairs else []
        marked = not (math.isnan(at.precision) or math.isnan(at.recall))
        dash = DASHES[i % len(DASHES)]
        lines.append(Line(label, Style(_LINES[i], dash), _path(points), (_x(at.recall), _y(at.precision)) if marked else None))
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
        bars.append(
            Bar(_x(i / BINS) + 0.8, round(_x(1 / BINS) - LEFT - 1.6, 1), low, round(BOTTOM - low, 1), high, round(low - high, 1))
        )
    return Histogram(
        bars=tuple(bars),
        threshold_x=_x(min(max(threshold, 0.0), 1.0)),
        x_ticks=tuple(Tick(_x(i / 5), f"{i / 5:g}") for i in range(6)),
        y_ticks=tuple(Tick(_y(value / top), f"{value:,}") for value in range(0, top + 1, step)),
    )


def _round_step(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50 .. that is at least this."""
    power = 10 ** max(0, math.floor(math.log10(least)))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= least)
