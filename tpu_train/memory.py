"""`rookery train --mem_eval`: the memory that a step takes, measured on this machine's CPU and compiled for a TPU's chip.

Both are of one device that takes the whole batch. Neither is a part of the other: a TPU's host holds pixels, not layers.
"""

import multiprocessing
import os
from collections.abc import MutableMapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from survey import accelerators
from survey.errors import InputError
from tpu_train.options import Options
from tpu_train.plan import Plan
from tpu_train.preflight import compiler
from tpu_train.preflight.inquiry import Inquiry, default_cache

if TYPE_CHECKING:
    from official.core.config_definitions import ExperimentConfig

ACCELERATOR = "v5litepod-1"  # one chip
STEPS = 2  # the first makes the optimizer's state, the second is like all that follow
COMPILE_S = 3600.0  # as the default of `rookery preflight --timeout`
GIB = 2**30
OBJECT_PX = 16  # side of the boxes of the measured step; what a step holds does not depend on them


@dataclass(frozen=True, slots=True)
class Host:
    """What a step takes on a CPU, in bytes of resident memory.

    Attributes:
      step_bytes: at the fullest moment of building the task and of two steps, above `tensorflow_bytes`: weights, the optimizer's
        state, averages, the compiled graph, and what the layers keep for the backward pass. Not the input's buffers.
      tensorflow_bytes: of the same process before: Python, TensorFlow and Model Garden, imported and having computed something.
    """

    step_bytes: int
    tensorflow_bytes: int


@dataclass(frozen=True, slots=True)
class Memory:
    """What `--mem_eval` says.

    Attributes:
      image_size: side of the training images in pixels.
      batch_size: images of the step, all on one device.
      host: measured on this machine, None where it could not be.
      hbm_bytes: of ACCELERATOR's chip, what the compiled step takes or would need; 0 if unknown.
      capacity_bytes: of that chip's HBM.
      fits: whether the step compiles and fits.
      notes: why a part is missing.
    """

    image_size: int
    batch_size: int
    host: Host | None
    hbm_bytes: int
    capacity_bytes: int
    fits: bool
    notes: tuple[str, ...] = ()

    def line(self) -> str:
        """For people.

        >>> Memory(416, 8, Host(3 * GIB, GIB // 2), GIB, 16 * GIB, True).line()
        'memory: a step of 8 images of 416 px takes 3.00 GiB on a CPU (and TensorFlow 0.50), 1.00 of 16.00 GiB on a v5e'
        >>> Memory(416, 8, None, 17 * GIB, 16 * GIB, False, ("no CPU",)).line()
        'memory: a step of 8 images of 416 px takes 17.00 of 16.00 GiB on a v5e, so it does not fit; no CPU'
        """
        parts = []
        if self.host:
            step, alone = self.host.step_bytes / GIB, self.host.tensorflow_bytes / GIB
            parts.append(f"{step:.2f} GiB on a CPU (and TensorFlow {alone:.2f})")
        if self.hbm_bytes:
            chip = accelerators.parse(ACCELERATOR).chip.generation
            refused = "" if self.fits else ", so it does not fit"
            parts.append(f"{self.hbm_bytes / GIB:.2f} of {self.capacity_bytes / GIB:.2f} GiB on a {chip}{refused}")
        images = f"{self.batch_size} image{'s' * (self.batch_size != 1)} of {self.image_size} px"
        taken = ", ".join(parts) or "an amount that could not be found out"
        return "; ".join([f"memory: a step of {images} takes {taken}", *self.notes])


def report(options: Options, plan: Plan, *, cache: Path | None = None) -> Memory:
    """Measures and compiles the training step of a run; takes half a minute, and minutes where the compile is not remembered.

    A part that cannot be found out is a note, not an error: a run does not end because its memory was to be looked at.

    Args:
      options: of the run.
      plan: of the run.
      cache: folder of compiles already done, by default that of `rookery preflight`.

    Raises:
      InputError: the run itself cannot be, see `configure.experiment`.
    """
    from tpu_train import configure  # TensorFlow

    config = configure.experiment(options, plan)
    notes: list[str] = []
    measured = None
    try:
        measured = host(config)
    except InputError as error:
        notes.append(str(error))
    hbm_bytes, fits = 0, False
    where = accelerators.parse(ACCELERATOR)
    try:
        compiler.versions()  # before a minute is spent on lowering for a compiler that is not there
        inquiry = Inquiry(where, cache=cache or default_cache(), timeout_s=COMPILE_S)
        found = inquiry.ask(options, plan, "train")
        hbm_bytes, fits = found.hbm_bytes, found.compiles
        if isinstance(found.outcome, compiler.Refused) and found.outcome.reason != "memory":
            notes.append(found.outcome.message)
    except InputError as error:
        notes.append(str(error))
    return Memory(plan.image_size, options.batch_size, measured, hbm_bytes, where.chip.hbm_bytes, fits, tuple(notes))


