"""What a training run says of itself: the progress line, validations, and TensorBoard's scalars."""

import math
import os
import time
from collections.abc import Mapping
from typing import Any

import orbit
import tensorflow as tf

from survey.progress import Progress

SUMMARIES = "summaries"  # in the model folder
LOSSES = ("cls_loss", "box_loss", "object_loss", "total_loss")  # on the progress line, where the task has them
SHOWN = ("ap50", "ap", "f1", "score_threshold", "count", "true_count")
# The input is measured for so long, or so many batches, whichever is over first.
INPUT_SECONDS = 2.0
INPUT_BATCHES = 64
# A step that waits for its input runs nearly as fast as the input alone, which then has all cores to itself.
HOST_BOUND = 0.8


def scalars(outputs: Mapping[str, Any]) -> dict[str, float]:
    """What is a single number in the outputs of a trainer, by name."""
    values = {name: orbit.utils.get_value(value) for name, value in outputs.items()}
    return {
        name: float(value) for name, value in values.items() if getattr(value, "size", 1) == 1 and not isinstance(value, dict)
    }


def input_rate(batches: Any, batch_size: int) -> float:
    """Images per second that the input yields when nothing else runs.

    Args:
      batches: a dataset, as the trainer gets it.
      batch_size: images in a batch, over all replicas.

    Returns:
      The rate from the end of the first batch on, which fills the shuffle window; 0 where there is no second one.
    """
    iterator = iter(batches)
    count, begun = -1, 0.0
    while count < INPUT_BATCHES and (count < 1 or time.monotonic() - begun < INPUT_SECONDS):
        try:
            next(iterator)
        except StopIteration:
            break
        count += 1
        if count == 0:
            begun = time.monotonic()
    return count * batch_size / (time.monotonic() - begun) if count > 0 else 0.0


def bound(step_rate: float, alone: float) -> str:
    """Who keeps whom waiting.

    >>> bound(40.0, 612.0)
    'device-bound (input alone: 612 images/s)'
    >>> bound(40.0, 42.0)
    'host-bound (input alone: 42 images/s)'
    """
    return f"{'host' if step_rate >= HOST_BOUND * alone else 'device'}-bound (input alone: {alone:.0f} images/s)"


class Reports:
    """Shows and writes down how a run goes.

    Args:
      model_dir: the run's folder.
      steps: of the whole run.
      batch_size: images per step, over all replicas.
    """

    def __init__(self, model_dir: str, steps: int, batch_size: int) -> None:
        self._steps, self._batch_size = steps, batch_size
        self._writers = {
            name: tf.summary.create_file_writer(os.path.join(model_dir, SUMMARIES, name)) for name in ("train", "validation")
        }
        self._progress: Progress | None = None
        self._done_steps, self._seconds = 0, 0.0
        self.input_alone = 0.0

    def restart(self) -> None:
        """Counts rates anew: the run has gone back, or its inputs have changed."""
        self._progress = None

    def loop(self, step: int, steps: int, seconds: float, outputs: Mapping[str, Any]) -> None:
        """After an inner loop.

        Args:
          step: steps trained now.
          steps: in this loop.
          seconds: that it took.
          outputs: of the trainer.
        """
        values = scalars(outputs)
        note = [_losses(values)]
        if self._progress is None:
            # The first loop compiles the step: rates and the time left are counted from its end.
            self._progress = Progress("train", self._steps, "steps", start=step)
            self._done_steps, self._seconds = 0, 0.0
        else:
            self._done_steps, self._seconds = self._done_steps + steps, self._seconds + seconds
            values["images_per_second"] = steps * self._batch_size / seconds
            rate = self._done_steps * self._batch_size / self._seconds
            note.append(f"{rate:.1f} images/s")
            if self.input_alone:
                note.append(bound(rate, self.input_alone))
        self._progress.update(step, ", ".join(note))
        self._write("train", step, values)

    def validation(self, step: int, metrics: dict[str, float]) -> None:
        """After a validation."""
        if all(name in metrics for name in SHOWN):
            print(
                "validate: AP50 {ap50:.3f}, AP {ap:.3f}, F1 {f1:.3f} at score {score_threshold:.2f}, "
                "counted {count:.0f} of {true_count:.0f}".format(**metrics),
                flush=True,
            )
        else:
            print("validate: " + ", ".join(f"{name} {value:.3f}" for name, value in metrics.items()), flush=True)
        self._write("validation", step, metrics)

    def validation_writer(self) -> Any:
        """A context in which `tf.summary` writes beside the validations."""
        return self._writers["validation"].as_default()

    def close(self) -> None:
        """Writes what is left."""
        for writer in self._writers.values():
            writer.close()

    def _write(self, name: str, step: int, values: dict[str, float]) -> None:
        with self._writers[name].as_default():
            for tag, value in values.items():
                tf.summary.scalar(tag, value, step=step)
        self._writers[name].flush()


def _losses(values: dict[str, float]) -> str:
    shown = [name for name in LOSSES if name in values] or ["training_loss"]
    return "loss " + ", ".join(f"{name.removesuffix('_loss')} {values.get(name, math.nan):.3f}" for name in shown)
