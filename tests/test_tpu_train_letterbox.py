"""Letterboxes: where pixels and boxes go, worked out by hand and as Model Garden does it."""

import numpy as np
import pytest
import tensorflow as tf
from official.projects.yolo.ops import preprocessing_ops
from official.vision.ops import box_ops

from tpu_train.letterbox import Letterbox, letterbox

NONE = tf.zeros([1, 1, 4])


def test_by_hand() -> None:
    """20 x 40 px, white, in 80: 10 px of grey above and below, all twice as large: rows 20 to 60 are white.

    A box [5,10,20,30] is at ((5 + 10) * 2, 10 * 2, (20 + 10) * 2, 30 * 2).
    """
    images, boxes = letterbox(tf.fill([2, 20, 40, 3], 255.0), tf.constant([[[5.0, 10, 20, 30]]] * 2), 80)
    assert images.shape == (2, 80, 80, 3)
    rows = images[1, :, 40, 0].numpy()
    np.testing.assert_allclose(rows[:19], 114)
    np.testing.assert_allclose(rows[21:59], 255)
    np.testing.assert_allclose(rows[61:], 114)
    np.testing.assert_allclose(rows[19:21], [114 + 141 * 0.25, 114 + 141 * 0.75])  # a quarter of a pixel from the border
    np.testing.assert_allclose(images[0, 30, :, 2], 255, rtol=1e-6)  # to the very edges
    assert boxes.numpy().tolist() == [[[30, 20, 60, 60]]] * 2
    assert Letterbox(20, 40, 80).back(boxes).numpy().tolist() == [[[5, 10, 20, 30]]] * 2


def test_an_image_of_the_models_size_stays() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), np.uint8)
    boxes = np.array([[[1, 2, 3, 4]]] * 2, np.float32)
    images, moved = letterbox(pixels, boxes, 24)
    np.testing.assert_allclose(images, pixels, atol=1e-3)
    np.testing.assert_array_equal(moved, boxes)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(48, 64, 96), (64, 48, 96), (480, 640, 416), (97, 64, 64), (64, 101, 160), (50, 50, 32), (30, 50, 50)],
)
def test_as_model_garden(height: int, width: int, size: int) -> None:
    """Boxes to a rounding; pixels exactly where it enlarges.

    Where it shrinks, Model Garden takes means of areas, which a triangle filter is not: on a smooth picture the two are within a
    grey value on average, and at the border of the grey within a few.
    """
    y, x = np.mgrid[:height, :width].astype(np.float32)
    smooth = 128 + 60 * np.sin(y / 9)[..., None] * np.cos(x / 7)[..., None] * np.array([1, 0.5, -1])
    image = smooth.astype(np.uint8)
    rng = np.random.default_rng(1)
    low = rng.uniform(0, 0.5, (5, 2)) * [height, width]
    boxes = np.concatenate([low, low + rng.uniform(0.05, 0.5, (5, 2)) * [height, width]], axis=1).astype(np.float32)

    theirs, infos, _ = preprocessing_ops.resize_and_jitter_image(
        tf.constant(image, tf.float32), [size, size], letter_box=True, random_pad=False, shiftx=0.5, shifty=0.5, jitter=0.0
    )
    shares, _ = preprocessing_ops.transform_and_clip_boxes(
        box_ops.normalize_boxes(tf.constant(boxes), [height, width]),
        infos,
        shuffle_boxes=False,
        area_thresh=0.0,
        filter_and_clip_boxes=False,
    )
    images, moved = letterbox(image[None], boxes[None], size)
    np.testing.assert_allclose(moved[0], box_ops.denormalize_boxes(shares, [size, size]), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(Letterbox(height, width, size).back(moved)[0], boxes, rtol=1e-5, atol=1e-3)
    difference = np.abs(images[0] - theirs)
    if size >= max(height, width):
        assert difference.max() < 0.01
    else:
        assert difference.mean() < 1.0
        assert difference.max() < 25  # grey against the picture, on the border


def test_compiled() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 34, 3), np.uint8)
    plain = letterbox(pixels, NONE, 32)[0]
    compiled = tf.function(lambda: letterbox(pixels, NONE, 32)[0], jit_compile=True)()
    np.testing.assert_allclose(plain, compiled, atol=1e-2)
