"""survey.metrics: by hand, and against pycocotools."""

import math

import numpy as np
import pytest
from crowded_frames import random_frames
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from survey import matching, metrics
from survey.metrics import COCO_IOUS, Frame


def one_class(boxes, scores, truth):
    boxes, truth = np.array(boxes, float).reshape(-1, 4), np.array(truth, float).reshape(-1, 4)
    return Frame(boxes, np.array(scores, float), np.ones(len(boxes), int), truth, np.ones(len(truth), int))


def chain(hits, truths, scores=None):
    """Outcomes with given hits at IoU 0.5, scores 0.9, 0.8 .. unless given."""
    scores = np.array(scores) if scores is not None else 0.9 - 0.1 * np.arange(len(hits))
    return metrics.Outcomes((0.5,), scores, np.array([hits], bool), truths)


def test_match_takes_the_best_free_object_by_descending_score():
    # Rows 0-10, so IoU is that of the column spans. Objects: A = [0, 10), B = [6, 16).
    truth = [[0, 0, 10, 10], [0, 6, 10, 16]]
    # d0 = [3, 13): A shares 7, union 13 -> .538; B shares 7, union 13 -> .538: a tie, COCO takes the last, B.
    # d1 = [2, 12), higher score: A shares 8, union 12 -> .667; B shares 6, union 14 -> .429. It chooses first and takes A.
    boxes = [[0, 3, 10, 13], [0, 2, 10, 12]]
    found = metrics.match(np.array(boxes, float), np.array([0.5, 0.9]), np.array(truth, float), (0.4, 0.6))
    np.testing.assert_array_equal(found.truth_index, [[1, 0], [-1, 0]])  # at .6, .538 is not enough
    np.testing.assert_allclose(found.overlap, [[7 / 13, 8 / 12], [0, 8 / 12]])


def test_match_lets_a_second_detection_fall_back_to_a_worse_object():
    # d0 = A exactly. d1 = [1, 11): A (9/11) is taken, B = [6, 16) shares 5, union 15 -> .333.
    truth = np.array([[0, 0, 10, 10], [0, 6, 10, 16]], float)
    boxes = np.array([[0, 0, 10, 10], [0, 1, 10, 11]], float)
    found = metrics.match(boxes, np.array([0.9, 0.8]), truth, (0.3, 0.5))
    np.testing.assert_array_equal(found.truth_index, [[0, 1], [0, -1]])


def test_match_counts_an_iou_exactly_on_the_threshold():
    # [0, 10) x [0, 10) in [0, 10) x [0, 20): 100 / 200.
    found = metrics.match(np.array([[0.0, 0, 10, 10]]), np.ones(1), np.array([[0.0, 0, 10, 20]]), (0.5, 0.5001))
    np.testing.assert_array_equal(found.truth_index, [[0], [-1]])


def test_average_precision_by_hand():
    # Hits T F T of 4 objects. Recall 1/4 at precision 1, then 2/4 at precision 2/3.
    # r = 0 .. .25 (26 points) read 1; r = .26 .. .50 (25 points) read 2/3; the other 50 read 0.
    assert metrics.average_precision(chain([1, 0, 1], 4), 0.5) == pytest.approx((26 + 25 * 2 / 3) / 101, abs=1e-12)


def test_average_precision_takes_the_best_precision_to_the_right():
    # F T T of 2: recall 1/2 at 1/2, 2/2 at 2/3. From r = 0 on the best to the right is 2/3.
    assert metrics.average_precision(chain([0, 1, 1], 2), 0.5) == pytest.approx(2 / 3)


def test_average_precision_of_nothing():
    assert metrics.average_precision(chain([], 3), 0.5) == 0.0
    assert math.isnan(metrics.average_precision(chain([0, 0], 0), 0.5))
    assert math.isnan(metrics.coco_ap([metrics.Outcomes(COCO_IOUS, np.zeros(0), np.zeros((10, 0), bool), 0)]))


def test_precision_recall_cuts_only_between_different_scores():
    curve = metrics.precision_recall(chain([1, 0, 1], 4, [0.9, 0.9, 0.3]), 0.5)
    np.testing.assert_array_equal(curve.thresholds, [0.9, 0.3])
    np.testing.assert_allclose(curve.precision, [1 / 2, 2 / 3])
    np.testing.assert_allclose(curve.recall, [1 / 4, 2 / 4])


