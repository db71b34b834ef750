import numpy as np

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


def test_overlapping_pairs_of_nothing():
    none, some = np.zeros((0, 4)), np.array([[0.0, 0, 1, 1]])
    for a, b in ((none, none), (none, some), (some, none)):
        assert [len(part) for part in boxes.overlapping_pairs(a, b)] == [0, 0, 0]


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
