"""benchmarks/yolo_step.py: our step and Model Garden's, with the same weights, on the same pixels and boxes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tpu_train import precision
from tpu_train.experiments import yolo


def test_the_steps_have_the_same_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import yolo_step

    size, rng, made = 64, np.random.default_rng(1), yolo_step.experiment
    # Darknet-53 and three scales take minutes to compile.
    monkeypatch.setattr(yolo_step, "BACKBONE", "tiny")
    monkeypatch.setattr(yolo_step, "HEAD", "yolo3_dense_1")

    def unvaried(*arguments: Any) -> Any:
        config = made(*arguments)
        still = {"flip": False, "quarter_turn": False, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
        config.task.augmentation.override({"scale_min": 1.0, "scale_max": 1.0, "white_balance": 0.0, **still})
        return config

    monkeypatch.setattr(yolo_step, "experiment", unvaried)
    images = rng.integers(0, 255, (1, size, size, 3), np.uint8)
    boxes = np.array([[5, 6, 20, 25], [30, 10, 62, 40], [35, 35, 50, 51]], np.float32)
    classes = np.array([1, 8, 3], np.int32)
    padded = np.zeros((1, yolo_step.MAX_BOXES, 4), np.float32), np.zeros((1, yolo_step.MAX_BOXES), np.int32)
    padded[0][0, :3], padded[1][0, :3] = boxes, classes
    mine = {
        "image": images,
        "boxes": padded[0],
        "classes": padded[1],
        "objects": np.array([3], np.int32),
        "patch_id": np.array([0], np.int64),
        "view": np.array([[1.0, 0.0, 0.0]], np.float32),
    }
    with precision.computing("float32"):
        ours, stock = (make(1, size, "sgd") for make in (yolo_step.ours, yolo_step.stock))
    heads = yolo.heads(unvaried(1, size, "sgd").task.model)
    labels = yolo_step.labels(heads, size, tf.constant(boxes / size), tf.constant(classes - 1, tf.float32))
    theirs = {"images": images / 255, **{name: value[None] for name, value in labels.items()}}
    stock.network(tf.zeros([1, size, size, 3]), training=True)  # makes its head
    for part in ("backbone", "decoder", "head"):
        getattr(ours.network, part).set_weights(getattr(stock.network, part).get_weights())

    def of(inputs: Mapping[str, tf.TensorSpec], values: Mapping[str, Any]) -> list[tf.Tensor]:
        assert inputs.keys() == values.keys()
        return [tf.cast(tf.ensure_shape(values[name], spec.shape), spec.dtype) for name, spec in inputs.items()]

    ours.function(*of(ours.inputs, mine))
    stock.function(*of(stock.inputs, theirs))
    found = {metric.name: float(metric.result()) for metric in ours.owner.train_metrics if metric.name.endswith("_loss")}
    (net,) = (metric.result() for metric in stock.owner.train_metrics if metric.name == "net")
    expected = {"box_loss": float(net["box"]), "object_loss": float(net["conf"]), "cls_loss": float(net["class"])}
    assert all(value > 0 for value in expected.values())
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    trainable = [sum(weight.shape.num_elements() for weight in each.network.trainable_weights) for each in (ours, stock)]
    assert trainable[0] == trainable[1]
