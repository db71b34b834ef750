"""YOLO's losses: by hand, and part by part and gradient by gradient as Model Garden's."""

import dataclasses
import math
from typing import Any

import garden_yolo
import numpy as np
import pytest
import tensorflow as tf

from survey.errors import InputError
from survey.heads import YoloHeads
from tpu_train.yolo import iou, targets
from tpu_train.yolo.loss import Losses, LossSettings, loss

SIZE = 128
DARKNET = LossSettings(ignore_threshold=0.3)
SCALED = LossSettings(scaled=True, objectness_smoothing=1.0)
ANSWER = tuple[Losses, dict[int, Any]]


def ours(
    heads: YoloHeads, settings: LossSettings, raw: dict[int, Any], boxes: Any, ids: Any, classes: int, **assign: Any
) -> ANSWER:
    """Losses and gradients by the raw heads."""
    found = targets.assign(heads, boxes, ids, image_size=SIZE, **assign)
    with tf.GradientTape() as tape:
        tape.watch(raw)
        losses = loss(heads, settings, raw, found, num_classes=classes)
    return losses, tape.gradient(losses.total, raw)


def compare(
    heads: YoloHeads,
    settings: LossSettings,
    classes: int,
    *,
    raw: dict[int, np.ndarray] | None = None,
    batch: tuple[np.ndarray, np.ndarray] | None = None,
    match: float | None = None,
) -> ANSWER:
    """Asserts that losses, parts and gradients equal Model Garden's, and returns ours."""
    rng = np.random.default_rng(11)
    boxes, ids = batch or crowded(rng, classes)
    raw = raw or garden_yolo.raw_heads(rng, heads, len(boxes), SIZE, classes)
    if not settings.scaled and settings.box_loss == "ciou":
        raw = within_the_image(heads, raw)
    rule: dict[str, Any] = {"match_threshold": match or (4.0 if settings.scaled else 0.213), "best_match_only": settings.scaled}
    labels = garden_yolo.labels(
        heads, boxes, ids, SIZE, match=rule["match_threshold"], best_only=settings.scaled, darknet=not settings.scaled
    )
    garden = garden_yolo.loss(heads, settings, classes)

    @tf.function(jit_compile=True)
    def theirs(labels: dict[str, Any], raw: dict[str, Any]) -> tuple[Any, ...]:
        with tf.GradientTape() as tape:
            tape.watch(raw)
            total, summed, metrics = garden(labels, raw)
        return total, summed, {name: metrics["net"][name] for name in ("box", "conf", "class")}, tape.gradient(total, raw)

    total, summed, parts, slopes = theirs(labels, {str(level): tf.constant(value) for level, value in raw.items()})
    inputs = ({level: tf.constant(value) for level, value in raw.items()}, tf.constant(boxes), tf.constant(ids))
    # As a plain graph, which is ready in a fifth of the time; that a compiled one gives the same is tested below.
    step = tf.function(
        lambda raw, boxes, ids: ours(heads, settings, raw, boxes, ids, classes, neighbours=settings.scaled, **rule)
    )
    found, gradients = step(*inputs)
    np.testing.assert_allclose(found.total, total, rtol=2e-5)
    for mine, name in ((found.box, "box"), (found.objectness, "conf"), (found.classes, "class")):
        np.testing.assert_allclose(mine, parts[name], rtol=2e-5, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(found.box + found.objectness + found.classes, summed, rtol=2e-5)
    for level in heads.levels:
        mine, other = gradients[level].numpy(), slopes[str(level)].numpy()
        np.testing.assert_allclose(mine, other, rtol=2e-3, atol=2e-5 * np.abs(other).max(), err_msg=str(level))
    return found, gradients


def within_the_image(heads: YoloHeads, raw: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Raw heads whose boxes have sides of at most 0.7 of the image's, a diagonal below 1: beyond it losses differ on purpose."""
    assert heads.box_type == "original"
    limited = {}
    for level, anchors_px in zip(heads.levels, heads.anchors_px, strict=True):
        each = raw[level].reshape(*raw[level].shape[:3], len(anchors_px), -1).copy()
        each[..., 2:4] = np.minimum(each[..., 2:4], np.log(0.7 * SIZE / np.array(anchors_px)))
        limited[level] = each.reshape(raw[level].shape)
    return limited


def crowded(rng: np.random.Generator, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Four images: none, one, many boxes, and one in which boxes share cell and anchors, with equal and with other classes."""
    boxes, ids = garden_yolo.batch(rng, [0, 1, 10, 10], 12, SIZE, classes)
    for copy, source in ((1, 0), (2, 0), (4, 3)):
        boxes[3, copy] = boxes[3, source] + rng.uniform(-0.3, 0.3, 4)
    boxes = boxes.clip(0, SIZE).astype(np.float32)
    ids[3, :5] = np.array([1, 1, classes, classes, 1])
    return boxes, ids


# Few cases with much in each: a compilation of Model Garden's loss is what takes the time.
CASES = {
    "darknet": ("three", "original", 3, DARKNET),
    "darknet, no search, every object for itself": (
        "one",
        "original",
        3,
        LossSettings(update_on_repeat=False, label_smoothing=0.1, class_weight=3.0, box_weight=2.0, largest_box_gradient=0.5),
    ),
    "darknet, boxes beyond the image": ("three", "original", 3, dataclasses.replace(DARKNET, box_loss="giou")),
    "darknet, one class": ("one", "scaled", 1, LossSettings(ignore_threshold=0.3, box_loss="giou", largest_box_gradient=0.2)),
    "darknet, smoothed and weighted": (
        "two",
        "scaled",
        3,
        LossSettings(
            ignore_threshold=0.3,
            box_loss="iou",
            label_smoothing=0.1,
            objectness_smoothing=0.4,
            class_weight=0.3,
            object_weights=(1.5, 0.4),
        ),
    ),
    "scaled": ("three", "original", 3, SCALED),
    "scaled, one class": ("one", "scaled", 1, LossSettings(scaled=True, ignore_threshold=0.3, update_on_repeat=False)),
    "scaled, searched and weighted": (
        "two",
        "scaled",
        3,
        LossSettings(
            scaled=True,
            ignore_threshold=0.3,
            box_loss="giou",
            label_smoothing=0.1,
            objectness_smoothing=0.5,
            box_weight=0.05,
            class_weight=0.3,
            object_weights=(2.8, 0.7),
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_model_garden(case: str) -> None:
    name, box_type, classes, settings = CASES[case]
    heads = dataclasses.replace(garden_yolo.HEADS[name], box_type=box_type)
    compare(heads, settings, classes)


@pytest.mark.parametrize("settings", [DARKNET, dataclasses.replace(SCALED, ignore_threshold=0.3)], ids=["darknet", "scaled"])
def test_eager_graph_and_compiled_agree_on_a_cpu(settings: LossSettings) -> None:
    """Also where nothing is real, which is where Model Garden's fails without compilation."""
    heads, rng = garden_yolo.HEADS["one"], np.random.default_rng(2)
    boxes, ids = crowded(rng, 3)
    inputs = ({4: tf.constant(garden_yolo.raw_heads(rng, heads, 4, SIZE, 3)[4])}, tf.constant(boxes), tf.constant(ids))

    def step(raw: dict[int, Any], boxes: Any, ids: Any) -> ANSWER:
        return ours(heads, settings, raw, boxes, ids, 3, match_threshold=0.3)

    eager, graph, compiled = step(*inputs), tf.function(step)(*inputs), tf.function(step, jit_compile=True)(*inputs)
    for other in (graph, compiled):
        np.testing.assert_allclose(eager[0], other[0], rtol=1e-5)
        np.testing.assert_allclose(eager[1][4], other[1][4], rtol=1e-4, atol=1e-6)
    empty, gradients = step(inputs[0], tf.zeros_like(boxes), tf.zeros_like(ids))
    assert float(empty.box) == float(empty.classes) == 0
    assert np.isfinite(gradients[4]).all()


LN2 = math.log(2)
# 32 px, 2 x 2 cells of 16 px with one anchor; the box is the first cell.
CELL = {"boxes": tf.constant([[[0.0, 0.0, 16.0, 16.0]]]), "classes": tf.constant([[2]])}


def of_zeros(settings: LossSettings, anchor: tuple[float, float], box_type: str, images: int = 1) -> ANSWER:
    """The loss of a head that gives zeros: every prediction is the anchor about its cell's middle, every probability 0.5."""
    heads = YoloHeads((4,), ((anchor,),), box_type)
    boxes = tf.pad(CELL["boxes"], [[0, images - 1], [0, 0], [0, 0]])
    found = targets.assign(heads, boxes, tf.pad(CELL["classes"], [[0, images - 1], [0, 0]]), image_size=32, match_threshold=0.2)
    raw = {4: tf.zeros([images, 2, 2, 7])}
    with tf.GradientTape() as tape:
        tape.watch(raw)
        losses = loss(heads, settings, raw, found, num_classes=2)
    return losses, tape.gradient(losses.total, raw)


def test_darknet_by_hand() -> None:
    """The first prediction is the box itself. Objectness of an image: 4 ln 2; classes: 2 ln 2, in the first of two images."""
    losses, gradients = of_zeros(LossSettings(), (16.0, 16.0), "original", images=2)
    np.testing.assert_allclose(losses, [5 * LN2, 0, 4 * LN2, LN2], atol=1e-6)
    # sigmoid - target, over two images: objectness 0.5 - 1 with the object and 0.5 elsewhere; the box is of the second class.
    np.testing.assert_allclose(gradients[4][0, 0, 0, 4:], [-0.25, 0.25, -0.25], atol=1e-6)
    np.testing.assert_allclose(gradients[4][1, 1, 1], [0, 0, 0, 0, 0.25, 0, 0], atol=1e-6)


def test_ignored_by_hand() -> None:
    """Anchor 32 wide and 16 high. The first prediction reaches from x -8 to 24: IoU 16 / 32 = 0.5, and it has the object.

    Beside it, from 8 to 40: 8 * 16 / (256 + 512 - 128) = 0.2. Below 0.2 as the threshold, that one learns nothing: 3 ln 2.
    """
    for threshold, learning in ((0.15, 3), (0.25, 4)):
        losses, gradients = of_zeros(LossSettings(ignore_threshold=threshold), (32.0, 16.0), "original")
        np.testing.assert_allclose(losses.objectness, learning * LN2, rtol=1e-6)
        assert float(gradients[4][0, 0, 1, 4]) == (0 if threshold < 0.2 else 0.5)


def test_scaled_by_hand() -> None:
    """Overlap 1. Objectness: mean ln 2. Classes: the sum 2 ln 2 over 80. One level for three, two images."""
    losses, _ = of_zeros(SCALED, (16.0, 16.0), "scaled", images=2)
    np.testing.assert_allclose(losses.box, 0, atol=1e-6)
    np.testing.assert_allclose([losses.objectness, losses.classes], [3 * LN2, 3 * LN2 / 40], rtol=1e-6)
    np.testing.assert_allclose(losses.total, 2 * 3 * LN2 * (1 + 1 / 40), rtol=1e-6)


def test_the_last_object_of_an_anchor_sets_its_objectness() -> None:
    """Of two boxes of one cell, 16 x 16 (IoU 1 with the prediction) and 8 x 16 (0.5): the target is the last's, or the larger.

    Gradients of the mean over 4 anchors, for 3 levels' share: 0.75 (0.5 - target).
    """
    heads = YoloHeads((4,), (((16.0, 16.0),),), "scaled")
    boxes = tf.constant([[[0.0, 0.0, 16.0, 16.0], [0.0, 4.0, 16.0, 12.0]]])
    found = targets.assign(heads, boxes, tf.constant([[1, 1]]), image_size=32, match_threshold=4.0)
    for last, target in ((True, 0.5), (False, 1.0)):
        settings = dataclasses.replace(SCALED, box_loss="iou", update_on_repeat=last)
        raw = {4: tf.zeros([1, 2, 2, 6])}
        with tf.GradientTape() as tape:
            tape.watch(raw)
            objectness = loss(heads, settings, raw, found, num_classes=1).objectness
        np.testing.assert_allclose(tape.gradient(objectness, raw)[4][0, 0, 0, 4], 0.75 * (0.5 - target), atol=1e-6)


def test_overlap_by_hand() -> None:
    """4 x 4 about (2, 2) and about (4, 4): shared 4, union 28, hull 36 with diagonal² 72, centres² 8 apart.

    4 x 4 and 2 x 4 (w x h) about one centre: IoU 0.5; v = 4 / pi² (atan(1 / 2) - pi / 4)², weight v / (0.5 + v). In images of 8,
    darknet's v is multiplied by 0.25² + 0.5² = 0.3125; with sides beyond the image's it stays.
    """
    square, moved, narrow = (
        iou.Boxes(*map(tf.constant, box)) for box in ((2.0, 2.0, 4.0, 4.0), (4.0, 4.0, 4.0, 4.0), (2.0, 2.0, 2.0, 4.0))
    )
    for kind, expected in (("iou", 1 / 7), ("giou", 1 / 7 - 8 / 36), ("ciou", 1 / 7 - 8 / 72)):
        np.testing.assert_allclose(iou.overlap(kind, square, moved), expected, rtol=1e-5)
    v = 4 / math.pi**2 * (math.atan(0.5) - math.pi / 4) ** 2
    np.testing.assert_allclose(iou.overlap("ciou", square, narrow), 0.5 - v * v / (0.5 + v), rtol=1e-5)
    for scale, factor in ((1 / 8, 0.3125), (1.0, 1.0)):
        shares = (iou.Boxes(*(side * scale for side in box)) for box in (square, narrow))
        np.testing.assert_allclose(iou.overlap("ciou", *shares, darknet=True), 0.5 - factor * v * v / (0.5 + v), rtol=1e-5)


def test_a_box_that_has_burst_the_image_costs_no_more_than_a_miss() -> None:
    """A prediction of 32 e^8 px in an image of 32: IoU 0, distance 0, v 0.25: 1.05. Model Garden's: 1 + 0.05 e^16, 444,000."""
    heads = YoloHeads((4,), (((32.0, 16.0),),))
    found = targets.assign(heads, CELL["boxes"], CELL["classes"], image_size=32, match_threshold=0.2)
    with tf.GradientTape() as tape:
        raw = tf.constant(np.array([0, 0, 8, 0, 0, 0, 0], np.float32)) + tf.zeros([1, 2, 2, 7])
        tape.watch(raw)
        losses = loss(heads, LossSettings(), {4: raw}, found, num_classes=2)
    np.testing.assert_allclose(losses.box, 1 + 0.25**2 / 1.25, rtol=0.01)
    gradient = tape.gradient(losses.total, raw)[0, 0, 0]
    assert 0 < float(gradient[2]) < 1  # the side that is too long shrinks
    assert np.abs(gradient).max() < 2


def test_refusals() -> None:
    with pytest.raises(InputError, match="box_loss='diou': must be one of ciou, giou, iou"):
        LossSettings(box_loss="diou")
    with pytest.raises(InputError, match=r"label_smoothing=1\.5: must be from 0 to 1"):
        LossSettings(label_smoothing=1.5)
    heads = YoloHeads((4,), (((16.0, 16.0),),))
    found = targets.assign(heads, CELL["boxes"], CELL["classes"], image_size=32, match_threshold=0.2)
    with pytest.raises(InputError, match=r"raw output of level 4 is \[1, 2, 2, 7\]: must be square and 8 deep"):
        loss(heads, LossSettings(), {4: tf.zeros([1, 2, 2, 7])}, found, num_classes=3)
    with pytest.raises(InputError, match="object_weights has 2 entries for 1 levels"):
        loss(heads, LossSettings(object_weights=(1.0, 2.0)), {4: tf.zeros([1, 2, 2, 7])}, found, num_classes=2)
