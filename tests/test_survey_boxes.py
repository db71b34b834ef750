import numpy as np
import pytest

from survey import boxes


def test_area_is_zero_for_boxes_turned_inside_out():
    # 2 x 3 = 6; y1 < y0; both turned round must not become positive by multiplying two negatives.
    given = np.array([[1, 1, 3, 4], [3, 1, 1, 4], [3, 4, 1, 1]], float)
    np.testing.assert_array_equal(boxes.area(given), [6, 0, 0])


def test_clip_and_shift():
    given = np.array([[-5.0, 2, 8, 30]])
    np.testing.assert_array_equal(boxes.clip(given, 10, 20), [[0, 2, 8, 20]])
    np.testing.assert_array_equal(boxes.shift(given, 5, -2), [[0, 0, 13, 28]])
    outside = boxes.clip(np.array([[12.0, 2, 15, 4]]), 10, 20)
    assert boxes.area(outside)[0] == 0


def test_iou_by_hand():
    # 10 x 10 boxes shifted by 5 in x: 50 shared, 150 in all: 1/3. Touching only at a side: 0. Two empty boxes: 0, not NaN.
    a = np.array([[0, 0, 10, 10], [3, 3, 3, 3]], float)
    b = np.array([[0, 5, 10, 15], [0, 10, 10, 20], [3, 3, 3, 3]], float)
    np.testing.assert_allclose(boxes.iou(a, b), [[1 / 3, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(boxes.paired_iou(a, b[[0, 2]]), [1 / 3, 0])


def test_overlapping_pairs_equal_the_full_matrix():
    random = np.random.default_rng(1)
    low = random.uniform(0, 100, (150, 2))
    given = np.concatenate([low, low + random.uniform(1, 30, (150, 2))], axis=1)
    a, b = given[:80], given[80:]
    full = boxes.iou(a, b)
    i, j, value = boxes.overlapping_pairs(a, b)
    expected = np.argwhere(full > 0)
    np.testing.assert_array_equal(np.stack([i, j], axis=1), expected)
    np.testing.assert_allclose(value, full[full > 0])


def random_boxes(rng, number, *, sizes):
    corner = rng.uniform(-50, 200, (number, 2))
    return np.concatenate([corner, corner + rng.choice(sizes, (number, 2)) * rng.uniform(0.5, 1, (number, 2))], axis=1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", [(10,), (1, 300), (0.001, 2, 40)])
@pytest.mark.parametrize("chunk", [1, 100, 1 << 22])
def test_overlapping_pairs_to_the_last_bit(sizes, chunk, dtype, monkeypatch):
    monkeypatch.setattr(boxes, "CHUNK", chunk)
    rng = np.random.default_rng(len(sizes))
    a, b = (random_boxes(rng, number, sizes=sizes).astype(dtype) for number in (150, 130))
    a[3], a[4] = b[3], b[4][[2, 3, 0, 1]]  # one exactly, one turned inside out
    b[7, 2] = b[7, 0]  # empty
    i, j, value = boxes.overlapping_pairs(a, b)
    all_i, all_j = np.divmod(np.arange(150 * 130), 130)
    full = boxes.paired_iou(a[all_i], b[all_j])
    assert len(i) > 50
    np.testing.assert_array_equal(i, all_i[full > 0])
    np.testing.assert_array_equal(j, all_j[full > 0])
    np.testing.assert_array_equal(value, full[full > 0])  # an IoU on a threshold must not change sides
    assert value.dtype == dtype


def test_boxes_that_touch_share_nothing():
    a = np.array([[0, 0, 10, 10]], float)
    b = np.array([[0, 10, 10, 20], [10, 0, 20, 10], [9, 9, 19, 19]], float)
    i, j, value = boxes.overlapping_pairs(a, b)
    assert (i.tolist(), j.tolist(), value.tolist()) == ([0], [2], [1 / 199])  # 1 px of 100 + 100 - 1


def test_groups_are_kept_apart():
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 90, sizes=(40,)), random_boxes(rng, 80, sizes=(40,))
    a_group, b_group = rng.integers(0, 3, 90), rng.integers(0, 3, 80)
    i, j, _ = boxes.overlapping_pairs(a, b, a_group, b_group)
    all_i, all_j, _ = boxes.overlapping_pairs(a, b)
    same = a_group[all_i] == b_group[all_j]
    assert 0 < same.sum() < len(same)
    np.testing.assert_array_equal(np.stack([i, j]), np.stack([all_i[same], all_j[same]]))


def test_overlapping_pairs_of_nothing():
    none, some = np.zeros((0, 4)), np.array([[0.0, 0, 1, 1]])
    nowhere = np.array([[0, 0, np.nan, 1], [5, 5, 5, 9]])
    for a, b in ((none, none), (none, some), (some, none), (nowhere, some), (some, nowhere)):
        assert [len(part) for part in boxes.overlapping_pairs(a, b)] == [0, 0, 0]


def test_pairs_of_ranges(monkeypatch):
    monkeypatch.setattr(boxes, "CHUNK", 3)  # rows 0 and 1 hold 2 + 0 pairs, row 2 holds 4, which cannot be divided
    pieces = list(boxes.pairs_of_ranges(np.array([5, 7, 0]), np.array([7, 7, 4])))
    assert [(rows.tolist(), places.tolist()) for rows, places in pieces] == [([0, 0], [5, 6]), ([2] * 4, [0, 1, 2, 3])]


def test_nms_keeps_what_a_suppressed_box_would_have_suppressed():
    # a-b and b-c overlap by 1/3, a-c not at all: a kills b, and so c stays.
    given = np.array([[0, 0, 10, 10], [0, 5, 10, 15], [0, 10, 10, 20]], float)
    scores = np.array([0.9, 0.8, 0.7])
    np.testing.assert_array_equal(boxes.nms(given, scores, 0.3), [0, 2])
    np.testing.assert_array_equal(boxes.nms(given, scores, 0.4), [0, 1, 2])
    np.testing.assert_array_equal(boxes.nms(given, scores, 0.3, classes=np.array([1, 2, 2])), [0, 1])


def test_nms_equals_the_quadratic_definition():
    random = np.random.default_rng(2)
    low = random.uniform(0, 60, (120, 2))
    given = np.concatenate([low, low + random.uniform(5, 30, (120, 2))], axis=1)
    scores = random.integers(0, 10, 120) / 10  # with ties
    kept: list[int] = []
    for i in sorted(range(120), key=lambda i: (-scores[i], i)):
        if all(boxes.iou(given[[i]], given[[k]])[0, 0] <= 0.4 for k in kept):
            kept.append(i)
    np.testing.assert_array_equal(boxes.nms(given, scores, 0.4), kept)


def test_nms_of_nothing():
    assert len(boxes.nms(np.zeros((0, 4)), np.zeros(0), 0.5)) == 0


def test_inside_is_half_open():
    points = np.array([[0.0, 0], [10, 5], [9.9, 4.9], [5, -0.1]])
    np.testing.assert_array_equal(boxes.inside(points, 0, 0, 10, 5), [True, False, True, False])
    np.testing.assert_array_equal(boxes.centers(np.array([[0.0, 2, 10, 4]])), [[5, 3]])
