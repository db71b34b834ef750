"""Anchors from box shapes: the IoU, the search and its file, worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from survey import box_shapes
from survey.errors import InputError


def test_best_anchors_by_hand():
    # Box 10 x 20 and anchor 20 x 10 on one centre: shared 10 * 10 = 100, union 200 + 200 - 100 = 300: 1/3.
    # Box 10 x 20 and anchor 10 x 10: shared 100, union 200: 1/2, which is better.
    # Box 40 x 10 and anchor 20 x 10: shared 200, union 400: 1/2; anchor 10 x 10: 100 / 400 = 1/4.
    # Box 10 x 10 is the second anchor: 1.
    sides = np.array([[10, 20], [40, 10], [10, 10]])
    nearest, iou = box_shapes.best_anchors(sides, np.array([[20, 10], [10, 10]]))
    assert nearest.tolist() == [1, 0, 1]
    assert iou.tolist() == [0.5, 0.5, 1.0]


def test_pieces_give_what_the_whole_gives(monkeypatch):
    sides = np.random.default_rng(0).uniform(1, 100, (100, 2))
    whole = box_shapes.best_anchors(sides, sides[:5])
    monkeypatch.setattr(box_shapes, "CHUNK", 7)  # 14 pieces of 7 and one of 2
    pieces = box_shapes.best_anchors(sides, sides[:5])
    np.testing.assert_array_equal(whole[0], pieces[0])
    np.testing.assert_array_equal(whole[1], pieces[1])


def test_judge_by_hand():
    # One anchor of 10 x 10. Boxes 10 x 10: 1; 10 x 20: 100 / 200 = 0.5, which is not below 0.5; 20 x 20: 100 / 400 = 0.25.
    # Mean 1.75 / 3, a third below 0.5. A box without width and one that is no number are left out.
    sides = np.array([[10, 10], [10, 20], [20, 20], [0, 5], [np.nan, 5]])
    found = box_shapes.judge(sides, ((10.0, 10.0),))
    assert found.mean_best_iou == pytest.approx(1.75 / 3)
    assert found.share_below_half == pytest.approx(1 / 3)
    assert (found.boxes, found.left_out, found.boxes_per_anchor) == (3, 2, (3,))


def test_as_many_anchors_as_shapes_are_the_shapes():
    # Sorted by area: 10 * 10 = 100, 5 * 40 = 200, 30 * 20 = 600.
    sides = np.array([[30, 20], [10, 10], [10, 10], [5, 40], [30, 20], [10, 10]])
    found = box_shapes.fit(sides, 3)
    assert found.anchors_px == ((10.0, 10.0), (5.0, 40.0), (30.0, 20.0))
    assert found.boxes_per_anchor == (3, 1, 2)
    assert (found.mean_best_iou, found.share_below_half) == (1.0, 0.0)


def test_one_anchor_is_the_median():
    # All boxes have one anchor, so that the first round puts it at the median width and height, 20 x 10; the mean is 34 x 10.
    # IoUs with 20 x 10: 100 / 200, 1, 200 / 720: mean 0.5926. With 34 x 10: 100 / 340, 200 / 340, 340 / 720: mean 0.4515. With
    # the other starts, 10 x 10: 1, 0.5, 100 / 720: mean 0.5463; 72 x 10: 100 / 720, 200 / 720, 1: mean 0.4722.
    found = box_shapes.fit(np.array([[10, 10], [20, 10], [72, 10]]), 1)
    assert found.anchors_px == ((20.0, 10.0),)
    assert found.mean_best_iou == pytest.approx((0.5 + 1 + 200 / 720) / 3)


def test_small_boxes_get_their_anchors():
    # Clusters of 4 and 8 px beside one from 300 to 500 px. Squares of sides make 300..500 px the widest spread by far, which
    # Euclidean k-means would split; by IoU 4 and 8 px are further apart (16 / 64 = 0.25) than 300 and 500 (0.36).
    random = np.random.default_rng(1)
    sides = np.concatenate([np.full((50, 2), 4.0), np.full((50, 2), 8.0), random.uniform(300, 500, (50, 2))])
    found = box_shapes.fit(sides, 3)
    assert found.anchors_px[:2] == ((4.0, 4.0), (8.0, 8.0))
    assert found.boxes_per_anchor == (50, 50, 50)


def test_finds_the_centres_of_clusters():
    # Clusters of 5 % around five shapes that overlap by less than 0.5: every centre within 2 %.
    shapes = np.array([[8, 8], [16, 20], [60, 20], [30, 80], [120, 110]], float)  # by area: 64, 320, 1200, 2400, 13200
    random = np.random.default_rng(2)
    sides = shapes[random.integers(0, 5, 5000)] * random.normal(1.0, 0.05, (5000, 2))
    found = box_shapes.fit(sides, 5, seed=3)
    np.testing.assert_allclose(found.anchors_px, shapes, rtol=0.02)
    # |normal(0, 0.05)| has the mean 0.04 for each side, and IoU loses about both: 0.92.
    assert found.mean_best_iou == pytest.approx(0.92, abs=0.01)


def test_a_search_ends_where_nothing_moves():
    sides = np.random.default_rng(4).uniform(5, 80, (300, 2)).astype(np.float32)
    centers, value = box_shapes._search(sides, sides[:6])
    again, same = box_shapes._search(sides, centers)
    assert same >= value == pytest.approx(float(box_shapes.best_anchors(sides, centers)[1].mean()))
    assert again.shape == (6, 2)


def test_a_centre_without_boxes_moves_to_the_worst_box():
    # Both centres at 10 x 10: the first of equals takes all boxes, the other goes to 90 x 90, whose IoU is worst.
    sides = np.array([[10, 10], [11, 10], [90, 90]], np.float32)
    centers, value = box_shapes._search(sides, np.array([[10, 10], [10, 10]], np.float32))
    assert centers[1].tolist() == [90, 90]
    # The other anchor: the median of 10 and 11, 10.5 x 10: IoU 10 / 10.5 and 10.5 / 11; or 10 x 10 with 1 and 10 / 11. The
    # rounds see both: 1 + 0.9091 = 1.9091, 0.9524 + 0.9545 = 1.9069; the best is kept.
    assert value == pytest.approx((1 + 10 / 11 + 1) / 3, abs=1e-6)


def test_same_seed_same_anchors_whatever_was_drawn_before():
    sides = np.random.default_rng(5).lognormal(3, 0.6, (2000, 2))
    first = box_shapes.fit(sides, 6, seed=7)
    np.random.default_rng().random(10)
    assert box_shapes.fit(sides, 6, seed=7) == first


def test_many_boxes_are_searched_in_a_sample_and_judged_whole(monkeypatch):
    monkeypatch.setattr(box_shapes, "SEARCHED", 200)
    monkeypatch.setattr(box_shapes, "SETTLED", 1000)
    sides = np.random.default_rng(6).lognormal(3, 0.6, (5000, 2))
    sampled = box_shapes.fit(sides, 4)
    assert sampled.boxes == 5000 == sum(sampled.boxes_per_anchor)
    monkeypatch.setattr(box_shapes, "SEARCHED", 5000)
    whole = box_shapes.fit(sides, 4)
    assert sampled.mean_best_iou == pytest.approx(whole.mean_best_iou, abs=0.01)


def test_a_sample_without_enough_shapes_falls_back_to_the_shapes(monkeypatch):
    # 3,000 equal boxes and two rare ones: a sample of 10 shows hardly more than one shape, and three are asked for.
    monkeypatch.setattr(box_shapes, "SEARCHED", 10)
    monkeypatch.setattr(box_shapes, "SETTLED", 10)
    sides = np.concatenate([np.full((3000, 2), 20.0), [[5.0, 5.0], [80.0, 40.0]]])
    assert box_shapes.fit(sides, 3).anchors_px == ((5.0, 5.0), (20.0, 20.0), (80.0, 40.0))


def test_shapes_are_compared_to_a_hundredth_of_a_pixel():
    # What a normalised box of 20 px comes back as differs from patch to patch: one shape, not three.
    sides = np.array([[19.99999, 20.0], [20.00001, 20.0], [20.0, 20.0]])
    assert box_shapes.fit(sides, 1).anchors_px == ((20.0, 20.0),)
    with pytest.raises(InputError, match=r"k=2 anchors: must be from 1 to 1, the number of distinct shapes of the 3 boxes"):
        box_shapes.fit(sides, 2)


@pytest.mark.parametrize("sides", [np.zeros((0, 2)), np.array([[0.0, 5.0], [-3.0, 4.0]])])
def test_no_box_to_suit(sides):
    with pytest.raises(InputError, match=r"no box of [02] has a width and a height above 0"):
        box_shapes.fit(sides, 1)
    with pytest.raises(InputError, match="no box"):
        box_shapes.judge(sides, ((1.0, 1.0),))


def test_no_worse_than_model_garden():
    """On the same boxes, by the same measure; theirs starts once, from groups of sorted boxes, and takes means."""
    import tensorflow as tf
    from official.projects.yolo.ops import kmeans_anchors

    sides = np.clip(np.random.default_rng(8).lognormal(3.5, 0.5, (800, 2)), 2, 400).astype(np.float32)
    boxes = np.concatenate([np.zeros_like(sides), sides[:, ::-1]], axis=1) / 416  # yxyx
    images = [{"width": 416, "height": 416, "groundtruth_boxes": tf.constant(boxes)}]
    theirs = kmeans_anchors.AnchorKMeans()(images, 6, image_resolution=(416, 416, 3))
    ours = box_shapes.fit(sides, 6)
    assert ours.mean_best_iou > box_shapes.judge(sides, theirs).mean_best_iou
    assert ours.mean_best_iou < box_shapes.judge(sides, theirs).mean_best_iou + 0.05  # the same thing, not another one


def written(folder: Path, value: object) -> str:
    (folder / "anchors.json").write_text(json.dumps(value))
    return str(folder / "anchors.json")


def test_file_and_back(tmp_path):
    found = box_shapes.fit(np.array([[30, 20], [10, 10], [5, 40]]), 3)
    value = box_shapes.to_json(found, image_size=416, seed=0, source={"dataset": "survey"}, made_with={"python": "3"})
    assert box_shapes.read_anchors(written(tmp_path, value)) == found.anchors_px
    assert value["mean_best_iou"] == 1.0
    assert (value["k"], value["image_size"], value["source"]) == (3, 416, {"dataset": "survey"})


def test_anchors_written_by_hand_are_sorted(tmp_path):
    path = written(tmp_path, {"format_version": 1, "anchors_px": [[30, 20], [10, 10.5]]})
    assert box_shapes.read_anchors(path) == ((10.0, 10.5), (30.0, 20.0))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"anchors_px": [[1, 2]]}, "has format_version None: must be 1"),
        ({"format_version": 1}, "anchors_px=None: must be a list of"),
        ({"format_version": 1, "anchors_px": []}, "anchors_px=.*: must be a list of"),
        ({"format_version": 1, "anchors_px": [[1, 0]]}, "anchors_px=.*: must be a list of"),
        ({"format_version": 1, "anchors_px": [[1, 2, 3]]}, "anchors_px=.*: must be a list of"),
        ({"format_version": 1, "anchors_px": [[1, True]]}, "anchors_px=.*: must be a list of"),
        ([1, 2], "it holds a list, not an object"),
    ],
)
def test_files_that_hold_no_anchors(tmp_path, value, message):
    with pytest.raises(InputError, match=message):
        box_shapes.read_anchors(written(tmp_path, value))


def test_no_file_of_anchors(tmp_path):
    with pytest.raises(InputError, match=r"does not exist: a file of anchors written by `rookery anchors` is expected there"):
        box_shapes.read_anchors(str(tmp_path / "anchors.json"))
