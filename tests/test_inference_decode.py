import dataclasses
import math

import numpy as np
import pytest

from inference import decode
from survey import boxes
from survey.anchors import AnchorSpec
from survey.errors import InputError
from survey.heads import RetinaNetHeads
from survey.model import ModelSpec

SCALES = (1.0, 1.0, 1.0, 1.0)

# Levels 3 and 4 at 64 px: (8 * 8 + 4 * 4) * 3 = 240 anchors.
SPEC = ModelSpec(
    image_size=64,
    classes=("bird", "tree"),
    heads=RetinaNetHeads(AnchorSpec(3, 4, num_scales=1, aspect_ratios=(0.5, 1.0, 2.0), anchor_size=2.0), SCALES),
    score_threshold=0.5,
    score_floor=0.05,
    nms_iou=0.5,
    overlap_px=16,
    gsd_m=None,
    bands=(),
    calibration=(),
    validation={},
    dataset_digest="",
    versions={},
)
ANCHORS = SPEC.heads.anchors.boxes(64)


def test_decode_by_hand():
    # Anchor 10..30 x 20..60: centre (20, 40), sides (20, 40). ty = 0.5 moves the centre by half a height: 30. tx = -0.25 by a
    # quarter of a width: 30. th = log 2 doubles the height to 40, tw = log 0.5 halves the width to 20.
    raw = np.array([[0.5, -0.25, math.log(2), math.log(0.5)]], np.float32)
    anchor = np.array([[10, 20, 30, 60]], np.float32)
    np.testing.assert_allclose(decode.decode_boxes(raw, anchor, SCALES), [[10, 20, 50, 40]], rtol=1e-6)


def test_box_scales_divide_the_raw_values():
    # The same box as above, from raw values multiplied by the usual factors of Faster R-CNN.
    raw = np.array([[5.0, -2.5, 5 * math.log(2), 5 * math.log(0.5)]], np.float32)
    anchor = np.array([[10, 20, 30, 60]], np.float32)
    np.testing.assert_allclose(decode.decode_boxes(raw, anchor, (10, 10, 5, 5)), [[10, 20, 50, 40]], rtol=1e-6)


def test_a_side_grows_at_most_62_5_fold():
    # 1000 / 16 = 62.5 times a side of 8 px is 500 px about the centre 4.
    raw = np.array([[0, 0, 100, 100]], np.float32)
    np.testing.assert_allclose(
        decode.decode_boxes(raw, np.array([[0, 0, 8, 8]], np.float32), SCALES), [[-246, -246, 254, 254]], rtol=1e-6
    )


def test_encode_then_decode_gives_the_box_back():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 40, (len(ANCHORS), 2))
    truth = np.concatenate([low, low + rng.uniform(2, 24, low.shape)], axis=1)
    for scales in (SCALES, (10.0, 10.0, 5.0, 5.0)):
        raw = decode.encode_boxes(truth, ANCHORS, scales)
        np.testing.assert_allclose(decode.decode_boxes(raw, ANCHORS, scales), truth, atol=1e-4)


def test_sigmoid_at_the_ends():
    got = decode.sigmoid(np.array([-1e4, -100, 0, math.log(3), 100, 1e4], np.float32))
    # log 3: 1 / (1 + 1/3) = 3/4.
    np.testing.assert_allclose(got, [0, math.exp(-100), 0.5, 0.75, 1, 1], rtol=1e-6, atol=1e-38)


def heads(entries: dict[tuple[int, int], float]) -> tuple[np.ndarray, np.ndarray]:
    """Heads whose boxes are the anchors, with the given score at (anchor, class) and nothing elsewhere."""
    raw_scores = np.full((len(ANCHORS), 2), -20.0, np.float32)
    for (anchor, column), score in entries.items():
        raw_scores[anchor, column] = math.log(score / (1 - score))
    return np.zeros((len(ANCHORS), 4), np.float32), raw_scores


def detect(raw_boxes: np.ndarray, raw_scores: np.ndarray, spec: ModelSpec = SPEC) -> decode.Found:
    return decode.Decoder(spec)({"raw_boxes": raw_boxes[None], "raw_scores": raw_scores[None]})[0]


def cell(row: int, column: int, ratio: int = 1) -> int:
    """Anchor number at level 3: 8 columns, 3 anchors a cell; ratio 1 is the 16 px square about (8 row + 4, 8 column + 4)."""
    return (row * 8 + column) * 3 + ratio


def test_detect_keeps_the_best_of_each_class_and_clips():
    # Squares in cells (3, 3) and (3, 4) are 8 px apart: IoU = 8 * 16 / (2 * 256 - 128) = 1/3, two objects. The 1:2 anchor of cell
    # (3, 3) is 16 sqrt 2 = 22.6 px high and 11.3 wide: it shares 16 * 11.3 = 181 of 256 + 256 - 181 = 331 px: IoU 0.55, the same
    # object, but only for the same class. The square of cell (0, 0) reaches from -4 to 12 and is cut at 0.
    raw_boxes, raw_scores = heads(
        {
            (cell(3, 3), 0): 0.9,
            (cell(3, 3, 0), 0): 0.8,
            (cell(3, 3, 0), 1): 0.7,
            (cell(3, 4), 0): 0.6,
            (cell(0, 0), 1): 0.3,
            (cell(6, 6), 1): 0.04,  # below the floor
        }
    )
    found, scores, class_ids = detect(raw_boxes, raw_scores)
    np.testing.assert_allclose(scores, [0.9, 0.7, 0.6, 0.3], rtol=1e-5)
    assert class_ids.tolist() == [1, 2, 1, 2]
    np.testing.assert_allclose(found[[0, 2, 3]], [[20, 20, 36, 36], [20, 28, 36, 44], [0, 0, 12, 12]], atol=1e-4)