def host(config: "ExperimentConfig", steps: int = STEPS) -> Host:
    """Measures in a process of its own, on one CPU device that takes the whole batch.

    The step is that of `rookery train`, in its loop; its images are random numbers, and nothing is loaded.

    Args:
      config: of the experiment (`tpu_train.configure`).
      steps: to run.

    Raises:
      InputError: the process was killed, or this system does not tell how much memory a process had.
    """
    from tpu_train import registry

    context = multiprocessing.get_context("spawn")  # a fork would begin with the memory of this process
    with ProcessPoolExecutor(1, mp_context=context, initializer=_on_cpu) as pool:
        job = pool.submit(_measure, registry.model_of(config), config.as_dict(), steps)
        try:
            return job.result()
        except BrokenProcessPool as error:
            raise InputError(
                f"--batch_size={config.task.train_data.global_batch_size}: so large a CPU step could not be measured: its "
                "process was ended, as a machine does that runs out of memory; measure a smaller batch"
            ) from error


def _on_cpu() -> None:
    """Keeps a process off TPUs and GPUs, which the run needs. To be called before TensorFlow is imported."""
    _without_accelerators(os.environ)


def _without_accelerators(environ: MutableMapping[str, str]) -> None:
    for name in ("TPU_NAME", "PJRT_DEVICE", "NEXT_PLUGGABLE_DEVICE_USE_C_API", "TF_PLUGGABLE_DEVICE_LIBRARY_PATH"):
        environ.pop(name, None)
    environ.update({"TPU_LOAD_LIBRARY": "0", "CUDA_VISIBLE_DEVICES": "-1", "TF_USE_LEGACY_KERAS": "1"})
    environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _measure(model: str, config: dict[str, Any], steps: int) -> Host:
    """Builds the task of a configuration and runs steps of it; for a fresh process."""
    import tensorflow as tf
    import tf_keras
    from official.core import base_trainer, task_factory

    from tpu_train import precision, registry
    from tpu_train.guard import Guard

    tf.function(lambda x: x @ x)(tf.zeros([8, 8]))  # starts what TensorFlow starts once
    before = _resident("VmRSS")
    experiment = registry.experiment(model)
    experiment.override(config)
    # As in `loop.train`: both change what is in memory at the same time.
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    tf.config.experimental.enable_op_determinism()
    tf_keras.utils.set_random_seed(0)  # op determinism refuses random numbers without a seed
    batch_size = experiment.task.train_data.global_batch_size
    computing = precision.computing(precision.policy(experiment, "float32"))
    with computing, tf.distribute.OneDeviceStrategy("/cpu:0").scope():  # as `strategy.pick` has it
        task = task_factory.get_task(experiment.task)
        task.guard = Guard(batch_size)
        spec = task.input_spec(batch_size, training=True)
        trainer = base_trainer.Trainer(
            experiment,
            task,
            model=task.build_model(),
            optimizer=task.create_optimizer(experiment.trainer.optimizer_config),
            evaluate=False,
            train_dataset=tf.data.Dataset.from_tensors({name: _some(name, of) for name, of in spec.items()}).repeat(),
        )
        trainer.train(tf.constant(steps))
    return Host(max(0, _resident("VmHWM") - before), before)


def _some(name: str, spec: Any) -> Any:
    """A batch's part of the right shape: noise for pixels, one object of class 1 in the corner, crops without zoom."""
    import numpy as np

    value = np.zeros(spec.shape, spec.dtype.as_numpy_dtype)
    if name == "image":
        value = np.random.default_rng(0).integers(0, 256, spec.shape, dtype=np.uint8)
    elif name == "boxes":
        value[:, 0] = (0, 0, OBJECT_PX, OBJECT_PX)
    elif name in ("classes", "objects"):
        value[(slice(None), 0) if value.ndim == 2 else slice(None)] = 1
    elif name == "view":
        value[:, 0] = 1.0
        value[:, 3:] = 1.0
    return value


def _resident(field: str) -> int:
    """Resident memory of this process in bytes: "VmRSS" now, or "VmHWM" at most so far.

    Not `resource.getrusage`: its maximum begins with the memory of whoever started this process.

    Raises:
      InputError: not a Linux.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        raise InputError("--mem_eval: only a Linux tells how much memory a process had, in /proc/self/status") from None
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
