"""survey.matching: against the plain loops that it replaces."""

import numpy as np
import pytest
from crowded_frames import random_frames

from survey import boxes, matching
from survey.matching import Frame


def random_boxes(rng, number, *, sizes):
    corner = rng.uniform(-50, 200, (number, 2))
    return np.concatenate([corner, corner + rng.choice(sizes, (number, 2)) * rng.uniform(0.5, 1, (number, 2))], axis=1)


@pytest.mark.parametrize("sizes", [(10,), (1, 300), (0.001, 2, 40)])
@pytest.mark.parametrize("chunk", [1, 100, 1 << 22])
def test_overlaps_are_those_of_the_sweep(sizes, chunk, monkeypatch):
    monkeypatch.setattr(matching, "CHUNK", chunk)
    rng = np.random.default_rng(len(sizes))
    a, b = random_boxes(rng, 150, sizes=sizes), random_boxes(rng, 130, sizes=sizes)
    a[3], a[4] = b[3], b[4][[2, 3, 0, 1]]  # one exactly, one turned inside out
    b[7, 2] = b[7, 0]  # empty
    frame = np.zeros(150, int), np.zeros(130, int)
    i, j, iou = matching.overlaps(a, frame[0], b, frame[1])
    expected = boxes.overlapping_pairs(a, b)
    assert len(i) > 50
    np.testing.assert_array_equal(i, expected[0])
    np.testing.assert_array_equal(j, expected[1])
    np.testing.assert_array_equal(iou, expected[2])  # to the last bit: an IoU on a threshold must not change sides


def test_overlaps_touching_boxes_share_nothing():
    a = np.array([[0, 0, 10, 10]], float)
    b = np.array([[0, 10, 10, 20], [10, 0, 20, 10], [9, 9, 19, 19]], float)
    i, j, iou = matching.overlaps(a, np.zeros(1, int), b, np.zeros(3, int))
    assert (i.tolist(), j.tolist(), iou.tolist()) == ([0], [2], [1 / 199])


def test_overlaps_keep_frames_apart():
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 90, sizes=(40,)), random_boxes(rng, 80, sizes=(40,))
    a_frame, b_frame = rng.integers(0, 3, 90), rng.integers(0, 3, 80)
    i, j, _ = matching.overlaps(a, a_frame, b, b_frame)
    near_i, near_j, _ = boxes.overlapping_pairs(a, b)
    same = a_frame[near_i] == b_frame[near_j]
    assert 0 < same.sum() < len(same)
    np.testing.assert_array_equal(np.stack([i, j]), np.stack([near_i[same], near_j[same]]))


def test_overlaps_of_nothing():
    none, one = np.zeros((0, 4)), np.array([[0, 0, 1, 1]], float)
    nowhere = np.array([[0, 0, np.nan, 1], [5, 5, 5, 9]])
    for a, b in ((none, one), (one, none), (none, none), (nowhere, one)):
        assert [len(part) for part in matching.overlaps(a, np.zeros(len(a), int), b, np.zeros(len(b), int))] == [0, 0, 0]


def chosen_in_turn(i, j, detections):
    """What `assign` must give: one detection after another takes its best free object."""
    found, taken = np.full(detections, -1), set()
    for detection, truth in zip(i.tolist(), j.tolist(), strict=True):
        if found[detection] < 0 and truth not in taken:
            found[detection] = truth
            taken.add(truth)
    return found


@pytest.mark.parametrize("seed", range(30))
def test_assign_is_choosing_in_turn(seed):
    rng = np.random.default_rng(seed)
    detections, truths = rng.integers(1, 60, 2)
    pairs = rng.integers(0, detections * 8)
    i = np.sort(rng.integers(0, detections, pairs))
    j = rng.integers(0, truths, pairs)  # in any order of preference, now and then one object twice
    np.testing.assert_array_equal(matching.assign(i, j, detections, truths), chosen_in_turn(i, j, detections))


def test_assign_along_a_chain():
    """Each detection is turned away by the one before and turns the next away: d0 takes A, so d1 takes B, so d2 takes C."""
    i, j = np.array([0, 1, 1, 2, 2]), np.array([0, 0, 1, 1, 2])
    np.testing.assert_array_equal(matching.assign(i, j, 3, 3), [0, 1, 2])
    np.testing.assert_array_equal(matching.assign(np.zeros(0, int), np.zeros(0, int), 2, 0), [-1, -1])


@pytest.mark.parametrize("on_grid", [False, True])
def test_match_is_the_greedy_loop(on_grid):
    """The loop as it stood here before, on crowds with tied scores and overlaps."""
    for frame in random_frames(np.random.default_rng(5), images=8, classes=1, on_grid=on_grid):
        rank = np.empty(len(frame.scores), int)
        rank[np.argsort(-frame.scores, kind="stable")] = np.arange(len(frame.scores))
        i, j, overlap = boxes.overlapping_pairs(frame.boxes, frame.truth_boxes)
        order = np.lexsort((-j, -overlap, rank[i]))
        i, j, overlap = i[order], j[order], overlap[order]
        got = matching.match(frame.boxes, frame.scores, frame.truth_boxes, (0.3, 0.5, 0.9))
        for row, iou in enumerate(got.ious):
            near = overlap >= iou
            np.testing.assert_array_equal(got.truth_index[row], chosen_in_turn(i[near], j[near], len(frame.scores)))
            hit = got.truth_index[row] >= 0
            expected = boxes.paired_iou(frame.boxes[hit], frame.truth_boxes[got.truth_index[row][hit]])
            np.testing.assert_array_equal(got.overlap[row][hit], expected)
            assert (got.overlap[row][~hit] == 0).all()


def test_pool_orders_by_score_then_by_what_was_given_first():
    box = np.array([[0, 0, 1, 1]] * 2, float)
    first = Frame(box, np.array([0.5, 0.9]), np.array([1, 2]), box[:1], np.array([1]))
    second = Frame(box, np.array([0.5, 0.7]), np.array([3, 4]), box, np.array([2, 3]))
    together = matching.pool(iter([first, second]))
    assert together.scores.tolist() == [0.9, 0.7, 0.5, 0.5]
    assert together.class_ids.tolist() == [2, 4, 1, 3]
    assert together.frame.tolist() == [0, 1, 0, 1]
    assert together.truth_frame.tolist() == [0, 1, 1]
    assert list(zip(together.i.tolist(), together.j.tolist(), strict=True)) == [(0, 0), (1, 1), (1, 2), (2, 0), (3, 1), (3, 2)]
    assert (together.counting(0.7), together.counting(0.71), together.counting(0)) == (2, 1, 4)


def test_pool_of_nothing():
    assert len(matching.pool([]).scores) == 0
    nothing = matching.match(np.zeros((0, 4)), np.zeros(0), np.zeros((0, 4)), (0.5,))
    assert nothing.truth_index.shape == (1, 0)
