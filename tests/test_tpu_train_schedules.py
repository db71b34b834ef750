"""Learning rates at chosen steps, worked out by hand, through Model Garden's own builder."""

import math

import pytest
from official.modeling import optimization

from tpu_train import schedules


def rate(schedule: str, *at: int, steps: int = 1200, peak: float = 0.1) -> list[float]:
    config = optimization.OptimizationConfig({"optimizer": {"type": "adamw"}})
    config.override(schedules.overrides(schedule, peak=peak, steps=steps))
    built = optimization.OptimizerFactory(config).build_learning_rate()
    return [float(built(step)) for step in at]


def test_cosine():
    # 50 steps of warm-up from 0 to what the cosine is at step 50; half of the peak in the middle, 0 at the end.
    at_50 = 0.05 * (1 + math.cos(math.pi * 50 / 1200))
    assert rate("cosine", 0, 25, 50, 600, 1200) == pytest.approx([0, at_50 / 2, at_50, 0.05, 0], abs=1e-6)


def test_onecycle():
    # Up from peak / 25 for a quarter, 300 steps; then a cosine over the other 900, whose middle is step 750.
    assert rate("onecycle", 0, 150, 300, 750, 1200) == pytest.approx([0.004, 0.052, 0.1, 0.05, 0], abs=1e-6)


def test_step():
    # 8/12 of 1,200 is 800, 11/12 is 1,100; Keras keeps the old rate up to the boundary itself.
    assert rate("step", 50, 800, 801, 1100, 1101) == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])


def test_constant():
    assert rate("constant", 0, 25, 50, 1200) == pytest.approx([0, 0.05, 0.1, 0.1])


def test_a_short_run_warms_up_for_a_tenth_of_it():
    assert rate("constant", 1, 2, steps=20) == pytest.approx([0.05, 0.1])


def test_a_run_of_a_few_steps_has_no_warm_up():
    assert rate("constant", 0, 1, steps=5) == pytest.approx([0.1, 0.1])
