"""Every YOLO that --backbone, --head and --yolo can name builds, sees the levels it should, and trains to the last variable."""

import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from official.projects.yolo.configs import yolo as garden
from official.projects.yolo.modeling.backbones import darknet as garden_darknet
from official.vision.modeling.backbones import factory

from survey.errors import InputError
from survey.heads import YoloHeads
from tpu_train.models import darknet, lite0_weights, networks
from tpu_train.models import yolo_networks as yolo

ANCHORS = [(8.5, 6.25), (12.0, 16.0), (19.0, 36.0), (40.0, 28.0), (36.0, 75.0), (76.0, 55.0)]
COMBINATIONS = [
    (backbone, head, version) for backbone, known in yolo.BACKBONES.items() for head in yolo.HEADS for version in known.networks
]
# Darknet-53 and its CSP variant have features of the same widths, so their decoders are the same: each is built under one.
BUILT = [each for each in COMBINATIONS if (each[0], each[2]) not in {("original", "v4"), ("original", "scaled"), ("csp", "v3")}]


def configured(backbone: str, head: str, version: str, *, classes: int = 3, each: int = 1) -> darknet.Model:
    model = darknet.Model()
    anchors = ANCHORS[: each * yolo.HEADS[head]]
    model.override(yolo.overrides(backbone, head, version, anchors_px=anchors, num_classes=classes)["model"], is_strict=True)
    return model


def built(backbone: str, head: str, version: str, **choices: int) -> darknet.Yolo:
    return darknet.build(configured(backbone, head, version, **choices))


MADE: dict[str, Any] = {}


@pytest.fixture
def one_backbone_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """`build` with a backbone made once for each network and version: it is the same under every head, and much to make."""
    build_backbone = factory.build_backbone

    def remembered(spec: Any, config: Any, norm: Any, l2: Any) -> Any:
        parameters = config.get().as_dict()
        text = f"{config.type} {parameters.get('model_id')} {parameters['max_level']} {norm.as_dict()}"
        if text not in MADE:
            MADE[text] = build_backbone(spec, config, norm, l2)
        return MADE[text]

    monkeypatch.setattr(factory, "build_backbone", remembered)


def expected_levels(backbone: str, head: str) -> list[int]:
    coarsest = {"dense": 4, "original": 5, "csp": 5, "tiny": 5, "efficientnet_lite0": 5}[backbone]
    return [coarsest - 2, coarsest - 1, coarsest][3 - yolo.HEADS[head] :]


@pytest.mark.usefixtures("one_backbone_each")
@pytest.mark.parametrize(("backbone", "head", "version"), BUILT)
def test_every_combination_builds(backbone: str, head: str, version: str) -> None:
    """With all variables before the first step; the backbone's number of them tells it apart in a checkpoint."""
    yolo.check(backbone, head, version, image_sizes={"--image_size=64": 64})
    model = built(backbone, head, version, each=2)
    assert len(model.backbone.weights) == yolo.BACKBONES[backbone].variables[version]
    assert [int(level) for level in sorted(model.decoder.output_specs)] == expected_levels(backbone, head)
    # A kernel and a bias each; 2 anchors of 5 + 3 columns: x, y, w, h, objectness and three classes.
    assert [weight.shape[-1] for weight in model.head.weights] == [16] * 2 * yolo.HEADS[head]
    assert len(model.weights) == len(model.backbone.weights) + len(model.decoder.weights) + len(model.head.weights)


