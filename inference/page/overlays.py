"""The report's maps and examples: which boxes and pieces of the mosaics it shows, each within a stated number."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from inference.evaluation import Evaluation
from inference.page import pictures, tiles
from inference.page.pictures import FN, FP, TP, Crop, Layer
from inference.page.tiles import Pyramid
from survey import drawing
from survey.detections import Detections, Manifest
from survey.geometry import Mosaic
from survey.raster import Raster

MAX_MAPS = 40  # more are listed in the table of counts, but not drawn
PICTURE_BYTES = 12 << 20  # JPEG bytes of all maps together, shared evenly; base64 adds a third: 17 MB of the page
MAX_BOXES = 20_000  # drawn over all maps for pages without scripts, 1 MB; the page says so where some are left out
CROPS = 16  # in each row of examples
# survey.breakdown's kinds of error, for people.
KIND_NAMES = {
    "wrong_class": "wrong class",
    "localisation": "badly placed",
    "both": "wrong class and place",
    "duplicate": "double",
    "background": "nothing there",
    "missed": "missed",
}


@dataclass(frozen=True)
class Map:
    """A mosaic with its boxes.

    Attributes:
      index: position of the mosaic in the manifest.
      mosaic: what it is.
      image: overview, a data URI.
      finest_px: longest side of the finest picture in the page.
      full: whether that is the mosaic's own resolution.
      layers: boxes over it.
      drawn: boxes drawn at most per layer without scripts.
      evaluated: whether layers are outcomes (else classes).
    """

    index: int
    mosaic: Mosaic
    image: str
    finest_px: int
    full: bool
    layers: tuple[Layer, ...]
    drawn: int
    evaluated: bool


@dataclass(frozen=True)
class Gallery:
    """A row of examples; with each crop the position of its mosaic if that has a map, else None."""

    title: str
    note: str
    crops: tuple[tuple[Crop, "Box", int | None], ...]


@dataclass(frozen=True)
class Box:
    """One box to show, from a detection or from a match."""

    mosaic: str
    class_name: str
    outcome: str  # tp, fp, fn; "" where it was not judged
    kind: str  # of error, as survey.breakdown names it; "" where there is none
    score: float | None
    iou: float | None
    box: tuple[float, float, float, float]

    def words(self) -> str:
        """What it is, in a line."""
        verdict = {"tp": ", right", "fp": ", false", "fn": ", missed"}.get(self.outcome, "")
        kind = f": {KIND_NAMES.get(self.kind, self.kind)}" if self.outcome == "fp" and self.kind else ""
        score = "" if self.score is None else f", score {self.score:.3f}"
        return f"{self.class_name}{score}{verdict}{kind}"


def unjudged(mosaic: Mosaic, one: Detections, manifest: Manifest) -> Iterator[Box]:
    """The detections of a mosaic without annotations as boxes to show."""
    for box, score, class_id in zip(one.boxes_mosaic_px.tolist(), one.scores.tolist(), one.class_ids.tolist(), strict=True):
        yield Box(mosaic.name, manifest.classes[class_id - 1], "", "", score, None, tuple(box))


def maps(
    manifest: Manifest, shown: list[Box], evaluated: set[str], paths: dict[str, str]
) -> tuple[list[Map], dict[str, Pyramid]]:
    """The maps in the order of the mosaics, of at most MAX_MAPS of them, and their pictures by mosaic.

    Args:
      manifest: of the detections.
      shown: all boxes that count.
      evaluated: mosaics with annotations.
      paths: where each mosaic lies.
    """
    by_mosaic: dict[str, list[Box]] = {mosaic.name: [] for mosaic in manifest.mosaics}
    for box in shown:
        by_mosaic[box.mosaic].append(box)
    chosen = sorted(range(len(manifest.mosaics)), key=lambda i: -len(by_mosaic[manifest.mosaics[i].name]))[:MAX_MAPS]
    made, pyramids = [], {}
    for i in sorted(chosen):
        mosaic = manifest.mosaics[i]
        here = sorted(by_mosaic[mosaic.name], key=_best_first)
        judged = mosaic.name in evaluated
        if judged:
            groups = [("found, right", "tp", TP), ("found, false", "fp", FP), ("missed", "fn", FN)]
            parts = [(label, [box for box in here if box.outcome == outcome], style) for label, outcome, style in groups]
        else:
            parts = [
                (name, [box for box in here if box.class_name == name], drawing.class_style(c))
                for c, name in enumerate(manifest.classes)
            ]
        most = max(1, MAX_BOXES // len(chosen) // len(parts))
        layers = tuple(pictures.layer(label, _array(members), style, most) for label, members, style in parts)
        with Raster(paths[mosaic.name], stretch=mosaic.stretch) as raster:
            pyramid = tiles.build(raster, mosaic.height, mosaic.width, PICTURE_BYTES // len(chosen))
        pyramids[mosaic.name] = pyramid
        finest = pyramid.levels[-1]
        image = tiles.data_uri(pyramid.levels[0].tiles[0])
        made.append(Map(i, mosaic, image, max(finest.height, finest.width), pyramid.full, layers, most, judged))
    return made, pyramids


def galleries(
    manifest: Manifest, shown: list[Box], paths: dict[str, str], judged: Evaluation | None, mapped: Iterable[int]
) -> list[Gallery]:
    """The rows of examples.

    Args:
      manifest: of the detections.
      shown: all boxes that count, and the missed ones.
      paths: where each mosaic lies.
      judged: the evaluation, if any.
      mapped: positions of the mosaics that have a map.
    """
    ranked = sorted(shown, key=_best_first)
    rows: list[tuple[str, str, list[Box]]]
    if judged is None:
        rows = [
            ("Most certain", "The highest scores.", ranked[:CROPS]),
            ("Least certain that still count", "The lowest scores above the threshold.", ranked[::-1][:CROPS]),
        ]
    else:
        kinds = {kind: [box for box in ranked if box.outcome == kind] for kind in ("tp", "fp", "fn")}
        rows = [
            ("Best: found, right", "Highest scores among the detections that match an annotated object.", kinds["tp"][:CROPS]),
            (
                "Worst: found, false",
                "Highest scores among the detections that match none. Look twice: some may be real objects nobody annotated.",
                kinds["fp"][:CROPS],
            ),
            ("Worst: missed", "The largest annotated objects that no detection matches.", kinds["fn"][:CROPS]),
        ]
    crops = _crops(manifest, [box for _, _, members in rows for box in members], paths)
    places = {mosaic.name: i for i, mosaic in enumerate(manifest.mosaics)}
    with_map = set(mapped)
    return [
        Gallery(
            title,
            note,
            tuple((crops[box], box, places[box.mosaic] if places[box.mosaic] in with_map else None) for box in members),
        )
        for title, note, members in rows
    ]


def _crops(manifest: Manifest, wanted: list[Box], paths: dict[str, str]) -> dict[Box, Crop]:
    """Reads each mosaic once, from the top down: some formats can only be read that way."""
    styles = {"tp": TP, "fp": FP, "fn": FN}
    made: dict[Box, Crop] = {}
    for mosaic in manifest.mosaics:
        here = sorted({box for box in wanted if box.mosaic == mosaic.name}, key=lambda box: box.box)
        if not here:
            continue
        with Raster(paths[mosaic.name], stretch=mosaic.stretch) as raster:
            for box in here:
                style = styles.get(box.outcome) or drawing.class_style(manifest.classes.index(box.class_name))
                made[box] = pictures.crop(raster, mosaic, box.box, style, box.class_name, box.score, box.iou)
    return made


def _best_first(box: Box) -> tuple[float, float]:
    y0, x0, y1, x1 = box.box
    return (-(box.score or 0.0), -(y1 - y0) * (x1 - x0))


def _array(boxes: Iterable[Box]) -> np.ndarray:
    return np.array([box.box for box in boxes], float).reshape(-1, 4)
