"""The questions of one command: steps examined one after another, and what is found said as soon as it is found."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from survey.accelerators import Slice
from survey.errors import InputError
from tpu_train.options import Options
from tpu_train.plan import Plan
from tpu_train.preflight import examine, fit, lint
from tpu_train.preflight.compiler import Placed
from tpu_train.preflight.examine import Examined

if TYPE_CHECKING:
    from official.core.config_definitions import ExperimentConfig

    from tpu_train.preflight.lowering import Lowered


def default_cache() -> Path:
    """Where compiles are remembered if nobody says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rookery" / "preflight"


class Inquiry:
    """Asks for one slice.

    Args:
      where: the slice.
      cache: folder of remembered answers.
      timeout_s: for one compile.

    Attributes:
      slice: as given.
      findings: all that was said so far.
    """

    def __init__(self, where: Slice, *, cache: Path, timeout_s: float) -> None:
        self.slice = where
        self.findings: list[lint.Finding] = []
        self._progress = examine.Progress()
        self._how = examine.Compiling(cache, timeout_s, self._progress)

    def say(self, findings: Sequence[lint.Finding]) -> None:
        """Says what was found, and keeps it."""
        self._progress.end()
        for finding in findings:
            print(f"{finding.severity}: {finding.line()}", flush=True)
        self.findings.extend(findings)

    def configured(self, training: Options, plan: Plan) -> "ExperimentConfig":
        """The experiment of a run.

        Raises:
          InputError: its batch does not divide over the replicas of the slice, or see `configure.experiment`.
        """
        # TensorFlow takes seconds to import: only when the command line is known to be right.
        from tpu_train import configure, strategy

        strategy.check_batch("--batch_size", training.batch_size, self.slice.replicas)
        return configure.experiment(training, plan)

    def ask(self, training: Options, plan: Plan, step: str, *, records: Sequence[int] = ()) -> Examined:
        """Lowers a step, says what lint finds in it, and compiles it.

        Args:
          training: options of the run.
          plan: of the run.
          step: "train" or "predict".
          records: in each file of the training split, empty where there is no dataset yet.
        """

        def look(lowered: "Lowered") -> None:
            if step == "train":
                batch_size = lowered.batch * self.slice.replicas
                found = lint.check(lowered.operations, hosts=self.slice.hosts, batch_size=batch_size, records=records)
            else:
                found = lint.check_step(lowered.operations)
            self.say([finding for finding in found if finding not in self.findings])

        return self._examined(self.configured(training, plan), step, look)

    def largest_batch(self, training: Options, plan: Plan, most: int) -> fit.Largest:
        """The largest batch of a replica with which the training step fits, searched up to `most` images.

        Raises:
          InputError: the step does not compile for another reason.
        """

        def placed(batch: int) -> fit.Tried:
            larger = dataclasses.replace(training, batch_size=batch * self.slice.replicas)
            outcome = examine.place(self.configured(larger, plan), self.slice, self._how)
            self._progress.end()
            if isinstance(outcome, Placed):
                return fit.Tried(batch, outcome.placed_bytes, True)
            if outcome.reason != "memory":
                raise InputError(f"--max_batch: the training step does not compile: {outcome.message}")
            return fit.Tried(batch, outcome.needed_bytes, False)

        start = max(1, training.batch_size // self.slice.replicas)
        return fit.largest(placed, start=start, capacity_bytes=self.slice.chip.hbm_bytes, most=most)

    def _examined(self, config: "ExperimentConfig", step: str, look: examine.Look) -> Examined:
        found = examine.examine(config, self.slice, step, self._how, look)
        self._progress.end()
        return found
