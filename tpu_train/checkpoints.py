"""Checkpoints one can rely on: every one is read back before older ones go, and a damaged one is passed over.

TensorFlow keeps a checksum of every tensor and of every block of the index, and its reader compares them. So a checkpoint is good
exactly when each of its tensors can be read.
"""

import json
import os
import re
import sys
from typing import Any

import orbit
import tensorflow as tf
from official.core import train_utils

from survey import files
from survey.errors import InputError

NAME = "ckpt"
KEPT = 2  # should a disk damage the last one later on, there is the one before
# The host that runs this program writes and reads all of a checkpoint, also where the variables live on a TPU's hosts.
_HERE = tf.train.CheckpointOptions(experimental_io_device="/job:localhost")


class DamagedError(Exception):
    """A checkpoint cannot be read to its end."""


def verify(path: str) -> None:
    """Reads every tensor of a checkpoint.

    Args:
      path: its prefix, local or gs://.

    Raises:
      DamagedError: a file is missing or shorter than it was, or a checksum is wrong.
    """
    try:
        reader = tf.train.load_checkpoint(path)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except (tf.errors.OpError, IndexError, ValueError, RuntimeError) as error:
        # The reader reports damage and a broken connection alike. Only the former lets the plain files be read.
        for file in _files(path):
            with tf.io.gfile.GFile(file, "rb") as opened:
                while opened.read(1 << 24):
                    pass
        raise DamagedError(str(error).splitlines()[0]) from error


def latest(folder: str, name: str = NAME) -> str | None:
    """Prefix of the newest good checkpoint in a folder; says on stderr which ones it passed over."""
    for step in sorted(_steps(folder, name), reverse=True):
        path = os.path.join(folder, f"{name}-{step}")
        try:
            verify(path)
        except DamagedError as error:
            print(f"train: checkpoint {path} is damaged or unfinished, passed over: {error}", file=sys.stderr, flush=True)
        else:
            return path
    return None


def step_of(path: str | None) -> int:
    """Steps trained in a checkpoint, from its name; 0 without one.

    >>> step_of("run/ckpt-40")
    40
    """
    return int(path.rsplit("-", 1)[1]) if path else 0


class Keeper:
    """Writes and restores the checkpoints of a folder.

    Args:
      checkpoint: what is saved.
      folder: local or gs://.
      name: of the checkpoints, before the step.
      kept: good ones that stay.
    """

    def __init__(self, checkpoint: tf.train.Checkpoint, folder: str, *, name: str = NAME, kept: int = KEPT) -> None:
        self._checkpoint, self._folder, self._name, self._kept = checkpoint, folder, name, kept
        self._good: list[str] = []

    def restore(self, path: str) -> None:
        """Restores a good checkpoint of the folder; all others, newer ones too, will go when the next one is saved."""
        self._checkpoint.restore(path, options=_HERE)
        self._good = [path]

    def save(self, step: int) -> str:
        """Writes a checkpoint, reads it back, and only then removes older ones and whatever is damaged.

        Raises:
          InputError: what was written cannot be read back; the older checkpoints are still there.
        """
        path = os.path.join(self._folder, f"{self._name}-{step}")
        if path in self._good:
            return path
        self._checkpoint.save_counter.assign_add(1)  # as `Checkpoint.save` would, which numbers by it; `restore` looks for it
        self._checkpoint.write(path, options=_HERE)
        try:
            verify(path)
        except DamagedError as error:
            older = f"{self._good[-1]} is still good" if self._good else "there is no older one"
            raise InputError(
                f"--model_dir: checkpoint {path} was written but cannot be read back ({error}); {older}: check the disk and its "
                "free space, then run the same command again"
            ) from error
        self._good = [*self._good, path][-self._kept :]
        # The file by which `tf.train.latest_checkpoint` finds a checkpoint, a CheckpointState in protobuf's text form.
        names = [os.path.basename(good) for good in self._good]
        text = [f'model_checkpoint_path: "{names[-1]}"', *(f'all_model_checkpoint_paths: "{name}"' for name in names)]
        files.write(os.path.join(self._folder, "checkpoint"), "".join(f"{line}\n" for line in text).encode())
        for other in _steps(self._folder, self._name):
            prefix = os.path.join(self._folder, f"{self._name}-{other}")
            if prefix not in self._good:
                _remove(prefix)
        return path


class BestExporter(train_utils.BestCheckpointExporter):
    """Model Garden's, killed at any moment: the checkpoint comes first, verified, and then its record, in one step.

    Model Garden writes the record first; killed between the two, it would praise a checkpoint that is not there.
    """

    def maybe_export_checkpoint(
        self, checkpoint: tf.train.Checkpoint, eval_logs: dict[str, Any], global_step: int, write_logs: bool = True
    ) -> bool:
        """Saves a checkpoint and its record if it is the best so far; says whether it is."""
        if self.best_ckpt_logs is not None and not self._new_metric_is_better(self.best_ckpt_logs, eval_logs):
            return False
        Keeper(checkpoint, self._export_dir, name=train_utils.BEST_CHECKPOINT_NAME, kept=1).save(int(global_step))
        self._best_ckpt_logs = eval_logs
        if write_logs:
            self.export_best_eval_metric(eval_logs, global_step)
        return True

    def export_best_eval_metric(self, eval_logs: dict[str, Any], global_step: int) -> None:
        """Writes the record, in Model Garden's form."""
        values = {name: orbit.utils.get_value(value) for name, value in eval_logs.items()}
        record = {name: float(value) for name, value in values.items() if getattr(value, "size", 1) == 1}
        record["best_ckpt_global_step"] = float(global_step)
        files.write(self.best_ckpt_logs_path, (json.dumps(record, indent=4) + "\n").encode())


def best_exporter(config: Any, model_dir: str) -> BestExporter | None:
    """The exporter that a trainer's configuration asks for."""
    trainer = config.trainer
    if not (trainer.best_checkpoint_export_subdir and trainer.best_checkpoint_eval_metric):
        return None
    return BestExporter(
        os.path.join(model_dir, trainer.best_checkpoint_export_subdir),
        trainer.best_checkpoint_eval_metric,
        trainer.best_checkpoint_metric_comp,
    )


def _names(folder: str) -> list[str]:
    return [name.rstrip("/") for name in tf.io.gfile.listdir(folder)] if tf.io.gfile.exists(folder) else []


def _steps(folder: str, name: str) -> set[int]:
    """Steps of all checkpoints in a folder, of damaged and unfinished ones too."""
    found = (re.match(rf"{re.escape(name)}-(\d+)[._]", file) for file in _names(folder))
    return {int(match[1]) for match in found if match}


def _files(path: str) -> list[str]:
    """The files of a checkpoint, finished or not, without what it had not put in its place yet."""
    folder, prefix = os.path.split(path)
    return [os.path.join(folder, name) for name in _names(folder) if name.startswith(f"{prefix}.")]


def _remove(path: str) -> None:
    """Removes the files of a checkpoint, its index first: what is left of it is then plainly unfinished."""
    folder, prefix = os.path.split(path)
    for file in sorted(_files(path), key=lambda file: not file.endswith(".index")):
        tf.io.gfile.remove(file)
    if f"{prefix}_temp" in _names(folder):
        tf.io.gfile.rmtree(f"{path}_temp")
