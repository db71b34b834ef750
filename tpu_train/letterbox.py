"""Whole images of any shape in the model's square: resized with their aspect ratio, the rest filled with grey, and back.

As Model Garden's YOLO does it for validation (`resize_and_jitter_image` with letter_box and without jitter, in
official/projects/yolo/ops/preprocessing_ops.py), with the same boxes: the shorter side is filled up to a square, half of it on
each side in whole source pixels, and that square is resized. Where an odd number is missing the frame is a pixel short, and
that axis is stretched by as much.
"""

import dataclasses

import tensorflow as tf

from tpu_train import augment

GREY = 114.0  # PAD_VALUE of Model Garden, as in darknet's successors


@dataclasses.dataclass(frozen=True, slots=True)
class Letterbox:
    """Where an image lies in its square.

    Attributes:
      height, width: of the image in pixels.
      size: side of the square in pixels.
    """

    height: int
    width: int
    size: int

    @property
    def pad_y(self) -> int:
        """Source pixels to fill in above, and as many below."""
        return max(0, self.width - self.height) // 2

    @property
    def pad_x(self) -> int:
        """Source pixels to fill in to the left, and as many to the right."""
        return max(0, self.height - self.width) // 2

    @property
    def scale_y(self) -> float:
        """Pixels of the square for each of the image, down."""
        return self.size / (self.height + 2 * self.pad_y)

    @property
    def scale_x(self) -> float:
        """Pixels of the square for each of the image, across."""
        return self.size / (self.width + 2 * self.pad_x)

    def into(self, boxes: tf.Tensor) -> tf.Tensor:
        """Boxes float32 [..., 4], yxyx in pixels of the image, in pixels of the square."""
        return (boxes + self._pads) * self._scales

    def back(self, boxes: tf.Tensor) -> tf.Tensor:
        """Boxes float32 [..., 4], yxyx in pixels of the square, in pixels of the image; parts on the grey lie outside it."""
        return boxes / self._scales - self._pads

    @property
    def _pads(self) -> tf.Tensor:
        return tf.constant([self.pad_y, self.pad_x] * 2, tf.float32)

    @property
    def _scales(self) -> tf.Tensor:
        return tf.constant([self.scale_y, self.scale_x] * 2, tf.float32)


def letterbox(images: tf.Tensor, boxes: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Images in squares, by two matrix products.

    Args:
      images: uint8 or float32 [B, H, W, 3], pixels 0..255; H and W are static.
      boxes: float32 [B, M, 4], yxyx in pixels of `images`.
      size: side of the squares in pixels.

    Returns:
      (images float32 [B, size, size, 3] in 0..255, boxes float32 [B, M, 4] in their pixels). `Letterbox.back` undoes the boxes.
    """
    frame = Letterbox(images.shape[1], images.shape[2], size)
    rows, columns = _weights(frame.height, frame.pad_y, size), _weights(frame.width, frame.pad_x, size)
    pixels = tf.einsum("ij,bjkc->bikc", rows, tf.cast(images, tf.float32))
    pixels = tf.einsum("pk,bikc->bipc", columns, pixels)
    covered = tf.reduce_sum(rows, axis=1)[:, None] * tf.reduce_sum(columns, axis=1)[None, :]  # 1 where there is no grey
    return pixels + GREY * (1.0 - covered)[None, :, :, None], frame.into(boxes)


def _weights(source: int, pad: int, size: int) -> tf.Tensor:
    """Weights [size, source] that resample one axis; what its row lacks to 1 is grey's."""
    padded = source + 2 * pad
    scale = tf.constant([size / padded], tf.float32)
    return augment.sampling(padded, size, tf.zeros([1]), scale, tf.constant([False]))[0, :, pad : pad + source]
