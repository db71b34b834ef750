"""Which part of a patch a training image shows: drawn on the host, so that only the pixels around it are decoded and sent.

The device resamples those pixels to the image (`tpu_train.augment`), and does the rest of the augmentation.
"""

import math
from dataclasses import dataclass

import tensorflow as tf

STREAM = 1  # of a run's random numbers; 0 are those of the order of its records
EIGHTS = 8  # rows of pixels that a TPU lays out together


@dataclass(frozen=True, slots=True)
class Crop:
    """Random squares of a patch, or with jitter rectangles, each for an image of one size.

    Jitter does what darknet's does (src/image_opencv.cpp; Model Garden: `resize_and_jitter_image`), which moves each edge of the
    crop by up to that share of its side. Here height and width are zoomed by two independent factors from 1 / (1 + jitter) to
    1 + jitter, whose logarithms are uniform: to shrink is as likely as to stretch, and the mean zoom is still that of the scales.
    From 1 - jitter on, it would shrink further than it stretches: 1 / 0.7 is 1.43.
    A side that shows all of the patch or less without jitter does so with it, which limits the factor: no new black frame.

    Attributes:
      patch_size: side of the patch in pixels.
      size: side of the image in pixels.
      scale_min, scale_max: range of the zoom, image pixels for each pixel of the patch; its logarithm is uniform.
      jitter: see above; 0 keeps the aspect ratio.
    """

    patch_size: int
    size: int
    scale_min: float
    scale_max: float
    jitter: float = 0.0

    @property
    def numbers(self) -> int:
        """How many describe a view, see `draw`."""
        return 4 if self.jitter else 3

    @property
    def window(self) -> int:
        """Side in pixels of the square to decode: that of the widest view, and as far beyond it as resampling reaches.

        Resampling by a scale s reaches 1 / min(s, 1) px from the middle of an image pixel, which is 1 / s px wide: half a pixel
        of the image further than the view, and half a pixel of the patch to the middle of the last one that counts.
        """
        widest = math.ceil(self.size / self._smallest_scale) + 2 * self._margin + 1  # 1: a view begins between two pixels
        return min(self.patch_size, math.ceil(widest / EIGHTS) * EIGHTS)

    @property
    def _margin(self) -> int:
        return math.ceil(0.5 / min(self._smallest_scale, 1.0) + 0.5)

    @property
    def _smallest_scale(self) -> float:
        return self.scale_min / (1.0 + self.jitter)

    def draw(self, seeds: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """One view.

        Args:
          seeds: int32 [2], see `seeds`.

        Returns:
          (corner int32 [2], upper left of the square to decode, y and x in patch pixels;
           view float32 [3], the scale, and where the image begins, y and x in pixels of that square: below 0 where the patch is
           smaller than the view, which then floats in a black frame; with jitter [4], the first scale being that of the rows and
           the last that of the columns).
        """
        numbers = tf.random.stateless_uniform([5 if self.jitter else 3], seeds)
        low, high = math.log(self.scale_min), math.log(self.scale_max)
        scale = tf.exp(low + numbers[0] * (high - low))
        if self.jitter:
            factors = tf.exp((2.0 * numbers[3:] - 1.0) * math.log1p(self.jitter))
            scales = tf.maximum(scale * factors, tf.minimum(scale, self.size / self.patch_size))  # [2], of rows and columns
        else:
            scales = scale
        start = numbers[1:3] * (self.patch_size - self.size / scales)
        corner = tf.clip_by_value(tf.floor(start) - self._margin, 0.0, float(self.patch_size - self.window))
        view = [scales[:1], start - corner, scales[1:]] if self.jitter else [scale[None], start - corner]
        return tf.cast(corner, tf.int32), tf.concat(view, axis=0)


def seeds(seed: int, host: int, number: tf.Tensor) -> tf.Tensor:
    """Seeds int32 [2] of the view of a record.

    Args:
      seed: of the run.
      host: number of the host that reads it.
      number: int64 [], records that the host has given to training since the run began.
    """
    stream = tf.random.experimental.stateless_fold_in(tf.constant([seed, STREAM]), host)
    return tf.random.experimental.stateless_fold_in(stream, number)
