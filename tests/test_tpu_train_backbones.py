"""Every backbone trains: its whole step compiles for XLA; sizes, strides, frozen parts and refusals are as its table says.

Run as a script, this file trains the backbones that its arguments name and prints one line of JSON for each.
"""

import json
import math
import os
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from official.core import config_definitions, task_factory
from official.vision.ops import preprocess_ops

from survey.errors import InputError
from tpu_train import registry
from tpu_train.models import backbones, networks

NAMES = sorted(backbones.BACKBONES)
SIZE = 128  # the least that SpineNet can take; two images of it are little work beside the compiling


def configured(name: str, *, levels: tuple[int, int] = (3, 4), freeze_level: int = 0) -> config_definitions.ExperimentConfig:
    """The experiment with a backbone, two classes, and everything else as small as it gets."""
    config = registry.experiment("retinanet")
    config.override({"task": backbones.overrides(name, min_level=levels[0], max_level=levels[1], fpn_filters=16)})
    small = {
        "num_classes": 3,
        "input_size": [SIZE, SIZE, 3],
        "anchor": {"num_scales": 1, "aspect_ratios": [1.0]},
        "head": {"num_convs": 1, "num_filters": 16},
    }
    config.override(
        {
            "task": {"init": "scratch", "train_size": SIZE, "max_boxes": 3, "freeze_level": freeze_level, "model": small},
            "trainer": {"optimizer_config": {"learning_rate": {"cosine": {"decay_steps": 1000}}}},
        }
    )
    return config


def built(name: str, *, levels: tuple[int, int] = (3, 4)) -> tf_keras.Model:
    model = task_factory.get_task(configured(name, levels=levels).task).build_model()
    networks.complete(model)
    return model


def two_steps(name: str) -> dict[str, object]:
    """Two compiled steps of the experiment on one batch, as `loop` runs them: losses, and what the second step changed."""
    config = configured(name)
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        task = task_factory.get_task(config.task)
        model = task.build_model()
        networks.complete(model)
        networks.train_only(model.backbone, above=0, up_to=4)
        optimizer = task.create_optimizer(config.trainer.optimizer_config)
        optimizer.shadow_copy(model)
        images = np.random.default_rng(0).integers(0, 255, (2, SIZE, SIZE, 3), np.uint8)
        # The last is as large as the anchors of level 4: every level has something to find.
        boxes = [[[8.0, 8.0, 40.0, 40.0], [60.0, 80.0, 90.0, 120.0], [30.0, 10.0, 94.0, 74.0]]] * 2
        batch = {
            "image": tf.constant(images),
            "boxes": tf.constant(boxes),
            "classes": tf.constant([[1, 2, 1]] * 2),
            "objects": tf.constant([3, 3]),
            "patch_id": tf.constant([0, 1], tf.int64),
            "view": tf.constant([[1.1, 4.0, 7.0], [0.9, -7.0, -2.0]]),
        }
        step = tf.function(lambda inputs: task.train_step(inputs, model, optimizer), jit_compile=True)
        losses = [float(strategy.run(step, args=(batch,))["loss"])]
        before = [weight.numpy() for weight in model.trainable_weights]
        losses.append(float(strategy.run(step, args=(batch,))["loss"]))
        changed = [not np.array_equal(weight, old) for weight, old in zip(model.trainable_weights, before, strict=True)]
        averages = [optimizer.get_slot(weight, "average").numpy() for weight in model.trainable_weights]
    return {
        "losses": losses,
        "changed": sum(changed),
        "trainable": len(changed),
        "finite": all(bool(np.isfinite(value).all()) for value in (*averages, *(weight.numpy() for weight in model.weights))),
    }


@pytest.fixture(scope="module")
def trained() -> dict[str, dict[str, object]]:
    """Results of `two_steps`, by backbone, from processes of their own: there LLVM need not optimise what runs twice.

    With its usual effort compiling takes four times as long, and its flags are read once in a process. A compiler takes one core.
    """
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0", "TF_USE_LEGACY_KERAS": "1"}
    halves = (NAMES[2:5], NAMES[:2] + NAMES[5:])  # ResNet-18, -34 and -101 are about as much work as the others

    def results(names: list[str]) -> dict[str, dict[str, object]]:
        command = [sys.executable, __file__, *names]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        return {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}

    with ThreadPoolExecutor(len(halves)) as pool:
        first, second = pool.map(results, halves)
    return first | second


