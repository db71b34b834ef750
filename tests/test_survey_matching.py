"""survey.matching: against the plain loops that it replaces."""

import numpy as np
import pytest
from crowded_frames import random_frames

from survey import boxes, matching
from survey.matching import Frame


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
