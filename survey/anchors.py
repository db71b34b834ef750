"""Anchor boxes of a level pyramid, as data: the geometry that training assigns targets to and that decoding starts from."""

import math
from dataclasses import dataclass

import numpy as np

from survey.errors import InputError


@dataclass(frozen=True, slots=True)
class AnchorSpec:
    """Which anchors a detector has, in Model Garden's terms.

    At level l the feature map has stride 2^l px. At each of its cells stand num_scales * len(aspect_ratios) anchors with sides
    anchor_size * 2^l * 2^(scale / num_scales), stretched so that width / height is the aspect ratio at equal area.

    The TensorFlow-1 RetinaNet of Cloud TPU (tensorflow/tpu, models/official/retinanet/anchors.py) gives pairs instead, factors of
    the width and of the height: (1.4, 0.7) is about 1:2, but of area 0.98. A pair here means what it means there.

    Attributes:
      min_level, max_level: finest and coarsest level of the pyramid, both included.
      num_scales: sizes per level.
      aspect_ratios: width / height each, or a pair (factor of the width, factor of the height).
      anchor_size: side of the smallest anchor of a level, in strides.
    """

    min_level: int
    max_level: int
    num_scales: int
    aspect_ratios: tuple[float | tuple[float, float], ...]
    anchor_size: float

    def __post_init__(self) -> None:
        numbers = [value for ratio in self.aspect_ratios for value in (ratio if isinstance(ratio, tuple) else (ratio,))]
        if not 0 <= self.min_level <= self.max_level:
            raise InputError(f"anchors: min_level={self.min_level}, max_level={self.max_level}: must be 0 <= min <= max")
        if self.num_scales < 1 or not numbers or min([self.anchor_size, *numbers]) <= 0:
            raise InputError(
                f"anchors: num_scales={self.num_scales}, aspect_ratios={self.aspect_ratios}, anchor_size={self.anchor_size}: "
                "must all be above 0, with one aspect ratio at least"
            )

    @property
    def per_location(self) -> int:
        """Anchors per cell of a feature map."""
        return self.num_scales * len(self.aspect_ratios)

    @property
    def levels(self) -> range:
        """The levels, finest first."""
        return range(self.min_level, self.max_level + 1)

    def counts(self, image_size: int) -> dict[int, int]:
        """Anchors of each level for a square image of `image_size` px."""
        self._check(image_size)
        return {level: (image_size >> level) ** 2 * self.per_location for level in self.levels}

    def boxes(self, image_size: int) -> np.ndarray:
        """All anchors of a square image.

        Args:
          image_size: side in pixels, a multiple of the coarsest stride.

        Returns:
          float32 [N, 4], yxyx in pixels, unclipped; levels from fine to coarse, then row, column, scale, aspect ratio: the order
          of the flattened heads.
        """
        self._check(image_size)
        return np.concatenate([self._level_boxes(level, image_size) for level in self.levels])

    def sides_px(self, level: int) -> np.ndarray:
        """Sides of the anchors of a cell, float64 [per_location, 2], (height, width), by scale, then aspect ratio."""
        sizes = self.anchor_size * 2**level * 2 ** (np.arange(self.num_scales) / self.num_scales)
        return np.array([_stretched(size, ratio) for size in sizes for ratio in self.aspect_ratios])

    def _level_boxes(self, level: int, image_size: int) -> np.ndarray:
        stride = 2**level
        middle = np.arange(stride / 2, image_size, stride)
        cy, cx = np.meshgrid(middle, middle, indexing="ij")
        # From here on in float32, as Model Garden computes them, so that both agree to the last bit.
        half_h, half_w = (self.sides_px(level) / 2).astype(np.float32).T
        cy, cx = cy[..., None].astype(np.float32), cx[..., None].astype(np.float32)
        boxes = np.stack([cy - half_h, cx - half_w, cy + half_h, cx + half_w], axis=-1)  # [h, w, S * R, 4]
        return boxes.reshape(-1, 4)

    def _check(self, image_size: int) -> None:
        stride = 2**self.max_level
        if image_size % stride:
            below = max(stride, image_size // stride * stride)
            raise InputError(
                f"image_size={image_size}: must be a multiple of the coarsest stride, {stride} px at level {self.max_level}; "
                f"use {below} or {below + stride}"
            )


def _stretched(size: float, ratio: float | tuple[float, float]) -> tuple[float, float]:
    """(height, width) of a square of some size after an aspect ratio."""
    if isinstance(ratio, tuple):
        return size * ratio[1], size * ratio[0]
    return size / math.sqrt(ratio), size * math.sqrt(ratio)


def fit(box_sides_px: dict[str, float]) -> AnchorSpec:
    """Anchors for the object sizes of a dataset.

    The smallest anchor is as large as a small object (10th percentile), so that surveys of small things get small anchors, and
    levels are added until the largest anchor reaches the large ones (99th percentile). Model Garden's default starts at 32 px.

    Args:
      box_sides_px: quantiles of sqrt(area) in training pixels, keys "q10" and "q99" at least.
    """
    min_level = 3
    anchor_size = float(np.clip(round(box_sides_px["q10"] / 2**min_level * 4) / 4, 1.0, 4.0))
    levels = math.log2(max(1.0, box_sides_px["q99"] / (anchor_size * 2**min_level * 2 ** (2 / 3))))
    max_level = int(np.clip(min_level + math.ceil(levels), min_level + 1, 7))
    return AnchorSpec(min_level, max_level, num_scales=3, aspect_ratios=(0.5, 1.0, 2.0), anchor_size=anchor_size)
