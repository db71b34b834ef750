"""A learning rate of its own for a part of the model, for any of Model Garden's optimizers."""

from collections.abc import Iterable
from typing import Any

import tensorflow as tf
import tf_keras
from official.modeling import optimization


class Rates:
    """Scales what an optimizer does to some variables: by nothing for the first steps, by a fixed rate from then on.

    The update is scaled, not the gradient: Adam divides a gradient by its own size, so that a smaller one changes nothing. Weight
    decay, a part of the update, is scaled with it, and averages of the weights follow the weights as they are. While the rate is
    0, moments of the gradients are gathered already.

    Args:
      optimizer: of Model Garden, with or without averaged weights.
      rate: share of the learning rate, from 0 to 1.
      freeze_steps: the variables stay as they are for so many first steps.
    """

    def __init__(self, optimizer: tf_keras.optimizers.legacy.Optimizer, rate: float, freeze_steps: int) -> None:
        self._slow: set[Any] = set()
        self._rate, self._freeze_steps = rate, freeze_steps
        if rate == 1.0 and not freeze_steps:
            return
        averaged = isinstance(optimizer, optimization.ExponentialMovingAverage)
        self._inner = optimizer._optimizer if averaged else optimizer
        self._apply = self._inner._resource_apply_dense
        self._inner._resource_apply_dense = self._apply_scaled

    def slow_down(self, variables: Iterable[tf.Variable]) -> None:
        """Names the variables; call it before their first update."""
        for variable in variables:  # with several replicas, an optimizer updates each one's copy
            self._slow.update(copy.ref() for copy in (variable, *getattr(variable, "values", ())))

    def _apply_scaled(self, gradient: tf.Tensor, variable: tf.Variable, apply_state: Any = None) -> Any:
        if variable.ref() not in self._slow:
            return self._apply(gradient, variable, apply_state)
        before = tf.identity(variable)
        with tf.control_dependencies([before]):
            applied = self._apply(gradient, variable, apply_state)
        rate = tf.where(self._inner.iterations < self._freeze_steps, 0.0, self._rate)
        with tf.control_dependencies([applied]):
            return variable.assign(before + rate * (variable.read_value() - before))
