"""One step on one chip, from its configuration to what the compiler and the roofline say of it."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from survey.accelerators import Slice
from tpu_train import precision
from tpu_train.preflight import compiler, hlo, roofline, traffic
from tpu_train.preflight.compiler import Compiled, Placed, Refused
from tpu_train.preflight.traffic import Row, Traffic

if TYPE_CHECKING:
    from official.core.config_definitions import ExperimentConfig

    from tpu_train.preflight.lowering import Lowered

TRAINING, EXPORTED = "mixed_bfloat16", "float32"  # Keras's policies: of training on a TPU unless told; of an exported model
LARGEST = 12  # instructions that an answer names
Look = Callable[["Lowered"], None]
QUIET_S = 30.0  # between two lines of progress where they cannot overwrite each other


@dataclass(frozen=True, slots=True)
class Examined:
    """What is known of a step.

    Attributes:
      step: "train" or "predict".
      lowered: what the compiler was given.
      outcome: its answer.
      traffic: of HBM, None if it does not compile.
      bound: the roofline of one replica, None if it does not compile.
    """

    step: str
    lowered: "Lowered"
    outcome: Compiled | Refused
    traffic: Traffic | None
    bound: roofline.Step | None

    @property
    def compiles(self) -> bool:
        """Whether it runs on the chip, and fits."""
        return isinstance(self.outcome, Compiled)

    @property
    def hbm_bytes(self) -> int:
        """Of one device: what the step takes, or would need if it does not fit; 0 if unknown."""
        return self.outcome.hbm_bytes if isinstance(self.outcome, Compiled) else self.outcome.needed_bytes

    def as_dict(self) -> dict[str, Any]:
        """For JSON; sizes in bytes of one device, work of one device's step."""
        found: dict[str, Any] = {
            "compiles": self.compiles,
            "batch_per_replica": self.lowered.batch,
            "parameters": self.lowered.parameters,
            "inputs": {name: {"shape": shape, "dtype": dtype} for name, (shape, dtype) in self.lowered.inputs.items()},
            "hbm_bytes": self.hbm_bytes,
        }
        if isinstance(self.outcome, Refused):
            names = ("reason", "message", "op", "source", "needed_bytes", "capacity_bytes")
            return found | {name: getattr(self.outcome, name) for name in names}
        assert self.traffic is not None
        assert self.bound is not None
        sizes = ("argument_bytes", "output_bytes", "alias_bytes", "temporary_bytes", "code_bytes", "flops", "seconds", "cached")
        return found | {
            **{name: getattr(self.outcome, name) for name in sizes},
            "versions": dict(self.outcome.versions),
            "hbm_traffic_bytes": self.traffic.total_bytes,
            "hbm_traffic_bytes_without_padding": self.traffic.logical_bytes,
            "hbm_traffic_bytes_by_part": self.traffic.by_part(),
            "largest": [row_as_dict(row) for row in self.traffic.rows[:LARGEST]],
            "compute_s": self.bound.compute_s,
            "memory_s": self.bound.memory_s,
            "bound_s": self.bound.bound_s,
            "limit": self.bound.limit,
            "images_per_s_per_replica_at_most": self.bound.images_per_s,
        }


class Compiling(NamedTuple):
    """How to compile.

    Attributes:
      cache: folder of remembered answers.
      timeout_s: for one compile.
      progress: told what is being done, and for how many seconds.
    """

    cache: Path
    timeout_s: float
    progress: Callable[[str, float], None]


def row_as_dict(row: Row) -> dict[str, Any]:
    """What an instruction moves, for JSON."""
    return {"bytes": row.bytes, "opcode": row.opcode, "name": row.name, "op_name": row.op_name, "times": row.times}


def examine(
    config: "ExperimentConfig",
    slice_: Slice,
    step: str,
    how: Compiling,
    look: Look,
) -> Examined:
    """Lowers a step and compiles it for a chip of the slice.

    Args:
      config: of the experiment; its global batches are shared out among the replicas of the slice.
      slice_: what it is to run on.
      step: "train" or "predict", see `lowering.lower`.
      how: to compile.
      look: is given the step before it is compiled, which takes minutes.

    Raises:
      InputError: the configuration cannot be lowered, the compiler is not installed, or the time is over.
    """
    lowered = _lowered(config, slice_, step, how)
    look(lowered)
    outcome = compiler.compile(
        lowered.stablehlo,
        slice_.chip.topology,
        cache=how.cache,
        timeout_s=how.timeout_s,
        progress=lambda seconds: how.progress(f"{step}: compiling, {lowered.batch} images a replica", seconds),
        sources=lowered.sources,
    )
    if isinstance(outcome, Refused):
        return Examined(step, lowered, outcome, None, None)
    moved = traffic.measure(hlo.parse(outcome.hlo))
    bound = roofline.step(flops=outcome.flops, traffic_bytes=moved.total_bytes, batch=lowered.batch, chip=slice_.chip)
    return Examined(step, lowered, outcome, moved, bound)


def place(config: "ExperimentConfig", slice_: Slice, how: Compiling) -> Placed | Refused:
    """Lowers the training step and asks whether it fits into a chip of the slice, see `compiler.place`.

    Raises:
      InputError: as `examine`.
    """
    lowered = _lowered(config, slice_, "train", how)
    return compiler.place(
        lowered.stablehlo,
        slice_.chip.topology,
        cache=how.cache,
        timeout_s=how.timeout_s,
        progress=lambda seconds: how.progress(f"train: laying out memory, {lowered.batch} images a replica", seconds),
    )


def _lowered(config: "ExperimentConfig", slice_: Slice, step: str, how: Compiling) -> "Lowered":
    from tpu_train.preflight import lowering  # TensorFlow

    how.progress(f"{step}: lowering", 0.0)
    compute_type = precision.policy(config, TRAINING) if step == "train" else EXPORTED
    return lowering.lower_apart(config, replicas=slice_.replicas, step=step, compute_type=compute_type)


class Progress:
    """Says on stderr what is being done: one line that renews itself at a terminal, now and then a line elsewhere."""

    def __init__(self) -> None:
        self._said = self._task = ""
        self._at = 0.0

    def __call__(self, task: str, seconds: float) -> None:
        """Says what is being done, and for how long."""
        line = f"preflight: {task}" + (f", {seconds:.0f} s" if seconds else "")
        if sys.stderr.isatty():
            print(f"\r{line:<{len(self._said)}}", end="", file=sys.stderr, flush=True)
            self._said = line
        elif task != self._task or time.monotonic() - self._at >= QUIET_S:
            print(line, file=sys.stderr, flush=True)
            self._at = time.monotonic()
        self._task = task

    def end(self) -> None:
        """Makes room for what is said next."""
        if self._said:
            print(f"\r{'':<{len(self._said)}}\r", end="", file=sys.stderr, flush=True)
            self._said = ""
