"""Overlap of boxes given by centre and sides, each side a tensor of its own: a TPU pads rows of four to 128.

IoU, generalised IoU (Rezatofighi et al. 2019, https://arxiv.org/abs/1902.09630) and complete IoU (Zheng et al. 2020,
https://arxiv.org/abs/1911.08287), as Model Garden computes them (official/projects/yolo/ops/box_ops.py), but for the limit on
darknet's weight in `overlap`.
"""

import math
from typing import NamedTuple

import tensorflow as tf

IOU, GIOU, CIOU = "iou", "giou", "ciou"
KINDS = (CIOU, GIOU, IOU)
EPSILON = 1e-9  # official/projects/yolo/ops/math_ops.py, divide_no_nan


class Boxes(NamedTuple):
    """Centres and sides, float32 of one shape, in any unit."""

    x: tf.Tensor
    y: tf.Tensor
    width: tf.Tensor
    height: tf.Tensor


def overlap(kind: str, true: Boxes, predicted: Boxes, *, darknet: bool = False) -> tf.Tensor:
    """How well boxes agree: 1 for equal ones.

    Args:
      kind: one of `KINDS`.
      true: boxes of objects.
      predicted: of a shape that broadcasts with theirs; in the same unit.
      darknet: weigh the ratio of the sides in "ciou" by the predicted box's squared diagonal, as darknet does, but by 1 at most;
        its value then depends on the unit, which is the image's side there.
    """
    left, right = _ends(true.x, true.width, predicted.x, predicted.width)
    top, bottom = _ends(true.y, true.height, predicted.y, predicted.height)
    shared = tf.maximum(_least(right) - _most(left), 0.0) * tf.maximum(_least(bottom) - _most(top), 0.0)
    union = true.width * true.height + predicted.width * predicted.height - shared
    iou = shared / (union + EPSILON)
    if kind == IOU:
        return iou
    # Sides of the smallest box around both.
    wide, high = _most(right) - _least(left), _most(bottom) - _least(top)
    if kind == GIOU:
        return iou - (wide * high - union) / (wide * high + EPSILON)
    apart = tf.square(true.x - predicted.x) + tf.square(true.y - predicted.y)
    distance = apart / (tf.square(wide) + tf.square(high) + EPSILON)
    turn = tf.atan(predicted.width / (predicted.height + EPSILON)) - tf.atan(true.width / (true.height + EPSILON))
    shape = 4 / math.pi**2 * tf.square(turn)
    weight = tf.stop_gradient(shape / (1 - iou + shape + EPSILON))
    if darknet:
        # The weight takes a denominator out of the gradient that is small for boxes within the image, as Zheng et al. advise.
        # Beyond it there is nothing to take out, and without the limit the loss grows as the square of sides, which are
        # exponentials.
        shape *= tf.stop_gradient(tf.minimum(tf.square(predicted.width) + tf.square(predicted.height), 1.0))
    return iou - distance - shape * weight


_Pair = tuple[tf.Tensor, tf.Tensor]


def _ends(a: tf.Tensor, a_side: tf.Tensor, b: tf.Tensor, b_side: tf.Tensor) -> tuple[_Pair, _Pair]:
    """Both boxes' lower ends, then both upper ends."""
    return (a - a_side / 2, b - b_side / 2), (a + a_side / 2, b + b_side / 2)


def _least(pair: _Pair) -> tf.Tensor:
    return tf.minimum(*pair)


def _most(pair: _Pair) -> tf.Tensor:
    return tf.maximum(*pair)
