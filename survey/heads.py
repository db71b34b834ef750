"""What a detector's raw heads are, as data: enough to turn its arrays of numbers into boxes (`inference.decode`).

Two kinds, each with the names and shapes of the arrays that it expects, for one batch of B square images of S px:

    RetinaNet  layout "flat"    raw_boxes [B, N, 4] and raw_scores [B, N, K], all levels one after the other
               layout "levels"  box_outputs_{l} [B, h, w, A * 4] and cls_outputs_{l} [B, h, w, A * K], one pair a level l
               layout "tpu"     the same names and shapes, as the TensorFlow-1 RetinaNet of tensorflow/tpu gives them
    YOLO                        raw_output_{l} [B, h, w, A * (5 + K)], one a level l

with h = w = S / 2^l, A anchors a cell, N of them in all, and K columns: one a class, and one before them where there is a
background.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from survey.anchors import AnchorSpec
from survey.errors import InputError

FLAT, LEVELS, TPU = "flat", "levels", "tpu"
LAYOUTS = (FLAT, LEVELS, TPU)
ORIGINAL, SCALED = "original", "scaled"
BOX_TYPES = (ORIGINAL, SCALED)

# A side grows to at most 1000 / 16 = 62.5 times its anchor's, so that exp of an untrained head cannot overflow. The number is
# Detectron's and Model Garden's (BBOX_XFORM_CLIP): a model decoded with another one would not be the model that was validated.
LARGEST_LOG_RATIO = math.log(1000.0 / 16.0)

# The old TPU RetinaNet has no such limit. exp(60) = 1e26 times an anchor fits float32 and is beyond any image on all sides, so
# that this limit changes no box once it is clipped to the patch.
_NO_LOG_RATIO = 60.0


@dataclass(frozen=True, slots=True)
class RetinaNetHeads:
    """Heads of anchor regressions and class logits (Lin et al. 2017, https://arxiv.org/abs/1708.02002).

    Attributes:
      anchors: the pyramid that the regressions are relative to.
      box_scales: the box coder's (y, x, h, w) factors: raw values are divided by them before decoding.
      layout: "flat", "levels" or "tpu"; see the top of this module.
      background: whether the first class column is a background, which is ignored: so it is wherever Model Garden's
        num_classes = classes + 1 and nobody has cut the column off.
    """

    kind: ClassVar[str] = "retinanet"

    anchors: AnchorSpec
    box_scales: tuple[float, float, float, float]
    layout: str = FLAT
    background: bool = False

    def __post_init__(self) -> None:
        _one_of("layout", self.layout, LAYOUTS)
        if len(self.box_scales) != 4 or min(self.box_scales) <= 0:
            raise InputError(f"heads: box_scales={list(self.box_scales)}: must be four numbers above 0, for y, x, height, width")

    @property
    def levels(self) -> range:
        """The levels, finest first."""
        return self.anchors.levels

    @property
    def largest_log_ratio(self) -> float:
        """How far a side may be from its anchor's, as the logarithm of their ratio."""
        return _NO_LOG_RATIO if self.layout == TPU else LARGEST_LOG_RATIO

    def shapes(self, image_size: int, classes: int) -> dict[str, tuple[int, ...]]:
        """Shape of every array but for its batch dimension, by name.

        Args:
          image_size: side of the input in pixels.
          classes: number of classes, without a background.

        Raises:
          InputError: the image does not divide into the cells of the coarsest level.
        """
        columns, counts = classes + self.background, self.anchors.counts(image_size)
        if self.layout == FLAT:
            total = sum(counts.values())
            return {"raw_boxes": (total, 4), "raw_scores": (total, columns)}
        cells = {level: (image_size >> level, image_size >> level) for level in self.levels}
        each = self.anchors.per_location
        boxes: dict[str, tuple[int, ...]] = {f"box_outputs_{level}": (*cells[level], each * 4) for level in self.levels}
        return boxes | {f"cls_outputs_{level}": (*cells[level], each * columns) for level in self.levels}


@dataclass(frozen=True, slots=True)
class YoloHeads:
    """Heads of a YOLO v3 or v4.

    Redmon and Farhadi 2018, https://arxiv.org/abs/1804.02767; scale_xy from Bochkovskiy et al. 2020,
    https://arxiv.org/abs/2004.10934; "scaled" from Wang et al. 2021, https://arxiv.org/abs/2011.08036.

    Attributes:
      levels: of the arrays, finest first; level l has stride 2^l px.
      anchors_px: (width, height) in pixels of each anchor of each level, in the order of the levels.
      box_type: "original" (sides exp(t) times the anchor's) or "scaled" ((2 sigmoid(t))^2 times).
      scale_xy: of each level, how far centres may leave their cell; empty for 1 everywhere, which keeps them inside.
    """

    kind: ClassVar[str] = "yolo"

    levels: tuple[int, ...]
    anchors_px: tuple[tuple[tuple[float, float], ...], ...]
    box_type: str = ORIGINAL
    scale_xy: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _one_of("box_type", self.box_type, BOX_TYPES)
        if not self.levels or list(self.levels) != sorted(set(self.levels)) or self.levels[0] < 0:
            raise InputError(f"heads: levels={list(self.levels)}: must be one level or more from 0 on, finest first")
        for name, given in (("anchors_px", len(self.anchors_px)), ("scale_xy", len(self.scale_xy) or len(self.levels))):
            if given != len(self.levels):
                raise InputError(f"heads: {name} has {given} entries for {len(self.levels)} levels: must have one a level")
        sides = [side for level in self.anchors_px for anchor in level for side in anchor]
        if not all(self.anchors_px) or any(len(anchor) != 2 for level in self.anchors_px for anchor in level) or min(sides) <= 0:
            raise InputError("heads: anchors_px: must be a list of [width, height] in pixels, above 0, for each level")

    def sides_px(self, level: int) -> np.ndarray:
        """Sides of the anchors of a cell, float64 [A, 2], (height, width)."""
        return np.array(self.anchors_px[self.levels.index(level)], np.float64)[:, ::-1]

    def boxes(self, image_size: int) -> np.ndarray:
        """All anchors of a square image, each in the middle of its cell, from where it may move anywhere in it.

        Returns:
          float32 [N, 4], yxyx in pixels, unclipped; levels from fine to coarse, then row, column, anchor.
        """
        self._check(image_size)
        parts = []
        for level in self.levels:
            middle = np.arange(2**level / 2, image_size, 2**level)
            cy, cx = (axis[..., None] for axis in np.meshgrid(middle, middle, indexing="ij"))  # [h, w, 1]
            half_h, half_w = self.sides_px(level).T / 2
            parts.append(np.stack([cy - half_h, cx - half_w, cy + half_h, cx + half_w], axis=-1).reshape(-1, 4))
        return np.concatenate(parts).astype(np.float32)

    def shapes(self, image_size: int, classes: int) -> dict[str, tuple[int, ...]]:
        """Shape of every array but for its batch dimension, by name; see `RetinaNetHeads.shapes`."""
        self._check(image_size)
        cells = {level: (image_size >> level, image_size >> level) for level in self.levels}
        each = {level: len(anchors) for level, anchors in zip(self.levels, self.anchors_px, strict=True)}
        return {f"raw_output_{level}": (*cells[level], each[level] * (5 + classes)) for level in self.levels}

    def _check(self, image_size: int) -> None:
        stride = 2 ** self.levels[-1]
        if image_size % stride:
            raise InputError(f"image_size={image_size}: must be a multiple of the coarsest stride, {stride} px")


Heads = RetinaNetHeads | YoloHeads
_KINDS: dict[str, Callable[..., Heads]] = {RetinaNetHeads.kind: RetinaNetHeads, YoloHeads.kind: YoloHeads}


def to_json(heads: Heads) -> dict[str, Any]:
    """As plain values, the kind first."""
    return {"kind": heads.kind, **dataclasses.asdict(heads)}


def from_json(value: Any, where: str) -> Heads:
    """The counterpart of `to_json`.

    Args:
      value: what a file holds under "heads".
      where: the file, for errors.

    Raises:
      InputError: an unknown kind, a key that is missing or unknown, or a value that does not fit.
    """
    if not isinstance(value, Mapping) or value.get("kind") not in _KINDS:
        found = value.get("kind") if isinstance(value, Mapping) else value
        raise InputError(f"{where}: heads of kind {found!r} cannot be decoded: must be one of {', '.join(_KINDS)}")
    rest = {name: _frozen(entry) for name, entry in value.items() if name != "kind"}
    try:
        if value["kind"] == RetinaNetHeads.kind and isinstance(value.get("anchors"), Mapping):
            anchors = _made(AnchorSpec, {name: _frozen(entry) for name, entry in value["anchors"].items()}, "anchors")
            rest["anchors"] = anchors
        return _made(_KINDS[value["kind"]], rest, f"{value['kind']} heads")
    except (InputError, TypeError) as error:  # TypeError: a text where a number belongs
        raise InputError(f"{where}: {error}") from None


def _made(kind: Callable[..., Any], values: dict[str, Any], name: str) -> Any:
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    unknown = sorted(set(values) - {field.name for field in fields})
    missing = sorted(field.name for field in fields if field.default is dataclasses.MISSING and field.name not in values)
    if unknown or missing:
        wrong = "; ".join(f"{what} {', '.join(keys)}" for what, keys in (("lack", missing), ("have unknown", unknown)) if keys)
        raise InputError(f"{name} {wrong}: the keys are {', '.join(field.name for field in fields)}")
    return kind(**values)


def _frozen(value: Any) -> Any:
    """Lists as tuples, all the way down."""
    return tuple(_frozen(entry) for entry in value) if isinstance(value, (list, tuple)) else value


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"heads: {name}={value!r}: must be one of {', '.join(allowed)}")
