"""Mosaics and mixtures: pixels and boxes of every part where they belong, and every object accounted for."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tpu_train import mosaic
from tpu_train.augment import Augment, random_view

SIZE = 16
ALWAYS = Augment(mosaic=1.0)
SEED = (3, 4)


def batch(boxes: list[list[list[float]]], size: int = SIZE, rows: int = 2) -> tuple[dict[str, tf.Tensor], Any, Any, Any]:
    """Images of one colour, 10, 20, ..., at scale 1, with these boxes; those of image i are of class i + 1."""
    count = len(boxes)
    colours = 10.0 * np.arange(1, count + 1, dtype=np.float32)
    images = np.tile(colours[:, None, None, None], (1, size, size, 3))
    padded, classes = np.zeros((count, rows, 4), np.float32), np.zeros((count, rows), np.int32)
    for i, own in enumerate(boxes):
        padded[i, : len(own)] = np.reshape(own, (-1, 4))
        classes[i, : len(own)] = i + 1
    inputs = {
        "boxes": tf.constant(padded),
        "classes": tf.constant(classes),
        "objects": tf.constant([len(own) for own in boxes]),
        "view": tf.constant([[1.0, 0.0, 0.0]] * count),
    }
    return inputs, tf.constant(images), inputs["boxes"], inputs["classes"]


def fix(monkeypatch: pytest.MonkeyPatch, centers: list[tuple[int, int]], zooms: list[float] | None = None) -> None:
    """Mosaics with these centres and zooms."""
    drawn = tf.constant(centers, tf.float32), tf.constant(zooms or [1.0] * len(centers))
    monkeypatch.setattr(mosaic, "draw_mosaics", lambda *_: drawn)


def composed(
    given: tuple[dict[str, tf.Tensor], Any, Any, Any], config: Augment, seed: tuple[int, int] = SEED
) -> list[np.ndarray]:
    return [value.numpy() for value in mosaic.compose(*given, config=config, seed=tf.constant(seed))]


def objects(boxes: np.ndarray, classes: np.ndarray, image: int) -> list[tuple[int, list[float]]]:
    """Class and box of each object of an image."""
    return [(int(c), box.round(3).tolist()) for c, box in zip(classes[image], boxes[image], strict=True) if c]


BOXES: list[list[list[float]]] = [
    [[2, 3, 8, 13], [4, 8, 10, 14]],
    [[0, 9, 4, 15]],
    [[1, 1, 5, 5]],
    [[8, 12, 12, 16], [5, 8, 9, 12]],
]


def test_four_images_around_a_centre(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first image becomes a mosaic around row 6, column 10; 0.3 of a box must be in its quadrant.

    Upper left, image 1: [2,3,8,13] shows 4 x 7 = 28 of 60 px; [4,8,10,14] 2 x 2 = 4 of 36: too little.
    Upper right, image 2: [0,9,4,15] shows 4 x 5 = 20 of 24.
    Lower left, image 3: [1,1,5,5] lies above it.
    Lower right, image 4: [8,12,12,16] all; [5,8,9,12] shows 3 x 2 = 6 of 16.
    So of 6 objects, 1 is outside, 1 barely visible.
    """
    fix(monkeypatch, [(6, 10), (16, 16), (16, 16), (16, 16)])
    given = batch(BOXES)
    images, boxes, classes, fates = composed(given, ALWAYS)
    assert (images[0, :6, :10] == 10).all()
    assert (images[0, :6, 10:] == 20).all()
    assert (images[0, 6:, :10] == 30).all()
    assert (images[0, 6:, 10:] == 40).all()
    assert objects(boxes, classes, 0) == [
        (1, [2, 3, 6, 10]),
        (2, [0, 10, 4, 15]),
        (4, [8, 12, 12, 16]),
        (4, [6, 10, 9, 12]),
    ]
    assert fates.tolist() == [[6, 0, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0], [2, 0, 0, 0]]
    # The others are what they were, to the bit.
    np.testing.assert_array_equal(images[1:], given[1][1:])
    for i in (1, 2, 3):
        assert objects(boxes, classes, i) == [(i + 1, box) for box in BOXES[i]]
    assert boxes.shape == (4, 8, 4)  # twice the 2 rows, in eights
    assert not boxes[classes == 0].any()