@pytest.mark.usefixtures("one_backbone_each")
@pytest.mark.parametrize(
    ("backbone", "head", "version"),
    [
        ("original", "yolo3_dense_1", "v3"),
        ("dense", "yolo3", "v3"),
        ("csp", "yolo3_dense_2", "v4"),
        ("tiny", "yolo3", "v3"),
        ("tiny", "yolo3_dense_2", "v4"),
        ("efficientnet_lite0", "yolo3_dense_2", "scaled"),
    ],
)
def test_raw_heads_and_gradients(backbone: str, head: str, version: str) -> None:
    """Cells and columns on an oblong image, and a gradient for every weight."""
    model = built(backbone, head, version, each=2)
    with tf.GradientTape() as tape:
        raw = model(tf.ones([1, 32, 64, 3]), training=True)["raw_output"]
        loss = tf.add_n([tf.reduce_sum(each) for each in raw.values()])
    assert {level: each.shape for level, each in raw.items()} == {
        str(level): (1, 32 // 2**level, 64 // 2**level, 16) for level in expected_levels(backbone, head)
    }
    assert all(gradient is not None for gradient in tape.gradient(loss, model.trainable_weights))


def test_levels_and_strides() -> None:
    """Heads end at the backbone's coarsest level: 5, stride 32; the dense one's is 4, stride 16."""
    assert [list(yolo.levels("original", head)) for head in yolo.HEADS] == [[3, 4, 5], [4, 5], [5]]
    assert [list(yolo.levels("dense", head)) for head in yolo.HEADS] == [[2, 3, 4], [3, 4], [4]]
    assert {name: {yolo.stride(name, head) for head in yolo.HEADS} for name in yolo.BACKBONES} == {
        "original": {32},
        "dense": {16},
        "csp": {32},
        "tiny": {32},
        "efficientnet_lite0": {32},
    }


def darknet_parameters(stages: list[tuple[int, int]]) -> int:
    """Kernels and the four vectors of batch normalisation of a residual darknet, from its filters and blocks.

    The first convolution is 3x3, 3 -> 32; a stage enters by 3x3 of stride 2, and a block is 1x1 to half and 3x3 back.
    """
    total, before = 9 * 3 * 32 + 4 * 32, 32
    for filters, blocks in stages:
        half = filters // 2
        block = filters * half + 4 * half + 9 * half * filters + 4 * filters
        total, before = total + 9 * before * filters + 4 * filters + blocks * block, filters
    return total


@pytest.mark.usefixtures("one_backbone_each")
def test_the_dense_network_has_at_most_half_the_parameters() -> None:
    """The seal study's claim, with each network's own head."""
    # Redmon and Farhadi 2018, table 1.
    stages = [(64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)]
    for classes in (1, 3):
        original = built("original", "yolo3", "v3", classes=classes, each=2)
        dense = built("dense", "yolo3_dense_2", "v3", classes=classes, each=2)
        assert original.backbone.count_params() == darknet_parameters(stages) == 40_620_640
        assert dense.backbone.count_params() == darknet_parameters(stages[:4]) == 14_901_856
        # 1x1 convolutions with a bias, from 256 + 512 (+ 1024) features to 2 * (5 + C).
        assert dense.head.count_params() == (256 + 512 + 2) * 2 * (5 + classes)
        assert original.head.count_params() == (256 + 512 + 1024 + 3) * 2 * (5 + classes)
        assert dense.count_params() * 2 <= original.count_params()


@pytest.mark.usefixtures("one_backbone_each")
def test_a_decoder_over_one_level_aggregates_nothing() -> None:
    """Six convolutions, 512 -> 256 by 1x1 and back by 3x3, three times: as wide with the CSP version as with the others."""
    once = 512 * 256 + 4 * 256 + 9 * 256 * 512 + 4 * 512
    for version in yolo.VERSIONS:
        assert built("dense", "yolo3_dense_1", version).decoder.count_params() == 3 * once


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"backbone": "resnet50"},
            "--backbone=resnet50: --model yolo has original, dense, csp, tiny, efficientnet_lite0; use one",
        ),
        ({"head": "yolo4"}, "--head=yolo4: --model yolo has yolo3, yolo3_dense_2, yolo3_dense_1; use one of them"),
        ({"version": "v7"}, "--yolo=v7: --model yolo has v3, v4, scaled; use one of them"),
        (
            {"backbone": "tiny", "version": "scaled"},
            "--yolo=scaled: Model Garden has no small decoder of that kind for --backbone tiny; use --yolo v3 or v4, or "
            "--backbone csp",
        ),
        (
            {"image_sizes": {"--image_size=416": 416, "patches of 400 px": 400}},
            "patches of 400 px: must be a multiple of the coarsest stride of --backbone original, 32 px; use 384 or 416",
        ),
        (
            {"backbone": "dense", "image_sizes": {"--image_size=8": 8}},
            "--image_size=8: must be a multiple of the coarsest stride of --backbone dense, 16 px; use 16",
        ),
        (
            {"backbone": "dense", "freeze_level": 5},
            "task.freeze_level=5: --backbone dense can keep its weights up to one of the levels 1 to 4; use one of them, or 0",
        ),
        (
            {"backbone": "tiny", "freeze_level": 1},
            "task.freeze_level=1: --backbone tiny can keep its weights up to one of the levels 2 to 5; use one of them, or 0",
        ),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    whole = {"backbone": "original", "head": "yolo3", "version": "v3", **given}
    with pytest.raises(InputError) as caught:
        yolo.check(**whole)
    assert str(caught.value).startswith(message)


