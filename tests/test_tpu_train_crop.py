"""The part of a patch that the host decodes holds all that its view shows, and which it is follows from seed and number."""

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from pipeline import records
from tpu_train import crop as crops
from tpu_train import input as host
from tpu_train.augment import Augment, random_view
from tpu_train.crop import Crop

PATCH = 96
CALM = Augment(brightness=0.0, contrast=0.0, saturation=0.0, white_balance=0.0)


def picture() -> np.ndarray:
    """A patch of noise: a pixel that is a row away has nothing to do with its neighbour."""
    return np.random.default_rng(0).integers(0, 256, (PATCH, PATCH, 3), np.uint8)


def example(encoded: bytes, patch_size: int = PATCH) -> tf.Tensor:
    box = np.array([[30.0, 40.0, 50.0, 44.0]])
    common = {"patch_id": 7, "filename": "a.tif", "classes": ("auk",), "class_ids": np.array([1])}
    return tf.constant(records.example(encoded=encoded, patch_size=patch_size, boxes_patch_px=box, **common))


def jpeg(pixels: np.ndarray) -> bytes:
    return records.encode_jpeg(pixels, 95)


def png(pixels: np.ndarray) -> bytes:
    return tf.io.encode_png(pixels).numpy()


def seeds(number: int, seed: int = 0, host: int = 0) -> tf.Tensor:
    return crops.seeds(seed, host, tf.constant(number, tf.int64))


@pytest.mark.parametrize(
    ("crop", "window"),
    [
        # 40 px at 0.8 show 50 px; resampling reaches ceil(0.5 / 0.8 + 0.5) = 2 px further on each side, and 1 for fractions: 55.
        (Crop(PATCH, 40, 0.8, 1.25), 56),
        # 20 px at 0.4 show 50 px; ceil(1.25 + 0.5) = 2: 55.
        (Crop(PATCH, 20, 0.4, 0.5), 56),
        # 32 px at 2 show 16 px, ceil(0.5 + 0.5) = 1: 19.
        (Crop(PATCH, 32, 2.0, 3.0), 24),
        (Crop(PATCH, 96, 1.0, 1.0), 96),  # 99 px, more than there are
        (Crop(PATCH, 80, 0.5, 0.6), 96),  # the patch is smaller than the view
        # 0.8 / 1.25 = 0.64: 40 px show 62.5 px; ceil(0.5 / 0.64 + 0.5) = 2 px further on each side, and 1: 68.
        (Crop(PATCH, 40, 0.8, 1.25, jitter=0.25), 72),
    ],
)
@pytest.mark.parametrize("encode", [jpeg, png])
def test_a_view_of_the_window_is_that_of_the_whole_patch(crop: Crop, window: int, encode: Callable[[np.ndarray], bytes]) -> None:
    assert crop.window == window
    serialized = example(encode(picture()))
    whole = host.decode(serialized, PATCH, 2)
    begins = []
    for number in range(12):
        part = host.decode(serialized, PATCH, 2, crop, seeds(number))
        assert part["image"].shape == (window, window, 3)
        corner, view = crop.draw(seeds(number))
        np.testing.assert_array_equal(part["view"], view)
        in_patch = view + tf.pad(tf.cast(corner, tf.float32), [[1, crop.numbers - 3]])
        seen = [
            random_view(
                given["image"][None],
                given["boxes"][None],
                given["classes"][None],
                where[None],
                size=crop.size,
                config=CALM,
                seed=tf.constant([0, number]),
            )
            for given, where in ((whole, in_patch), (part, view))
        ]
        for one, other in zip(*seen, strict=True):
            np.testing.assert_allclose(one, other, atol=0.02)  # of 255: float32 places a view of 96 px to 1e-5 px
        begins.append(in_patch[1:3].numpy())
        assert part["classes"].numpy().tolist() == [1, 0]
        np.testing.assert_array_equal(part["boxes"][1], np.zeros(4))
    assert len(np.unique(np.round(begins, 3), axis=0)) == (12 if crop.size != PATCH else 1)