def test_images_follow_one_another_round_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    fix(monkeypatch, [(8, 8)] * 5)
    images = composed(batch([[]] * 5), ALWAYS)[0]
    assert images[:, [0, 0, 15, 15], [0, 15, 0, 15], 0].tolist() == [
        [10, 20, 30, 40],
        [20, 30, 40, 50],
        [30, 40, 50, 10],
        [40, 50, 10, 20],
        [50, 10, 20, 30],
    ]


def test_zoomed_out_to_half_four_images_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every box is half as large; 8 further down and right, where its image is. Nothing is lost."""
    fix(monkeypatch, [(8, 8), (16, 16), (16, 16), (16, 16)], [0.5, 1.0, 1.0, 1.0])
    given = batch(BOXES)
    images, boxes, classes, fates = composed(given, Augment(mosaic=1.0, mosaic_zoom=0.5))
    for rows, columns, colour in ((0, 0, 10), (0, 8, 20), (8, 0, 30), (8, 8, 40)):
        np.testing.assert_allclose(images[0, rows : rows + 8, columns : columns + 8], colour, rtol=1e-5)
    assert objects(boxes, classes, 0) == [
        (1, [1, 1.5, 4, 6.5]),
        (1, [2, 4, 5, 7]),
        (2, [0, 12.5, 2, 15.5]),
        (3, [8.5, 0.5, 10.5, 2.5]),
        (4, [12, 14, 14, 16]),
        (4, [10.5, 12, 12.5, 14]),
    ]
    assert fates[0].tolist() == [6, 0, 0, 0]
    np.testing.assert_array_equal(images[1:], given[1][1:])


def test_zoomed_boxes_follow_their_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last image alone has a white box [24,32,56,48] of 64 px; at zoom 0.75 it begins 16 px down and right of the corner.

    0.75 * 24 + 16 = 34 to 0.75 * 56 + 16 = 58, and 0.75 * 32 + 16 = 40 to 52, of which the centre (20, 44) leaves 44 to 52.
    """
    fix(monkeypatch, [(20, 44), (64, 64), (64, 64), (64, 64)], [0.75, 1.0, 1.0, 1.0])
    inputs, _, boxes, classes = batch([[], [], [], [[24, 32, 56, 48]]], size=64)
    pixels = np.zeros((4, 64, 64, 3), np.float32)
    pixels[3, 24:56, 32:48] = 255
    images, moved, found, _ = composed((inputs, tf.constant(pixels), boxes, classes), Augment(mosaic=1.0, mosaic_zoom=0.5))
    assert objects(moved, found, 0) == [(4, [34, 44, 58, 52])]
    rows, columns = np.nonzero(images[0, ..., 0] > 127)
    assert [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1] == [34, 44, 58, 52]


def test_mosaics_have_no_gaps() -> None:
    """White images stay white at every zoom and every centre."""
    white = tf.fill([32, SIZE, SIZE, 3], 255.0)
    inputs, _, boxes, classes = batch([[]] * 32)
    config = Augment(mosaic=1.0, mosaic_zoom=0.5, mosaic_center=0.0)
    images = composed((inputs, white, boxes, classes), config)[0]
    np.testing.assert_allclose(images, 255, rtol=1e-5)


def test_what_is_drawn() -> None:
    """Of 4,000 at 100 px: 3 of 4 are mosaics; zooms 0.5 to 1 with half below 0.707; centres leave 0.2 and reach no gap."""
    config = Augment(mosaic=0.75, mosaic_zoom=0.5)
    centers, zooms = (value.numpy() for value in mosaic.draw_mosaics(4000, 100, config, tf.constant(SEED)))
    is_mosaic = (centers < 100).all(axis=1)
    assert is_mosaic.mean() == pytest.approx(0.75, abs=0.03)
    assert (centers[~is_mosaic] == 100).all()
    assert (zooms[~is_mosaic] == 1).all()
    zoom, center = zooms[is_mosaic], centers[is_mosaic]
    assert 0.5 <= zoom.min() < 0.51
    assert (zoom < 0.5**0.5).mean() == pytest.approx(0.5, abs=0.03)
    np.testing.assert_array_equal(center, center.round())
    assert (center >= 20).all()
    assert (center <= 80).all()
    assert (np.maximum(center, 100 - center) <= 100 * zoom[:, None] + 0.5).all()  # half a pixel, from rounding
    np.testing.assert_allclose(center.mean(axis=0), 50, atol=1)
    assert np.ptp(center[zoom > 0.9], axis=0).min() > 55


