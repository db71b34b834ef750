"""The training run: one outer loop that starts from the last good checkpoint, and Model Garden's trainer inside it.

An attempt goes from a checkpoint to the end, or until something is wrong with a record or with the loss; then it is seen to, and
the next attempt starts from the last checkpoint. A kill is the same with a new process in between.
"""

import dataclasses
import logging
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
import yaml
from official.core import base_task, base_trainer, config_definitions, task_factory

from survey import calibration, dataset, files
from survey.errors import InputError
from tpu_train import averages, checkpoints, precision, reports
from tpu_train import strategy as strategies
from tpu_train.guard import Guard, Incident
from tpu_train.history import History
from tpu_train.options import GRAPH, TAPE, Options
from tpu_train.plan import Plan
from tpu_train.run_folder import BEST, BEST_RECORD, CONFIG

SHOWN_PATCHES = 16  # in the command that a message proposes


# What TensorFlow raises for a record: a checksum is wrong, or the content cannot be decoded. The latter may also mean a defect of
# ours; `repair` tells.
DAMAGE = (tf.errors.DataLossError, tf.errors.InvalidArgumentError)
OBJECTS = "objects"  # so begin the names of the sums that a task's `meter` explains
Prepare = Callable[[base_task.Task], None]
Repair = Callable[[base_task.Task, Exception], None]
AfterValidation = Callable[[int, dict[str, float]], None]


def train(
    config: config_definitions.ExperimentConfig,
    options: Options,
    plan: Plan,
    *,
    prepare: Prepare | None = None,
    repair: Repair | None = None,
    after_validation: Sequence[AfterValidation] = (),
) -> None:
    """Trains to the last step, from the last good checkpoint in the model folder if there is one, and validates on the way.

    Args:
      config: from `configure`.
      options: of the verb.
      plan: of the run.
      prepare: called with the task before its inputs are built.
      repair: called with the task and the error when a record cannot be read; makes sure that the task's next inputs lack the
        record, or raises. The run then goes on from its last checkpoint.
      after_validation: called with step and metrics after each validation; `tf.summary` then writes beside these metrics.

    Raises:
      InputError: the batch does not divide over the devices, a damaged record and no `repair`, or the loss went wrong twice.
    """
    history = History(options.model_dir)
    if _finished(config, options, history) and files.exists(os.path.join(options.model_dir, BEST_RECORD)):
        print(f"train: {options.model_dir} is already trained, {history.validations[-1]['step']} steps, nothing to do")
        return
    _refuse_a_second(history, options)
    logging.getLogger("absl").setLevel(logging.WARNING)
    eager = options.mode not in GRAPH
    device = strategies.pick(one=eager)
    strategies.check_batch("--batch_size", config.task.train_data.global_batch_size, device.replicas)
    validation_batch = config.task.validation_data.global_batch_size
    strategies.check_batch("task.validation_data.global_batch_size", validation_batch, device.replicas)
    files.write(os.path.join(options.model_dir, CONFIG), yaml.safe_dump(config.as_dict(), sort_keys=False).encode())
    tf_keras.utils.set_random_seed(options.seed)
    # Grappler turns the sums of Model Garden's box decoding into temporary variables whose names collide between levels
    # (AlreadyExistsError: .../AddOpsRewrite_add_3/tmp_var).
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    if device.kind == "CPU":
        tf.config.experimental.enable_op_determinism()  # costs nothing there, and two runs of one seed agree to the last bit
    device = dataclasses.replace(device, compute_type=precision.policy(config, device.compute_type))
    steps_per_loop = _steps_per_loop(config, device.kind)
    print(f"train: on {device.line(steps_per_loop)}", flush=True)
    print(
        f"train: {options.model}, crops of {plan.image_size} px, batch {options.batch_size}, "
        f"anchors {anchor_sides(plan)} px, up to {plan.max_boxes} objects a patch",
        flush=True,
    )
    in_lines = line_by_line() if eager else nullcontext()
    with precision.computing(device.compute_type), device.strategy.scope(), in_lines:  # the whole run: see `strategy.pick`
        run = Run(config, options, history, device, steps_per_loop, prepare, after_validation)
        while True:
            try:
                if run.attempt():
                    break
            except DAMAGE as error:
                if repair is not None:
                    repair(run.task, error)
                elif isinstance(error, tf.errors.InvalidArgumentError):
                    raise
                else:
                    raise InputError(
                        f"--dataset={options.dataset}: a record is damaged ({str(error).splitlines()[0]}): `rookery doctor` "
                        "names its file; copy that again, and the same command goes on"
                    ) from error
        run.reports.close()
    print(f"train: done; next: rookery export --model_dir {options.model_dir} --output MODEL", flush=True)


def anchor_sides(plan: Plan) -> str:
    """Smallest and largest anchor side in pixels, for people."""
    sides = np.sqrt(np.concatenate([plan.anchors.sides_px(level).prod(axis=1) for level in plan.anchors.levels]))
    return f"{sides.min():.0f} to {sides.max():.0f}"