@pytest.mark.parametrize("name", NAMES)
def test_the_training_step_compiles(trained: dict[str, dict[str, object]], name: str) -> None:
    """Augmentation, targets, loss, gradients, AdamW and averages, as one XLA program with static shapes."""
    result = trained[name]
    first, second = result["losses"]
    assert math.isfinite(first)
    assert second != first
    assert result["finite"]
    assert result["changed"] == result["trainable"] > 0  # every trainable variable gets a gradient


# Published sizes with their classifier, less the classifier of 1,000 classes.
PARAMETERS = {
    # 4,652,008 of the paper's Lite0, less 1,281,000, less the last convolution 320 -> 1280 and its norm, 412,160.
    "efficientnet_lite0": 2_958_848,
    # torchvision's 11,689,512 - 513,000; Model Garden also projects the first block's shortcut: 64 * 64 + a norm of 128.
    "resnet18": 11_176_512 + 4_224,
    "resnet34": 21_797_672 - 513_000 + 4_224,
    "resnet50": 25_557_032 - 2_049_000,
    "resnet101": 44_549_160 - 2_049_000,
    "mobilenet_v2": 3_504_872 - 1_281_000,
}


@pytest.mark.parametrize("name", NAMES)
def test_sizes_and_strides(name: str) -> None:
    """The number of variables tells the backbones apart in checkpoints."""
    known = backbones.BACKBONES[name]
    model = built(name)
    assert len(model.backbone.weights) == known.variables
    assert backbones.named(known.variables) == name
    assert {int(level) for level in model.backbone.output_specs} <= set(range(known.finest, known.coarsest + 1))
    features = model.backbone(tf.zeros([1, SIZE, SIZE, 3]))
    assert set(features) == set(model.backbone.output_specs)
    for level, feature in features.items():
        assert feature.shape[1:3] == (SIZE >> int(level), SIZE >> int(level))
    outputs = model(tf.zeros([1, SIZE, SIZE, 3]), training=True)
    assert {level: score.shape[1] for level, score in outputs["cls_outputs"].items()} == {"3": 16, "4": 8}
    if name in PARAMETERS:
        for layer in model.backbone.layers:
            layer.trainable = True
        assert sum(math.prod(weight.shape) for weight in model.backbone.trainable_weights) == PARAMETERS[name]


@pytest.fixture(scope="module")
def spinenet() -> tf_keras.Model:
    return built("spinenet49")


def test_spinenet_gives_the_levels_that_are_asked_for(spinenet: tf_keras.Model) -> None:
    """Levels 2 to 7; published weights have 3 to 7, so those are there whether anchors use them or not."""
    assert set(spinenet.backbone.output_specs) == {"3", "4", "5", "6", "7"}
    assert set(built("spinenet49", levels=(2, 5)).backbone.output_specs) == {"2", "3", "4", "5", "6", "7"}


def kernels(backbone: tf_keras.Model, *, trainable: bool) -> int:
    """Parameters of convolutions that are trained, or all."""
    chosen = backbone.trainable_weights if trainable else backbone.weights
    return sum(math.prod(weight.shape) for weight in chosen if "kernel" in weight.name)


def test_a_frozen_resnet_keeps_its_stem_and_first_stage() -> None:
    model = built("resnet18")
    networks.train_only(model.backbone, above=0, up_to=5)
    whole = kernels(model.backbone, trainable=True)
    assert whole == kernels(model.backbone, trainable=False)
    networks.train_only(model.backbone, above=2, up_to=5)
    # Stem 7 * 7 * 3 * 64 = 9,408; two blocks of two 3 * 3 * 64 * 64 = 36,864, and a projection 64 * 64 = 4,096.
    assert whole - kernels(model.backbone, trainable=True) == 9_408 + 4 * 36_864 + 4_096
    # Without level 5 also its stage is left out: 3 * 3 * 256 * 512 + 3 * (3 * 3 * 512 * 512), projection 256 * 512.
    networks.train_only(model.backbone, above=0, up_to=4)
    assert whole - kernels(model.backbone, trainable=True) == 1_179_648 + 3 * 2_359_296 + 131_072