def test_a_score_on_the_floor_is_kept():
    spec = dataclasses.replace(SPEC, score_floor=0.5)
    raw_boxes, raw_scores = heads({(cell(3, 3), 0): 0.5})  # logit 0: the sigmoid is exactly one half
    _, scores, _ = detect(raw_boxes, raw_scores, spec)
    assert scores.tolist() == [0.5]


def test_nothing_found_and_no_cap():
    raw_boxes, raw_scores = heads({})
    found, scores, class_ids = detect(raw_boxes, raw_scores)
    assert (found.shape, scores.shape, class_ids.shape) == ((0, 4), (0,), (0,))
    raw_scores[:] = 5.0
    found, _, _ = detect(raw_boxes, raw_scores, dataclasses.replace(SPEC, nms_iou=1.0))
    assert len(found) == 2 * len(ANCHORS)


def test_shapes_that_contradict_the_spec():
    with pytest.raises(InputError, match=r"raw_boxes \[B, 240, 4\]; raw_scores \[B, 240, 2\].*found raw_boxes \[1, 7, 4\]"):
        detect(np.zeros((7, 4)), np.zeros((7, 2)))
    with pytest.raises(InputError, match="score_floor=1"):
        decode.Decoder(dataclasses.replace(SPEC, score_floor=1.0))


def test_parity_with_model_garden_decode():
    import tensorflow as tf
    from official.vision.ops import box_ops

    raw = np.random.default_rng(1).normal(0, 2, (len(ANCHORS), 4)).astype(np.float32)
    raw[:5, 2:] = 6.0  # beyond log 62.5 = 4.1
    for scales in (SCALES, (10.0, 10.0, 5.0, 5.0)):
        theirs = box_ops.decode_boxes(tf.constant(raw), tf.constant(ANCHORS), weights=list(scales)).numpy()
        np.testing.assert_allclose(decode.decode_boxes(raw, ANCHORS, scales), theirs, rtol=1e-6, atol=64 * 1e-6)


def test_parity_with_model_garden_detection_generator():
    """Same boxes, scores and classes as its NMS `v2` on random heads, below its caps of 5,000 candidates and 500 detections."""
    import tensorflow as tf
    from official.vision.modeling.layers.detection_generator import MultilevelDetectionGenerator

    rng = np.random.default_rng(2)
    raw_boxes = rng.normal(0, 0.3, (len(ANCHORS), 4)).astype(np.float32)
    raw_scores = rng.normal(-2, 2, (len(ANCHORS), 2)).astype(np.float32)
    background = np.full((len(ANCHORS), 1), -9.0, np.float32)
    per_level, start = {"boxes": {}, "scores": {}, "anchors": {}}, 0
    for level, count in SPEC.heads.anchors.counts(64).items():
        rows, side = slice(start, start + count), 64 >> level
        per_level["boxes"][str(level)] = raw_boxes[rows].reshape(1, side, side, 12)
        per_level["scores"][str(level)] = np.concatenate([background, raw_scores], axis=1)[rows].reshape(1, side, side, 9)
        per_level["anchors"][str(level)] = ANCHORS[rows].reshape(1, side, side, 12)
        start += count
    tensors = {name: {level: tf.constant(value) for level, value in one.items()} for name, one in per_level.items()}
    generator = MultilevelDetectionGenerator(
        pre_nms_score_threshold=0.05, nms_iou_threshold=0.5, max_num_detections=500, nms_version="v2"
    )
    theirs = generator(tensors["boxes"], tensors["scores"], tensors["anchors"], tf.constant([[64.0, 64.0]]))
    found, scores, class_ids = detect(raw_boxes, raw_scores)

    count = int(theirs["num_detections"][0])
    assert 50 < count < 500
    boxes_theirs = theirs["detection_boxes"][0, :count].numpy()
    solid = boxes.area(boxes_theirs) > 0  # Model Garden keeps boxes that lie beyond the patch, as lines on its edge
    np.testing.assert_allclose(scores, theirs["detection_scores"][0, :count].numpy()[solid], rtol=1e-5)
    np.testing.assert_allclose(found, boxes_theirs[solid], atol=64 * 1e-5)
    np.testing.assert_array_equal(class_ids, theirs["detection_classes"][0, :count].numpy()[solid])


def test_threads_share_the_images_and_change_nothing():
    rng = np.random.default_rng(3)
    raw = {
        "raw_boxes": rng.normal(0, 0.3, (5, len(ANCHORS), 4)).astype(np.float32),
        "raw_scores": rng.normal(-2, 1, (5, len(ANCHORS), 2)).astype(np.float32),
    }
    alone = decode.Decoder(SPEC)(raw)
    assert min(len(one.scores) for one in alone) > 10
    for threads in (2, 8):  # 8 are more than there are images
        for one, other in zip(alone, decode.Decoder(SPEC, threads=threads)(raw), strict=True):
            for mine, theirs in zip(one, other, strict=True):
                np.testing.assert_array_equal(mine, theirs)
