"""A slow part of a model moves by its share of what the optimizer would do, by hand and beside an untouched copy."""

import numpy as np
import pytest
import tensorflow as tf
from official.modeling import optimization

from tpu_train.optimizers import Rates


def build(kind: str, ema: bool, rate: float, freeze_steps: int):
    """An optimizer of Model Garden, two variables of value 1, and the second of them slow."""
    config = {"optimizer": {"type": kind}, "learning_rate": {"type": "constant", "constant": {"learning_rate": 0.1}}}
    if ema:
        config["ema"] = {"average_decay": 0.5, "dynamic_decay": False}
    factory = optimization.OptimizerFactory(optimization.OptimizationConfig(config))
    optimizer = factory.build_optimizer(factory.build_learning_rate())
    fast, slow = tf.Variable([1.0, 1.0], name="fast"), tf.Variable([1.0, 1.0], name="slow")
    if ema:
        model = type("Model", (), {"trainable_variables": [fast, slow]})()
        optimizer.shadow_copy(model)
    Rates(optimizer, rate, freeze_steps).slow_down([slow])
    return optimizer, fast, slow


def moves(kind: str, ema: bool, rate: float, freeze_steps: int, steps: int = 3):
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        optimizer, fast, slow = build(kind, ema, rate, freeze_steps)

    @tf.function
    def step():
        strategy.run(lambda: optimizer.apply_gradients([(tf.constant([1.0, -2.0]), fast), (tf.constant([1.0, -2.0]), slow)]))

    seen = []
    with strategy.scope():
        for _ in range(steps):
            step()
            seen.append((fast.numpy(), slow.numpy()))
    return optimizer, seen


def test_sgd_by_hand():
    # Rate 0.1, gradient (1, -2): the fast one moves by (-0.1, 0.2) a step, the slow one by a tenth, after one frozen step.
    _, seen = moves("sgd", False, 0.1, 1)
    np.testing.assert_allclose([fast for fast, _ in seen], [[0.9, 1.2], [0.8, 1.4], [0.7, 1.6]], rtol=1e-6)
    np.testing.assert_allclose([slow for _, slow in seen], [[1.0, 1.0], [0.99, 1.02], [0.98, 1.04]], rtol=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "adam", "rmsprop"])
def test_adaptive_optimizers_move_slowly_too(kind):
    # The same gradients, so both have the same moments, and the slow one moves by exactly a quarter.
    _, seen = moves(kind, False, 0.25, 0)
    for fast, slow in seen:
        np.testing.assert_allclose(slow - 1, 0.25 * (fast - 1), rtol=1e-5)
        assert np.abs(fast - 1).min() > 0.05


def test_averages_follow_the_slow_weights():
    # Decay 0.5: the average is half of its last value and half of the weights, from 0.
    optimizer, seen = moves("sgd", True, 0.1, 1, steps=2)
    _, slow = seen[-1]
    np.testing.assert_allclose(slow, [0.99, 1.02], rtol=1e-6)
    average = optimizer.get_slot(optimizer._model_weights[1], "average").numpy()
    np.testing.assert_allclose(average, 0.5 * (0.5 * np.array([1.0, 1.0])) + 0.5 * np.array([0.99, 1.02]), rtol=1e-6)


def test_nothing_changes_without_a_rate():
    optimizer, _, _ = build("adamw", False, 1.0, 0)
    assert "_resource_apply_dense" not in vars(optimizer)


def test_copies_of_replicas_are_recognised():
    strategy = tf.distribute.MirroredStrategy(["/cpu:0"])  # of one, but its variables are made of copies, as with many
    with strategy.scope():
        fast, slow = tf.Variable([1.0]), tf.Variable([1.0])
        factory = optimization.OptimizerFactory(
            optimization.OptimizationConfig(
                {"optimizer": {"type": "sgd"}, "learning_rate": {"type": "constant", "constant": {"learning_rate": 0.1}}}
            )
        )
        optimizer = factory.build_optimizer(factory.build_learning_rate())
        Rates(optimizer, 0.1, 0).slow_down([slow])

        @tf.function
        def step():
            strategy.run(lambda: optimizer.apply_gradients([(tf.constant([1.0]), fast), (tf.constant([1.0]), slow)]))

        step()
    np.testing.assert_allclose([fast.numpy()[0], slow.numpy()[0]], [0.9, 0.99], rtol=1e-6)
