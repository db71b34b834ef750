"""A cell of `size_sweep.py`: a network at a size, its commands, and where its images and its training lie."""

import argparse
import hashlib
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import compiled_step
import measure

sys.path.insert(0, str(measure.ROOT))

from survey import dataset

ACCELERATOR = "v5litepod-1"


@dataclass(frozen=True, slots=True)
class Cell:
    """One network at one size."""

    size: int
    backbone: str
    head: str

    @property
    def name(self) -> str:
        """Under which it is kept."""
        return f"{self.size}_{self.backbone}_{self.head}"

    @classmethod
    def named(cls, name: str) -> "Cell":
        """The cell of a `name`."""
        size, backbone, head = name.split("_", 2)
        return cls(int(size), backbone, head)

    @property
    def network(self) -> list[str]:
        """Flags of `rookery train` and `rookery preflight`."""
        return ["--model=yolo", f"--backbone={self.backbone}", f"--head={self.head}", f"--image_size={self.size}"]


def folder_of(options: argparse.Namespace, size: int) -> str:
    """The dataset of a size."""
    if options.shard:
        return str((options.output / "datasets" / f"{size}_{_digest(options.shard)}").absolute())
    return os.path.abspath(options.dataset.replace("{size}", str(size)))


def images(options: argparse.Namespace, size: int) -> str:
    """What a dataset of that size is told from others by: how it is cut, or what is in it."""
    return options.shard or dataset.digest(folder_of(options, size))


def planned(cell: Cell, options: argparse.Namespace) -> list[str]:
    """Flags of a step for which there need be no dataset."""
    sizes = [f"--batch_size={options.batch_size}", f"--num_classes={options.num_classes}", f"--init={options.init}"]
    return [*cell.network, *sizes, *shlex.split(options.flags)]


def preflight(cell: Cell, options: argparse.Namespace) -> list[str]:
    """The command of a compile half."""
    return compiled_step.command([f"--accelerator={ACCELERATOR}", *planned(cell, options)], options.cache)


def sharding(options: argparse.Namespace, size: int) -> list[str]:
    """The command that cuts the dataset of a size."""
    return ["rookery", "shard", *shlex.split(options.shard), f"--patch_size={size}", f"--output={folder_of(options, size)}"]


def training(cell: Cell, options: argparse.Namespace, seed: int) -> list[str]:
    """The command of a train half."""
    where = [f"--dataset={folder_of(options, cell.size)}", f"--model_dir={run_folder(cell, options, seed)}"]
    steps = [f"--steps={options.steps}", f"--validate_every={options.steps}", f"--batch_size={training_batch(options)}"]
    more = [f"--init={options.init}", f"--seed={seed}", *training_flags(options)]
    return ["rookery", "train", *where, *cell.network, *steps, *more]


def training_batch(options: argparse.Namespace) -> int:
    """Images of a step of the train half."""
    batch: int = options.train_batch_size or options.batch_size
    return batch


def training_flags(options: argparse.Namespace) -> list[str]:
    """What else a train half is given; the last one counts."""
    return [*shlex.split(options.flags), *shlex.split(options.train_flags)]


def run_folder(cell: Cell, options: argparse.Namespace, seed: int) -> Path:
    """Of a training; with another number of steps, another batch, other flags or other images it is another run."""
    made_with = [options.init, str(training_batch(options)), *training_flags(options), images(options, cell.size)]
    name = f"{cell.name}_steps{options.steps}_seed{seed}_{_digest(shlex.join(made_with))}"
    path: Path = options.output.absolute() / "runs" / name
    return path


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
