"""YOLO's target assignment inside the compiled step: padded boxes in, cells and anchors that learn them out.

The rules are those of Model Garden's `YoloAnchorLabeler` (official/projects/yolo/ops/anchor.py), which makes lists of varying
length for one image at a time on the host. A box is compared with the anchors by its sides alone, as if both had one centre:

    match_threshold < 1     by IoU: an anchor matches from the threshold on (YOLOv3 and v4; below 0 all of them do)
    match_threshold >= 1    by the largest ratio of a side to the anchor's, or its inverse: an anchor matches below the threshold
                            (Scaled-YOLOv4, Wang et al. 2021, https://arxiv.org/abs/2011.08036; 4 in its recipes)

It is learned by the anchors that match, in the cell of its level where its centre lies. With `neighbours` the cells beside it
learn it too, those from which the centre can still be reached: scale_xy lets a cell predict centres (scale_xy - 1) / 2 of a cell
beyond its border.

Every box has a fixed number of slots on each level: one for its cell, with `neighbours` a second for the cell beside it in x and
a third for the one in y (a centre is near one border of two at most, as scale_xy is at most 2). A slot is a cell with all its
anchors, and flags say which of them learn the box. Model Garden keeps the first `max_num_instances` of a level's list; nothing
is cut here.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from survey.errors import InputError
from survey.heads import YoloHeads


class Slots(NamedTuple):
    """What a level learns, for B images and R = M * S slots, box after box; A anchors of a cell.

    Attributes:
      cells: int32 [B, R], row * columns + column; within the level, whether or not the slot is used.
      learns: bool [B, R, A], whether an anchor of the cell learns the slot's box.
    """

    cells: tf.Tensor
    learns: tf.Tensor


class Targets(NamedTuple):
    """What the loss compares the heads with, for B images of M padded boxes.

    Attributes:
      x, y, width, height: float32 [B, M], centres and sides as shares of the image's side; 0 for padding.
      classes: int32 [B, M], ids from 0 as Model Garden's YOLO counts them, -1 for padding.
      levels: the slots of each level.
    """

    x: tf.Tensor
    y: tf.Tensor
    width: tf.Tensor
    height: tf.Tensor
    classes: tf.Tensor
    levels: Mapping[int, Slots]


def assign(
    heads: YoloHeads,
    boxes: tf.Tensor,
    classes: tf.Tensor,
    *,
    image_size: int,
    match_threshold: float,
    best_match_only: bool = False,
    use_tie_breaker: bool = True,
    neighbours: bool = False,
) -> Targets:
    """Assigns boxes to cells and anchors.

    Args:
      heads: the levels, their anchors and scale_xy.
      boxes: float32 [B, M, 4], yxyx in image pixels, clipped to the image; rows with class 0 are padding and may hold anything.
      classes: int32 [B, M], ids from 1, 0 for padding. A box without an area counts as padding: it has no anchor.
      image_size: side of the image in pixels.
      match_threshold: an IoU below 1, or a ratio of sides from 1 on; see the top of this module.
      best_match_only: only anchors that match; else the best of all levels learns the box even where it does not match.
      use_tie_breaker: all anchors that match, beside the best one; no effect with `best_match_only`, as in Model Garden.
      neighbours: cells beside the centre's learn too; Model Garden's `darknet=False`.

    Raises:
      InputError: the image does not divide into the coarsest cells, or `neighbours` with scale_xy above 2.
    """
    heads.shapes(image_size, 1)
    if neighbours and max(heads.scale_xy, default=1.0) > 2:
        raise InputError(f"scale_xy={list(heads.scale_xy)}: must be at most 2 where neighbouring cells learn a box")
    y0, x0, y1, x1 = tf.unstack(tf.cast(boxes, tf.float32), axis=-1)  # [B, M] each: see `tpu_train.targets` about rows of four
    real = (classes > 0) & (y1 > y0) & (x1 > x0)
    y0, x0, y1, x1 = (tf.where(real, side, 0.0) for side in (y0, x0, y1, x1))
    chosen = real[..., None] & _matching(heads, y1 - y0, x1 - x0, match_threshold, best_match_only, use_tie_breaker)

    levels, first = {}, 0
    for index, (level, anchors) in enumerate(zip(heads.levels, heads.anchors_px, strict=True)):
        reach = (heads.scale_xy[index] - 1) / 2 if neighbours and heads.scale_xy else 0.0
        cells, near = _cells((y0 + y1) / (2 << level), (x0 + x1) / (2 << level), image_size >> level, reach)  # [B, M, S]
        learns = near[..., None] & chosen[..., None, first : first + len(anchors)]  # [B, M, S, A]
        slots = cells.shape[1] * cells.shape[2]
        levels[level] = Slots(tf.reshape(cells, [-1, slots]), tf.reshape(learns, [-1, slots, len(anchors)]))
        first += len(anchors)
    return Targets(
        x=(x0 + x1) / (2 * image_size),
        y=(y0 + y1) / (2 * image_size),
        width=(x1 - x0) / image_size,
        height=(y1 - y0) / image_size,
        classes=tf.where(real, tf.cast(classes, tf.int32) - 1, -1),
        levels=levels,
    )


def positive(heads: YoloHeads, targets: Targets, image_size: int) -> tf.Tensor:
    """Which anchor boxes learn an object.

    Args:
      heads: as given to `assign`.
      targets: what `assign` made of it.
      image_size: as given to `assign`.

    Returns:
      bool [B, N], in the order level, row, column, anchor.
    """
    flags = []
    for level, anchors in zip(heads.levels, heads.anchors_px, strict=True):
        slots, cells = targets.levels[level], (image_size >> level) ** 2
        grid = on_grid(slots.cells, tf.cast(slots.learns, tf.float32), cells)
        flags.append(tf.reshape(grid > 0, [-1, cells * len(anchors)]))
    return tf.concat(flags, axis=1)


def on_grid(cells: tf.Tensor, values: tf.Tensor, count: int) -> tf.Tensor:
    """Values of slots on the grid of their level, the largest where several fall on one anchor, 0 where none does.

    Args:
      cells: int32 [B, R].
      values: float32 [B, R, A], from 0 on; 0 where the slot is not used, which then changes nothing. So no index needs to point
        outside the grid, which is where Model Garden's loss fails on a CPU.
      count: cells of the level.

    Returns:
      float32 [B, count, A].
    """
    batch, anchors = tf.shape(cells)[0], values.shape[-1]
    rows = tf.range(batch)[:, None] * count + cells
    grid = tf.tensor_scatter_nd_max(tf.zeros([batch * count, anchors]), rows[..., None], values)
    return tf.reshape(grid, [batch, count, anchors])


def _matching(
    heads: YoloHeads, height: tf.Tensor, width: tf.Tensor, threshold: float, best_match_only: bool, use_tie_breaker: bool
) -> tf.Tensor:
    """Which anchors learn boxes of these sides, bool [B, M, anchors of all levels]."""
    anchors = np.array([anchor for level in heads.anchors_px for anchor in level], np.float32)  # [N, 2], width and height
    anchor_width, anchor_height = anchors[:, 0], anchors[:, 1]
    height, width = height[..., None], width[..., None]
    if threshold >= 1:
        tall, wide = height / anchor_height, width / anchor_width
        likeness = -tf.maximum(tf.maximum(tall, 1 / tall), tf.maximum(wide, 1 / wide))
        matches = likeness > -threshold
    else:
        shared = tf.minimum(height, anchor_height) * tf.minimum(width, anchor_width)
        likeness = shared / (height * width + anchor_height * anchor_width - shared)
        matches = likeness >= threshold
    if best_match_only:
        return matches
    # The first of several best ones, as Model Garden's top_k takes it.
    best = tf.argmax(likeness, axis=-1, output_type=tf.int32)[..., None] == tf.range(len(anchors))
    return best | matches if use_tie_breaker else best


def _cells(y: tf.Tensor, x: tf.Tensor, side: int, reach: float) -> tuple[tf.Tensor, tf.Tensor]:
    """The cells that learn a centre.

    Args:
      y: float32 [B, M], in cells.
      x: the same.
      side: of the level, in cells.
      reach: how far beyond its border a cell can predict, in cells; 0 for no neighbours.

    Returns:
      (int32 [B, M, S] cells, bool [B, M, S] whether they learn).
    """
    # Rounding may lift a centre onto the image's far border.
    row, column = (tf.clip_by_value(tf.cast(tf.floor(centre), tf.int32), 0, side - 1) for centre in (y, x))
    own = row * side + column
    if not reach:
        return own[..., None], tf.ones_like(own, tf.bool)[..., None]
    beside_y, near_y = _beside(y, side, reach)
    beside_x, near_x = _beside(x, side, reach)
    cells = tf.stack([own, row * side + beside_x, beside_y * side + column], axis=-1)
    return cells, tf.stack([tf.ones_like(near_x), near_x, near_y], axis=-1)


def _beside(centre: tf.Tensor, side: int, reach: float) -> tuple[tf.Tensor, tf.Tensor]:
    """The row or column beside the one where a centre lies, and whether the centre is within its reach; Model Garden's shifts."""
    into = centre - tf.floor(centre)
    before, after = (into < reach) & (centre > 1.0), (into > 1 - reach) & (centre < side - 1.0)
    shifted = tf.floor(centre - tf.where(before, reach, 0.0) + tf.where(after, reach, 0.0))
    return tf.clip_by_value(tf.cast(shifted, tf.int32), 0, side - 1), before | after