@contextmanager
def line_by_line() -> Iterator[None]:
    """A context in which TensorFlow computes each line of Python when it is reached, so that a debugger can stop there."""
    with warnings.catch_warnings():
        # The input's own functions stay compiled, and TensorFlow says so at every one.
        warnings.filterwarnings("ignore", message="Even though the `tf.config.experimental_run_functions_eagerly`")
        tf.config.run_functions_eagerly(True)
        try:
            yield
        finally:
            tf.config.run_functions_eagerly(False)


class PlainTrainer(base_trainer.Trainer):
    """Model Garden's trainer with the plainest of loops: a batch, a tape, the next batch. For one device, to step through."""

    _train_iter: Iterator[Any] | None

    def train(self, num_steps: tf.Tensor) -> dict[str, Any]:
        """Trains so many steps; returns the logs of Model Garden's trainer."""
        self.train_loop_begin()
        if self._train_iter is None:
            self._train_iter = iter(self.train_dataset)
        for _ in range(int(num_steps)):
            self.strategy.run(self._step, args=(next(self._train_iter),))
        outputs: dict[str, Any] = self.train_loop_end()
        return outputs

    def _step(self, inputs: dict[str, tf.Tensor]) -> None:
        logs = self.task.train_step(inputs, self.model, self.optimizer, self.train_metrics)
        self.train_loss.update_state(logs[self.task.loss])
        self.global_step.assign_add(1)


