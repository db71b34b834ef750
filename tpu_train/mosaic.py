"""Training images made of several of the batch, inside the compiled step: mosaics of four, and mixtures of two.

A mosaic (Bochkovskiy et al. 2020, YOLOv4, https://arxiv.org/abs/2004.10934) shows four images, one in each quadrant around a
centre. As in darknet and in Model Garden's "crop" mode (official/projects/yolo/ops/mosaic.py), every image stays where it is and
shows what of it falls into its quadrant: its outer corner is the mosaic's corner. Zoomed out, it shrinks towards that corner.
A mixture (Zhang et al. 2018, mixup, https://arxiv.org/abs/1710.09412) is the weighted mean of two images, with the boxes of both.

Model Garden does this on the host, image by image. Here the other images are those of the batch, moved up by 1, 2 and 3 places.
Without zoom a mosaic is then three selections by position, which XLA fuses into what reads the images next: no matrix product
and no gather of pixels. Compiled for v5e at 416 px, a batch of 8 stays on the chip: 21 MB of HBM traffic instead of 20. A batch
of 32 does not: 599 MB instead of 489, an eighth of a millisecond more. Zooming out takes two matrix products, 36 S^3 operations
an image (2.6 GFLOP at 416 px, on top of 1.3 for the view): little for a matrix unit, but on a CPU the augmentation takes three
times as long.
"""

from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf

from tpu_train import augment
from tpu_train.augment import Augment

STREAM = 77  # of a step's random numbers, apart from those of `augment.random_view`
# Model Garden's weights of a mixture are Beta(8, 8): 0.5 on average, nine tenths of them between 0.3 and 0.7.
BETA = 8


class View(NamedTuple):
    """A batch as the model sees it: B images of S px with R rows of padded boxes.

    Attributes:
      images: float32 [B, S, S, 3], pixels 0..255.
      boxes: float32 [B, R, 4], yxyx in pixels of the images, clipped to what is shown; 0 where there is none.
      classes: int32 [B, R], ids from 1, 0 for padding.
      fates: int32 [B, 4], how many objects the records of the images that take part hold, and of how many of them the caps cut
        off (of the records and of R), nothing is shown, or less than `min_visible`: the fields of `truncation.Objects`.
    """

    images: tf.Tensor
    boxes: tf.Tensor
    classes: tf.Tensor
    fates: tf.Tensor


class _Scene(NamedTuple):
    """A batch on its way: as `View`, with sides of boxes apart, because a TPU pads rows of four to 128.

    Attributes:
      sides: four float32 [B, N], y0, x0, y1, x1.
      areas: float32 [B, N], of the boxes in the same pixels, what is not shown included.
    """

    images: tf.Tensor
    sides: tuple[tf.Tensor, ...]
    classes: tf.Tensor
    areas: tf.Tensor
    fates: tf.Tensor


def wanted(config: Augment, batch: int) -> bool:
    """Whether images of a batch of a replica are to be combined; one image alone has no other."""
    return batch > 1 and (config.mosaic > 0 or config.mixup > 0)


