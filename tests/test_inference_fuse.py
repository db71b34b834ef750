"""Fusion of several looks; the arithmetic is Solovyev et al.'s: boxes weighted by scores, scores averaged over all looks."""

import dataclasses

import numpy as np
import pytest
import stub_model

from inference import fuse
from inference.decode import Found
from inference.fuse import Flip
from survey import boxes
from survey.errors import InputError


def found(*entries: tuple[float, int, tuple[float, float, float, float]]) -> Found:
    """From (score, class id, box) triples."""
    scores, class_ids, corners = zip(*entries, strict=True) if entries else ((), (), ())
    return Found(np.array(corners, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(class_ids, np.int32))


def fused(*views: Found, nms_iou: float = 0.5, score_floor: float = 0.05) -> Found:
    return fuse.fuse(views, patch_size=100, nms_iou=nms_iou, score_floor=score_floor)


def test_two_looks_at_one_object():
    # Weights 0.9 and 0.3: y0 = (0.9 * 10 + 0.3 * 14) / 1.2 = 11, likewise x1 = (0.9 * 40 + 0.3 * 44) / 1.2 = 41. Score 0.6.
    one = fused(found((0.9, 1, (10, 20, 30, 40))), found((0.3, 1, (14, 20, 30, 44))))
    np.testing.assert_allclose(one.boxes_patch_px, [[11, 20, 30, 41]], atol=1e-4)
    np.testing.assert_allclose(one.scores, [0.6], atol=1e-6)
    assert one.class_ids.tolist() == [1]
    assert (one.boxes_patch_px.dtype, one.scores.dtype, one.class_ids.dtype) == (np.float32, np.float32, np.int32)


def test_what_one_look_of_two_saw_counts_half():
    # 0.8 / 2 = 0.4, and 0.08 / 2 = 0.04 is below the floor.
    one = fused(found((0.8, 1, (10, 20, 30, 40)), (0.08, 1, (60, 60, 80, 80))), found())
    np.testing.assert_allclose(one.scores, [0.4], atol=1e-6)
    np.testing.assert_allclose(one.boxes_patch_px, [[10, 20, 30, 40]], atol=1e-4)


def test_classes_and_neighbours_stay_apart():
    # The same place in two classes; and a neighbour with IoU 10 / 30, below 0.5, that both looks told apart.
    left, right = (10.0, 20.0, 30.0, 40.0), (10.0, 30.0, 30.0, 50.0)
    view = found((0.9, 1, left), (0.7, 1, right), (0.8, 2, left))
    one = fused(view, view)
    np.testing.assert_allclose(one.scores, [0.9, 0.8, 0.7], atol=1e-6)
    assert one.class_ids.tolist() == [1, 2, 1]


def test_no_two_fused_boxes_are_one_object():
    rng = np.random.default_rng(0)
    for _ in range(20):
        low = rng.uniform(0, 70, (30, 2))
        truth = np.concatenate([low, low + rng.uniform(10, 30, low.shape)], axis=1)
        views = []
        for _ in range(4):
            noisy = np.clip(truth + rng.normal(0, 2, truth.shape), 0, 100).astype(np.float32)
            scores = rng.uniform(0.1, 1, len(noisy)).astype(np.float32)
            kept = boxes.nms(noisy, scores, 0.5)
            views.append(Found(noisy[kept], scores[kept], np.ones(len(kept), np.int32)))
        one = fused(*views)
        overlap = boxes.iou(one.boxes_patch_px, one.boxes_patch_px)
        assert (overlap[np.triu_indices(len(overlap), 1)] <= 0.5).all()
        assert (np.diff(one.scores) <= 0).all()


def test_one_look_is_left_as_it_is():
    view = found((0.9, 1, (10, 20, 30, 40)))
    assert fused(view) is view


def test_boxes_on_the_edge_and_without_area():
    view = found((0.9, 1, (0, 0, 100, 100)), (0.8, 1, (50, 100, 60, 100)))
    one = fused(view, view)  # a warning of the library would fail the test
    np.testing.assert_allclose(one.boxes_patch_px, [[0, 0, 100, 100]], atol=1e-4)


@pytest.mark.parametrize(("flips", "number"), [("none", 1), ("horizontal", 2), ("vertical", 2), ("both", 4)])
def test_looks(flips: str, number: int):
    looks = fuse.looks(flips)
    assert len(set(looks)) == len(looks) == number
    assert looks[0] == Flip()
    image = np.zeros((1, 100, 100, 3), np.uint8)
    image[0, 10:30, 20:50] = 255
    for look in looks:
        y, x = np.nonzero(look.images(image)[0, ..., 0])
        seen = found((0.9, 1, (y.min(), x.min(), y.max() + 1, x.max() + 1)))
        assert look.undo(seen, 100).boxes_patch_px.tolist() == [[10, 20, 30, 50]]


def test_mirrored_by_hand():
    # 100 - 50 = 50 and 100 - 20 = 80.
    assert Flip(columns=True).undo(found((0.9, 1, (10, 20, 30, 50))), 100).boxes_patch_px.tolist() == [[10, 50, 30, 80]]
    assert Flip(rows=True).undo(found((0.9, 1, (10, 20, 30, 50))), 100).boxes_patch_px.tolist() == [[70, 20, 90, 50]]


def test_what_holds_for_several_models():
    one = stub_model.SPEC
    other = dataclasses.replace(one, nms_iou=0.4, overlap_px=20, score_floor=0.2, score_threshold=0.7)
    both = fuse.common([one, other], ["a", "b"])
    # Largest of (0.5, 0.4), (16, 20), (0.1, 0.2); mean of (0.5, 0.7).
    assert (both.nms_iou, both.overlap_px, both.score_floor, both.score_threshold) == (0.5, 20, 0.2, pytest.approx(0.6))
    assert fuse.common([one], ["a"]) is one
    with pytest.raises(InputError, match=r"b finds tree, bird, a finds bird, tree"):
        fuse.common([one, dataclasses.replace(one, classes=("tree", "bird"))], ["a", "b"])
    with pytest.raises(InputError, match=r"b takes patches of 128 px, a of 64 px"):
        fuse.common([one, dataclasses.replace(one, image_size=128)], ["a", "b"])