def test_sizes_of_the_seal_study_fit_every_network() -> None:
    """416 = 13 * 32, 512 = 16 * 32, 608 = 19 * 32, 800 = 25 * 32."""
    sizes = {f"--image_size={size}": size for size in (416, 512, 608, 800)}
    for combination in COMBINATIONS:
        yolo.check(*combination, image_sizes=sizes, freeze_level=2)


def test_weights_that_no_package_carries_are_refused() -> None:
    yolo.check_init("efficientnet_lite0", "imagenet")
    yolo.check_init("csp", "gs://bucket/ckpt-15000")
    with pytest.raises(InputError, match=r"not for dense. Model Garden publishes none for it: .* or --init scratch"):
        yolo.check_init("dense", "imagenet")
    with pytest.raises(InputError, match=r"not for csp. Model Garden publishes gs://tf_model_garden/vision/yolo/ckpt-15000"):
        yolo.check_init("csp", "imagenet")


def test_anchors_are_dealt_out_smallest_to_the_finest_level() -> None:
    dealt = yolo.by_level("dense", "yolo3_dense_2", ANCHORS)
    assert dealt == {3: tuple(ANCHORS[:3]), 4: tuple(ANCHORS[3:])}
    with pytest.raises(InputError, match=r"5 anchors: --head yolo3 has 3 scales .* use 3, such as `rookery anchors --k 3` gives"):
        yolo.by_level("dense", "yolo3", ANCHORS[:5])
    with pytest.raises(InputError, match=r"0 anchors: .* use 2, "):
        yolo.by_level("dense", "yolo3_dense_2", [])
    with pytest.raises(InputError, match="the first 3 are for the finest of the levels 3 to 4 and must be the smallest"):
        yolo.by_level("dense", "yolo3_dense_2", ANCHORS[::-1])


def test_geometry_of_the_heads() -> None:
    """A v4 of fewer levels has the coarser ones' scale_xy; the tiny v4 recipe has 1.05 everywhere."""
    assert yolo.heads("csp", "yolo3_dense_2", "v4", ANCHORS) == YoloHeads(
        (4, 5), (tuple(ANCHORS[:3]), tuple(ANCHORS[3:])), "original", (1.1, 1.05)
    )
    assert yolo.heads("tiny", "yolo3_dense_2", "v4", ANCHORS).scale_xy == (1.05, 1.05)
    assert yolo.heads("dense", "yolo3", "v4", ANCHORS).scale_xy == (1.2, 1.1, 1.05)
    assert yolo.heads("original", "yolo3_dense_1", "v3", ANCHORS).scale_xy == (1.0,)
    scaled = yolo.heads("dense", "yolo3", "scaled", ANCHORS)
    assert (scaled.levels, scaled.box_type, scaled.scale_xy) == ((2, 3, 4), "scaled", (2.0, 2.0, 2.0))


def test_model_garden_reads_what_is_meant() -> None:
    """The configuration as Model Garden's own factories take it apart, fractions of pixels included."""
    model = configured("csp", "yolo3_dense_2", "scaled", classes=1, each=3)
    span = model.backbone.get()
    assert (span.model_id, span.min_level, span.max_level) == ("cspdarknet53", 4, 5)
    anchors, _ = model.anchor_boxes.get(4, 5)
    assert anchors == {"4": [[8.5, 6.25], [12.0, 16.0], [19.0, 36.0]], "5": [[40.0, 28.0], [36.0, 75.0], [76.0, 55.0]]}
    generator = model.detection_generator
    assert {generator.box_type.get()[level] for level in "45"} == {"scaled"}
    assert [generator.scale_xy.get()[level] for level in "45"] == [2.0, 2.0]
    assert [generator.path_scales.get()[level] for level in "45"] == [16, 32]
    assert generator.nms_version == "v2"
    assert [model.loss.object_normalizer.get()[level] for level in "45"] == [0.7, 0.28]
    assert (model.loss.use_scaled_loss, model.darknet_based_model, model.num_classes) == (True, False, 1)
    v4 = configured("csp", "yolo3", "v4")
    assert (v4.norm_activation.activation, v4.decoder.get().activation) == ("mish", "leaky")
    assert (v4.loss.ignore_thresh.get()["3"], v4.loss.iou_normalizer.get()["4"], v4.loss.max_delta.get()["5"]) == (0.7, 0.07, 5.0)
    assert (v4.loss.use_scaled_loss, v4.darknet_based_model) == (False, True)
    v3 = configured("dense", "yolo3", "v3")
    assert (v3.norm_activation.activation, v3.decoder.get().version) == ("leaky", "v3")
    assert v3.loss.max_delta.get()["2"] == math.inf == garden.YoloLoss().max_delta.get()["2"]


