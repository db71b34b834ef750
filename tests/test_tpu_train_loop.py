"""The outer loop on a task that takes milliseconds: stops, bad losses, bad records, patience."""

import dataclasses
import json
import math
import os
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from official.core import base_task, exp_factory, task_factory
from official.core import config_definitions as cfg
from official.modeling import optimization

from survey.anchors import AnchorSpec
from survey.errors import InputError
from tpu_train import loop, reports, train
from tpu_train.history import History
from tpu_train.plan import Plan

PLAN = Plan(64, 64, 1, AnchorSpec(3, 4, 1, (1.0,), 2.0), 8, 100, 20)
BATCH = 2


@dataclasses.dataclass
class Line(cfg.TaskConfig):
    """A line through points. `poisoned`: steps at which the input is NaN; `score_at`: what validation says, by step."""

    train_data: cfg.DataConfig = dataclasses.field(default_factory=lambda: cfg.DataConfig(global_batch_size=BATCH))
    validation_data: cfg.DataConfig = dataclasses.field(default_factory=lambda: cfg.DataConfig(global_batch_size=BATCH))
    poisoned: list[int] = dataclasses.field(default_factory=list)
    scores: list[float] = dataclasses.field(default_factory=list)
    file: str = ""


@task_factory.register_task_cls(Line)
class LineTask(base_task.Task):
    """Fits y = w x to batch number `step`, whose patches are 2 step and 2 step + 1; a record in `file`, if given, is a step."""

    start_step = 0
    guard: Any = None

    def build_model(self) -> tf_keras.Model:
        return tf_keras.Sequential([tf_keras.layers.Dense(1, input_shape=(1,))])

    def initialize(self, model: tf_keras.Model) -> None:
        model.set_weights([np.array([[0.5]]), np.array([0.0])])

    def build_inputs(self, params: cfg.DataConfig, input_context: Any = None) -> tf.data.Dataset:
        if params is self.task_config.validation_data:
            return tf.data.Dataset.from_tensors({"step": tf.zeros([BATCH], tf.int64)})
        if self.task_config.file:
            steps = tf.data.TFRecordDataset(self.task_config.file).map(lambda record: tf.strings.to_number(record, tf.int64))
            return steps.skip(self.start_step).map(lambda step: {"step": tf.fill([BATCH], step)})
        return tf.data.Dataset.range(self.start_step, 10**6).map(lambda step: {"step": tf.fill([BATCH], step)})

    def train_step(self, inputs: dict[str, tf.Tensor], model: Any, optimizer: Any, metrics: Any = None) -> dict[str, Any]:
        step = inputs["step"]
        x = tf.math.sin(tf.cast(step * 2 + tf.range(BATCH, dtype=tf.int64), tf.float32))[:, tf.newaxis]
        bad = tf.reduce_any([step[0] == each for each in [-1, *self.task_config.poisoned]])
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x) - 3 * x) ** 2) * tf.where(bad, math.nan, 1.0)
        healthy = self.guard.observe(optimizer.iterations, loss, step * 2 + tf.range(BATCH, dtype=tf.int64))
        gradients = tape.gradient(loss, model.trainable_variables)
        gradients = [tf.where(healthy, gradient, tf.zeros_like(gradient)) for gradient in gradients]
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return {self.loss: tf.where(healthy, loss, 0.0)}

    def validation_step(self, inputs: dict[str, tf.Tensor], model: Any, metrics: Any = None) -> dict[str, Any]:
        return {self.loss: tf.reduce_sum(model.trainable_variables[0])}

    def aggregate_logs(self, state: Any = None, step_outputs: Any = None) -> Any:
        return True

    def reduce_aggregated_logs(self, aggregated_logs: Any, global_step: Any = None) -> dict[str, float]:
        scores = self.task_config.scores
        return {"f1": scores[int(global_step) // 20 - 1] if scores else float(global_step)}


@exp_factory.register_config_factory("test_line")
def line() -> cfg.ExperimentConfig:
    return cfg.ExperimentConfig(
        task=Line(),
        trainer=cfg.TrainerConfig(
            validation_interval=20,
            steps_per_loop=5,
            optimizer_config=optimization.OptimizationConfig(
                {
                    "optimizer": {"type": "sgd", "sgd": {"momentum": 0.9}},
                    "ema": {"average_decay": 0.99},
                    "learning_rate": {"type": "constant", "constant": {"learning_rate": 0.01}},
                }
            ),
            best_checkpoint_export_subdir="best",
            best_checkpoint_eval_metric="f1",
            best_checkpoint_metric_comp="higher",
        ),
    )


def fit(
    folder: Path, *, steps: int = 60, repair: Any = None, after: Any = (), task: dict[str, Any] | None = None, **flags: Any
) -> None:
    """`rookery train` on the line; a checkpoint after every loop unless told otherwise."""
    config = line()
    config.override({"task": task or {}, "trainer": {"train_steps": steps}})
    flags = {"checkpoint_minutes": 1e-6, "batch_size": BATCH, **flags}
    options = train.Options(dataset="nowhere", model_dir=str(folder), steps=steps, **flags)
    loop.train(config, options, PLAN, repair=repair, after_validation=after)


def curve(folder: Path, name: str = "training_loss", part: str = "train") -> list[tuple[int, float]]:
    """Step and value of a scalar, in the order in which they were written; later starts write later files."""
    found = []
    for file in sorted((folder / reports.SUMMARIES / part).iterdir(), key=lambda path: int(path.name.split(".")[3])):
        try:
            for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
                event = tf.compat.v1.Event.FromString(record)
                found += [
                    (event.step, tf.make_ndarray(value.tensor).item()) for value in event.summary.value if value.tag == name
                ]
        except tf.errors.DataLossError:
            pass  # a kill cut the last record off
    return found


def weights(folder: Path, name: str = "ckpt") -> dict[str, np.ndarray]:
    """The newest checkpoint's model and optimizer."""
    latest = tf.train.latest_checkpoint(str(folder))
    assert latest is not None
    assert os.path.basename(latest).startswith(name)
    reader = tf.train.load_checkpoint(latest)
    return {
        key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map() if key.split("/")[0] in ("model", "optimizer")
    }


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


@pytest.fixture
def straight(tmp_path: Path) -> Path:
    """A run without any disturbance."""
    fit(tmp_path / "straight")
    return tmp_path / "straight"


class Stopped(BaseException):
    """A kill, seen from inside."""


def stop_at(step: int, during: str, folder: Path, **given: Any) -> None:
    """A run that ends when it has reached a step: before it validates there (`_validate`), or before it saves (`loop`)."""
    owner: Any = loop.Run if during == "_validate" else reports.Reports
    real = getattr(owner, during)

    def stopped(self: Any, at: int, *args: Any) -> None:
        if at == step:
            raise Stopped
        real(self, at, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, during, stopped)
        with pytest.raises(Stopped):
            fit(folder, **given)


@pytest.mark.parametrize(("step", "during"), [(5, "loop"), (30, "loop"), (40, "_validate"), (60, "_validate")])
def test_a_stop_changes_nothing(
    tmp_path: Path, straight: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], step: int, during: str
) -> None:
    """Losses, weights and validations are those of the run without a stop; a validation that a stop prevented comes later."""
    stop_at(step, during, tmp_path / "run")
    capsys.readouterr()
    fit(tmp_path / "run")
    went_on = step if during == "_validate" else step - 5  # one loop was trained, but not saved yet
    assert f"train: goes on from step {went_on}\n" in capsys.readouterr().out or went_on == 0
    expected = dict(curve(straight))
    assert sorted(expected) == list(range(5, 65, 5))
    found = curve(tmp_path / "run")
    assert {at for at, _ in found} == set(expected)
    assert all(value == expected[at] for at, value in found)
    assert same(weights(straight), weights(tmp_path / "run"))
    best = [weights(folder / "best", "best_ckpt") for folder in (straight, tmp_path / "run")]
    model = [{key: value for key, value in each.items() if "OPTIMIZER" not in key and key.startswith("model")} for each in best]
    assert len(model[0]) == 2
    assert same(*model)  # the optimizer's momenta come with the first step, of which there may have been none since the stop
    assert [each["step"] for each in History(str(tmp_path / "run")).validations] == [20, 40, 60]
    fit(tmp_path / "run")
    assert "already trained, 60 steps, nothing to do" in capsys.readouterr().out


def test_a_damaged_checkpoint_costs_an_interval(
    tmp_path: Path, straight: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    stop_at(35, "loop", tmp_path)
    assert sorted(path.name for path in tmp_path.glob("ckpt-*.index")) == ["ckpt-25.index", "ckpt-30.index"]
    os.truncate(tmp_path / "ckpt-30.data-00000-of-00001", 100)
    fit(tmp_path)
    said = capsys.readouterr()
    assert "goes on from step 25" in said.out
    assert said.err.count("passed over") == 1
    assert same(weights(straight), weights(tmp_path))


def test_a_bad_loss_is_survived_once(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN at step 33, in the loop from 30 to 35: back to 30, and that batch teaches nothing. Patches 66 and 67."""
    monkeypatch.setattr(loop.dataset, "read", lambda folder: Nowhere())
    fit(tmp_path, task={"poisoned": [33]})
    said = capsys.readouterr()
    assert "train: step 33: the loss, nan, is not finite, on patches 66, 67; goes back to the last checkpoint" in said.err
    assert "goes on from step 30" in said.out
    assert all(np.isfinite(value).all() for value in weights(tmp_path).values())
    assert [each["step"] for each in History(str(tmp_path)).validations] == [20, 40, 60]
    assert json.loads((tmp_path / "history.json").read_text())["incidents"] == [
        {"step": 33, "loss": "nan", "patch_ids": [66, 67]}
    ]


@pytest.mark.parametrize("restart", [False, True])
def test_a_second_bad_loss_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restart: bool) -> None:
    """Also when the first one happened before a restart; and the same command does not start such a run again."""
    monkeypatch.setattr(loop.dataset, "read", lambda folder: Nowhere())
    message = (
        r"step 48: the loss, nan, is not finite, on patches 96, 97; it is the second time \(the first was step 33\).*"
        r"lower --learning_rate.*rookery show-batch --dataset nowhere --patch_ids 96,97$"
    )
    if restart:
        stop_at(40, "loop", tmp_path, task={"poisoned": [33]})
    with pytest.raises(InputError, match=message):
        fit(tmp_path, task={"poisoned": [33, 48]})
    with pytest.raises(InputError, match=message):
        fit(tmp_path)


class Nowhere:
    """A dataset that knows no patch."""

    def locate(self, patch_id: int) -> Any:
        raise InputError("not here")


def test_patience(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0.5 at step 40 is the best; 60 and 80 are not better, equal or worse: two validations, and the run is over."""
    scores = [0.2, 0.5, 0.5, 0.4, 0.9]
    seldom = {"steps": 100, "checkpoint_minutes": 10.0, "task": {"scores": scores}}
    fit(tmp_path, stop_after=2, **seldom)
    assert "train: stops at step 80: 2 validations without a better f1 than 0.500 at step 40\n" in capsys.readouterr().out
    assert max(step for step, _ in curve(tmp_path)) == 80
    fit(tmp_path, stop_after=2, **seldom)
    assert "already trained, 80 steps, nothing to do" in capsys.readouterr().out
    fit(tmp_path, stop_after=3, **seldom)  # more patience: goes on
    assert "goes on from step 80" in capsys.readouterr().out
    assert max(step for step, _ in curve(tmp_path)) == 100


def test_patience_is_kept_over_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    scores = [0.5, 0.4, 0.3, 0.2, 0.9]
    stop_at(50, "loop", tmp_path, steps=100, stop_after=3, task={"scores": scores})
    fit(tmp_path, steps=100, stop_after=3, task={"scores": scores})
    assert "train: stops at step 80: 3 validations without a better f1 than 0.500 at step 20\n" in capsys.readouterr().out


def records(path: Path, count: int) -> str:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for step in range(count):
            writer.write(str(step).encode())
    return str(path)


@pytest.mark.parametrize("measured", [2, 64])
def test_a_damaged_record_is_repaired(tmp_path: Path, straight: Path, monkeypatch: pytest.MonkeyPatch, measured: int) -> None:
    """Record 33 has a wrong checksum: the loop that meets it is done again from the last checkpoint, to the same end."""
    file = records(tmp_path / "steps", 100)
    raw = Path(file).read_bytes()
    place = raw.index(struct.pack("<Q", 2), raw.index(b"32")) + 12  # length 2, its checksum, then the record: "33"
    assert raw[place : place + 2] == b"33"
    Path(file).write_bytes(raw[:place] + b"x" + raw[place + 1 :])
    monkeypatch.setattr(reports, "INPUT_BATCHES", measured)  # training meets the record with 2, the measurement with 64
    repaired: list[str] = []

    def repair(task: base_task.Task, error: Exception) -> None:
        assert isinstance(task, LineTask)
        repaired.append(str(error))
        Path(file).write_bytes(raw)

    with pytest.raises(InputError, match=r"a record is damaged \(.*rookery doctor"):
        fit(tmp_path / "run", task={"file": file})
    fit(tmp_path / "run", task={"file": file}, repair=repair)
    assert len(repaired) == 1
    assert "corrupted record" in repaired[0]
    assert same(weights(straight), weights(tmp_path / "run"))
    expected = dict(curve(straight))
    assert all(value == expected[at] for at, value in curve(tmp_path / "run"))


def test_rates_and_scalars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the host sees: every loop's loss, learning rate and speed; validations apart from them; and the hook for pictures."""
    called: list[tuple[float, int]] = []
    fit(tmp_path, after=[lambda step, metrics: called.append((metrics["f1"], step))])
    said = capsys.readouterr()
    assert "1 host, 1 replica, float32, 5 steps a loop\n" in said.out
    assert "-bound (input alone: " in said.err
    assert called == [(20.0, 20), (40.0, 40), (60.0, 60)]
    assert [step for step, _ in curve(tmp_path, "images_per_second")] == list(range(10, 65, 5))  # the first loop compiles
    assert {value for _, value in curve(tmp_path, "learning_rate")} == {float(np.float32(0.01))}
    assert curve(tmp_path, "f1", "validation") == [(20, 20.0), (40, 40.0), (60, 60.0)]


@pytest.mark.parametrize(
    ("rate", "text"), [(100.0, "device-bound (input alone: 612 images/s)"), (600.0, "host-bound (input alone: 612")]
)
def test_who_waits_for_whom(rate: float, text: str) -> None:
    assert reports.bound(rate, 612.0).startswith(text)


def test_the_input_is_measured_alone() -> None:
    """A batch of 4 every 10 ms is 400 images a second at most; the slow first one does not count."""

    def slowly(number: int) -> int:
        time.sleep(0.5 if number == 0 else 0.01)
        return number

    batches = tf.data.Dataset.range(1000).map(lambda n: tf.numpy_function(slowly, [n], tf.int64))
    assert 150 < reports.input_rate(batches, 4) <= 400
    assert reports.input_rate(batches.take(1), 4) == 0.0


def test_line_by_line(tmp_path: Path) -> None:
    """Two steps without any compiled function: Python sees numbers."""
    seen: list[bool] = []
    real = LineTask.train_step

    def watched(self: LineTask, *args: Any, **kwargs: Any) -> dict[str, Any]:
        logs = real(self, *args, **kwargs)
        seen.append(tf.executing_eagerly() and math.isfinite(float(logs[self.loss])))
        return logs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LineTask, "train_step", watched)
        fit(tmp_path / "eager", steps=2, mode="eager")
    assert seen == [True, True]
    assert not tf.config.functions_run_eagerly()
    fit(tmp_path / "graph", steps=2)
    for key, value in weights(tmp_path / "graph").items():
        np.testing.assert_allclose(value, weights(tmp_path / "eager")[key], rtol=1e-6)


def test_a_batch_that_does_not_divide_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop.strategies.Device, "replicas", property(lambda self: 8))
    with pytest.raises(InputError, match=r"--batch_size=2: must be a multiple of the 8 replicas.*use 8$"):
        fit(tmp_path)
    assert not list(tmp_path.iterdir())
