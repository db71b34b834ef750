"""A picture of boxes and of the anchors that suit them: their sides on logarithmic axes, and the anchors to scale. A PNG."""

import io
import math
from typing import Any

import numpy as np

from survey.box_shapes import Fit

BLUE, VERMILLION = "#0072b2", "#d55e00"  # Okabe and Ito's, as in survey.drawing: apart in every kind of colour vision
DOTS = 20_000  # boxes drawn: more make no other picture
TICKS = (1, 2, 5, 10, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000, 2000, 5000)  # px, as far as the boxes reach


def draw(sizes_px: np.ndarray, found: Fit, *, title: str, seed: int = 0) -> bytes:
    """The picture.

    Args:
      sizes_px: float [N, 2], (width, height); of more than `DOTS` a random sample is drawn.
      found: the anchors.
      title: whose boxes they are.
      seed: of the sample.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sides = sizes_px[np.isfinite(sizes_px).all(axis=1) & (sizes_px > 0).all(axis=1)]
    if len(sides) > DOTS:
        sides = sides[np.random.default_rng(seed).choice(len(sides), DOTS, replace=False)]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 5.6), dpi=120, layout="constrained")
    _scatter(left, sides, found)
    _outlines(right, found)
    anchors = "1 anchor" if len(found.anchors_px) == 1 else f"{len(found.anchors_px)} anchors"
    judged = f"mean best IoU {found.mean_best_iou:.3f}, {100 * found.share_below_half:.1f} % below 0.5"
    figure.suptitle(f"{title}: {found.boxes:,} boxes, {anchors}, {judged}", fontsize=11)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    pyplot.close(figure)
    return stream.getvalue()


def _scatter(axes: Any, sides: np.ndarray, found: Fit) -> None:
    """Each box a dot at its width and height; the lines are shapes of one aspect ratio."""
    anchors = np.array(found.anchors_px)
    # Dots as faint as they are many, so that the densest part is dark and single boxes are still seen.
    faint = float(np.clip(14 / math.sqrt(len(sides)), 0.08, 0.7))
    axes.scatter(sides[:, 0], sides[:, 1], s=10, color=BLUE, alpha=faint, linewidths=0)
    axes.scatter(anchors[:, 0], anchors[:, 1], s=170, color=VERMILLION, edgecolors="white", linewidths=1.2, alpha=0.9, zorder=3)
    for i, place in enumerate(found.anchors_px, start=1):
        axes.annotate(f"{i}", place, ha="center", va="center_baseline", fontsize=8, color="white", weight="bold", zorder=4)
    both = np.concatenate([sides, anchors])
    low, high = float(both.min()) / 1.15, float(both.max()) * 1.15
    for ratio, text in ((0.5, "1:2"), (1.0, "1:1"), (2.0, "2:1")):
        axes.plot([low, high], [low / ratio, high / ratio], color="0.7", linewidth=0.8, linestyle="--", zorder=0)
        at = high / 1.05 * min(1.0, ratio)
        clear = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        axes.annotate(text, (at, at / ratio), ha="right", va="top", fontsize=8, color="0.3", bbox=clear, zorder=1)
    axes.set(
        xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal", xlabel="width, px", ylabel="height, px"
    )
    axes.minorticks_off()
    ticks = _spread([tick for tick in TICKS if low <= tick <= high], low, high)
    axes.set_xticks(ticks, [f"{tick}" for tick in ticks])
    axes.set_yticks(ticks, [f"{tick}" for tick in ticks])
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("boxes (dots) and anchors (numbers); broken lines: width : height", fontsize=10)


def _outlines(axes: Any, found: Fit) -> None:
    """The anchors side by side, all to one scale, with the share of the boxes that each suits best."""
    from matplotlib.patches import Rectangle

    columns = math.ceil(math.sqrt(len(found.anchors_px)))
    rows = math.ceil(len(found.anchors_px) / columns)
    cell = max(side for sides in found.anchors_px for side in sides)
    wide, tall = 1.15 * cell, 1.45 * cell  # a cell has room for two lines of text below its anchor
    for i, ((width, height), boxes) in enumerate(zip(found.anchors_px, found.boxes_per_anchor, strict=True)):
        x, y = (i % columns + 0.5) * wide, (i // columns) * tall + cell / 2
        corner = (x - width / 2, y - height / 2)
        axes.add_patch(Rectangle(corner, width, height, facecolor=VERMILLION, alpha=0.15, linewidth=0))
        axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=VERMILLION, linewidth=1.5))
        text = f"{i + 1}:  {width:.4g} × {height:.4g}\n{100 * boxes / found.boxes:.0f} % of boxes"
        axes.annotate(text, (x, y + cell / 2 + 0.03 * cell), ha="center", va="top", fontsize=max(5.5, 10 - 0.6 * columns))
    axes.set(xlim=(0, columns * wide), ylim=(rows * tall, -0.05 * cell), aspect="equal")
    axes.axis("off")
    axes.set_title("anchors to one scale: width × height in px", fontsize=10)


def _spread(ticks: list[int], low: float, high: float) -> list[int]:
    """Those of the ticks whose labels stand clear of each other: a fourteenth of the axis apart."""
    kept: list[int] = []
    for tick in ticks:
        if not kept or math.log(tick / kept[-1]) >= math.log(high / low) / 14:
            kept.append(tick)
    return kept
