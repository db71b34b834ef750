import itertools

import numpy as np
import pytest

from survey import resample
from survey.geometry import Window


def test_halving_by_hand():
    # Two source pixels for one: the triangle is 2 px wide either way of the centre. Row 0 of the target has its centre at 1.0,
    # its sources at 0.5, 1.5, 2.5 with shares 0.75, 0.75, 0.25 (of 1.75, as nothing lies before):
    # (0.75*0 + 0.75*70 + 0.25*140) / 1.75 = 50.
    column = np.array([0, 70, 140, 210], np.uint8).reshape(4, 1, 1)
    made = resample.resize(column, Window(0, 0, 2, 1), (2.0, 1.0))
    # Row 1: centre 3.0, sources at 1.5, 2.5, 3.5: (0.25*70 + 0.75*140 + 0.75*210) / 1.75 = 160.
    assert made.ravel().tolist() == [50, 160]


def test_doubling_by_hand():
    # Half a source pixel for one: linear between centres, constant beyond the outer ones. Target centres: 0.25, 0.75, ...
    column = np.array([0, 100], np.uint8).reshape(2, 1, 1)
    made = resample.resize(column, Window(0, 0, 4, 1), (0.5, 1.0))
    assert made.ravel().tolist() == [0, 25, 75, 100]


@pytest.mark.parametrize("scale", [0.3, 0.77, 1.0, 1.31, 2.5, 4.0])
def test_against_tensorflow(scale, pixels):
    import tensorflow as tf

    height, width = 96, 80
    image = pixels(round(height * scale), round(width * scale))
    exact = (image.shape[0] / height, image.shape[1] / width)
    made = resample.resize(image, Window(0, 0, height, width), exact)
    peer = tf.image.resize(image, (height, width), method="bilinear", antialias=True).numpy()
    assert np.abs(made - peer).max() < 1  # rounded, and weights of 12 bits
    flat = np.full_like(image, 255)
    assert (resample.resize(flat, Window(0, 0, height, width), exact) == 255).all()


def test_patches_side_by_side_share_no_source_pixel_and_leave_none_out():
    rng = np.random.default_rng(3)
    for _ in range(200):
        scale = float(rng.uniform(0.4, 5))
        edges = np.cumsum(rng.integers(4, 90, 6)).tolist()
        parts = [resample.source(Window(low, 0, high, 8), (scale, 1.0)) for low, high in itertools.pairwise(edges)]
        assert all(one.y1 == other.y0 for one, other in itertools.pairwise(parts))
        assert all(abs(part.y0 - low * scale) <= 0.5 for part, low in zip(parts, edges, strict=False))


def test_a_window_looks_like_its_part_of_the_whole(pixels):
    # Away from the border, where the filter is cut, it makes no difference whether a patch or the whole image is resampled.
    image = pixels(300, 400)
    scale = (300 / 120, 400 / 160)
    whole = resample.resize(image, Window(0, 0, 120, 160), scale)
    window = Window(30, 50, 80, 100)
    source = resample.source(window, scale)
    part = resample.resize(image[source.y0 : source.y1, source.x0 : source.x1], window, scale)
    assert (part[2:-2, 2:-2] == whole[32:78, 52:98]).all()
    assert np.abs(part.astype(int) - whole[30:80, 50:100]).max() <= 12
