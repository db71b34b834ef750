"""Averages of the weights, which validation uses in the weights' place, and which leave training as it was."""

import tensorflow as tf
import tf_keras
from official.modeling import optimization


def exchange_exactly(optimizer: tf_keras.optimizers.legacy.Optimizer) -> None:
    """Has an optimizer of Model Garden exchange weights and averages to the last bit, where it keeps averages.

    Its own `_swap_weights` adds the one to the other and subtracts, in three steps that round: two exchanges, before and after a
    validation, leave weights and averages a little changed. A run would depend on when it validates, and one that was stopped
    after a validation would not go on as one without a stop.

    Args:
      optimizer: with or without averages (`official/modeling/optimization/ema_optimizer.py`); is changed in place.
    """
    if not isinstance(optimizer, optimization.ExponentialMovingAverage):
        return

    @tf.function
    def exchange_all() -> None:  # in a replica
        pairs = list(zip(optimizer._average_weights, optimizer._model_weights, strict=True))
        tf.distribute.get_replica_context().merge_call(_exchange, args=(pairs,))

    optimizer._swap_weights = exchange_all


def _exchange(strategy: tf.distribute.Strategy, pairs: list[tuple[tf.Variable, tf.Variable]]) -> None:
    for average, weight in pairs:
        strategy.extended.update(average, _exchange_two, args=(weight,))


def _exchange_two(one: tf.Variable, other: tf.Variable) -> tf.Variable:
    held = one.read_value()
    one.assign(other.read_value())
    other.assign(held)
    return one
