"""The very step that `rookery train` runs, as StableHLO: what a TPU's compiler is given.

The step is Model Garden's `Trainer.train_step` around the task's: view, targets, forward and backward pass, guard, optimizer with
its averages, metrics and counters. It is traced on the CPU of this machine for one replica, which is what each chip (or core)
runs. What the chip gets on a real TPU differs in this:

- There the host calls the step from a loop that is compiled with it. The loop adds its counter.
- Several replicas exchange gradients, the guard's table and, if asked for, batch statistics, and scale the loss by their number.
  Here one replica is alone: it divides by 1. `Lowered.trainable_bytes` is what they would exchange.
- A TPU draws other random numbers, with an algorithm of its own.
- Nothing is loaded: weights are random, but frozen where `task.init` would have them frozen.
"""

import copy
import functools
import multiprocessing
import os
import re
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from official.core import base_trainer, config_definitions, task_factory
from tensorflow.python.framework import kernels

from survey.errors import InputError
from tpu_train import precision, registry, saved_model
from tpu_train import strategy as strategies
from tpu_train.guard import Guard
from tpu_train.preflight import libtpu, lint
from tpu_train.preflight.lint import Operation, Tensor

STEPS = ("train", "predict")
GRADIENT = "gradient_tape/"  # so begin the names of operations that a tape adds for others
XLA_KERNELS = (
    "XLA_CPU_JIT"  # the device under which TensorFlow lists what XLA compiles; a TensorFlow without TPU has no list of its
)
CODE = re.compile(r".*/((?:tpu_train|official)/.*\.py)")
# Batch normalisation hands its backward pass what only cuDNN needs; its shape is unknown and XLA makes nothing of it.
RESERVED = ("FusedBatchNormV3", 5)


@dataclass(frozen=True, slots=True)
class Lowered:
    """A step that a compiler can be given.

    Attributes:
      step: one of STEPS.
      stablehlo: the module, text.
      operations: of TensorFlow, from which the module was made, those in the bodies of loops and branches too.
      trainable_bytes: of the gradients, float32: what the replicas exchange.
      parameters: numbers in the model, trained or not.
      batch: images a step, of one replica.
      inputs: shape and type of each.
      seconds: that tracing and lowering took.
    """

    step: str
    stablehlo: str
    operations: tuple[Operation, ...]
    trainable_bytes: int
    parameters: int
    batch: int
    inputs: Mapping[str, tuple[tuple[int, ...], str]]
    seconds: float

    @property
    def sources(self) -> dict[str, str]:
        """Name of an operation to where it comes from, "tpu_train/augment.py:71", if from us or from Model Garden."""
        return {operation.name: operation.source for operation in self.operations if operation.source}


@dataclass(frozen=True, slots=True)
class Traced:
    """A step in TensorFlow's hands.

    Attributes:
      step: one of STEPS.
      function: the step, to be compiled; takes the inputs in the order of `inputs`.
      inputs: by name.
      network: the model.
      owner: of the other variables, a `Trainer` or the export's module; they live as long as it does.
    """

    step: str
    function: Any
    inputs: Mapping[str, tf.TensorSpec]
    network: tf_keras.Model
    owner: Any

    @property
    def _concrete(self) -> Any:
        return self.function.get_concrete_function(*self.inputs.values())

    def state(self) -> list[np.ndarray]:
        """Values of the variables and constants that the module takes after the inputs, in its order."""
        values = []
        for captured in self._concrete.captured_inputs:
            if captured.dtype == tf.resource:
                held = captured._handle_data.shape_and_type[0]
                captured = tf.raw_ops.ReadVariableOp(resource=captured, dtype=held.dtype)
            values.append(captured.numpy())
        return values

    def operations(self) -> tuple[Operation, ...]:
        """All that the step does, loops and branches included; what was traced but serves no result is no part of it."""
        _load_kernels()
        # The bodies of loops, branches and calls; TensorFlow has no public way to them that keeps the lines of code.
        graph = self._concrete.graph
        bodies = {name: body.graph for name, body in graph._functions.items()}
        found = {operation.name: operation for operation in _used(graph, bodies)}
        sources = {name: _source(operation) for name, operation in found.items()}
        return tuple(
            Operation(
                name,
                operation.type,
                sources[_forward(name, sources)],
                tuple(_tensor(output) for output in operation.outputs if not _is_reserved(output)),
                operation.type in bodies or operation.type == "Placeholder" or _has_kernel(operation.type),
            )
            for name, operation in found.items()
        )

    def lower(self) -> str:
        """The step as StableHLO.

        Raises:
          InputError: XLA does not compile it.
        """
        try:
            text = self.function.experimental_get_compiler_ir(*self.inputs.values())(stage="stablehlo")
        except (tf.errors.OpError, ValueError) as error:
            raise InputError(
                f"the step of this configuration ({self.step}) is not one that XLA compiles ({error}): undo the last change of it"
            ) from error
        # The name holds numbers that count the functions of this process: the same step would not have the same text.
        return re.sub(r"(?m)^module @\S+", f"module @rookery_{self.step}_step", text, count=1)


