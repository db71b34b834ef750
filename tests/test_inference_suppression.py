"""Suppression by hand, and beside TensorFlow's own."""

import numpy as np
import pytest
import tensorflow as tf

from inference import suppression
from survey import boxes

# A-B share 5 of 15 columns: IoU 1/3. A-C 8 of 12: 2/3. B-C 7 of 13: 7/13 = 0.538.
THREE = np.array([[0, 0, 10, 10], [0, 5, 10, 15], [0, 2, 10, 12]], np.float32)
SCORES = np.array([0.9, 0.8, 0.7], np.float32)
ONE_CLASS = np.zeros(3, int)


def test_hard_by_hand():
    # A removes C, which is then gone before it meets B.
    assert suppression.hard(THREE, SCORES, None, 0.5).tolist() == [0, 1]
    assert suppression.hard(THREE, SCORES, np.array([0, 0, 1]), 0.5).tolist() == [0, 1, 2]
    assert suppression.hard(THREE, SCORES, None, 0.3).tolist() == [0]
    # Of equal scores the first stays; best first in the answer.
    assert suppression.hard(THREE[[0, 0, 1]], np.array([0.5, 0.5, 0.6], np.float32), None, 0.5).tolist() == [2, 0]
    assert suppression.hard(THREE[:0], SCORES[:0], None, 0.5).tolist() == []


def test_soft_linear_by_hand():
    # A: B's 1/3 is below 0.5 and changes nothing; C 0.7 * (1 - 2/3) = 0.2333. B: C 0.2333 * (1 - 7/13) = 0.10769.
    kept, scores = suppression.soft(THREE, SCORES, ONE_CLASS, 0.5, 0.05, suppression.SOFT_LINEAR)
    assert kept.tolist() == [0, 1, 2]
    np.testing.assert_allclose(scores, [0.9, 0.8, 0.7 / 3 * 6 / 13], rtol=1e-6)
    kept, _ = suppression.soft(THREE, SCORES, ONE_CLASS, 0.5, 0.11, suppression.SOFT_LINEAR)
    assert kept.tolist() == [0, 1]


def test_soft_gaussian_by_hand():
    # With sigma 0.5: exp(-2 IoU^2). A: B 0.8 * exp(-2/9) = 0.640590, C 0.7 * exp(-8/9) = 0.287779.
    # B: C * exp(-98/169) = 0.161146.
    kept, scores = suppression.soft(THREE, SCORES, ONE_CLASS, 0.5, 0.05, suppression.SOFT_GAUSSIAN)
    assert kept.tolist() == [0, 1, 2]
    np.testing.assert_allclose(scores, [0.9, 0.640590, 0.161146], rtol=1e-5)
    # C of another class keeps its score and comes before B.
    kept, scores = suppression.soft(THREE, SCORES, np.array([0, 0, 1]), 0.5, 0.05, suppression.SOFT_GAUSSIAN)
    assert kept.tolist() == [0, 2, 1]
    np.testing.assert_allclose(scores, [0.9, 0.7, 0.640590], rtol=1e-5)


