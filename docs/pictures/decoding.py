"""Draws docs/pictures/decoding.png: the worked example of docs/decoding.md, by the very functions that decode.

python docs/pictures/decoding.py
"""

import math
import sys
from pathlib import Path

import matplotlib
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import Ellipse, Rectangle

from inference.decode import decode_boxes, sigmoid
from survey.anchors import AnchorSpec

SIZE = 64
ANCHORS = AnchorSpec(3, 4, num_scales=1, aspect_ratios=(0.5, 1.0, 2.0), anchor_size=2.0)
ANCHOR = (3 * 8 + 4) * 3 + 1  # level 3, row 3, column 4, the square
RAW = np.array([0.25, 0.5, math.log(0.75), math.log(1.5)], np.float32)  # ty, tx, th, tw
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#777777"  # told apart by colour-blind eyes too, and by their dashes


def main() -> None:
    """Writes the picture beside this file."""
    anchor = ANCHORS.boxes(SIZE)[ANCHOR]
    (box,) = decode_boxes(RAW[None], anchor[None], (1.0,) * 4)
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(13, 4.9), layout="constrained")
    for axes, title in (
        (left, "1. the three anchors of one cell\n(level 3, row 3, column 4)"),
        (middle, "2. the regressions move and stretch one\nty 0.25, tx 0.5, th log 0.75, tw log 1.5"),
        (right, f"3. box and score\nlogit 2 gives {sigmoid(np.array([2.0]))[0]:.2f}"),
    ):
        ground(axes, title)
    for one in ANCHORS.boxes(SIZE)[ANCHOR - 1 : ANCHOR + 2]:
        outline(left, one, BLUE, "--")
    left.add_patch(Rectangle((32, 24), 8, 8, facecolor=BLUE, alpha=0.25))
    left.text(2, 61, "shaded: the cell, 8 x 8 px", fontsize=9)
    outline(middle, anchor, BLUE, "--")
    outline(middle, box, ORANGE, "-")
    start, end = ((anchor[:2] + anchor[2:]) / 2)[::-1], ((box[:2] + box[2:]) / 2)[::-1]
    middle.annotate("", end, start, arrowprops={"arrowstyle": "->", "linewidth": 1.8})
    middle.text(2, 5, "dashed: anchor 16 x 16 px about (28, 36)", fontsize=9, color=BLUE)
    middle.text(2, 61, "solid: 12 high, 24 wide, about (32, 44)", fontsize=9, color=ORANGE)
    outline(right, box, ORANGE, "-")
    y0, x0, y1, x1 = box
    right.text(2, 61, f"(y0, x0, y1, x1) = ({y0:.0f}, {x0:.0f}, {y1:.0f}, {x1:.0f}) px", fontsize=9, color=ORANGE)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=90)


def ground(axes: Axes, title: str) -> None:
    """A patch of 64 px with the cells of level 3 and an object."""
    axes.set(title=title, xlim=(0, SIZE), ylim=(SIZE, 0), aspect="equal", xlabel="x (px)", ylabel="y (px)")
    axes.set_xticks(range(0, SIZE + 1, 8))
    axes.set_yticks(range(0, SIZE + 1, 8))
    axes.grid(color=GREY, alpha=0.35, linewidth=0.6)
    axes.add_patch(Ellipse((44, 32), 23, 11, facecolor="#c9c29a", edgecolor=GREY))


def outline(axes: Axes, box: np.ndarray, color: str, style: str) -> None:
    """A box (y0, x0, y1, x1)."""
    y0, x0, y1, x1 = box
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color, linestyle=style, linewidth=2))


if __name__ == "__main__":
    main()