def test_a_model_of_model_garden_has_the_same_heads() -> None:
    """Its own factory builds the same network from the same configuration: variables, and numbers once the weights are."""
    config = configured("tiny", "yolo3_dense_2", "v4", each=3)
    config.input_size = [64, 64, 3]
    ours = darknet.build(config)
    theirs, _ = darknet.factory.build_yolo(tf_keras.layers.InputSpec(shape=[None, 64, 64, 3]), config, None)
    image = tf.random.stateless_uniform([1, 64, 64, 3], seed=[1, 2])
    theirs(image, training=True)
    assert [weight.shape for weight in theirs.weights] == [weight.shape for weight in ours.weights]
    theirs.set_weights(ours.get_weights())
    expected = theirs(image, training=False)
    raw = ours(image, training=False)["raw_output"]
    got = ours.detection_generator(raw)
    for level in ("4", "5"):
        np.testing.assert_allclose(raw[level], expected["raw_output"][level], rtol=1e-5, atol=1e-6)
    assert got["bbox"].shape == (1, 200, 4)
    np.testing.assert_allclose(got["confidence"], expected["confidence"], rtol=1e-5, atol=1e-6)


def test_frozen_darknet_keeps_its_first_stages() -> None:
    """Up to level 2: 3x3 3 -> 32; then 32 -> 64 and one block; 64 -> 128 and two blocks. Its statistics stay, too."""
    model = built("dense", "yolo3_dense_2", "v3")
    networks.train_only(model.backbone, above=2, up_to=4)
    kept = [layer for layer in model.backbone.layers if layer.weights and not layer.trainable]
    assert [layer.name for layer in kept] == ["ConvBN_0_0", "DarkRes_1_residual_down", "DarkRes_2_residual_down", "DarkRes_2_0"]
    # 1 + 3 + 3 + 2 convolutions of the 43, three of whose five variables are trained.
    assert len(model.backbone.trainable_weights) == (43 - 9) * 3
    before = [layer.get_weights() for layer in model.backbone.layers]
    model(tf.random.stateless_uniform([2, 32, 32, 3], seed=[1, 2]), training=True)
    moved = {
        layer.name
        for layer, old in zip(model.backbone.layers, before, strict=True)
        if any(not np.array_equal(one, other) for one, other in zip(layer.get_weights(), old, strict=True))
    }
    assert moved == {layer.name for layer in model.backbone.layers if layer.weights} - {layer.name for layer in kept}


def test_imagenet_weights_fill_lite0_under_a_yolo() -> None:
    model = built("efficientnet_lite0", "yolo3_dense_2", "v3")
    assert lite0_weights.load_lite0(model.backbone, lite0_weights.lite0_weights_path()) == 240
    overrides = yolo.overrides("efficientnet_lite0", "yolo3_dense_2", "v3", anchors_px=ANCHORS, num_classes=1)
    assert (overrides["pixel_offset"], overrides["pixel_scale"]) == ([127.0] * 3, [128.0] * 3)
    overrides = yolo.overrides("dense", "yolo3_dense_2", "v3", anchors_px=ANCHORS, num_classes=1)
    assert (overrides["pixel_offset"], overrides["pixel_scale"]) == ([0.0] * 3, [255.0] * 3)


def test_the_dense_stages_are_those_of_darknet_53() -> None:
    """Of a row, 2 is the number of blocks, 4 the filters, 12 the level."""
    rows = [(row[0], row[2], row[4], row[12]) for row in garden_darknet.BACKBONES[yolo.DENSE]["backbone"]]
    assert rows == [
        ("ConvBN", 1, 32, 0),
        ("DarkRes", 1, 64, 1),
        ("DarkRes", 2, 128, 2),
        ("DarkRes", 8, 256, 3),
        ("DarkRes", 8, 512, 4),
    ]


def test_defaults_and_counts_name_what_there_is() -> None:
    assert all(known.default_version in known.networks for known in yolo.BACKBONES.values())
    assert yolo.BACKBONES["csp"].default_version == "v4"
    assert yolo.named(215) == "dense"
    assert yolo.named(7) is None