def test_rows_that_do_not_suffice_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four images with 8 boxes of 1 px each in the records' order, whole: 32 objects for 8 rows. 24 are capped, the last ones."""
    fix(monkeypatch, [(8, 8)] * 4, [0.5] * 4)
    own = [[float(i), float(i), i + 1.0, i + 1.0] for i in range(8)]
    _, boxes, classes, fates = composed(batch([own] * 4, rows=8), Augment(mosaic=1.0, mosaic_zoom=0.5, mosaic_rows=1.0))
    assert boxes.shape == (4, 8, 4)
    assert classes[0].tolist() == [1] * 8
    assert fates.tolist() == [[32, 24, 0, 0]] * 4
    _, _, classes, fates = composed(batch([own] * 4, rows=8), Augment(mosaic=1.0, mosaic_zoom=0.5, mosaic_rows=4.0))
    assert (classes > 0).all()
    assert fates.tolist() == [[32, 0, 0, 0]] * 4


def test_share_of_an_object_is_that_of_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a box of 8 x 8 px is beyond the view; the quadrant shows 2 x 4 = 8 of what is left: 1/4 of 32, but 1/8 of 64."""
    fix(monkeypatch, [(6, 10), (16, 16), (16, 16), (16, 16)])
    inputs, images, _, classes = batch([[[4, -4, 12, 4]], [], [], []])
    in_view = tf.constant([[[4.0, 0, 12, 4], [0, 0, 0, 0]]] + [[[0.0] * 4] * 2] * 3)
    for least, kept in ((0.12, 1), (0.13, 0)):
        fates = composed((inputs, images, in_view, classes), Augment(mosaic=1.0, min_visible=least))[3]
        assert fates[0].tolist() == [1, 0, 0, 1 - kept]


def test_two_images_lie_crosswise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Side by side, an image would go on over the border between its two quadrants, where its boxes end."""
    fix(monkeypatch, [(8, 8)] * 2)
    images = composed(batch([[], []]), ALWAYS)[0]
    assert images[:, [0, 0, 15, 15], [0, 15, 0, 15], 0].tolist() == [[10, 20, 20, 10], [20, 10, 10, 20]]


@pytest.mark.parametrize(
    ("config", "count"), [(Augment(), 4), (Augment(mosaic=1.0, mixup=1.0), 1), (Augment(mosaic=0.0, mosaic_zoom=0.5), 4)]
)
def test_nothing_wanted_gives_the_very_tensors(config: Augment, count: int) -> None:
    """Off, or an image alone in its batch, which has no others."""
    given = batch(BOXES[:count])
    result = mosaic.compose(*given, config=config, seed=tf.constant(SEED))
    assert not mosaic.wanted(config, count)
    assert (result.images, result.boxes, result.classes) == given[1:] or all(
        one is other for one, other in zip(result[:3], given[1:], strict=True)
    )


