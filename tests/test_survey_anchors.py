import numpy as np
import pytest

from survey import anchors
from survey.anchors import AnchorSpec
from survey.errors import InputError


@pytest.mark.parametrize(
    ("spec", "image_size"),
    [
        (AnchorSpec(3, 7, 3, (0.5, 1.0, 2.0), 4.0), 640),
        (AnchorSpec(3, 5, 3, (0.5, 1.0, 2.0), 1.75), 416),
        (AnchorSpec(2, 4, 1, (1.0, 3.0), 2.5), 64),
    ],
)
def test_same_anchors_as_model_garden(spec, image_size):
    from official.vision.ops.anchor import Anchor

    theirs = Anchor(
        spec.min_level, spec.max_level, spec.num_scales, list(spec.aspect_ratios), spec.anchor_size, (image_size, image_size)
    )
    flat = np.concatenate([np.reshape(boxes, (-1, 4)) for boxes in theirs.multilevel_boxes.values()])
    np.testing.assert_array_equal(spec.boxes(image_size), flat)


def test_first_cell_by_hand():
    # Level 3: stride 8 px, first centre (4, 4). Size 4 strides = 32 px, half 16. Aspect 4: half height 8, half width 32.
    boxes = AnchorSpec(3, 3, 1, (1.0, 4.0), 4.0).boxes(16)
    np.testing.assert_allclose(boxes[:2], [[-12, -12, 20, 20], [-4, -28, 12, 36]])
    # Next cell to the right: everything 8 px further in x.
    np.testing.assert_allclose(boxes[2] - boxes[0], [0, 8, 0, 8])
    assert len(boxes) == 2 * 2 * 2


def test_pairs_of_width_and_height_by_hand():
    # The old TPU RetinaNet: 4 strides of 8 px = 32 px; (1.4, 0.7) is 44.8 wide and 22.4 high about (4, 4): y -7.2 to 15.2,
    # x -18.4 to 26.4; (0.7, 1.4) the other way round. The second of 2 scales is sqrt 2 larger: 63.36 wide, 31.68 high.
    boxes = AnchorSpec(3, 3, 2, ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4)), 4.0).boxes(16)
    expected = [[-12, -12, 20, 20], [-7.2, -18.4, 15.2, 26.4], [-18.4, -7.2, 26.4, 15.2]]
    np.testing.assert_allclose(boxes[:3], expected, rtol=1e-6)
    np.testing.assert_allclose(boxes[4], [4 - 15.84, 4 - 31.68, 4 + 15.84, 4 + 31.68], rtol=1e-3)
    with pytest.raises(InputError, match="must all be above 0"):
        AnchorSpec(3, 3, 1, ((1.4, 0.0),), 4.0)


def test_counts_of_the_usual_retinanet():
    # 640 px: (80^2 + 40^2 + 20^2 + 10^2 + 5^2) * 9 = 8525 * 9 = 76,725.
    spec = AnchorSpec(3, 7, 3, (0.5, 1.0, 2.0), 4.0)
    assert sum(spec.counts(640).values()) == 76_725 == len(spec.boxes(640))


def test_image_size_that_does_not_divide():
    with pytest.raises(InputError, match=r"image_size=416: .* 128 px at level 7; use 384 or 512"):
        AnchorSpec(3, 7, 3, (1.0,), 4.0).boxes(416)


def test_fit_follows_the_objects():
    # q10 = 17 px: 17 / 8 = 2.125 strides, to a quarter: 2.0. Largest anchor of level l: 2 * 2^l * 2^(2/3); it must reach 92 px:
    # 92 / (16 * 1.587) = 3.62, log2 = 1.86, so 2 levels above 3.
    assert anchors.fit({"q10": 17.0, "q99": 92.0}) == AnchorSpec(3, 5, 3, (0.5, 1.0, 2.0), 2.0)
    # Tiny objects stop at one stride, huge ones at level 7.
    assert anchors.fit({"q10": 2.0, "q99": 9.0}) == AnchorSpec(3, 4, 3, (0.5, 1.0, 2.0), 1.0)
    assert anchors.fit({"q10": 100.0, "q99": 4000.0}).max_level == 7
