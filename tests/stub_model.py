"""A model that costs nothing and whose detections are known: objects are written into the pixels.

A pixel (red, green, blue) = (score * 255, side in px, class column) on black ground is an object: a square box of that side about
the pixel's middle. Every patch that holds the pixel sees the object, cut at the patch's edge.
"""

import dataclasses
import os

import numpy as np
import tensorflow as tf

from survey import model
from survey.anchors import AnchorSpec
from survey.heads import RetinaNetHeads

SIZE = 64

# One square anchor of 16 px in each cell of 8 px.
SPEC = model.ModelSpec(
    image_size=SIZE,
    classes=("bird", "tree"),
    heads=RetinaNetHeads(AnchorSpec(3, 3, num_scales=1, aspect_ratios=(1.0,), anchor_size=2.0), (1.0, 1.0, 1.0, 1.0)),
    score_threshold=0.5,
    score_floor=0.1,
    nms_iou=0.5,
    overlap_px=16,
    gsd_m=None,
    bands=(),
    calibration=(),
    validation={},
    dataset_digest="0" * 64,
    versions={},
)


class Stub(tf.Module):
    """Reads the brightest pixel of each cell."""

    def __init__(self, batch_size: int | None, side: int | None) -> None:
        super().__init__()
        shape = tf.TensorSpec([batch_size, side, side, 3], tf.uint8, name="images")
        self.raw = tf.function(self._raw, input_signature=[shape])

    def _raw(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        batch, cells = tf.shape(images)[0], SIZE // 8
        pixels = tf.reshape(tf.cast(images, tf.float32), [batch, cells, 8, cells, 8, 3])
        pixels = tf.reshape(tf.transpose(pixels, [0, 1, 3, 2, 4, 5]), [batch, cells * cells, 64, 3])
        brightest = tf.argmax(pixels[..., 0], axis=-1, output_type=tf.int32)
        red, green, blue = tf.unstack(tf.gather(pixels, brightest, batch_dims=2), axis=-1)  # [B, N]
        ty = (tf.cast(brightest // 8, tf.float32) + 0.5 - 4) / 16
        tx = (tf.cast(brightest % 8, tf.float32) + 0.5 - 4) / 16
        side = tf.math.log(tf.maximum(green, 1.0) / 16)
        score = tf.clip_by_value(red / 255, 1e-6, 1 - 1e-6)
        logit = tf.math.log(score / (1 - score))
        hot = tf.one_hot(tf.cast(blue, tf.int32), 2)
        return {
            "raw_boxes": tf.stack([ty, tx, side, side], axis=-1),
            "raw_scores": hot * logit[..., None] + (1 - hot) * -15.0,
        }


def export(
    folder: str, *, batch_size: int | None = None, side: int | None = SIZE, signature: str = "raw", **changes: object
) -> str:
    """Writes the stub as `rookery export` would; `changes` go into model.json."""
    stub = Stub(batch_size, side)
    tf.saved_model.save(stub, os.path.join(folder, model.SAVED_MODEL), signatures={signature: stub.raw})
    model.write(folder, dataclasses.replace(SPEC, **changes))
    return folder


def paint(height: int, width: int, objects: list[tuple[int, int, int, float, int]]) -> np.ndarray:
    """A mosaic uint8 [height, width, 3] of (y, x, side in px, score, class id from 1) objects."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for y, x, side, score, class_id in objects:
        pixels[y, x] = (round(score * 255), side, class_id - 1)
    return pixels
