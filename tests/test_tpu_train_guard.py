"""The watch over the loss: what trips it, what does not, and that all replicas agree."""

import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import tensorflow as tf

from pipeline import shard
from survey import dataset
from tpu_train import guard
from tpu_train.guard import Guard, Incident

IDS = [7, 2**40 + 3]  # larger than any number that float32, or an int32, holds exactly


def watch(losses: list[float], *, skip: tuple[int, ...] = (), jit: bool = True) -> tuple[Guard, list[bool]]:
    """A guard that has seen these losses from step 0 on, and its verdicts."""
    seen = Guard(2)
    seen.clear(skip)
    observe = tf.function(seen.observe, jit_compile=jit)
    return seen, [
        bool(observe(tf.constant(step, tf.int64), tf.constant(loss), tf.constant(IDS, tf.int64)))
        for step, loss in enumerate(losses)
    ]


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_trips_at_once(loss: float, jit: bool) -> None:
    seen, healthy = watch([1.0, 1.0, loss, 1.0, loss], jit=jit)
    assert healthy == [True, True, False, True, False]
    noted = seen.incident()
    assert noted is not None
    assert (noted.step, noted.patch_ids) == (2, tuple(IDS))  # the first one
    assert str(noted.loss) == str(loss)
    assert float(seen.mean) == 1.0  # which it does not enter


def test_an_explosion_is_a_hundred_times_the_mean() -> None:
    """After 50 steps at 2, a loss of 200 is the last that passes: the mean of the 50 is 2. Then the mean is 2 + 198 / 51."""
    seen, healthy = watch([2.0] * guard.WARM_UP + [200.0, 201.0 + 100 * 198 / 51])
    assert healthy == [True] * (guard.WARM_UP + 1) + [False]
    noted = seen.incident()
    assert noted is not None
    assert noted.step == guard.WARM_UP + 1


def test_a_high_loss_early_is_no_explosion() -> None:
    """A run from scratch begins with thousands and falls within tens of steps; also up again within the warm-up."""
    seen, healthy = watch([5000.0, 800.0, 90.0, 4000.0, *[1.0] * 40, 900.0])
    assert all(healthy)
    assert seen.incident() is None


def test_a_tiny_mean_makes_no_explosion() -> None:
    """At a mean of 0.001 a loss of 0.9 is 900 times as much, and harmless; 1.5 is not."""
    _, healthy = watch([0.001] * 60 + [0.9, 1.5 + 100 * 0.9])
    assert healthy[60:] == [True, False]


def test_listed_steps_change_nothing_and_are_not_noted() -> None:
    """Neither when their loss is bad nor when it is good; the mean is that of the others, (1 + 3) / 2."""
    seen, healthy = watch([1.0, math.nan, 5.0, 3.0], skip=(1, 2))
    assert healthy == [True, False, False, True]
    assert seen.incident() is None
    assert float(seen.mean) == 2.0


def test_after_clear_the_next_one_is_noted() -> None:
    seen, _ = watch([math.nan])
    seen.clear([0])
    assert seen.incident() is None
    assert not bool(seen.observe(tf.constant(4), tf.constant(math.inf), tf.constant(IDS, tf.int64)))
    noted = seen.incident()
    assert noted is not None
    assert noted.step == 4


def test_all_replicas_agree(tmp_path: Path) -> None:
    """Two replicas on two logical processors, in a loop on the device: the second one's loss is NaN at step 3."""
    script = tmp_path / "replicas.py"
    script.write_text(
        textwrap.dedent(f"""
        import tensorflow as tf
        from tpu_train.guard import Guard
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        with strategy.scope():
            guard = Guard(2)
            step = tf.Variable(0, dtype=tf.int64, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
            on_read, total = tf.VariableSynchronization.ON_READ, tf.VariableAggregation.SUM
            healthy = tf.Variable([0] * 5, synchronization=on_read, aggregation=total)

        def one():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            loss = tf.where((step == 3) & (replica == 1), float("nan"), 1.0 + 2 * tf.cast(replica, tf.float32))
            verdict = guard.observe(step, loss, tf.constant({IDS}, tf.int64) + 10 * tf.cast(replica, tf.int64))
            healthy.assign_add(tf.one_hot(tf.cast(step, tf.int32), 5, dtype=tf.int32) * tf.cast(verdict, tf.int32))
            step.assign_add(1)

        @tf.function
        def loop(n):
            for _ in tf.range(n):
                strategy.run(one)

        with strategy.scope():
            loop(tf.constant(5))
            print(healthy.numpy().tolist(), guard.incident(), guard.mean.numpy())
        """)
    )
    environ = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, str(script)], env=environ, capture_output=True, text=True, timeout=600, check=False)
    # Both say yes at steps 0, 1, 2 and 4, and no at 3; the patches are those of replica 1; the mean of 1 and 3 is 2.
    expected = f"[2, 2, 2, 0, 2] Incident(step=3, loss=nan, patch_ids=(17, {2**40 + 13})) 2.0"
    assert done.stdout.strip() == expected, done.stderr[-2000:]


def test_an_incident_names_patches_and_places(tmp_path: Path, pixels, write_raster, write_voc) -> None:  # type: ignore[no-untyped-def]
    """A mosaic of 160 x 160 px, patches of 64 with 16 in common: columns at 0, 48, 96. Patch 4 is the one in the middle."""
    write_raster(tmp_path / "bay.png", pixels(160, 160))
    write_voc(tmp_path / "bay.xml", "bay.png", (160, 160), [("crab", (10, 10, 30, 30))])
    argv = f"--mosaics {tmp_path}/bay.png --annotations {tmp_path}/bay.xml --patch_size 64 --overlap 16 --split train=1.0"
    assert shard.run([*argv.split(), "--output", str(tmp_path / "data")]) == 0
    data = dataset.read(str(tmp_path / "data"))
    assert Incident(9, math.nan, (4, 99)).describe(data) == (
        "step 9: the loss, nan, is not finite, on patches 4 (bay row 1 column 1), 99"
    )
    assert "step 9: the loss, 1234, is over 100 times its running mean, on patches 4" in Incident(9, 1234.0, (4,)).describe(data)