def test_at_threshold():
    point = metrics.at_threshold(chain([1, 0, 1, 1], 5), 0.5, 0.7)  # 0.9 T, 0.8 F, 0.7 T count
    assert (point.tp, point.fp, point.fn) == (2, 1, 3)
    assert point.precision == pytest.approx(2 / 3)
    assert point.recall == pytest.approx(2 / 5)
    assert point.f1 == pytest.approx(2 * 2 / (3 + 5))


def test_at_threshold_of_a_float32_score():
    # 0.1 as float32 is 0.100000001..., 0.3 is 0.300000012..., 0.7 is 0.699999988...: each must count at its own threshold.
    for score in (0.1, 0.3, 0.7):
        point = metrics.at_threshold(chain([1], 1, np.float32([score]).astype(float)), 0.5, score)
        assert point.tp == 1


def test_at_threshold_of_nothing_is_undefined():
    point = metrics.at_threshold(chain([], 0), 0.5, 0.5)
    assert all(math.isnan(value) for value in (point.precision, point.recall, point.f1))
    point = metrics.at_threshold(chain([], 3), 0.5, 0.5)
    assert math.isnan(point.precision)
    assert (point.recall, point.f1) == (0, 0)


def test_best_f1_cuts_midway_to_the_next_score():
    # T T F T of 4: F1 = 2/5, 4/6, 4/7, 6/8: all four, best 0.75; nothing lies below, so the threshold is the lowest score.
    best = metrics.best_f1(chain([1, 1, 0, 1], 4), 0.5)
    assert (best.tp, best.fp, best.fn, best.f1) == (3, 1, 1, 0.75)
    assert best.threshold == pytest.approx(0.6)
    # T T F F of 2: F1 = 2/3, 1, 4/5, 4/6: two count, the cut lies between 0.8 and 0.7.
    best = metrics.best_f1(chain([1, 1, 0, 0], 2), 0.5)
    assert (best.threshold, best.f1) == (pytest.approx(0.75), 1.0)
    assert metrics.at_threshold(chain([1, 1, 0, 0], 2), 0.5, best.threshold) == best


def test_best_f1_never_splits_equal_scores():
    # Hit and miss share 0.5: taking only the hit is impossible. F1 of both = 2 / (2 + 1).
    assert metrics.best_f1(chain([1, 0], 1, [0.5, 0.5]), 0.5).f1 == pytest.approx(2 / 3)


def test_best_f1_between_neighbouring_floats_holds_in_float32():
    upper = np.float32(0.5)
    lower = np.nextafter(upper, np.float32(0))
    best = metrics.best_f1(chain([1, 0], 1, [float(upper), float(lower)]), 0.5)
    assert lower < np.float32(best.threshold) <= upper


def test_best_f1_without_detections():
    best = metrics.best_f1(chain([], 3), 0.5)
    assert (best.threshold, best.fn, best.f1) == (1.0, 3, 0.0)


def test_count_error():
    error = metrics.CountError(found=90, true=100)
    assert (error.signed, error.relative) == (-10, -0.1)
    assert math.isnan(metrics.CountError(3, 0).relative)


def test_count_spread_by_hand():
    # Errors +3, -1, 0, +2: mean 1, absolute mean 6/4, root of (9 + 1 + 0 + 4)/4.
    spread = metrics.count_spread(np.array([13, 4, 0, 7]), np.array([10, 5, 0, 5]))
    assert (spread.number, spread.mean_true, spread.mean_error, spread.mean_absolute_error) == (4, 5, 1, 1.5)
    assert spread.rmse == pytest.approx(math.sqrt(14 / 4))
    nothing = metrics.count_spread(np.zeros(0, int), np.zeros(0, int))
    assert nothing.number == 0
    assert math.isnan(nothing.rmse)


def test_outcomes_pool_frames_and_keep_classes_apart():
    truth = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], float)
    frame = Frame(truth, np.array([0.5, 0.9]), np.array([1, 1]), truth, np.array([1, 2]))  # the second box has the wrong class
    empty = Frame(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), truth[:1], np.array([1]))
    first, second = metrics.outcomes([frame, empty], 2, (0.5,))
    assert (first.truths, first.scores.tolist(), first.hits.tolist()) == (2, [0.9, 0.5], [[False, True]])
    assert (second.truths, second.scores.tolist()) == (1, [])
    both = metrics.pooled([first, second])
    assert (both.truths, both.hits.sum()) == (3, 1)