def rows(config: Augment, max_boxes: int) -> int:
    """Rows of the padded boxes of a combined batch whose images alone have `max_boxes`, in eights, as a TPU lays them out."""
    return -(-int(config.mosaic_rows * max_boxes) // 8) * 8


def compose(
    inputs: Mapping[str, tf.Tensor],
    images: tf.Tensor,
    boxes: tf.Tensor,
    classes: tf.Tensor,
    *,
    config: Augment,
    seed: tf.Tensor,
) -> View:
    """Mosaics and mixtures of the views of a batch; mixtures may be of mosaics, as in Model Garden.

    Every image of a batch stays in it, as the upper left part of its own mosaic or in the mean. An object that several mosaics
    show counts in each of them; what is cut off because it exceeds the rows counts as capped.

    Args:
      inputs: the batch of `tpu_train.input` with views.
      images: float32 [B, S, S, 3], what `augment.random_view` made of it.
      boxes: float32 [B, M, 4], see there.
      classes: int32 [B, M], see there.
      config: how likely and how.
      seed: int32 [2].

    Returns:
      The batch with `rows(config, M)` rows; as it came, with M rows, where nothing is `wanted`.
    """
    fates = fates_of(inputs, boxes, classes)
    if not wanted(config, images.shape[0]):
        return View(images, boxes, classes, fates)
    areas = augment.whole_areas(inputs["boxes"], inputs["view"])
    scene = _Scene(images, tuple(tf.unstack(boxes, axis=-1)), classes, areas, fates)
    seeds = tf.unstack(tf.random.experimental.stateless_split(tf.random.experimental.stateless_fold_in(seed, STREAM), 2), axis=0)
    if config.mosaic > 0:
        scene = _mosaic(scene, *draw_mosaics(images.shape[0], images.shape[1], config, seeds[0]), config)
    if config.mixup > 0:
        scene = _mixup(scene, draw_weights(images.shape[0], config, seeds[1]))
    return _compact(scene, rows(config, boxes.shape[1]))


def draw_mosaics(batch: int, size: int, config: Augment, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Which images become mosaics, and how.

    A mosaic zoomed by z shows z * size pixels of each image, so that its centre must lie between 1 - z and z of the side if no
    part is to stay blank: at z = 0.5 in the middle.

    Returns:
      (centers float32 [B, 2], y and x, whole pixels; the lower right corner, (size, size), for images that stay what they are;
       zooms float32 [B], from `mosaic_zoom` to 1 with a uniform logarithm, 1 for images that stay).
    """
    chosen, place, zoom = tf.unstack(tf.random.experimental.stateless_split(seed, 3), axis=0)
    uniform = tf.random.stateless_uniform
    is_mosaic = uniform([batch], chosen) < config.mosaic
    zooms = tf.where(is_mosaic, config.mosaic_zoom ** uniform([batch], zoom), 1.0)
    low = tf.maximum(config.mosaic_center, 1.0 - zooms)[:, None]
    centers = tf.round((low + uniform([batch, 2], place) * (1.0 - 2.0 * low)) * size)
    return tf.where(is_mosaic[:, None], centers, float(size)), zooms


def draw_weights(batch: int, config: Augment, seed: tf.Tensor) -> tf.Tensor:
    """Weights float32 [B] of the images in their mixtures, 1 for images that stay what they are."""
    chosen, weight = tf.unstack(tf.random.experimental.stateless_split(seed, 2), axis=0)
    # The middle one of 2 a - 1 uniform numbers has the distribution Beta(a, a); XLA has no gamma distribution to make it of.
    drawn = tf.sort(tf.random.stateless_uniform([batch, 2 * BETA - 1], weight), axis=1)[:, BETA - 1]
    return tf.where(tf.random.stateless_uniform([batch], chosen) < config.mixup, drawn, 1.0)


def _mosaic(scene: _Scene, centers: tf.Tensor, zooms: tf.Tensor, config: Augment) -> _Scene:
    """The mosaics of `draw_mosaics`: four times the rows."""
    batch, size = scene.images.shape[:2]
    center_y, center_x = centers[:, 0, None], centers[:, 1, None]  # [B, 1]
    is_mosaic = (center_y < size) | (center_x < size)  # without a margin a mosaic may have the whole image in one quadrant, too
    # Upper left, upper right, lower left, lower right. Of two images each is in two quadrants, which must not touch along an
    # edge: there an unzoomed image would go on across it, but its boxes would end.
    moves = (0, 1, 2, 3) if batch > 2 else (0, 1, 1, 0)
    parts = [_moved(scene, move) for move in moves]
    pictures = [part.images for part in parts]
    if config.mosaic_zoom < 1.0:
        images = tf.where(is_mosaic[:, :, None, None], _zoomed(pictures, centers, zooms), scene.images)
    else:
        images = _selected(pictures, centers)

    zoom, shift = zooms[:, None], size * (1.0 - zooms)[:, None]
    zero, end = tf.zeros_like(center_y), tf.fill(center_y.shape, float(size))
    sides, classes, fates = [], [], scene.fates
    for quadrant, part in enumerate(parts):
        low_y, high_y, shift_y = (center_y, end, shift) if quadrant >= 2 else (zero, center_y, zero)
        low_x, high_x, shift_x = (center_x, end, shift) if quadrant % 2 else (zero, center_x, zero)
        y0, x0, y1, x1 = part.sides
        y0, y1 = (tf.clip_by_value(side * zoom + shift_y, low_y, high_y) for side in (y0, y1))
        x0, x1 = (tf.clip_by_value(side * zoom + shift_x, low_x, high_x) for side in (x0, x1))
        shown = (y1 - y0) * (x1 - x0)
        here = part.classes > 0
        # An image that stays what it is keeps what the view kept, whatever rounding makes of its areas.
        enough = (shown > 0.0) & ((shown >= config.min_visible * part.areas * zoom * zoom) | ~is_mosaic)
        lost = tf.stack([_count(here & ~enough & (shown <= 0.0)), _count(here & ~enough & (shown > 0.0))], axis=1)
        new = tf.pad(lost, [[0, 0], [2, 0]]) + (part.fates if quadrant else 0)
        fates += tf.where(is_mosaic, new, 0)
        sides.append((y0, x0, y1, x1))
        classes.append(tf.where(here & enough, part.classes, 0))
    joined = tuple(tf.concat(side, axis=1) for side in zip(*sides, strict=True))
    areas = tf.concat([part.areas * zoom * zoom for part in parts], axis=1)
    return _Scene(images, joined, tf.concat(classes, axis=1), areas, fates)


def _selected(pictures: list[tf.Tensor], centers: tf.Tensor) -> tf.Tensor:
    """Mosaics float32 [B, S, S, 3] of four batches of images, each shown in its quadrant and where it is."""
    position = tf.range(pictures[0].shape[1], dtype=tf.float32)[None, :]
    below = (position >= centers[:, :1])[:, :, None, None]  # [B, S, 1, 1]
    right = (position >= centers[:, 1:])[:, None, :, None]  # [B, 1, S, 1]
    upper = tf.where(right, pictures[1], pictures[0])
    return tf.where(below, tf.where(right, pictures[3], pictures[2]), upper)


def _zoomed(pictures: list[tf.Tensor], centers: tf.Tensor, zooms: tf.Tensor) -> tf.Tensor:
    """The same, every image shrunk by `zooms` [B] towards its corner of the mosaic."""
    size = pictures[0].shape[1]

    def both(center: tf.Tensor) -> tf.Tensor:
        """Weights [B, S, 2 S] of an axis: of the first image before the center, of the second from there on."""
        still = tf.zeros_like(zooms, tf.bool)
        first = augment.sampling(size, size, tf.zeros_like(zooms), zooms, still)
        second = augment.sampling(size, size, size - size / zooms, zooms, still)
        after = (tf.range(size, dtype=tf.float32)[None, :] >= center[:, None])[:, :, None]
        return tf.concat([tf.where(after, 0.0, first), tf.where(after, second, 0.0)], axis=2)

    rows_of, columns_of = both(centers[:, 0]), both(centers[:, 1])
    left = tf.concat([pictures[0], pictures[2]], axis=1)  # [B, 2 S, S, 3], one above the other
    right = tf.concat([pictures[1], pictures[3]], axis=1)
    halves = tf.concat([tf.einsum("bij,bjkc->bikc", rows_of, half) for half in (left, right)], axis=2)  # [B, S, 2 S, 3]
    return tf.einsum("bpk,bikc->bipc", columns_of, halves)


def _mixup(scene: _Scene, weights: tf.Tensor) -> _Scene:
    """The mixtures of `draw_weights`: twice the rows."""
    batch = scene.images.shape[0]
    # As far away as can be, where mosaics share the fewest images; but not half a batch, or two images would be each other's
    # partner, and their mixtures nearly the same.
    other = _moved(scene, batch // 2 + 1 if batch > 2 else 1)
    is_mixed = (weights < 1.0)[:, None]
    weight = weights[:, None, None, None]
    return _Scene(
        scene.images * weight + other.images * (1.0 - weight),
        tuple(tf.concat(pair, axis=1) for pair in zip(scene.sides, other.sides, strict=True)),
        tf.concat([scene.classes, tf.where(is_mixed, other.classes, 0)], axis=1),
        tf.concat([scene.areas, other.areas], axis=1),
        scene.fates + tf.where(is_mixed, other.fates, 0),
    )


def _compact(scene: _Scene, count: int) -> View:
    """Boxes first, in their order, then padding, cut to `count` rows; what is cut off is counted."""
    held, had = scene.classes > 0, scene.classes.shape[1]
    # No two keys of boxes are equal, so that no sort needs to be stable; float32 holds them exactly.
    key = tf.where(held, tf.range(had, 0, -1, dtype=tf.float32), 0.0)
    order = tf.math.top_k(key, min(count, had)).indices

    def packed(values: tf.Tensor) -> tf.Tensor:
        first = tf.gather(tf.where(held, values, tf.zeros_like(values)), order, batch_dims=1)
        return tf.pad(first, [[0, 0], [0, max(0, count - had)]])

    cut = tf.maximum(0, _count(held) - count)
    boxes = tf.stack([packed(side) for side in scene.sides], axis=-1)
    return View(scene.images, boxes, packed(scene.classes), scene.fates + tf.pad(cut[:, None], [[0, 0], [1, 2]]))


def fates_of(inputs: Mapping[str, tf.Tensor], boxes: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    """What became of the objects of each image in its view, see `View`."""
    held = inputs["classes"] > 0
    lost = held & (classes == 0)
    shown = tf.reduce_all(boxes[..., 2:] > boxes[..., :2], axis=-1)
    objects = inputs["objects"]
    return tf.stack([objects, objects - _count(held), _count(lost & ~shown), _count(lost & shown)], axis=1)


def _moved(scene: _Scene, places: int) -> _Scene:
    """Every image replaced by the one so many places further on in the batch."""
    moved: _Scene = tf.nest.map_structure(lambda values: tf.roll(values, -places, axis=0) if places else values, scene)
    return moved


def _count(flags: tf.Tensor) -> tf.Tensor:
    """How many are true in each row, int32 [B]."""
    return tf.reduce_sum(tf.cast(flags, tf.int32), axis=1)