def test_mobilenets_classifier_features_are_never_trained() -> None:
    model = built("mobilenet_v2")
    networks.train_only(model.backbone, above=0, up_to=7)
    assert kernels(model.backbone, trainable=False) - kernels(model.backbone, trainable=True) == 320 * 1280


def test_a_frozen_spinenet_keeps_its_stem(spinenet: tf_keras.Model) -> None:
    """Blocks after the stem see all levels, so none of them leads to a fine level only."""
    networks.train_only(spinenet.backbone, above=0, up_to=7)
    whole = kernels(spinenet.backbone, trainable=True)
    networks.train_only(spinenet.backbone, above=2, up_to=7)
    # Stem 7 * 7 * 3 * 64 = 9,408. Bottlenecks of 64: 1x1, 3x3 36,864, 1x1 to 256 16,384; the first from 64 channels with a
    # projection to 256, the second from 256.
    first, second = 64 * 64 + 36_864 + 16_384 + 64 * 256, 256 * 64 + 36_864 + 16_384
    assert whole - kernels(spinenet.backbone, trainable=True) == 9_408 + first + second


def test_the_prior_is_the_score_that_every_anchor_starts_with() -> None:
    model = built("resnet18")
    networks.set_prior(model, 0.001)
    scores = model(tf.random.stateless_uniform([1, SIZE, SIZE, 3], (1, 2)), training=True)["cls_outputs"]
    for level in scores.values():
        np.testing.assert_allclose(tf.sigmoid(level), 0.001, rtol=0.01)


def test_pixels_are_scaled_as_the_weights_learned() -> None:
    assert preprocess_ops.MEAN_RGB == backbones.MEAN_RGB
    assert preprocess_ops.STDDEV_RGB == backbones.STDDEV_RGB


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("resnet50", {"min_level": 1}, r"min_level=1: --backbone resnet50 computes levels 2 to 5"),
        ("resnet50", {"min_level": 6}, r"min_level=6: --backbone resnet50 computes levels 2 to 5"),
        ("efficientnet_lite0", {"max_level": 8}, r"max_level=8: must be from task.model.min_level=3 to 7"),
        ("resnet50", {"max_level": 2}, r"max_level=2: must be from task.model.min_level=3 to 7"),
        ("resnet50", {"size": 100}, r"--image_size=100: must be a multiple of the coarsest stride, 32 px; use 96 or 128$"),
        ("resnet50", {"size": 416, "max_level": 7}, r"stride, 128 px; use 384 or 512, or --max_level 5$"),
        ("spinenet49", {"size": 320}, r"--backbone spinenet49, 128 px; use 256 or 384, or a backbone with an FPN"),
        ("spinenet49", {"size": 100}, r"--backbone spinenet49, 128 px; use 128$"),
        ("spinenet49", {"freeze_level": 3}, r"freeze_level=3: .* only its stem .*; use 2, or 0"),
        ("resnet50", {"freeze_level": 1}, r"freeze_level=1: --backbone resnet50 computes levels 2 to 5; use one of them, or 0"),
    ],
)
def test_what_a_backbone_cannot_do_is_refused(name: str, given: dict[str, int], message: str) -> None:
    facts = {"min_level": 3, "max_level": 5, **given}
    size = facts.pop("size", 384)
    with pytest.raises(InputError, match=message):
        backbones.check(name, image_sizes={f"--image_size={size}": size}, **facts)
    backbones.check(name, min_level=3, max_level=5, image_sizes={"": 384}, freeze_level=2)


def test_imagenet_is_refused_with_what_to_give_instead() -> None:
    backbones.check_init("efficientnet_lite0", "imagenet")
    backbones.check_init("resnet50", "some/checkpoint")
    with pytest.raises(
        InputError, match=r"efficientnet_lite0 only, not for resnet50. Model Garden publishes gs://.*or --init scratch"
    ):
        backbones.check_init("resnet50", "imagenet")
    with pytest.raises(InputError, match=r"not for resnet34. Model Garden publishes none of its own"):
        backbones.check_init("resnet34", "imagenet")


if __name__ == "__main__":
    warnings.simplefilter("error")
    for each in sys.argv[1:]:
        start, worked = time.perf_counter(), time.process_time()
        result = {"name": each, **two_steps(each)}
        result |= {"seconds": round(time.perf_counter() - start, 1), "cpu_seconds": round(time.process_time() - worked, 1)}
        print(json.dumps(result), flush=True)