def test_mixture_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of 10 and three quarters of 40, 4 // 2 + 1 = 3 further on, are 32.5, with the boxes of both; the others stay."""
    monkeypatch.setattr(mosaic, "draw_weights", lambda *_: tf.constant([0.25, 1.0, 1.0, 1.0]))
    given = batch(BOXES)
    images, boxes, classes, fates = composed(given, Augment(mixup=0.5))
    np.testing.assert_allclose(images[0], 32.5)
    np.testing.assert_array_equal(images[1:], given[1][1:])
    assert objects(boxes, classes, 0) == [(1, BOXES[0][0]), (1, BOXES[0][1]), (4, BOXES[3][0]), (4, BOXES[3][1])]
    assert objects(boxes, classes, 3) == [(4, BOXES[3][0]), (4, BOXES[3][1])]
    assert fates.tolist() == [[4, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [2, 0, 0, 0]]


def test_weights_of_mixtures() -> None:
    """Beta(8, 8): mean 1/2, variance 1 / (4 * 17), standard deviation 0.1213; 9 of 10 lie between 0.2995 and 0.7005."""
    weights = mosaic.draw_weights(8000, Augment(mixup=0.5), tf.constant(SEED)).numpy()
    mixed = weights[weights < 1]
    assert len(mixed) / 8000 == pytest.approx(0.5, abs=0.02)
    assert mixed.mean() == pytest.approx(0.5, abs=0.006)
    assert mixed.std() == pytest.approx(0.1213, abs=0.004)
    assert ((mixed > 0.2995) & (mixed < 0.7005)).mean() == pytest.approx(0.9, abs=0.015)


def crowd(count: int, size: int) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor, tf.Tensor]:
    """Views of noise with up to 12 objects an image, of which the records hold up to 3 more; the views lose some."""
    rng = np.random.default_rng(5)
    low = rng.uniform(0, 100, (count, 12, 2))
    held = np.arange(12) < rng.integers(2, 13, count)[:, None]
    source = {
        "image": tf.constant(rng.integers(0, 256, (count, 128, 128, 3), np.uint8)),
        "boxes": tf.constant(
            np.where(held[..., None], np.concatenate([low, low + rng.uniform(4, 24, low.shape)], 2), 0), tf.float32
        ),
        "classes": tf.constant(held * rng.integers(1, 4, held.shape), tf.int32),
        "objects": tf.constant(held.sum(axis=1) + rng.integers(0, 4, count), tf.int32),
        "view": tf.constant(np.tile([[1.1, 20, 13, 0.9]], (count, 1)), tf.float32),
    }
    arguments = (source["image"], source["boxes"], source["classes"], source["view"])
    return source, *random_view(*arguments, size=size, config=Augment(), seed=tf.constant([7, 7]))


@pytest.mark.parametrize("config", [Augment(mosaic=0.5), Augment(mosaic=0.7, mosaic_zoom=0.5, mixup=0.5), Augment(mixup=0.5)])
def test_compiled_and_line_by_line(config: Augment, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same either way; the same seed the same, another another; and every object has one fate."""
    given = crowd(6, 64)
    once, again = composed(given, config), composed(given, config)
    for one, two in zip(once, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert np.abs(composed(given, config, (3, 5))[0] - once[0]).mean() > 1

    # A compiler draws by another algorithm: with the same numbers, the results are the same.
    drawn = mosaic.draw_mosaics(6, 64, config, tf.constant(SEED)), mosaic.draw_weights(6, config, tf.constant(SEED))
    monkeypatch.setattr(mosaic, "draw_mosaics", lambda *_: drawn[0])
    monkeypatch.setattr(mosaic, "draw_weights", lambda *_: drawn[1])
    compiled = tf.function(lambda: mosaic.compose(*given, config=config, seed=tf.constant(SEED)), jit_compile=True)()
    for one, other in zip(composed(given, config), compiled, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-2)
    _, boxes, classes, fates = once
    np.testing.assert_array_equal((classes > 0).sum(axis=1), fates[:, 0] - fates[:, 1:].sum(axis=1))
    assert fates.sum(axis=0).min() > 0
    real = boxes[classes > 0]
    assert (real[:, 2:] > real[:, :2]).all()
    assert real.min() >= 0
    assert real.max() <= 64


def test_draws_compile() -> None:
    """Centres, zooms and weights of a compiler's own numbers: as many mosaics, no gaps, weights between 0 and 1."""
    config = Augment(mosaic=0.75, mosaic_zoom=0.5, mixup=1.0)

    @tf.function(jit_compile=True)
    def draw() -> tuple[tf.Tensor, ...]:
        seed = tf.constant(SEED)
        return *mosaic.draw_mosaics(400, 100, config, seed), mosaic.draw_weights(400, config, seed)

    centers, zooms, weights = (value.numpy() for value in draw())
    is_mosaic = centers[:, 0] < 100
    assert is_mosaic.mean() == pytest.approx(0.75, abs=0.07)
    assert (np.maximum(centers, 100 - centers)[is_mosaic] <= 100 * zooms[is_mosaic, None] + 0.5).all()
    assert weights.mean() == pytest.approx(0.5, abs=0.02)
    assert 0 < weights.min() < weights.max() < 1
