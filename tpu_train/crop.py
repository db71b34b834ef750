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
    """Random squares of a patch, each for an image of one size.

    Attributes:
      patch_size: side of the patch in pixels.
      size: side of the image in pixels.
      scale_min, scale_max: range of the zoom, image pixels for each pixel of the patch; its logarithm is uniform.
    """

    patch_size: int
    size: int
    scale_min: float
    scale_max: float

    @property
    def window(self) -> int:
        """Side in pixels of the square to decode: that of the widest view, and as far beyond it as resampling reaches.

        Resampling by a scale s reaches 1 / min(s, 1) px from the middle of an image pixel, which is 1 / s px wide: half a pixel
        of the image further than the view, and half a pixel of the patch to the middle of the last one that counts.
        """
        widest = math.ceil(self.size / self.scale_min) + 2 * self._margin + 1  # 1: a view begins between two pixels
        return min(self.patch_size, math.ceil(widest / EIGHTS) * EIGHTS)

    @property
    def _margin(self) -> int:
        return math.ceil(0.5 / min(self.scale_min, 1.0) + 0.5)

    def draw(self, seeds: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """One view.

        Args:
          seeds: int32 [2], see `seeds`.

        Returns:
          (corner int32 [2], upper left of the square to decode, y and x in patch pixels;
           view float32 [3], the scale, and where the image begins, y and x in pixels of that square: below 0 where the patch is
           smaller than the view, which then floats in a black frame).
        """
        numbers = tf.random.stateless_uniform([3], seeds)
        low, high = math.log(self.scale_min), math.log(self.scale_max)
        scale = tf.exp(low + numbers[0] * (high - low))
        start = numbers[1:] * (self.patch_size - self.size / scale)
        corner = tf.clip_by_value(tf.floor(start) - self._margin, 0.0, float(self.patch_size - self.window))
        return tf.cast(corner, tf.int32), tf.concat([scale[None], start - corner], axis=0)


def seeds(seed: int, host: int, number: tf.Tensor) -> tf.Tensor:
    """Seeds int32 [2] of the view of a record.

    Args:
      seed: of the run.
      host: number of the host that reads it.
      number: int64 [], records that the host has given to training since the run began.
    """
    stream = tf.random.experimental.stateless_fold_in(tf.constant([seed, STREAM]), host)
    return tf.random.experimental.stateless_fold_in(stream, number)
