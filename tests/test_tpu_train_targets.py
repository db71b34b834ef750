"""Anchor assignment equals Model Garden's labeler, box for box."""

import numpy as np
import pytest
import tensorflow as tf
from official.vision.ops import anchor

from survey.anchors import AnchorSpec
from tpu_train import targets

SPEC = AnchorSpec(min_level=3, max_level=5, num_scales=3, aspect_ratios=(0.5, 1.0, 2.0), anchor_size=2.5)
SIZE = 128


def garden(boxes: np.ndarray, classes: np.ndarray, match: float, unmatched: float) -> tuple[np.ndarray, ...]:
    """Model Garden's answer for one image: classes [N], boxes [N, 4], class weights [N], box weights [N]."""
    anchors = anchor.Anchor(3, 5, 3, [0.5, 1.0, 2.0], 2.5, [SIZE, SIZE]).multilevel_boxes
    labeler = anchor.AnchorLabeler(match, unmatched)
    labels = tf.constant(classes[:, None], tf.int32)
    cls, box, _, cls_weights, box_weights = labeler.label_anchors(anchors, tf.constant(boxes, tf.float32), labels)
    return (
        np.concatenate([np.reshape(value, -1) for value in cls.values()]),
        np.concatenate([np.reshape(value, (-1, 4)) for value in box.values()]),
        np.reshape(cls_weights, -1),
        np.reshape(box_weights, -1),
    )


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    size = rng.uniform(3, 70, (count, 2))
    low = rng.uniform(0, SIZE - size)
    return np.concatenate([low, low + size], axis=1).astype(np.float32)


@pytest.mark.parametrize(("match", "unmatched"), [(0.5, 0.5), (0.5, 0.4), (0.7, 0.3)])
def test_equals_model_garden(match: float, unmatched: float) -> None:
    rng = np.random.default_rng(3)
    counts = [0, 1, 5, 12]
    boxes, classes = np.zeros((4, 12, 4), np.float32), np.zeros((4, 12), np.int32)
    for i, count in enumerate(counts):
        boxes[i, :count] = random_boxes(rng, count)
        classes[i, :count] = rng.integers(1, 4, count)
    # Two equal boxes share their best anchor: the first one gets it.
    boxes[3, 1], classes[3, :2] = boxes[3, 0], (1, 2)

    compiled = tf.function(
        lambda b, c: targets.assign(SPEC.boxes(SIZE), b, c, match_threshold=match, unmatched_threshold=unmatched).__dict__,
        jit_compile=True,
    )
    ours = compiled(tf.constant(boxes), tf.constant(classes))
    for i, count in enumerate(counts):
        cls, box, cls_weights, box_weights = garden(boxes[i, :count], classes[i, :count], match, unmatched)
        np.testing.assert_array_equal(ours["classes"][i], cls)
        np.testing.assert_array_equal(ours["class_weights"][i], cls_weights)
        np.testing.assert_array_equal(ours["box_weights"][i], box_weights)
        positive = box_weights > 0
        np.testing.assert_allclose(ours["boxes"].numpy()[i][positive], box[positive], atol=1e-5)
        assert positive.any() == (count > 0)


def test_ignore_band_by_hand() -> None:
    """A box of 24 px on the middle of an anchor of 24 px, with anchors of 24 and 33.9 px (area 1152) in every cell of 8 px.

    IoU 1 with its own anchor; 16 * 24 / (2 * 576 - 384) = 0.5 with the four neighbours; 576 / 1152 = 0.5 with the larger anchor
    around it; 20.97 * 24 / (576 + 1152 - 503) = 0.41 with that one's neighbours. Between 0.45 and 0.6 lie five.
    """
    spec = AnchorSpec(3, 3, num_scales=2, aspect_ratios=(1.0,), anchor_size=3.0)
    boxes = tf.constant([[[8.0, 8.0, 32.0, 32.0]]])
    found = targets.assign(spec.boxes(64), boxes, tf.constant([[2]]), match_threshold=0.6, unmatched_threshold=0.45)
    ignored = found.class_weights.numpy()[0] == 0
    assert ignored.sum() == 5
    assert (found.classes.numpy()[0][ignored] == -1).all()
    assert found.box_weights.numpy().sum() == 1
    assert sorted(set(found.classes.numpy()[0])) == [-1, 2]


def test_encode_by_hand() -> None:
    """Anchor 16 x 16 at (8, 8), box 32 high and 8 wide at (12, 4): t = (4/16, -4/16, ln 2, ln 0.5)."""
    box = tf.constant([[12.0 - 16, 4.0 - 4, 12.0 + 16, 4.0 + 4]])
    encoded = targets.encode(box, tf.constant([[0.0, 0.0, 16.0, 16.0]]))
    np.testing.assert_allclose(encoded, [[0.25, -0.25, np.log(2), -np.log(2)]], atol=1e-6)