def scene(number: int, kind: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and scores: of few objects seen many times, all over the place, or of all sizes."""
    rng = np.random.default_rng(seed)
    centers, sides = rng.uniform(0, 640, (number, 2)), rng.uniform(10, 60, (number, 2))
    if kind == "objects":
        which = rng.integers(0, 40, number)
        centers, sides = centers[which % number] + rng.normal(0, 3, (number, 2)), sides[which % number]
    if kind == "sizes":
        sides = np.exp(rng.normal(3, 1.2, (number, 2)))
    found = np.concatenate([centers - sides / 2, centers + sides / 2], axis=1).clip(0, 640).astype(np.float32)
    return found, np.round(rng.uniform(0, 1, number), 3).astype(np.float32)  # with ties


@pytest.mark.parametrize("iou", [0.0, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("kind", ["objects", "apart", "sizes"])
def test_hard_equals_tensorflow(kind, iou):
    found, scores = scene(3000, kind)
    found = found[boxes.area(found) > 0]
    scores = scores[: len(found)]
    theirs = tf.image.non_max_suppression(found, scores, len(scores), iou_threshold=iou).numpy()
    ours = suppression.hard(found, scores, None, iou)
    np.testing.assert_array_equal(np.sort(ours), np.sort(theirs))
    np.testing.assert_array_equal(scores[ours], scores[theirs])  # equal scores may change places in TensorFlow's queue


@pytest.mark.parametrize("kind", ["objects", "apart", "sizes"])
@pytest.mark.parametrize("groups", [1, 9, 80])
def test_hard_of_groups_is_the_loop_of_each(kind, groups):
    """`survey.boxes.nms` is the loop; both to the last bit. Groups of unequal sizes, some of one box, some of none."""
    found, scores = scene(4000, kind, seed=groups)
    group = (np.random.default_rng(1).uniform(0, 1, 4000) ** 3 * groups).astype(int)
    expected = boxes.nms(found, scores, 0.5, group)
    np.testing.assert_array_equal(suppression.hard(found, scores, group, 0.5), expected)


@pytest.mark.parametrize("at_once", [80, 1000])
def test_spread_boxes_in_several_blocks(at_once, monkeypatch):
    monkeypatch.setattr(suppression, "_SPREAD_AT_ONCE", at_once)
    found, scores = scene(3000, "sizes", seed=5)
    np.testing.assert_array_equal(suppression.hard(found, scores, None, 0.4), boxes.nms(found, scores, 0.4))


def one_by_one(found: np.ndarray, scores: np.ndarray, groups: np.ndarray, iou_threshold: float) -> list[int]:
    """The sentence of the paper: from the best down, a box goes when it overlaps too much with one of its group that stays."""
    y0, x0, y1, x1 = found.T
    area = (y1 - y0) * (x1 - x0)
    gone, kept = np.zeros(len(found), bool), []
    for i in np.argsort(-scores, kind="stable"):
        if gone[i]:
            continue
        kept.append(int(i))
        high = np.maximum(np.minimum(y1[i], y1) - np.maximum(y0[i], y0), np.float32(0))
        wide = np.maximum(np.minimum(x1[i], x1) - np.maximum(x0[i], x0), np.float32(0))
        shared = high * wide
        gone |= (shared / (area[i] + area - shared) > np.float32(iou_threshold)) & (groups == groups[i])
    return kept


def dense(number: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What dense anchors give of a crowd in three images: some eight boxes an object.

    On whole and half pixels, with few different scores, so that both scores and IoUs tie.
    """
    rng = np.random.default_rng(seed)
    objects = rng.uniform(0, 400, (number // 8, 2)), np.exp(rng.uniform(np.log(14), np.log(60), (number // 8, 1)))
    which = rng.integers(0, number // 8, number)
    centers = objects[0][which] + rng.normal(0, 0.15, (number, 2)) * objects[1][which]
    half = objects[1][which] * np.exp(rng.normal(0, 0.2, (number, 2))) / 2
    found = np.round(np.concatenate([centers - half, centers + half], axis=1) * 2) / 2
    scores = np.round(rng.beta(1, 4, number), 2)
    return found.clip(0, 416).astype(np.float32), scores.astype(np.float32), rng.integers(0, 3, number)


@pytest.mark.parametrize("iou", [0.0, 0.04, 0.3, 0.5, 0.75, 1.0])
def test_dense_boxes_equal_one_by_one(iou, monkeypatch):
    """To the index, ties included, whether neighbours are looked for in grids (the price as it is, or none) or all compared."""
    found, scores, groups = dense(5000, seed=int(iou * 100))
    assert len(np.unique(scores)) < 100
    found = found[boxes.area(found) > 0]
    scores, groups = scores[: len(found)], groups[: len(found)]
    expected = one_by_one(found, scores, groups, iou)
    for price in (suppression._PRICE, -1e9, 1e9):
        monkeypatch.setattr(suppression, "_PRICE", price)
        assert suppression.hard(found, scores, groups, iou).tolist() == expected


@pytest.mark.parametrize("sides", [(1e-3, 400), (300, 3000), (1e-6, 1e-5)])
def test_boxes_of_any_size_equal_one_by_one(sides, monkeypatch):
    monkeypatch.setattr(suppression, "_PRICE", -1e9)
    rng = np.random.default_rng(8)
    half = np.exp(rng.uniform(*np.log(sides), (3000, 1))) / 2
    centers = rng.uniform(0, 60 * sides[0] + 20, (3000, 2))
    found = np.concatenate([centers - half, centers + half], axis=1).astype(np.float32)
    scores, groups = np.round(rng.uniform(0, 1, 3000), 2).astype(np.float32), rng.integers(0, 3, 3000)
    with np.errstate(invalid="ignore"):  # two empty boxes: 0 / 0
        for iou in (0.0, 0.2, 0.5):
            assert suppression.hard(found, scores, groups, iou).tolist() == one_by_one(found, scores, groups, iou)


def test_scores_of_any_sign_and_many_groups():
    # -0 and 0 tie; the smaller index goes first. Infinite logits sort at the ends.
    apart = np.arange(7, dtype=np.float32)[:, None] * 10 + np.array([0, 0, 1, 1], np.float32)
    scores = np.array([0.0, -1.5, -0.0, -np.inf, 2.0, np.inf, -1e-40], np.float32)
    assert suppression.hard(apart, scores, None, 0.5).tolist() == [5, 4, 0, 2, 6, 1, 3]
    # Numbers of groups so large that they do not fit one integer with the score.
    groups = np.array([1 << 40, 0, 1 << 40, 5, 1 << 40, 5, 0])
    assert suppression.hard(np.repeat(apart[:1], 7, 0), scores, groups, 0.5).tolist() == [5, 4, 6]


@pytest.mark.parametrize("kind", ["objects", "apart"])
def test_soft_gaussian_equals_tensorflow(kind):
    # TensorFlow's weight is exp(-0.5 / sigma * IoU^2), the paper's exp(-IoU^2 / sigma): theirs is half of ours.
    found, scores = scene(400, kind)
    theirs, lowered = tf.image.non_max_suppression_with_scores(
        found, scores, 400, iou_threshold=1.0, score_threshold=0.1, soft_nms_sigma=suppression.SIGMA / 2
    )
    kept, ours = suppression.soft(found, scores, np.zeros(400, int), 0.5, 0.1, suppression.SOFT_GAUSSIAN)
    assert len(kept) > 30
    np.testing.assert_allclose(ours, lowered.numpy(), rtol=1e-4)
    assert set(kept.tolist()) == set(theirs.numpy().tolist())
