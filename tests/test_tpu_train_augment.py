"""Boxes follow their pixels through every augmentation."""

import numpy as np
import pytest
import tensorflow as tf
from official.projects.yolo.ops import preprocessing_ops
from official.vision.ops import box_ops

from survey.errors import InputError
from tpu_train.augment import Augment, check, keep_visible, random_view, whole_areas

STILL = Augment(
    scale_min=1.0, scale_max=1.0, flip=False, quarter_turn=False, brightness=0.0, contrast=0.0, saturation=0.0, white_balance=0.0
)


def bright_box(image: np.ndarray) -> np.ndarray:
    """Bounding box of pixels brighter than half, yxyx."""
    rows, columns = np.nonzero(image[..., 0] > 127)
    return np.array([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1], np.float32)


def still(count: int) -> np.ndarray:
    """Views that begin in the corner and keep the scale."""
    return np.tile(np.array([[1, 0, 0]], np.float32), (count, 1))


def test_identity() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 32, 32, 3), np.uint8)
    boxes = np.array([[[1, 2, 11, 12]], [[0, 0, 0, 0]]], np.float32)
    out, moved, classes = random_view(
        images, boxes, np.array([[3], [0]]), still(2), size=32, config=STILL, seed=tf.constant([0, 0])
    )
    np.testing.assert_allclose(out, images, atol=1e-2)
    np.testing.assert_allclose(moved[0, 0], [1, 2, 11, 12], atol=1e-4)
    np.testing.assert_array_equal(classes, [[3], [0]])


@pytest.mark.parametrize(("jit", "stretch"), [(False, 1.0), (True, 1.0), (True, 1.5)])
def test_boxes_follow_pixels(jit: bool, stretch: float) -> None:
    """A bright rectangle of 30 x 18 px, off centre, in 64 random views: its box is where the pixels are, to a pixel."""
    count, size = 64, 96
    images = np.zeros((count, 128, 128, 3), np.uint8)
    images[:, 50:80, 60:78] = 255
    boxes = np.tile(np.array([[[50, 60, 80, 78]]], np.float32), (count, 1, 1))
    config = Augment(brightness=0.0, contrast=0.0, saturation=0.0, white_balance=0.0, min_visible=0.3)
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.7, 1.4, count)
    begin = rng.uniform(size=(count, 2)) * (128 - size / scale)[:, None]
    across = [] if stretch == 1 else [scale * rng.choice([stretch, 1 / stretch], count)]
    views = np.column_stack([scale, begin, *across]).astype(np.float32)

    @tf.function(jit_compile=jit)
    def view(*batch: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return random_view(*batch, size=size, config=config, seed=tf.constant([1, 2]))

    ones = tf.ones((count, 1), tf.int32)
    out, moved, classes = (x.numpy() for x in view(tf.constant(images), tf.constant(boxes), ones, tf.constant(views)))
    shown = classes[:, 0] > 0
    assert shown.sum() > 40
    for i in np.flatnonzero(shown):
        np.testing.assert_allclose(bright_box(out[i]), moved[i, 0], atol=1.01)
    tall = moved[shown, 0, 2] - moved[shown, 0, 0] > moved[shown, 0, 3] - moved[shown, 0, 1]
    assert 0.2 < tall.mean() < 0.8  # quarter turns happen, for about half
    assert len(np.unique(moved[shown, 0, 0].round(2))) > 20  # and no two views are alike


def test_same_seed_same_view() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    boxes, classes = np.zeros((2, 1, 4), np.float32), np.zeros((2, 1), np.int32)
    one, two, three = (
        random_view(images, boxes, classes, still(2), size=48, config=Augment(), seed=tf.constant(seed))[0].numpy()
        for seed in ([5, 1], [5, 1], [5, 2])
    )
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - three).mean() > 1


def test_a_view_larger_than_its_source_has_a_black_frame() -> None:
    """A white source of 32 px, 20 px down and 9 px right in a view of 64 px at scale 1: exactly a quarter of it is white."""
    images = np.full((1, 32, 32, 3), 255, np.uint8)
    boxes, classes, views = np.zeros((1, 1, 4), np.float32), np.zeros((1, 1), np.int32), np.array([[1, -20, -9]], np.float32)
    out, _, _ = random_view(images, boxes, classes, views, size=64, config=STILL, seed=tf.constant([0, 3]))
    assert out[0, 20:52, 9:41].numpy().min() == pytest.approx(255)
    assert out.numpy().mean() / 255 == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(("height", "width", "size"), [(48, 64, 96), (64, 48, 96), (480, 640, 416), (50, 50, 32), (30, 50, 50)])
