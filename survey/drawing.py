"""The look that our pages share: `page.css` beside this file, colours, and boxes as SVG."""

import os
from dataclasses import dataclass

import numpy as np

FOLDER = os.path.dirname(os.path.abspath(__file__))  # where templates find page.css

# Okabe and Ito's palette (2008), which people with any common colour blindness tell apart, without its black, which drowns in
# imagery. Repeated with other dashes for more classes than colours, so that colour is never the only difference.
PALETTE = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
DASHES = ("", "7 4", "2 3")


@dataclass(frozen=True, slots=True)
class Style:
    """How the boxes of one layer are drawn: colour as #RRGGBB, dash as SVG's stroke-dasharray ("" for solid)."""

    colour: str
    dash: str


def class_style(index: int) -> Style:
    """Style of the class at this position of the label map."""
    return Style(PALETTE[index % len(PALETTE)], DASHES[index // len(PALETTE) % len(DASHES)])


def box_path(boxes: np.ndarray, decimals: int = 1) -> str:
    """Boxes [N, 4] yxyx as one SVG path: a hundred thousand of them are one element for the browser.

    >>> box_path(np.array([[2.0, 1.0, 5.5, 4.0]]))
    'M1 2h3v3.5h-3z'
    """
    parts = []
    for y0, x0, y1, x1 in np.round(boxes.astype(float), decimals).tolist():
        width = f"{x1 - x0:.{decimals}f}".removesuffix(".0")
        parts.append(f"M{x0:g} {y0:g}h{width}v{f'{y1 - y0:.{decimals}f}'.removesuffix('.0')}h-{width}z")
    return "".join(parts)