def lower(
    config: config_definitions.ExperimentConfig, *, replicas: int, step: str, compute_type: str = "mixed_bfloat16"
) -> Lowered:
    """Traces the step of a configuration and lowers it.

    Args:
      config: of the experiment (`tpu_train.configure`); is not changed.
      replicas: of the model, among which the global batch is shared out.
      step: "train", or "predict": raw heads from uint8 pixels for a batch of validation, what `rookery export` writes as
        signature `raw`. Decoding and suppression are no part of it: `rookery predict` does them on the host.
      compute_type: Keras policy; a TPU trains in mixed_bfloat16. An exported model computes in float32.

    Raises:
      InputError: the batch does not divide over the replicas, or the step holds what no TPU can run.
    """
    begun = time.monotonic()
    with precision.computing(compute_type):
        traced = trace(config, replicas=replicas, step=step)
        operations = traced.operations()
        if errors := [finding for finding in lint.check_step(operations) if finding.severity == "error"]:
            more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            raise InputError(f"the step of this configuration ({step}) cannot run on a TPU: {errors[0].line()}{more}")
        text = traced.lower()
    inputs = {name: (tuple(spec.shape), spec.dtype.name) for name, spec in traced.inputs.items()}
    return Lowered(
        step=step,
        stablehlo=text,
        operations=operations,
        trainable_bytes=4 * sum(variable.shape.num_elements() for variable in traced.network.trainable_variables),
        parameters=traced.network.count_params(),
        batch=next(shape[0] for shape, _ in inputs.values()),
        inputs=inputs,
        seconds=time.monotonic() - begun,
    )


def lower_apart(
    config: config_definitions.ExperimentConfig, *, replicas: int, step: str, compute_type: str = "mixed_bfloat16"
) -> Lowered:
    """`lower` in a process of its own: its memory comes back, and names do not depend on what was built before.

    Raises:
      InputError: see `lower`, or the process was killed.
    """
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=libtpu.end_with_parent) as pool:
        job = pool.submit(_lower_from_dict, registry.model_of(config), config.as_dict(), replicas, step, compute_type)
        try:
            return job.result()
        except BrokenProcessPool as error:
            raise InputError(
                "the step could not be lowered: the process that did it was ended, as a machine does that runs out of memory; a "
                "ResNet-50 of 640 px takes 2 GB"
            ) from error


def _lower_from_dict(model: str, config: dict[str, Any], replicas: int, step: str, compute_type: str) -> Lowered:
    experiment = registry.experiment(model)
    experiment.override(config)
    return lower(experiment, replicas=replicas, step=step, compute_type=compute_type)


def trace(config: config_definitions.ExperimentConfig, *, replicas: int, step: str) -> Traced:
    """Traces a step under the policy that is set; see `lower`.

    Raises:
      InputError: see `lower`.
    """
    if step not in STEPS:
        raise InputError(f"step={step}: must be one of {', '.join(STEPS)}")
    config = copy.deepcopy(config)
    with tf.distribute.OneDeviceStrategy("/cpu:0").scope():  # as `strategy.pick` has it
        return _train(config, replicas) if step == "train" else _predict(config, replicas)