def pycocotools_precision(frames, classes, ious, areas=((0, 1e10),)):
    """eval['precision'] [T, 101, K, A] and eval['recall'] [T, K, A] with the cap on detections lifted."""

    def entry(number, image, class_id, box, **more):
        y0, x0, y1, x1 = map(float, box)
        size = [x1 - x0, y1 - y0]
        return {"id": number, "image_id": image, "category_id": int(class_id), "bbox": [x0, y0, *size], **more}

    truths, found = [], []
    for image, frame in enumerate(frames):
        for box, class_id in zip(frame.truth_boxes, frame.truth_class_ids, strict=True):
            area = float((box[2] - box[0]) * (box[3] - box[1]))
            truths.append(entry(len(truths) + 1, image, class_id, box, area=area, iscrowd=0))
        for box, class_id, score in zip(frame.boxes, frame.class_ids, frame.scores, strict=True):
            found.append(entry(len(found) + 1, image, class_id, box, score=float(score)))
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": i} for i in range(len(frames))],
        "categories": [{"id": k + 1, "name": str(k)} for k in range(classes)],
        "annotations": truths,
    }
    truth.createIndex()
    judge = COCOeval(truth, truth.loadRes(found), "bbox")
    judge.params.iouThrs = np.array(ious)
    judge.params.maxDets = [10**6]
    judge.params.areaRng, judge.params.areaRngLbl = [list(area) for area in areas], [str(area) for area in areas]
    judge.evaluate()
    judge.accumulate()
    return judge.eval["precision"][..., 0], judge.eval["recall"][..., 0]