def test_views_are_spread_over_zooms_and_places() -> None:
    """Of 400: scales from 0.5 to 2, half of them below 1; begins between 0 and 96 - 64 / scale, in the middle on average."""
    crop = Crop(PATCH, 64, 0.5, 2.0)
    drawn = tf.map_fn(lambda n: crop.draw(crops.seeds(0, 0, n)), tf.range(400, dtype=tf.int64), (tf.int32, tf.float32))
    corners, views = (value.numpy() for value in drawn)
    scale = views[:, 0]
    assert scale.min() > 0.5
    assert scale.max() < 2
    assert (scale < 1).mean() == pytest.approx(0.5, abs=0.08)
    share = (views[:, 1:] + corners) / (PATCH - 64 / scale)[:, None]
    assert share.min() >= -1e-4
    assert share.max() <= 1 + 1e-4
    np.testing.assert_allclose(share.mean(axis=0), 0.5, atol=0.05)
    assert abs(np.corrcoef(share.T)[0, 1]) < 0.15


def drawn(crop: Crop, count: int) -> tuple[np.ndarray, np.ndarray]:
    numbers = tf.range(count, dtype=tf.int64)
    corners, views = tf.map_fn(lambda n: crop.draw(crops.seeds(0, 0, n)), numbers, (tf.int32, tf.float32))
    return corners.numpy(), views.numpy()


def test_jitter_zooms_height_and_width_apart() -> None:
    """Of 400 views at scale 1, jitter 0.25: scales of rows and columns from 1 / 1.25 = 0.8 to 1.25, half of them below 1."""
    corners, views = drawn(Crop(PATCH, 40, 1.0, 1.0, jitter=0.25), 400)
    assert views.shape == (400, 4)
    scales = views[:, [0, 3]]
    assert 0.8 <= scales.min() < 0.81
    assert 1.23 < scales.max() <= 1.25
    np.testing.assert_allclose((scales < 1).mean(axis=0), 0.5, atol=0.08)
    np.testing.assert_allclose(np.log(scales).mean(axis=0), 0.0, atol=0.02)
    assert abs(np.corrcoef(scales.T)[0, 1]) < 0.15
    share = (views[:, 1:3] + corners) / (PATCH - 40 / scales)  # of the room that each side has
    assert share.min() >= -1e-4
    assert share.max() <= 1 + 1e-4
    np.testing.assert_allclose(share.mean(axis=0), 0.5, atol=0.05)


def test_jitter_shows_no_black_that_was_not_there() -> None:
    """80 of 96 px: jitter 0.5 would show up to 120. At scale 0.5 the view shows 160 px anyway, and jitter no more."""
    _, views = drawn(Crop(PATCH, 80, 1.0, 1.0, jitter=0.5), 100)
    extent = 80 / views[:, [0, 3]]
    assert extent.max() == pytest.approx(PATCH)
    assert extent.min() < 60
    white = np.full((100, PATCH, PATCH, 3), 255, np.uint8)
    boxes, classes = np.zeros((100, 1, 4), np.float32), np.zeros((100, 1), np.int32)
    images, _, _ = random_view(white, boxes, classes, views, size=80, config=CALM, seed=tf.constant([0, 1]))
    assert images.numpy().min() > 254.9
    _, views = drawn(Crop(PATCH, 80, 0.5, 0.5, jitter=0.5), 100)
    extent = 80 / views[:, [0, 3]]
    assert extent.max() == pytest.approx(160)
    assert 80 / 0.75 - 0.01 < extent.min() < 115


def test_without_jitter_a_view_is_what_it_was() -> None:
    assert Crop(PATCH, 40, 0.8, 1.25).numbers == 3
    assert Crop(PATCH, 40, 0.8, 1.25).draw(seeds(0))[1].shape == (3,)


def test_a_view_follows_from_seed_host_and_number() -> None:
    crop = Crop(PATCH, 40, 0.8, 1.25)
    first = crop.draw(seeds(3))[1].numpy()
    np.testing.assert_array_equal(first, crop.draw(seeds(3))[1])
    for other in (seeds(4), seeds(3, seed=1), seeds(3, host=1)):
        assert abs(crop.draw(other)[1].numpy() - first).max() > 1e-3


@pytest.mark.parametrize("encode", [jpeg, png])
def test_a_picture_of_another_size_is_an_error(encode: Callable[[np.ndarray], bytes]) -> None:
    """Also where the square to decode would lie in it."""
    larger = example(encode(np.zeros((PATCH + 8, PATCH + 8, 3), np.uint8)))
    with pytest.raises(tf.errors.InvalidArgumentError):
        host.decode(larger, PATCH, 2, Crop(PATCH, 40, 0.8, 1.25), seeds(0))