def test_a_view_that_begins_outside_is_model_gardens_letterbox(height: int, width: int, size: int) -> None:
    """The whole of an image in the middle of a square: boxes to a rounding, pixels exactly where it enlarges.

    Where it shrinks, Model Garden takes means of areas, which a triangle filter is not: on a smooth picture the two are within a
    grey value on average. Its frame is grey, ours is black: the pixels beside it are not compared.
    """
    y, x = np.mgrid[:height, :width].astype(np.float32)
    image = (128 + 60 * np.sin(y / 9)[..., None] * np.cos(x / 7)[..., None] * np.array([1, 0.5, -1])).astype(np.uint8)
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

    side = max(height, width)
    view = np.array([[size / side, (height - side) / 2, (width - side) / 2]], np.float32)
    ours, moved, _ = random_view(
        image[None], boxes[None], np.ones((1, 5), np.int32), view, size=size, config=STILL, seed=tf.constant([0, 0])
    )
    np.testing.assert_allclose(moved[0], box_ops.denormalize_boxes(shares, [size, size]), rtol=1e-5, atol=1e-3)
    rows, columns = ((size / side * (np.array([0, had]) + (side - had) / 2)).round().astype(int) for had in (height, width))
    difference = np.abs(ours[0] - theirs)[rows[0] + 1 : rows[1] - 1, columns[0] + 1 : columns[1] - 1]
    if size >= side:
        assert difference.max() < 0.01
    else:
        assert difference.mean() < 1.0


def test_areas_include_what_is_not_shown() -> None:
    """10 x 20 px: at scale 2, 20 x 40; with rows at 2 and columns at 0.5, 20 x 10."""
    boxes = tf.constant([[[-5.0, 0, 5, 20], [0, 0, 0, 0]]])
    assert whole_areas(boxes, tf.constant([[2.0, 30, 30]])).numpy().tolist() == [[800, 0]]
    assert whole_areas(boxes, tf.constant([[2.0, 30, 30, 0.5]])).numpy().tolist() == [[200, 0]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"jitter": -0.1}, r"task\.augmentation\.jitter=-0.1: must be between 0 and 1; 0 keeps the aspect ratio"),
        ({"mosaic": 1.5}, r"mosaic=1.5: must be between 0 and 1; it is the share of the images"),
        ({"mosaic_center": 0.6}, r"mosaic_center=0.6: must be between 0 and 0.5; .*0.5 puts it in the middle"),
        ({"mosaic_zoom": 0.4}, r"mosaic_zoom=0.4: must be between 0.5 and 1; .*less would leave gaps"),
        ({"mixup": float("nan")}, r"mixup=nan: must be between 0 and 1"),
        ({"mosaic_rows": 0.5}, r"mosaic_rows=0.5: must be between 1 and 8"),
    ],
)
def test_values_that_cannot_be_are_refused(values: dict[str, float], message: str) -> None:
    check(Augment())
    check(Augment(jitter=0.3, mosaic=1.0, mosaic_zoom=0.5, mixup=0.5))
    with pytest.raises(InputError, match=message):
        check(Augment(**values))


def test_keep_visible() -> None:
    """Of 10 x 10 px: 4 columns inside are 40 %, kept at 0.3; 2 columns are 20 %, dropped; nothing inside is dropped also at 0."""
    boxes = tf.constant([[[0.0, -6, 10, 4], [0.0, -8, 10, 2], [0.0, -20, 10, -10]]])
    clipped, classes = keep_visible(boxes, tf.constant([[1, 2, 3]]), 32, 0.3)
    np.testing.assert_array_equal(classes, [[1, 0, 0]])
    np.testing.assert_allclose(clipped[0, 0], [0, 0, 10, 4])
    assert keep_visible(boxes, tf.constant([[1, 2, 3]]), 32, 0.0)[1].numpy().tolist() == [[1, 2, 0]]