@pytest.mark.parametrize("on_grid", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_parity_with_pycocotools(seed, on_grid):
    frames = random_frames(np.random.default_rng(seed), images=5, classes=3, on_grid=on_grid)
    ious = (0.4, *COCO_IOUS, 1.0)
    precision, recall = (one[..., 0] for one in pycocotools_precision(frames, 3, ious))
    per_class = metrics.outcomes(frames, 3, ious)
    for k, one in enumerate(per_class):
        for t, iou in enumerate(ious):
            assert metrics.average_precision(one, iou) == pytest.approx(precision[t, :, k].mean(), abs=1e-9)
            assert metrics.precision_recall(one, iou).recall[-1] == pytest.approx(recall[t, k], abs=1e-12)
    assert metrics.coco_ap(per_class) == pytest.approx(precision[1:-1].mean(), abs=1e-9)
    assert metrics.ap50(per_class) == pytest.approx(precision[1].mean(), abs=1e-9)


@pytest.mark.parametrize("on_grid", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_parity_with_pycocotools_by_size(seed, on_grid):
    """Bounds of 8 and 12 px, on which many areas lie exactly when on the grid of 4 px; such an object is of both sizes."""
    frames = random_frames(np.random.default_rng(seed), images=5, classes=3, on_grid=on_grid)
    ious, areas = (0.4, *COCO_IOUS), ((0, 64), (64, 144), (144, 1e10))
    precision, recall = pycocotools_precision(frames, 3, ious, areas)
    everything = matching.pool(frames)
    compared = 0
    for a, (low, high) in enumerate(areas):
        per_class = metrics.outcomes_of_size(everything, 3, ious, low, high)
        for k, one in enumerate(per_class):
            for t, iou in enumerate(ious):
                if one.truths == 0:
                    assert (precision[t, :, k, a] == -1).all()
                    continue
                compared += 1
                assert metrics.average_precision(one, iou) == pytest.approx(precision[t, :, k, a].mean(), abs=1e-9)
                found = metrics.at_threshold(one, iou, 0.0).recall
                assert found == pytest.approx(recall[t, k, a], abs=1e-12)
    assert compared == 3 * 3 * len(ious)


def test_size_ignores_objects_and_detections_of_other_sizes():
    # Objects: A 10 x 10 (100 px²), B 20 x 20 (400 px²). Sizes: up to 15² = 225, and from there on.
    truth = [[0, 0, 10, 10], [50, 50, 70, 70]]
    boxes = [
        [0, 0, 10, 10],  # 0.9 finds A
        [50, 50, 70, 70],  # 0.8 finds B
        [30, 0, 40, 10],  # 0.7 small, nothing there
        [80, 0, 100, 20],  # 0.6 large, nothing there
    ]
    everything = matching.pool([one_class(boxes, [0.9, 0.8, 0.7, 0.6], truth)])
    (small,) = metrics.outcomes_of_size(everything, 1, (0.5,), 0, 225)
    (large,) = metrics.outcomes_of_size(everything, 1, (0.5,), 225, math.inf)
    # Small: A is right and the small one false; the detection of B and the large one are ignored. Large: the other way round.
    for one, scores in ((small, [0.9, 0.7]), (large, [0.8, 0.6])):
        assert one.truths == 1
        np.testing.assert_array_equal(one.counted(0.5)[0], scores)
        np.testing.assert_array_equal(one.counted(0.5)[1], [True, False])
        at = metrics.at_threshold(one, 0.5, 0.65)
        assert (at.tp, at.fp, at.fn) == (1, 1 if one is small else 0, 0)
    # Pooled over classes, what is ignored stays ignored; a class in which nothing is ignored has no mask.
    (all_sizes,) = metrics.outcomes_of_size(everything, 1, (0.5,), 0, math.inf)
    assert all_sizes.ignored is None
    both = metrics.pooled([small, all_sizes])
    assert (both.truths, both.counted(0.5)[0].tolist()) == (3, [0.9, 0.9, 0.8, 0.7, 0.7, 0.6])


def test_size_prefers_an_object_of_the_size_though_another_fits_better():
    # One detection 10 x 16 = 160 px². Object A 10 x 15 = 150: IoU 150/160 = .94; B 10 x 25 = 250: IoU 160/250 = .64.
    # Large is 200 px² and more: A is out of the size and would be taken only if B did not reach the threshold.
    everything = matching.pool([one_class([[0, 0, 10, 16]], [0.9], [[0, 0, 10, 15], [0, 0, 10, 25]])])
    (large,) = metrics.outcomes_of_size(everything, 1, (0.5, 0.75), 200, math.inf)
    np.testing.assert_array_equal(large.counted(0.5)[1], [True])
    assert len(large.counted(0.75)[0]) == 0  # it found A, which is not asked for
    assert metrics.at_threshold(large, 0.75, 0.0).fn == 1


def test_a_thousand_objects_in_one_frame_are_all_counted():
    # COCO's cap of 100 detections would end at recall 0.1.
    corner = np.stack(np.meshgrid(np.arange(25) * 10.0, np.arange(40) * 10.0), axis=-1).reshape(-1, 2)
    boxes = np.concatenate([corner, corner + 8], axis=1)
    (one,) = metrics.outcomes([one_class(boxes, np.linspace(1, 0.5, 1000), boxes)], 1, COCO_IOUS)
    assert metrics.coco_ap([one]) == 1.0
    assert metrics.at_threshold(one, 0.5, 0.5).tp == 1000


def test_best_count_by_hand():
    """Ten objects; detections by falling score hit (h) or miss (m): h x 6, m, h, m, m, h, m ...

    F1 = 2 tp / (n + 10): after 6 detections 12/16 = 0.75; after 8 (7 hits) 14/18 = 0.778, the best; after 11 (8 hits)
    16/21 = 0.762, 2.04 % below it; after 10 (7 hits) 14/20 = 0.7.
    """
    one = chain([1, 1, 1, 1, 1, 1, 0, 1, 0, 0, 1, 0], truths=10, scores=np.linspace(0.9, 0.35, 12))
    best = metrics.best_f1(one, 0.5)
    assert (best.tp, best.fp) == (7, 1)
    assert metrics.best_count(one, 0.5, f1_slack=0.0) == metrics.best_count(one, 0.5, f1_slack=0.02) == best
    # Within 3 %, counts of 8 and 11 are allowed, and 11 is nearer to ten than 8.
    nearer = metrics.best_count(one, 0.5, f1_slack=0.03)
    assert (nearer.tp, nearer.fp) == (8, 3)
    assert nearer.threshold == pytest.approx((one.scores[10] + one.scores[11]) / 2)
