"""Weights and their averages change places and back, and nothing is lost on the way."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from official.modeling import optimization

from tpu_train import averages


def averaged(weights: list[tf.Variable]) -> optimization.ExponentialMovingAverage:
    optimizer = optimization.ExponentialMovingAverage(tf_keras.optimizers.legacy.SGD())
    optimizer.shadow_copy(type("Model", (), {"trainable_variables": weights})())
    return optimizer


@pytest.mark.parametrize("exact", [False, True])
def test_an_exchange_is_exact(exact: bool) -> None:
    """Of numbers of all sizes; Model Garden's own is not, or this module would not be needed."""
    rng = np.random.default_rng(0)
    numbers = (rng.normal(size=(4, 1000)) * 10.0 ** rng.integers(-9, 9, (4, 1000))).astype(np.float32)
    with tf.distribute.OneDeviceStrategy("/cpu:0").scope():
        weights = [tf.Variable(numbers[0]), tf.Variable(numbers[1])]
        optimizer = averaged(weights)
        for average, value in zip(optimizer._average_weights, numbers[2:], strict=True):
            average.assign(value)
        if exact:
            averages.exchange_exactly(optimizer)
        seen = []
        for _ in range(2):
            optimizer.swap_weights()
            seen.append([each.numpy() for each in (*weights, *optimizer._average_weights)])
    assert np.array_equal(seen[0], numbers[[2, 3, 0, 1]]) == exact
    assert np.array_equal(seen[1], numbers) == exact


def test_an_optimizer_without_averages_is_left_alone() -> None:
    optimizer = tf_keras.optimizers.legacy.SGD()
    averages.exchange_exactly(optimizer)
    assert not hasattr(optimizer, "_swap_weights")


def test_replicas_exchange_their_copies(tmp_path: Path) -> None:
    """Two replicas on two logical processors, whose copies of the weights all change."""
    script = tmp_path / "replicas.py"
    script.write_text(
        textwrap.dedent("""
        import tensorflow as tf
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        from tpu_train import averages
        from test_tpu_train_averages import averaged
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        with strategy.scope():
            weight = tf.Variable([1e9, 3.0])
            optimizer = averaged([weight])
            (average,) = optimizer._average_weights
            average.assign([0.1, 0.7])
            averages.exchange_exactly(optimizer)
            for _ in range(2):
                optimizer.swap_weights()
                print([copy.numpy().tolist() for copy in (*weight.values, *average.values)])
        """)
    )
    environ = {**os.environ, "PYTHONPATH": f"{os.getcwd()}:{Path(__file__).parent}"}
    done = subprocess.run([sys.executable, str(script)], env=environ, capture_output=True, text=True, timeout=600, check=False)
    low, high = np.array([0.1, 0.7], np.float32).tolist(), [1e9, 3.0]
    assert done.stdout.splitlines() == [str([low, low, high, high]), str([high, high, low, low])], done.stderr[-2000:]
