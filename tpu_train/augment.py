"""Augmentation inside the compiled step: a resized crop, flips, a quarter turn, and changes of light and colour.

Where the crop lies and how far it is zoomed, the host has drawn (`tpu_train.crop`); what is made of several images follows in
`tpu_train.mosaic`.
Resizing, cropping and flipping are one sampling along each axis, written as two small matrix products per image: static shapes
for XLA, and work that the TPU's matrix unit does at full speed. Random numbers are stateless: the same seed gives the same batch.
"""

import dataclasses

import tensorflow as tf
from official.modeling import hyperparams

from survey.errors import InputError

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclasses.dataclass
class Augment(hyperparams.Config):
    """How training images vary.

    Attributes:
      scale_min, scale_max: range of the random zoom; 1 keeps the ground resolution.
      flip: mirror left-right and up-down, each for half of the images.
      quarter_turn: swap rows and columns for half of the images; with both flips, all eight orientations of a map.
      brightness: largest shift, as a share of the full range.
      contrast, saturation: largest relative change.
      white_balance: largest relative change of each channel by itself, and its largest shift as a share of the full range: haze,
        sun and camera differ between two flights more than between two places of one flight.
      min_visible: a box is dropped when the crop, or its part of a mosaic, shows less than this share of its area.
      jitter: height and width are zoomed by further factors, each between 1 / (1 + jitter) and 1 + jitter (`tpu_train.crop`).
      mosaic: share of the images that become four images around a centre (`tpu_train.mosaic`).
      mosaic_center: that centre keeps at least this share of the side away from the border.
      mosaic_zoom: smallest zoom of the four images of a mosaic; 1 keeps the ground resolution, 0.5 can show all of each.
      mixup: share of the images that become the weighted mean of two (`tpu_train.mosaic`).
      mosaic_rows: rows of the padded boxes of a batch with mosaics or mixups, as a multiple of what an image alone has.
    """

    scale_min: float = 0.8
    scale_max: float = 1.25
    flip: bool = True
    quarter_turn: bool = True
    brightness: float = 0.1
    contrast: float = 0.2
    saturation: float = 0.2
    white_balance: float = 0.1
    min_visible: float = 0.3
    jitter: float = 0.0
    mosaic: float = 0.0
    mosaic_center: float = 0.2
    mosaic_zoom: float = 1.0
    mixup: float = 0.0
    mosaic_rows: float = 2.0


# What the values that shape and combine images may be: from, to, and what the ends mean.
RANGES = {
    "jitter": (0.0, 1.0, "0 keeps the aspect ratio, 0.3 is darknet's, 1 zooms a side by half to twice"),
    "mosaic": (0.0, 1.0, "it is the share of the images that become mosaics"),
    "mosaic_center": (0.0, 0.5, "0 lets the centre lie anywhere, 0.5 puts it in the middle"),
    "mosaic_zoom": (0.5, 1.0, "1 keeps the ground resolution, 0.5 can show all of four images, less would leave gaps"),
    "mixup": (0.0, 1.0, "it is the share of the images that are mixed with another"),
    "mosaic_rows": (1.0, 8.0, "a mosaic of mixtures has at most 8 times the boxes of an image"),
}


def check(config: Augment, field: str = "task.augmentation") -> None:
    """Refuses values that cannot be.

    Args:
      config: how training images vary.
      field: what people call it.

    Raises:
      InputError: a value is out of its range.
    """
    for name, (low, high, meaning) in RANGES.items():
        value = getattr(config, name)
        if not low <= value <= high:
            raise InputError(f"{field}.{name}={value}: must be between {low:g} and {high:g}; {meaning}")
    if not 0 < config.scale_min <= config.scale_max:
        raise InputError(
            f"{field}.scale_min={config.scale_min} and scale_max={config.scale_max}: the zoom goes from the first, which must be "
            "above 0, to the second, which is at least as large; 1 and 1 keep the resolution"
        )


