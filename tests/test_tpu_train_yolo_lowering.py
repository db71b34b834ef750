"""The step of every version of YOLO is one that a TPU runs, and what preflight lowers is what is trained."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from official.core import config_definitions
from test_tpu_train_preflight_lowering import BATCH, BOXES, SIZE, executed, trained, unlucky, variables
from test_tpu_train_preflight_lowering import as_in_a_new_process as as_in_a_new_process

from tpu_train import precision, registry
from tpu_train.models import yolo_networks
from tpu_train.preflight import lint, lowering

ANCHORS = ((10, 10), (16, 20), (24, 18), (20, 30), (32, 26), (40, 44))
KINDS = {
    "v3": ("tiny", "yolo3_dense_2"),
    "v4": ("tiny", "yolo3_dense_2"),
    "scaled": ("efficientnet_lite0", "yolo3_dense_1"),
}


def configured(version: str, **augmentation: float) -> config_definitions.ExperimentConfig:
    """A small network with two classes, as `configure` makes it."""
    backbone, head = KINDS[version]
    config = registry.experiment("yolo")
    config.override({"task": yolo_networks.overrides(backbone, head, version, anchors_px=ANCHORS, num_classes=2)})
    kind = yolo_networks.VERSIONS[version]
    data = {"train_data": {"global_batch_size": BATCH}, "validation_data": {"global_batch_size": BATCH}}
    task = {"init": "scratch", "train_size": SIZE, "max_boxes": BOXES, "model": {"input_size": [SIZE, SIZE, 3]}, **data}
    matching = {"match_threshold": kind.match_threshold, "best_match_only": kind.best_match_only}
    config.override({"task": {**task, **matching, "augmentation": augmentation}})
    # Without adaptive rates, so that a weight moves as its gradient says.
    optimizer = {
        "optimizer": {"type": "sgd", "sgd": {"momentum": 0.9, "global_clipnorm": 10.0}},
        "learning_rate": {"type": "constant", "constant": {"learning_rate": 1.0}},  # far beyond what float32 rounds off
        "warmup": {"type": None},
    }
    config.override({"trainer": {"train_steps": 10, "validation_interval": 10, "optimizer_config": optimizer}})
    return config


@pytest.mark.parametrize(("version", "more"), [("v3", {"mosaic": 0.5, "mixup": 0.5}), ("v4", {}), ("scaled", {})])
def test_the_step_is_one_that_a_tpu_runs(version: str, more: dict[str, float]) -> None:
    lowered = lowering.lower(configured(version, **more), replicas=1, step="train")
    assert lint.check_step(lowered.operations) == []
    assert all(operation.compiles for operation in lowered.operations)
    assert "tensor<?" not in lowered.stablehlo
    # Wide numbers are patch numbers, counters and seeds: nothing that grows with the image. 64 x 64 pixels would be 32 kB.
    wide = re.findall(r"tensor<((?:\d+x)+)[fu]?i?64>", lowered.stablehlo)
    assert max((np.prod([int(side) for side in shape[:-1].split("x")]) for shape in wide), default=0) <= 1024
    assert not re.search(r"f64\b", lowered.stablehlo)
    assert lowered.inputs["image"] == ((BATCH, *lowered.inputs["image"][0][1:]), "uint8")
    ours = {source.split(":")[0] for source in lowered.sources.values()}
    assert {"tpu_train/yolo/targets.py", "tpu_train/yolo/loss.py", "tpu_train/augment.py"} <= ours


def test_the_lowered_step_is_the_trained_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step of v3 by TensorFlow, and its StableHLO by jaxlib's CPU client: the same loss, and all variables move as far."""
    pytest.importorskip("jax")
    monkeypatch.setattr(tf.random, "stateless_uniform", unlucky)
    config = configured("v3")
    expected = trained(config)
    assert expected["loss"] > 1
    tf_keras.utils.set_random_seed(0)
    with precision.computing("float32"):
        traced = lowering.trace(config, replicas=1, step="train")
        text = traced.lower()
    state = traced.state()
    results = executed(text, [*(expected["inputs"][name] for name in traced.inputs), *state], tmp_path)
    concrete = traced.function.get_concrete_function(*traced.inputs.values())
    place = {id(handle): i for i, handle in enumerate(concrete.captured_inputs)}
    pairs = re.findall(r"parameter_number = (\d+) : i64}, output_index = array<i64: (\d+)>", text)
    replaced = {int(parameter) - len(traced.inputs): results[int(output)] for parameter, output in pairs}

    def after(variable: tf.Variable) -> np.ndarray:
        return replaced[place[id(variable.handle)]]

    trainer: Any = traced.owner
    loss, count = (after(variable) for variable in trainer.train_loss.variables)
    assert (count, after(trainer.global_step)) == (1, 1)
    assert float(loss) == pytest.approx(expected["loss"], rel=1e-5)
    moved = 0
    for variable, right in zip(variables(trainer), expected["after"], strict=True):
        where = place.get(id(variable.handle))
        if where not in replaced:
            np.testing.assert_array_equal(variable.numpy(), right)
            continue
        old, new = (np.asarray(values, np.float64) for values in (state[where], replaced[where]))
        wrong, step = np.linalg.norm(new - right), np.linalg.norm(right - old)
        # Rounding: of sums over pixels, of the sum with the old value, and of gradients that cancel out to 0.
        assert wrong <= 2e-3 * step + 1e-6 * np.linalg.norm(old) + 1e-6, variable.name
        moved += bool(step > 1e-4)
    assert moved > 50


def test_the_lowered_inference_is_the_exported_one(tmp_path: Path) -> None:
    """The raw heads of both levels, finest first: 64 px make 4 x 4 and 2 x 2 cells of 3 anchors of 5 + 2 numbers."""
    pytest.importorskip("jax")
    with precision.computing("float32"):
        traced = lowering.trace(configured("v3"), replicas=1, step="predict")
        text = traced.lower()
    images = np.random.default_rng(0).integers(0, 255, (BATCH, SIZE, SIZE, 3), np.uint8)
    fine, coarse = executed(text, [images, *traced.state()], tmp_path)
    assert (fine.shape, coarse.shape) == ((BATCH, 4, 4, 21), (BATCH, 2, 2, 21))
    expected = traced.owner.raw(tf.constant(images))
    np.testing.assert_allclose(fine, expected["raw_output_4"], atol=1e-4)
    np.testing.assert_allclose(coarse, expected["raw_output_5"], atol=1e-4)
    assert not [operation.name for operation in traced.operations() if operation.kind in ("Exp", "TopKV2")]