class Run:
    """A run in the making: everything that an attempt needs, made once.

    Args:
      config: of the experiment.
      options: of the verb.
      history: of the run so far.
      device: to compute on; its scope is entered.
      steps_per_loop: between two looks of the host.
      prepare: see `train`.
      after_validation: see `train`.
    """

    def __init__(
        self,
        config: config_definitions.ExperimentConfig,
        options: Options,
        history: History,
        device: strategies.Device,
        steps_per_loop: int,
        prepare: Prepare | None,
        after_validation: Sequence[AfterValidation],
    ) -> None:
        self._config, self._options, self._history = config, options, history
        self._steps_per_loop, self._after_validation = steps_per_loop, after_validation
        batch_size = config.task.train_data.global_batch_size
        self.reports = reports.Reports(options.model_dir, options.steps, batch_size)
        if options.mode not in GRAPH:
            config.trainer.override({"train_tf_function": False, "train_tf_while_loop": False, "eval_tf_function": False})
        self.task = task_factory.get_task(config.task)
        if prepare is not None:
            prepare(self.task)
        self._guard = self.task.guard = Guard(batch_size // device.replicas)
        self._found = checkpoints.latest(options.model_dir)
        self.task.start_step = checkpoints.step_of(self._found)
        optimizer = self.task.create_optimizer(config.trainer.optimizer_config)
        averages.exchange_exactly(optimizer)
        self._trainer = (PlainTrainer if options.mode in TAPE else base_trainer.Trainer)(
            config,
            self.task,
            model=self.task.build_model(),
            optimizer=optimizer,
            checkpoint_exporter=checkpoints.best_exporter(config, options.model_dir),
        )
        # The mean loss goes on after a stop. What the guard noted need not: no checkpoint is written while there is an incident.
        self._trainer.checkpoint.loss_mean, self._trainer.checkpoint.loss_count = self._guard.mean, self._guard.count
        self._keeper = checkpoints.Keeper(self._trainer.checkpoint, options.model_dir)
        self._objects: Counter[str] = Counter()  # what became of them since the last validation
        self._first = True

    def attempt(self) -> bool:
        """Goes from the last good checkpoint as far as it can.

        Returns:
          Whether the run is complete; if not, the next attempt goes on from the last good checkpoint.

        Raises:
          InputError: the loss went wrong again.
          tf.errors.OpError: one of DAMAGE, the input holds a damaged record.
        """
        step = self._begin()
        every, steps = self._config.trainer.validation_interval, self._options.steps
        saved, loop_seconds = time.monotonic(), 0.0
        while True:
            due = step and (step % every == 0 or step >= steps)
            # After a stop between a checkpoint and its validation, that validation comes first: a stop changes nothing.
            if due and not self._history.validated(step):
                self._keeper.save(step)
                self._validate(step)
                saved = time.monotonic()
            if _finished(self._config, self._options, self._history):
                return True
            # Loops end at multiples of their length also after a stop, so that their losses are the same.
            target = min(steps, _next(step, self._steps_per_loop), _next(step, every))
            begun = time.monotonic()
            outputs = self._trainer.train(tf.constant(target - step))
            values = reports.scalars(outputs)  # waits for the device
            loop_seconds = time.monotonic() - begun
            if incident := self._guard.incident():
                self._note(incident)
                return False
            self._objects.update({name: value for name, value in values.items() if name.startswith(OBJECTS)})
            self.reports.loop(target, target - step, loop_seconds, values)
            step = target
            # One loop more would be too many: a kill may lose an interval at most.
            if time.monotonic() - saved + loop_seconds >= 60 * self._options.checkpoint_minutes:
                self._keeper.save(step)
                saved = time.monotonic()

    def _begin(self) -> int:
        """Puts weights, inputs, guard and history where the last good checkpoint was; returns its step."""
        first, self._first = self._first, False
        path = self._found if first else checkpoints.latest(self._options.model_dir)
        step = checkpoints.step_of(path)
        if path is not None:
            self._keeper.restore(path)
            print(f"train: goes on from step {step}", flush=True)
        elif not first:
            raise InputError(f"--model_dir={self._options.model_dir}: no checkpoint in it can be read any more: check the disk")
        else:
            self._trainer.initialize()
            self._keeper.save(0)
        self._history.rewind(step)
        self._guard.clear([each.step for each in self._history.incidents])
        if not first:  # the trainer came with inputs that were right for its first attempt
            self._trainer.train_dataset = self._inputs(self._config.task.train_data, step)
            self._trainer.eval_dataset = self._inputs(self._config.task.validation_data, step)
            self.reports.restart()
            for metric in [*self._trainer.train_metrics, self._trainer.train_loss]:
                metric.reset_state()  # they hold the steps of a loop that a damaged record broke off
        elif self._options.mode in GRAPH:
            data = self._config.task.train_data  # from its beginning: to skip what was trained takes time and tells nothing
            self.reports.input_alone = reports.input_rate(self._inputs(data, 0), data.global_batch_size)
        return step

    def _inputs(self, data: config_definitions.DataConfig, step: int) -> Any:
        self.task.start_step = step
        return self._trainer.distribute_dataset(self.task.build_inputs, data)

    def _validate(self, step: int) -> None:
        outputs = self._trainer.evaluate(tf.constant(-1))
        metrics = reports.scalars(outputs)
        self._keep_calibration(step, outputs.get(calibration.KEY))
        self.reports.validation(step, metrics)
        if self._objects:
            print(f"train: {self.task.meter(self._objects)}", flush=True)
            self._objects.clear()
        with self.reports.validation_writer():
            for action in self._after_validation:
                action(step, metrics)
        self._history.add_validation(step, metrics)
        best = _best(self._config, self._history)
        if best and _patience_is_over(self._options, best) and step < self._options.steps:
            print(
                f"train: stops at step {step}: {best[2]} validations without a better "
                f"{self._config.trainer.best_checkpoint_eval_metric} than {best[1]:.3f} at step {best[0]}",
                flush=True,
            )

    def _keep_calibration(self, step: int, knots: Any) -> None:
        """Writes what the scores are worth beside the best record, if that is of this step.

        A kill between the two leaves the step without a validation in the history, so that it comes again, and this with it.
        """
        record = os.path.join(self._options.model_dir, BEST_RECORD)
        if knots is not None and files.exists(record) and files.read_json(record, "a record")["best_ckpt_global_step"] == step:
            calibration.write(os.path.join(self._options.model_dir, BEST), tuple(map(tuple, knots.tolist())))

    def _note(self, incident: Incident) -> None:
        """Writes down what went wrong; once is survived.

        Raises:
          InputError: it is not the first time.
        """
        self._history.add_incident(incident)
        _refuse_a_second(self._history, self._options)
        what = incident.describe(dataset.read(self._options.dataset))
        print(
            f"train: {what}; goes back to the last checkpoint and leaves this batch out; a second time ends the run",
            file=sys.stderr,
            flush=True,
        )


def _refuse_a_second(history: History, options: Options) -> None:
    """Once is bad luck; a second time the run itself is at fault, now and whenever it is started again.

    Raises:
      InputError: the loss went wrong twice.
    """
    if len(history.incidents) < 2:
        return
    first, second = history.incidents[:2]
    patches = ",".join(str(patch_id) for patch_id in second.patch_ids[:SHOWN_PATCHES])
    raise InputError(
        f"{second.describe(dataset.read(options.dataset))}; it is the second time (the first was step {first.step}): train again "
        f"in a new --model_dir with a lower --learning_rate, and look at these patches: rookery show-batch --dataset "
        f"{options.dataset} --patch_ids {patches}"
    )


def _steps_per_loop(config: config_definitions.ExperimentConfig, kind: str) -> int:
    """As asked for, else fitted to the device and to the distance of validations."""
    wanted = config.trainer.steps_per_loop or strategies.STEPS_PER_LOOP[kind]
    return int(min(wanted, config.trainer.validation_interval))


def _next(step: int, every: int) -> int:
    """The multiple of `every` that comes after `step`."""
    return (step // every + 1) * every


def _best(config: config_definitions.ExperimentConfig, history: History) -> tuple[int, float, int] | None:
    return history.best(config.trainer.best_checkpoint_eval_metric, config.trainer.best_checkpoint_metric_comp)


def _patience_is_over(options: Options, best: tuple[int, float, int] | None) -> bool:
    return bool(options.stop_after and best and best[2] >= options.stop_after)


def _finished(config: config_definitions.ExperimentConfig, options: Options, history: History) -> bool:
    """Whether the last step was validated, or none of the last validations brought anything better."""
    return history.validated(options.steps) or _patience_is_over(options, _best(config, history))