def random_view(
    images: tf.Tensor,
    boxes: tf.Tensor,
    classes: tf.Tensor,
    views: tf.Tensor,
    *,
    size: int,
    config: Augment,
    seed: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """One random view of each image.

    Args:
      images: uint8 [B, H, W, 3].
      boxes: float32 [B, M, 4], yxyx in pixels of `images`.
      classes: int32 [B, M], ids from 1, 0 for padding.
      views: float32 [B, 3], scale of each view, and where it begins, y and x in pixels of `images`; what lies outside is black.
        Or [B, 4], the fourth being the scale of the columns where it differs from that of the rows, which is then the first.
      size: side of the result in pixels.
      config: what else varies.
      seed: int32 [2].

    Returns:
      (images float32 [B, size, size, 3] in 0..255, boxes float32 [B, M, 4] in its pixels, classes int32 [B, M], 0 also for boxes
      that the crop lost).
    """
    batch, height, width, _ = images.shape
    seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 3), axis=0)
    uniform = tf.random.stateless_uniform
    scale_y, y0, x0, scale_x = _axes(views)
    flips = uniform([batch, 2], seeds[0]) < (0.5 if config.flip else 0.0)
    rows = sampling(height, size, y0, scale_y, flips[:, 0])
    columns = sampling(width, size, x0, scale_x, flips[:, 1])
    pixels = tf.einsum("bij,bjkc->bikc", rows, tf.cast(images, tf.float32))
    pixels = tf.einsum("bpk,bikc->bipc", columns, pixels)

    offset = tf.stack([y0, x0, y0, x0], axis=1)[:, None, :]
    # One scale is one factor: an unjittered step is not to gain an operation by what it does not use.
    scale = scale_y[:, None, None] if scale_x is scale_y else tf.stack([scale_y, scale_x] * 2, axis=1)[:, None, :]
    moved = (boxes - offset) * scale  # [B, M, 4]
    y_low, x_low, y_high, x_high = tf.unstack(moved, axis=-1)
    flip_y, flip_x = flips[:, :1], flips[:, 1:]
    y_low, y_high = tf.where(flip_y, size - y_high, y_low), tf.where(flip_y, size - y_low, y_high)
    x_low, x_high = tf.where(flip_x, size - x_high, x_low), tf.where(flip_x, size - x_low, x_high)
    if config.quarter_turn:
        turn = uniform([batch], seeds[1]) < 0.5
        pixels = tf.where(turn[:, None, None, None], tf.transpose(pixels, [0, 2, 1, 3]), pixels)
        t = turn[:, None]
        y_low, x_low = tf.where(t, x_low, y_low), tf.where(t, y_low, x_low)
        y_high, x_high = tf.where(t, x_high, y_high), tf.where(t, y_high, x_high)
    moved = tf.stack([y_low, x_low, y_high, x_high], axis=-1)
    pixels = _vary_colour(pixels, config, seeds[2])
    return pixels, *keep_visible(moved, classes, size, config.min_visible)


def keep_visible(boxes: tf.Tensor, classes: tf.Tensor, size: int, min_visible: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Boxes clipped to a frame of size x size, and their classes, 0 where less than `min_visible` of the area is left."""
    clipped = tf.clip_by_value(boxes, 0.0, float(size))
    visible = (_area(clipped) >= min_visible * _area(boxes)) & (_area(clipped) > 0.0)
    return clipped, tf.where(visible, classes, 0)


def whole_areas(boxes: tf.Tensor, views: tf.Tensor) -> tf.Tensor:
    """Areas float32 [B, M] of boxes in pixels of a view, what it does not show included; see `random_view`."""
    scale_y, _, _, scale_x = _axes(views)
    return _area(boxes) * (scale_y * scale_x)[:, None]


def _axes(views: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Of views [B, 3] or [B, 4]: scale of the rows, first y, first x, scale of the columns; each [B]."""
    scale_y, y0, x0, *scale_x = tf.unstack(views, axis=1)
    return scale_y, y0, x0, scale_x[0] if scale_x else scale_y


def _area(boxes: tf.Tensor) -> tf.Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def sampling(source: int, size: int, offset: tf.Tensor, scale: tf.Tensor, flip: tf.Tensor) -> tf.Tensor:
    """Weights [B, size, source] that resample one axis with a triangle filter, widened when shrinking so that nothing aliases.

    Args:
      source: pixels that there are.
      size: pixels to make of them.
      offset: float32 [B], where the first of these begins, in source pixels.
      scale: float32 [B], new pixels for each source pixel.
      flip: bool [B], begin at the other end.
    """
    position = tf.range(size, dtype=tf.float32)[None, :] + 0.5
    position = tf.where(flip[:, None], size - position, position)
    center = offset[:, None] + position / scale[:, None]  # [B, size], in source pixels
    distance = tf.abs(tf.range(source, dtype=tf.float32)[None, None, :] + 0.5 - center[..., None])
    weights = tf.maximum(0.0, 1.0 - distance * tf.minimum(scale, 1.0)[:, None, None])
    return weights / tf.maximum(tf.reduce_sum(weights, axis=2, keepdims=True), 1e-6)


def _vary_colour(images: tf.Tensor, config: Augment, seed: tf.Tensor) -> tf.Tensor:
    batch = images.shape[0]
    one, each = tf.unstack(tf.random.experimental.stateless_split(seed, 2), axis=0)
    change = tf.random.stateless_uniform([3, batch, 1, 1, 1], one, -1.0, 1.0)
    channel = config.white_balance * tf.random.stateless_uniform([2, batch, 1, 1, 3], each, -1.0, 1.0)
    images = images * (1.0 + channel[0]) + 255.0 * channel[1]
    grey = tf.reduce_sum(images * tf.constant(LUMA), axis=-1, keepdims=True)
    images = grey + (images - grey) * (1.0 + config.saturation * change[0])
    mean = tf.reduce_mean(grey, axis=(1, 2), keepdims=True)
    images = mean + (images - mean) * (1.0 + config.contrast * change[1]) + 255.0 * config.brightness * change[2]
    return tf.clip_by_value(images, 0.0, 255.0)
