"""The page of `rookery doctor`: verdicts, charts of the boxes, and patches with their boxes drawn; one file, no network."""

import base64
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from survey import dataset, drawing, provenance
from survey.dataset import Dataset
from survey.drawing import Style
from tpu_train import checks, fitness
from tpu_train.checks import Check
from tpu_train.fitness import Anchors
from tpu_train.inspection import Inspection
from tpu_train.traps import TRAPS

TEMPLATE = "doctor.html"
FILTERS = {"number": lambda value: f"{value:,}", "percent": lambda value: f"{100 * value:.1f}\N{NO-BREAK SPACE}%"}
Pixels = np.ndarray  # uint8 [H, W, 3]

# Units of the charts, as in the viewBox of doctor.html.
LEFT, TOP, RIGHT, BOTTOM = 54.0, 14.0, 466.0, 300.0
BINS = 24
TILE_PX = 416  # longest side stored of a patch on the sheet: sharp at the 260 px that it is shown at on most screens
JPEG_QUALITY = 80
FULLEST, OTHERS, EMPTY = 3, 3, 2  # patches of each split on the sheet


@dataclass(frozen=True, slots=True)
class Tick:
    """A labelled position along an axis, in chart units."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a stacked bar: which kind it is, and where."""

    kind: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Chart:
    """A histogram of stacked bars.

    Attributes:
      parts: of all bars.
      x_ticks, y_ticks: along the axes.
      marks: vertical lines with a label.
    """

    parts: tuple[Part, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[Tick, ...]


@dataclass(frozen=True, slots=True)
class Tile:
    """A patch on the sheet: its picture as a data URI, and SVG path data of its boxes in patch pixels, by class."""

    patch_id: int
    place: str
    objects: int
    image: str
    layers: tuple[tuple[Style, str], ...]
    kind: str


def render(
    folder: str,
    data: Dataset,
    seen: Inspection,
    verdicts: Sequence[Check],
    fit: Anchors,
    image: Callable[[int], Pixels | None],
    *,
    sample: int,
    seed: int,
) -> str:
    """The page.

    Args:
      folder: of the dataset.
      data: its manifest.
      seen: what was read.
      verdicts: every check.
      fit: boxes and anchors.
      image: reads the pixels of a patch.
      sample: patches whose pixels were asked for, 0 for all.
      seed: of the choice of patches on the sheet.
    """
    page = drawing.template(os.path.join(os.path.dirname(__file__), TEMPLATE), FILTERS)
    by_trap = {trap.number: [check for check in verdicts if trap.number in check.traps] for trap in TRAPS}
    spec = fit.spec
    return page.render(
        folder=folder,
        name=os.path.basename(os.path.abspath(folder)),
        data=data,
        digest=dataset.digest(folder),
        verdicts=verdicts,
        worst=checks.worst(verdicts),
        headline=checks.headline(verdicts),
        counts={severity: sum(check.severity == severity for check in verdicts) for severity in checks.SEVERITIES},
        patches=len(seen),
        boxes=len(seen.boxes),
        looked=int(seen.seen.sum()),
        sample=sample,
        seed=seed,
        sizes=size_chart(fit) if len(fit.best) else None,
        per_patch=count_chart(seen.objects),
        fit=fit,
        shares=_shares(fit),
        anchor_sides=f"{spec.anchor_size * 2**spec.min_level:.0f} to "
                     f"{spec.anchor_size * 2**spec.max_level * 2 ** ((spec.num_scales - 1) / spec.num_scales):.0f}",
        caps=fitness.caps(data, seen),
        splits=seen.splits,
        records=[int((seen.split == i).sum()) for i in range(len(seen.splits))],
        table=[(name, drawing.class_style(i), row.tolist()) for i, (name, row)
               in enumerate(zip(data.classes, fitness.class_table(data, seen), strict=True))],
        sheet=[(split, list(tiles(i, data, seen, image, seed))) for i, split in enumerate(seen.splits)],
        traps=[(trap, by_trap[trap.number]) for trap in TRAPS],
        now=provenance.now_utc(),
        versions=provenance.versions("tensorflow", "tf-models-official", "numpy"),
    )  # fmt: skip


def _shares(fit: Anchors) -> list[tuple[str, float, float]]:
    """Shares of the boxes whose best anchor has too small an IoU: to learn from, and at all."""
    sets = (("fitted to this dataset", fit.best), ("Model Garden's default", fit.best_garden))
    return [(name, float((best < fit.match).mean()), float((best < fit.unmatched).mean())) for name, best in sets if len(best)]


def size_chart(fit: Anchors) -> Chart:
    """Boxes by side, on a logarithmic axis, stacked by their IoU with the best anchor."""
    sides = np.maximum(fit.sides_px, 0.5)
    low, high = math.floor(math.log2(sides.min()) * 2) / 2, math.ceil(math.log2(sides.max()) * 2) / 2
    high = max(high, low + 2)
    at = np.clip(((np.log2(sides) - low) / (high - low) * BINS).astype(int), 0, BINS - 1)
    kinds = {
        "match": fit.best >= fit.match,
        "between": (fit.best < fit.match) & (fit.best >= fit.unmatched),
        "missed": fit.best < fit.unmatched,
    }
    stacks = {kind: np.bincount(at[flags], minlength=BINS) for kind, flags in kinds.items()}

    def place(px: float) -> float:
        return _x((math.log2(px) - low) / (high - low))

    doublings = range(math.ceil(low), math.floor(high) + 1)
    spec = fit.spec
    marks = [Tick(place(side), f"{side:.0f}") for level in spec.levels
             if 2**low <= (side := spec.anchor_size * 2**level) <= 2**high]  # fmt: skip
    return _stacked(stacks, tuple(Tick(place(2.0**i), f"{2.0**i:g}") for i in doublings), tuple(marks))


def count_chart(objects: np.ndarray) -> Chart:
    """Patches by their number of objects, those without any in another colour; caps as marks where they come into sight."""
    most = max(int(objects.max(initial=0)), 1)
    step = max(1, math.ceil((most + 1) / BINS))
    bins = most // step + 1
    at = objects // step
    stacks = {
        "match": np.bincount(at[objects > 0], minlength=bins),
        "none": np.bincount(at[objects == 0], minlength=bins),
    }
    width = bins * step
    every = _round_step(width / 6)
    ticks = tuple(Tick(_x((value + step / 2) / width if step == 1 else value / width), f"{value:,}")
                  for value in range(0, most + 1, every))  # fmt: skip
    marks = tuple(Tick(_x(cap / width), f"cap {cap}") for cap in (100, 200) if cap < width)
    return _stacked(stacks, ticks, marks)


def tiles(split: int, data: Dataset, seen: Inspection, image: Callable[[int], Pixels | None], seed: int) -> Iterator[Tile]:
    """Patches of a split for the sheet: the fullest, some others that hold objects, some that hold none."""
    rng = np.random.default_rng([seed, split])
    mine = np.flatnonzero(seen.split == split)
    ranked = mine[np.argsort(-seen.objects[mine], kind="stable")]
    full, bare = ranked[seen.objects[ranked] > 0], ranked[seen.objects[ranked] == 0]
    chosen = [(i, "one of the fullest") for i in full[:FULLEST]]
    for pool, number, kind in ((full[FULLEST:], OTHERS, "drawn at random"), (bare, EMPTY, "without objects, drawn at random")):
        chosen += [(i, kind) for i in rng.choice(pool, min(number, len(pool)), replace=False)]
    starts = np.concatenate([[0], np.cumsum(seen.objects)])
    for i, kind in chosen:
        pixels = image(int(i))
        if pixels is None:
            continue
        mine_ = slice(starts[i], starts[i + 1])
        boxes_px, labels = seen.boxes[mine_] * data.patch_size, seen.labels[mine_]
        boxes_px = np.clip(np.nan_to_num(boxes_px), -data.patch_size, 2 * data.patch_size)
        layers = tuple(
            (drawing.class_style(int(label) - 1), drawing.box_path(boxes_px[labels == label])) for label in np.unique(labels)
        )
        yield Tile(int(seen.patch_id[i]), seen.place(i), int(seen.objects[i]), _picture(pixels), layers, kind)


def _picture(pixels: Pixels) -> str:
    longest = max(pixels.shape[:2])
    if longest > TILE_PX:
        sides = [max(1, side * TILE_PX // longest) for side in pixels.shape[:2]]
        pixels = np.asarray(tf.image.resize(pixels, sides, method="area")).round().astype(np.uint8)
    encoded = tf.io.encode_jpeg(pixels, quality=JPEG_QUALITY, optimize_size=True).numpy()
    return "data:image/jpeg;base64," + base64.b64encode(encoded).decode()


def _stacked(stacks: dict[str, np.ndarray], x_ticks: tuple[Tick, ...], marks: tuple[Tick, ...]) -> Chart:
    """Bars from counts by kind, the first kind at the bottom."""
    heights = sum(stacks.values())
    assert isinstance(heights, np.ndarray)
    bins = len(heights)
    step = _round_step(max(1, int(heights.max())) / 4)
    top = step * max(1, math.ceil(int(heights.max()) / step))
    width = (RIGHT - LEFT) / bins
    gap = 1.6 if width > 6 else 0.5
    parts, base = [], np.zeros(bins)
    for kind, counts in stacks.items():
        for i in np.flatnonzero(counts):
            low, high = _y(base[i] / top), _y((base[i] + counts[i]) / top)
            parts.append(Part(kind, round(LEFT + i * width + gap / 2, 1), high, round(width - gap, 1), round(low - high, 1)))
        base += counts
    y_ticks = tuple(Tick(_y(value / top), f"{value:,}") for value in range(0, top + 1, step))
    return Chart(tuple(parts), x_ticks, y_ticks, marks)


def _x(share: float) -> float:
    return round(LEFT + share * (RIGHT - LEFT), 1)


def _y(share: float) -> float:
    return round(BOTTOM - share * (BOTTOM - TOP), 1)


def _round_step(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50 .. that is at least this."""
    power = 10 ** max(0, math.floor(math.log10(max(least, 1))))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= least)
