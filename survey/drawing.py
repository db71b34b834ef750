"""What our pages share: how their templates are read, `page.css` beside this file, colours, and boxes as SVG."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import jinja2

# Okabe and Ito's palette (2008), which people with any common colour blindness tell apart, without its black, which drowns in
# imagery. Repeated with other dashes for more classes than colours, so that colour is never the only difference.
PALETTE = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
DASHES = ("", "7 4", "2 3")


def template(path: str, filters: Mapping[str, Callable[..., str]]) -> "jinja2.Template":
    """A page's template, which may include `page.css`. Whatever it prints is escaped, and a name it does not know is an error.

    Args:
      path: of the template.
      filters: how it prints values, by name.
    """
    import jinja2  # colours alone do not need it, nor does --help

    folder, name = os.path.split(os.path.abspath(path))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, os.path.dirname(os.path.abspath(__file__))]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(name)


@dataclass(frozen=True, slots=True)
class Style:
    """How the boxes of one layer are drawn: colour as #RRGGBB, dash as SVG's stroke-dasharray ("" for solid)."""

    colour: str
    dash: str


# A detection that found an object, one that found none, and an object that was missed, on every picture of ours. Blue, vermillion
# and yellow stay apart in every kind of colour vision, and on vegetation, sand and water.
FOUND, FALSE, MISSED = Style(PALETTE[0], ""), Style(PALETTE[5], "7 4"), Style(PALETTE[3], "2 3")


def class_style(index: int) -> Style:
    """Style of the class at this position of the label map."""
    return Style(PALETTE[index % len(PALETTE)], DASHES[index // len(PALETTE) % len(DASHES)])


def rgb(colour: str) -> tuple[int, int, int]:
    """A colour as numbers.

    >>> rgb("#56B4E9")
    (86, 180, 233)
    """
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue


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