def _train(config: config_definitions.ExperimentConfig, replicas: int) -> Traced:
    batch_size = config.task.train_data.global_batch_size
    strategies.check_batch("task.train_data.global_batch_size", batch_size, replicas)
    task = task_factory.get_task(config.task)
    task.guard = Guard(batch_size // replicas)
    inputs = dict(sorted(task.input_spec(batch_size // replicas, training=True).items()))
    trainer = base_trainer.Trainer(
        config,
        task,
        model=task.build_model(),
        optimizer=task.create_optimizer(config.trainer.optimizer_config),
        evaluate=False,
        train_dataset=[inputs],  # never read
    )

    def train_step(*tensors: tf.Tensor) -> None:
        trainer.train_step(iter([dict(zip(inputs, tensors, strict=True))]))

    return Traced("train", tf.function(train_step, jit_compile=True), inputs, trainer.model, trainer)


def _predict(config: config_definitions.ExperimentConfig, replicas: int) -> Traced:
    batch_size = config.task.validation_data.global_batch_size
    strategies.check_batch("task.validation_data.global_batch_size", batch_size, replicas)
    # Suppression is not what the signature gives. Left in, it leaves the compiler nothing to do, but jax cannot read it all.
    config.task.model.detection_generator.override({"apply_nms": False})
    task = task_factory.get_task(config.task)
    images = task.input_spec(batch_size // replicas, training=False)["image"]
    exported = saved_model.Exported(task, task.build_model())
    function = tf.function(exported.raw.python_function, jit_compile=True)
    return Traced("predict", function, {"image": images}, exported.network, exported)


def _used(graph: Any, bodies: Mapping[str, Any]) -> Iterator[tf.Operation]:
    """Operations on which the results or the effects of a function depend, also those of the functions it calls."""
    waiting: list[Any] = [graph]
    called: set[str] = set()
    while waiting:
        graph = waiting.pop()
        ends = (*(tensor.op for tensor in (*graph.inputs, *graph.outputs)), *graph.control_outputs)
        reached = {id(operation): operation for operation in ends}
        pending = list(reached.values())
        while pending:
            operation = pending.pop()
            for before in (*(tensor.op for tensor in operation.inputs), *operation.control_inputs):
                if id(before) not in reached:
                    reached[id(before)] = before
                    pending.append(before)
        for operation in graph.get_operations():  # in their order
            if id(operation) not in reached:
                continue
            yield operation
            attributes = operation.node_def.attr.values()
            names = {operation.type, *(each.name for value in attributes for each in (value.func, *value.list.func))}
            for name in names & bodies.keys() - called:
                called.add(name)
                waiting.append(bodies[name])


def _source(operation: tf.Operation) -> str:
    """The innermost line of ours or of Model Garden's that made an operation, "" if there is none."""
    for frame in reversed(operation.traceback or ()):
        if match := CODE.match(frame.filename):
            return f"{match[1]}:{frame.lineno}"
    return ""


def _forward(name: str, known: Mapping[str, Any]) -> str:
    """The operation of whose gradient an operation is a part; itself where it is no such part or none is known."""
    forward = name.removeprefix(GRADIENT)
    while forward != name and forward not in known:
        forward, _, _ = forward.rpartition("/")
        if not forward:
            return name
    return forward


def _tensor(output: tf.Tensor) -> Tensor:
    shape = None if output.shape.rank is None else tuple(output.shape)
    return Tensor(output.dtype.name, shape)


def _is_reserved(output: tf.Tensor) -> bool:
    return (output.op.type, output.value_index) == RESERVED


@functools.cache
def _has_kernel(kind: str) -> bool:
    return any(kernel.device_type == XLA_KERNELS for kernel in kernels.get_registered_kernels_for_op(kind).kernel)


def _load_kernels() -> None:
    """Has TensorFlow list what XLA compiles, which it does when it compiles for the first time."""
    tf.function(lambda: tf.constant(0.0), jit_compile=True).experimental_get_compiler_ir()(stage="stablehlo")
    assert _has_kernel("Conv2D"), "this TensorFlow lists its XLA kernels elsewhere"
