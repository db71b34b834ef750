"""What the page's script reads, one JSON block: detections above the floor as typed arrays, and the finer levels of the maps.

Scores are kept as they are (float32), so that the page counts exactly what numpy counts. A box is rounded to 1/65,535 of the
longer side of its mosaic: 0.15 px of 10,000, 0.9 px of 60,000.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from inference.page.tiles import Pyramid
from survey import drawing, metrics
from survey.detections import Detections, Manifest
from survey.geometry import Mosaic

MAX_DETECTIONS = 300_000  # over all mosaics, 20 bytes each in the page: 6 MB
MAX_TRUTHS = 300_000  # annotated objects, 19 bytes each
MAX_IOUS = 8  # verdicts at one IoU threshold are one bit of a byte


@dataclass(frozen=True, slots=True)
class Truths:
    """The annotated objects of one mosaic.

    Attributes:
      boxes: float [M, 4], yxyx mosaic pixels.
      class_ids: int [M], from 1.
    """

    boxes: np.ndarray
    class_ids: np.ndarray


@dataclass(frozen=True, slots=True)
class Judged:
    """Verdicts on the detections of one mosaic, in the order of the detections and of the truths.

    Attributes:
      hits: uint8 [N], bit i set where the detection found an object at the i-th IoU threshold.
      found_at: float32 [M], score of the detection that found each object at the first threshold, -1 where none did. From this
        score downward on a threshold the object is found: greedy matching goes by score.
    """

    hits: np.ndarray
    found_at: np.ndarray


def judge(found: Detections, truths: Truths, num_classes: int, ious: Sequence[float]) -> Judged:
    """Matches all detections of a mosaic, whatever their score, as `rookery evaluate` matches those that count.

    Args:
      found: the detections.
      truths: the annotated objects.
      num_classes: of the label map.
      ious: at most MAX_IOUS thresholds.
    """
    hits = np.zeros(len(found), np.uint8)
    found_at = np.full(len(truths.class_ids), -1, np.float32)
    for class_id in range(1, num_classes + 1):
        mine, true = np.flatnonzero(found.class_ids == class_id), np.flatnonzero(truths.class_ids == class_id)
        matched = metrics.match(found.boxes_mosaic_px[mine], found.scores[mine], truths.boxes[true], ious)
        for bit, objects in enumerate(matched.truth_index):
            hits[mine[objects >= 0]] |= 1 << bit
        first = matched.truth_index[0]
        found_at[true[first[first >= 0]]] = found.scores[mine[first >= 0]]
    return Judged(hits, found_at)


def lowest_score(found: Mapping[str, Detections], most: int) -> float:
    """The score down to which all detections fit into the page; 0 when all do.

    Of a tie that does not fit wholly none is kept, so that what is in the page is complete from this score upward.
    """
    scores = np.sort(np.concatenate([np.zeros(0, np.float32), *(one.scores for one in found.values())]))[::-1]
    if len(scores) <= most:
        return 0.0
    above = scores[scores > scores[most]]
    return float(above[-1]) if len(above) else float(np.nextafter(scores[0], np.float32(2)))


def block(
    manifest: Manifest,
    found: Mapping[str, Detections],
    truths: Mapping[str, Truths],
    judged: Mapping[str, Judged],
    ious: Sequence[float],
    pyramids: Mapping[str, Pyramid],
    *,
    most: int,
) -> dict[str, Any]:
    """The value of the JSON block.

    Args:
      manifest: of the detections.
      found: detections by mosaic, best score first.
      truths: annotated objects of the evaluated mosaics.
      judged: verdicts, of the same mosaics.
      ious: of the verdicts; empty without an evaluation.
      pyramids: pictures of the mosaics that have a map.
      most: detections at most, over all mosaics.
    """
    from_score = lowest_score(found, most)
    kept = {name: one.scores >= np.float32(from_score) for name, one in found.items()}
    lowest = min((float(one.scores[kept[name]].min()) for name, one in found.items() if kept[name].any()), default=0.0)
    left = MAX_TRUTHS
    mosaics = []
    for mosaic in manifest.mosaics:
        one = found[mosaic.name]
        keep = kept[mosaic.name]
        entry: dict[str, Any] = {
            "name": mosaic.name,
            "height": mosaic.height,
            "width": mosaic.width,
            "ha": hectares([mosaic]),
            "scores": _base64(one.scores[keep], "<f4"),
            "classes": _base64(one.class_ids[keep] - 1, "<u2"),
            "boxes": _boxes(one.boxes_mosaic_px[keep], mosaic),
        }
        if mosaic.name in judged:
            verdict, true = judged[mosaic.name], truths[mosaic.name]
            shown = min(left, len(true.class_ids))
            left -= shown
            entry["hits"] = _base64(verdict.hits[keep], "u1")
            entry["truths"] = [int((true.class_ids == k).sum()) for k in range(1, len(manifest.classes) + 1)]
            entry["truth_classes"] = _base64(true.class_ids[:shown] - 1, "<u2")
            entry["truth_boxes"] = _boxes(true.boxes[:shown], mosaic)
            entry["found_at"] = _base64(verdict.found_at[:shown], "<f4")
        if mosaic.name in pyramids:
            entry["levels"] = _levels(pyramids[mosaic.name])
        mosaics.append(entry)
    return {
        "threshold": manifest.score_threshold,
        # Below `lowest` the page knows nothing. `complete` says whether that is because there is nothing.
        "lowest": lowest,
        "complete": from_score == 0.0,
        "classes": list(manifest.classes),
        "styles": [style_of(drawing.class_style(i)) for i in range(len(manifest.classes))],
        "outcomes": [style_of(style) for style in (drawing.FOUND, drawing.FALSE, drawing.MISSED)],
        "ious": list(ious),
        "mosaics": mosaics,
    }


def hectares(mosaics: Sequence[Mosaic]) -> float | None:
    """Area of the rasters, None when the pixel size of one is unknown. Pixels without data are part of it."""
    if any(mosaic.gsd_m is None for mosaic in mosaics):
        return None
    return sum(mosaic.height * mosaic.width * (mosaic.gsd_m or 0) ** 2 for mosaic in mosaics) / 1e4


def style_of(style: drawing.Style) -> dict[str, Any]:
    """A style as the script takes it: dashes as numbers of pixels."""
    return {"colour": style.colour, "dash": [int(length) for length in style.dash.split()]}


def as_json(value: Any) -> Markup:
    r"""JSON that may stand inside a <script> element, whatever text is in it.

    HTML ends a script at "</script" and changes how it reads at "<!--", wherever they stand; JSON may write any character as an
    escape, so these never occur.

    >>> print(as_json({"name": "</script>"}))
    {"name":"\u003c/script\u003e"}
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _levels(pyramid: Pyramid) -> list[dict[str, Any]]:
    """Levels as the script takes them; the first has no tiles because it is the picture that the page shows anyway."""
    return [
        {
            "height": level.height,
            "width": level.width,
            "tile": level.tile_px,
            "tiles": [base64.b64encode(tile).decode() for tile in level.tiles] if i else [],
        }
        for i, level in enumerate(pyramid.levels)
    ]


def _boxes(boxes: np.ndarray, mosaic: Mosaic) -> str:
    """Boxes [N, 4] as 1/65,535 of the longer side, base64 of uint16 [N, 4]."""
    units = np.round(np.asarray(boxes, np.float64).reshape(-1, 4) * (65535 / max(mosaic.height, mosaic.width)))
    return _base64(np.clip(units, 0, 65535), "<u2")


def _base64(array: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(array).astype(kind).tobytes()).decode()
