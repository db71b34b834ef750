"""In what numbers a network computes: bfloat16 or float32. Weights, losses and averages are float32 in both."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from survey.errors import InputError

if TYPE_CHECKING:
    from official.core.config_definitions import ExperimentConfig

# Keras's policy for each; float16 would want a scaled loss.
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}


def policy(config: "ExperimentConfig", default: str) -> str:
    """Keras's policy for a run.

    Args:
      config: of the experiment; its runtime.mixed_precision_dtype says it, if it is set.
      default: of the device, also a policy.

    Raises:
      InputError: it says something else.
    """
    asked = config.runtime.mixed_precision_dtype
    if asked is None:
        return default
    if asked not in POLICIES:
        raise InputError(f"runtime.mixed_precision_dtype={asked}: must be one of {', '.join(POLICIES)}; --precision sets it")
    return POLICIES[asked]


@contextmanager
def computing(policy: str) -> Iterator[None]:
    """A context in which models are built with a policy of Keras."""
    import tf_keras

    before = tf_keras.mixed_precision.global_policy()
    tf_keras.mixed_precision.set_global_policy(policy)
    try:
        yield
    finally:
        tf_keras.mixed_precision.set_global_policy(before)
