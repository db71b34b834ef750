"""Decoding beside Model Garden's own, for every layout, on random heads and on those of real layers."""

import dataclasses
import math

import numpy as np
import pytest
import tensorflow as tf
from ml_dtypes import bfloat16

from inference.decode import Decoder, DecodeSpec, decode_boxes
from inference.decode_xla import XlaDecoder
from survey import boxes
from survey.anchors import AnchorSpec
from survey.heads import FLAT, LEVELS, TPU, RetinaNetHeads, YoloHeads

SIZE = 128
ANCHORS = AnchorSpec(3, 5, num_scales=2, aspect_ratios=(0.5, 1.0, 2.0), anchor_size=3.0)
RETINANET = DecodeSpec(SIZE, ("bird", "tree"), RetinaNetHeads(ANCHORS, (1.0,) * 4, LEVELS, background=True), 0.05, 0.5)
TINY_ANCHORS = (((12.0, 16.0), (19.0, 36.0)), ((40.0, 28.0), (36.0, 75.0)))
YOLO = DecodeSpec(SIZE, ("bird", "tree"), YoloHeads((3, 4), TINY_ANCHORS, "original", (1.2, 1.05)), 0.05, 0.5)


def random_heads(spec: DecodeSpec, seed: int = 0, batch: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = spec.heads.shapes(spec.image_size, len(spec.classes))
    raw = {name: rng.normal(0, 0.5, (batch, *shape)).astype(np.float32) for name, shape in shapes.items()}
    for name, values in raw.items():
        if "cls" in name or "scores" in name:
            raw[name] = values * 4 - 4  # N(-4, 2): 3 in 10 above the floor
    return raw


def same(found: list, theirs: dict[str, np.ndarray], least: int = 20) -> None:
    """Equal to 1e-5 of the image, box by box; equal scores may change places."""
    total = 0
    for i, one in enumerate(found):
        count = int(theirs["num_detections"][i])
        there = boxes.area(theirs["detection_boxes"][i, :count]) > 0  # Model Garden keeps what lies beyond the patch, as lines
        scores = theirs["detection_scores"][i, :count][there]
        np.testing.assert_allclose(one.scores, scores, atol=1e-5)
        apart = np.abs(one.boxes_patch_px[:, None] - theirs["detection_boxes"][i, :count][there][None]).max(axis=2)
        apart[one.class_ids[:, None] != theirs["detection_classes"][i, :count][there][None]] = np.inf
        assert sorted(apart.argmin(axis=1)) == list(range(len(one.scores))), i
        assert apart.min(axis=1).max() <= SIZE * 1e-5
        total += count
    assert total >= least


def garden_retinanet(raw: dict[str, np.ndarray], spec: DecodeSpec, most: int = 1500, **options: object) -> dict[str, np.ndarray]:
    from official.vision.modeling.layers.detection_generator import MultilevelDetectionGenerator

    anchors, start, given = spec.heads.anchors.boxes(SIZE), 0, ({}, {}, {})
    for level, count in spec.heads.anchors.counts(SIZE).items():
        side = SIZE >> level
        given[0][str(level)] = tf.constant(raw[f"box_outputs_{level}"])
        given[1][str(level)] = tf.constant(raw[f"cls_outputs_{level}"])
        batch = len(raw[f"box_outputs_{level}"])
        given[2][str(level)] = tf.constant(np.repeat(anchors[None, start : start + count].reshape(1, side, side, -1), batch, 0))
        start += count
    generator = MultilevelDetectionGenerator(
        pre_nms_score_threshold=spec.score_floor, nms_iou_threshold=spec.nms_iou, max_num_detections=most, **options
    )
    out = generator(*given, tf.constant([[float(SIZE)] * 2] * batch))
    names = ("num_detections", "detection_boxes", "detection_scores", "detection_classes")
    return {name: out[name].numpy() for name in names}


@pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_retinanet_levels_equal_v2(scales):
    spec = dataclasses.replace(RETINANET, heads=dataclasses.replace(RETINANET.heads, box_scales=scales))
    raw = random_heads(spec)
    same(Decoder(spec)(raw), garden_retinanet(raw, spec, nms_version="v2", box_coder_weights=list(scales)), least=200)


def test_agnostic_equals_v2_agnostic():
    spec = dataclasses.replace(RETINANET, suppression="agnostic")
    raw = random_heads(spec)
    same(Decoder(spec)(raw), garden_retinanet(raw, spec, nms_version="v2", use_class_agnostic_nms=True), least=100)


def test_bfloat16_heads_equal_the_widened_ones():
    """What a TPU gives: bfloat16 arrays are widened, then all is float32, in numpy, in XLA and in Model Garden."""
    narrow = {name: values.astype(bfloat16) for name, values in random_heads(RETINANET).items()}
    wide = {name: values.astype(np.float32) for name, values in narrow.items()}
    found = Decoder(RETINANET)(narrow)
    same(found, garden_retinanet(wide, RETINANET, nms_version="v2"), least=200)
    out = XlaDecoder(RETINANET, top_k=4000, max_detections=1500)({name: tf.constant(values) for name, values in narrow.items()})
    same(found, as_garden(out), least=200)


def as_garden(out: dict[str, tf.Tensor]) -> dict[str, np.ndarray]:
    """Our padded answer under Model Garden's names."""
    names = {"boxes_patch_px": "boxes", "scores": "scores", "class_ids": "classes"}
    return {f"detection_{theirs}": out[ours].numpy() for ours, theirs in names.items()} | {
        "num_detections": out["counts"].numpy()
    }


def test_the_three_layouts_hold_the_same():
    """Levels with a background column, joined by hand into the flat export without one, and as the old TPU RetinaNet."""
    raw = random_heads(RETINANET)
    levels = RETINANET.heads.levels
    flat = {
        "raw_boxes": np.concatenate([raw[f"box_outputs_{level}"].reshape(2, -1, 4) for level in levels], axis=1),
        "raw_scores": np.concatenate([raw[f"cls_outputs_{level}"].reshape(2, -1, 3) for level in levels], axis=1),
    }
    expected = Decoder(RETINANET)(raw)
    with_background = dataclasses.replace(RETINANET.heads, layout=FLAT)
    without = dataclasses.replace(RETINANET.heads, layout=FLAT, background=False)
    cut = flat | {"raw_scores": flat["raw_scores"][..., 1:]}
    tpu_raw = {name: values for name, values in raw.items() if name.startswith("box")}
    for level in levels:  # no background column: A * 2 channels, anchor by anchor
        by_anchor = raw[f"cls_outputs_{level}"].reshape(2, SIZE >> level, SIZE >> level, 6, 3)[..., 1:]
        tpu_raw[f"cls_outputs_{level}"] = by_anchor.reshape(2, SIZE >> level, SIZE >> level, 12)
    old = dataclasses.replace(RETINANET.heads, layout=TPU, background=False)
    for heads, arrays in ((with_background, flat), (without, cut), (old, tpu_raw)):
        found = Decoder(dataclasses.replace(RETINANET, heads=heads))(arrays)
        for one, other in zip(found, expected, strict=True):
            for a, b in zip(one, other, strict=True):
                np.testing.assert_array_equal(a, b)


def test_old_tpu_retinanet_by_hand():
    # Anchors 4 strides of 8 px = 32 px, (1.4, 0.7): 44.8 wide, 22.4 high, about (4, 4) in the first cell: y -7.2 to 15.2, x -18.4
    # to 26.4. tw = 5 is not limited (log 62.5 = 4.1): 44.8 * e^5 = 6,649 px, all of the width. th = log 0.5: 11.2 px high,
    # ty = 1: centre 4 + 22.4 = 26.4, so y 20.8 to 32.0.
    anchors = AnchorSpec(3, 3, num_scales=1, aspect_ratios=((1.0, 1.0), (1.4, 0.7), (0.7, 1.4)), anchor_size=4.0)
    np.testing.assert_allclose(anchors.boxes(64)[1], [-7.2, -18.4, 15.2, 26.4], rtol=1e-6)
    spec = DecodeSpec(64, ("car",), RetinaNetHeads(anchors, (1.0,) * 4, TPU), 0.5, 0.5)
    raw = {"box_outputs_3": np.zeros((1, 8, 8, 12), np.float32), "cls_outputs_3": np.full((1, 8, 8, 3), -9, np.float32)}
    raw["cls_outputs_3"][0, 0, 0, 1] = math.log(4)  # sigmoid: 4 / 5
    raw["box_outputs_3"][0, 0, 0, 4:8] = (1, 0, math.log(0.5), 5)
    (found,) = Decoder(spec)(raw)
    np.testing.assert_allclose(found.boxes_patch_px, [[20.8, 0, 32, 64]], rtol=1e-6)
    np.testing.assert_allclose(found.scores, [0.8], rtol=1e-6)


def test_yolo_by_hand():
    # Level 3, stride 8, cell row 2, column 5, second anchor, 19 wide and 36 high, scale_xy 1.2: with tx = ty = 0 the sigmoid is
    # 1/2: 1.2 / 2 - 0.1 = 0.5, so the centre is (2.5, 5.5) * 8 = (20, 44). tx = log 3: 3/4: 0.9 - 0.1 = 0.8: x = 46.4.
    # "original": tw = log 2: 38 px wide, th = 0: 36 px high. y 2 to 38, x 27.4 to 65.4.
    # "scaled": tw = log 3: (2 * 3/4)^2 = 2.25 * 19 = 42.75; th = 0: (2 * 1/2)^2 = 1: 36. x 25.025 to 67.775.
    # Score: objectness 4/5 times class 3/4 = 0.6.
    for box_type, tw, x in (("original", math.log(2), (27.4, 65.4)), ("scaled", math.log(3), (25.025, 67.775))):
        spec = dataclasses.replace(YOLO, heads=dataclasses.replace(YOLO.heads, box_type=box_type))
        raw = {name: np.full((1, *shape), -9, np.float32) for name, shape in spec.heads.shapes(SIZE, 2).items()}
        raw["raw_output_3"][0, 2, 5, 7:] = (math.log(3), 0, tw, 0, math.log(4), -9, math.log(3))
        (found,) = Decoder(spec)(raw)
        np.testing.assert_allclose(found.boxes_patch_px, [[2, x[0], 38, x[1]]], rtol=1e-5)
        np.testing.assert_allclose(found.scores, [0.6], rtol=1e-5)
        assert found.class_ids.tolist() == [2]


@pytest.mark.parametrize("box_type", ["original", "scaled"])
def test_yolo_equals_model_garden(box_type):
    """All boxes of its YoloLayer before suppression; they are shares of the image there, and not clipped."""
    from official.projects.yolo.modeling.layers.detection_generator import YoloLayer

    spec = dataclasses.replace(YOLO, heads=dataclasses.replace(YOLO.heads, box_type=box_type), nms_iou=1.0)
    raw = random_heads(spec)
    layer = YoloLayer(
        anchors={"3": [list(a) for a in TINY_ANCHORS[0]], "4": [list(a) for a in TINY_ANCHORS[1]]},
        classes=2, apply_nms=False, box_type={"3": box_type, "4": box_type}, scale_xy={"3": 1.2, "4": 1.05},
    )  # fmt: skip
    out = layer({level: tf.constant(raw[f"raw_output_{level}"]) for level in ("3", "4")})
    for i, one in enumerate(Decoder(spec)(raw)):
        scores = out["classes"][i].numpy()  # [N, 2]
        rows, columns = np.nonzero(scores >= 0.05)
        order = np.argsort(-scores[rows, columns], kind="stable")
        theirs = np.clip(out["bbox"][i, :, 0].numpy()[rows[order]] * SIZE, 0, SIZE)
        solid = boxes.area(theirs) > 0
        padded = {"num_detections": [int(solid.sum())], "detection_boxes": theirs[solid][None]}
        padded["detection_scores"] = scores[rows, columns][order][solid][None]
        padded["detection_classes"] = columns[order][solid][None] + 1
        same([one], padded, least=500)


def test_real_heads_of_a_model_garden_retinanet():
    """A RetinaNet of Model Garden's own builder: its decoded answer beside ours from its raw heads, in both precisions."""
    import tf_keras
    from official.vision.configs import backbones, decoders
    from official.vision.configs import retinanet as garden
    from official.vision.modeling import factory

    config = garden.RetinaNet(
        num_classes=3, input_size=[SIZE, SIZE, 3], min_level=3, max_level=5,
        anchor=garden.Anchor(num_scales=2, aspect_ratios=[0.5, 1.0, 2.0], anchor_size=3.0),
        backbone=backbones.Backbone(type="resnet", resnet=backbones.ResNet(model_id=10, depth_multiplier=0.25)),
        decoder=decoders.Decoder(type="fpn", fpn=decoders.FPN(num_filters=16)),
        head=garden.RetinaNetHead(num_convs=1, num_filters=16),
        detection_generator=garden.DetectionGenerator(
            nms_version="v2", pre_nms_score_threshold=0.05, nms_iou_threshold=0.5, max_num_detections=600
        ),
    )  # fmt: skip
    before, weights = tf_keras.mixed_precision.global_policy(), None
    frame = np.array([[SIZE, SIZE]] * 2, np.float32)
    for policy in ("float32", "mixed_bfloat16"):
        tf_keras.utils.set_random_seed(3)
        tf_keras.mixed_precision.set_global_policy(policy)
        try:
            model = factory.build_retinanet(tf_keras.layers.InputSpec(shape=[None, SIZE, SIZE, 3]), config)
            images = np.random.default_rng(0).normal(0, 2, (2, SIZE, SIZE, 3)).astype(np.float32)
            quiet = model(images, image_shape=frame, training=False)
            if weights is None:
                wake(model.head, quiet)
                weights = model.get_weights()
            model.set_weights(weights)
            out = model(images, image_shape=frame, training=False)
        finally:
            tf_keras.mixed_precision.set_global_policy(before)
        raw = {f"{kind}_{level}": value.numpy() for kind in ("box_outputs", "cls_outputs") for level, value in out[kind].items()}
        if policy == "float32":
            theirs = {name: np.asarray(out[name]) for name in as_garden_names()}
        else:  # the model itself takes the sigmoid in bfloat16, to 3 digits: the measure is the same heads decoded in float32
            theirs = garden_retinanet(
                {name: value.astype(np.float32) for name, value in raw.items()}, RETINANET, nms_version="v2"
            )
        same(Decoder(RETINANET)(raw), theirs, least=50)


def wake(head: object, quiet: dict) -> None:
    """Untrained, a head says "nothing" of every anchor alike; a trained one differs from place to place."""
    for name, outputs, bias, spread in (("scores", "cls_outputs", -4.0, 1.5), ("boxes", "box_outputs", 0.0, 0.3)):
        by_kind = {kind: next(w for w in head.trainable_weights if f"{name}/{kind}" in w.name) for kind in ("kernel", "bias")}
        by_kind["kernel"].assign(by_kind["kernel"] * spread / np.std(quiet[outputs]["3"]))
        by_kind["bias"].assign(np.random.default_rng(1).normal(bias, 0.3, by_kind["bias"].shape))


def as_garden_names() -> tuple[str, ...]:
    return ("num_detections", "detection_boxes", "detection_scores", "detection_classes")


def test_clipping_before_suppression_is_model_gardens_order():
    # Two boxes that differ beyond the patch only, are one box in it: the worse goes.
    anchors = np.array([[-20, 0, 12, 32]], np.float32)
    raw = np.array([[0, 0, 0, 0], [0, 0, math.log(1.5), 0]], np.float32)
    found = decode_boxes(raw, anchors, (1.0,) * 4)
    np.testing.assert_allclose(found, [[-20, 0, 12, 32], [-28, 0, 20, 32]])
    assert boxes.iou(*np.split(found, 2))[0, 0] > 0.5


@pytest.mark.parametrize("method", ["class", "agnostic", "soft_linear", "soft_gaussian"])
@pytest.mark.parametrize("kind", ["retinanet", "yolo"])
def test_xla_equals_numpy(kind, method):
    spec = dataclasses.replace({"retinanet": RETINANET, "yolo": YOLO}[kind], suppression=method)
    raw = random_heads(spec)
    decoder = XlaDecoder(spec, top_k=6000, max_detections=3000)
    step = tf.function(decoder, jit_compile=True)
    out = as_garden(step({name: tf.constant(values) for name, values in raw.items()}))
    found = Decoder(spec)(raw)
    assert all(len(one.scores) < out["detection_scores"].shape[1] for one in found)
    same(found, out, least=100)


def test_xla_keeps_the_best_when_there_is_no_room():
    raw = random_heads(RETINANET)
    out = XlaDecoder(RETINANET, top_k=6000, max_detections=7)({name: tf.constant(values) for name, values in raw.items()})
    assert out["counts"].numpy().tolist() == [7, 7]
    same(Decoder(RETINANET, most=7)(raw), as_garden(out), least=14)
    for one, first in zip(Decoder(RETINANET, most=7)(raw), Decoder(RETINANET)(raw), strict=True):
        np.testing.assert_array_equal(one.boxes_patch_px, first.boxes_patch_px[:7])
