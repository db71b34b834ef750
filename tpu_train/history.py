"""What a run remembers beyond its checkpoints: its validations and its incidents. One small JSON file, written in one step."""

import math
import os
from typing import Any

from survey import files
from tpu_train.guard import Incident

FILE = "history.json"  # in the model folder


class History:
    """The validations and incidents of a run, in the order of their steps.

    Args:
      model_dir: the run's folder, local or gs://.
    """

    def __init__(self, model_dir: str) -> None:
        self._path = os.path.join(model_dir, FILE)
        found = files.read_json(self._path, "the history of a training run") if files.exists(self._path) else {}
        self.validations: list[dict[str, float]] = found.get("validations", [])
        # A loss may be NaN, which JSON cannot say: it is kept as text.
        self.incidents = [
            Incident(each["step"], float(each["loss"]), tuple(each["patch_ids"])) for each in found.get("incidents", [])
        ]

    def rewind(self, step: int) -> None:
        """Forgets validations after a step: the run goes on from there and will see them again."""
        self.validations = [each for each in self.validations if each["step"] <= step]

    def add_validation(self, step: int, metrics: dict[str, float]) -> None:
        """Remembers a validation; of its metrics those that are finite, which is all that JSON can say."""
        self.rewind(step - 1)
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self.validations.append({"step": step, **finite})
        self._write()

    def add_incident(self, incident: Incident) -> None:
        """Remembers an incident."""
        self.incidents.append(incident)
        self._write()

    def validated(self, step: int) -> bool:
        """Whether there has been a validation at a step."""
        return any(each["step"] == step for each in self.validations)

    def best(self, metric: str, comparison: str) -> tuple[int, float, int] | None:
        """The best validation so far, the first of equals.

        Args:
          metric: that decides.
          comparison: "higher" or "lower" is better.

        Returns:
          Its step, its value, and the number of validations since; None before the first.
        """
        values = [(each["step"], each[metric]) for each in self.validations if metric in each]
        if not values:
            return None
        choose: Any = max if comparison == "higher" else min
        index = values.index(choose(values, key=lambda pair: pair[1]))
        return int(values[index][0]), values[index][1], len(values) - 1 - index

    def _write(self) -> None:
        incidents = [{"step": each.step, "loss": str(each.loss), "patch_ids": list(each.patch_ids)} for each in self.incidents]
        files.write_json(self._path, {"validations": self.validations, "incidents": incidents})
