"""The seal study's table: what a YOLO costs and how good it gets as its images grow, for each backbone and head.

    python benchmarks/size_sweep.py --output runs/sizes --num_classes 1 --no-train
    python benchmarks/size_sweep.py --output runs/sizes --dataset survey/ --steps 2000 --seeds 0,1,2
    python benchmarks/size_sweep.py --output runs/sizes --shard "--mosaics=survey/*.png --annotations=survey/*.xml"

A cell is a size, a backbone and a head. Its halves:

    compile  `rookery preflight` of the training step of --batch_size images on one chip: HBM, and images/s at most. Without a
             dataset, so that a compile serves all of them; --host_memory also measures the step on this machine's CPU.
    train    `rookery train` for --steps and its last validation, for each of --seeds. Whole mosaics are judged, each object once,
             so that sizes and ways of cutting can be compared.

The images of a size come from --dataset, whose patches are at least that large: training sees crops of the size, validation the
whole patches, the same for all sizes. Or from one dataset a size, as in the study, whose networks never see more than the size:
"{size}" in --dataset stands for it, and --shard cuts them here with those flags of `rookery shard`. Mosaics should be larger than
the largest size: a smaller one gets a black frame, and then a larger size shows more of that and nothing else.

Every half is kept in OUTPUT/cells.json when it is done, with what it was made with: the same command goes on after a stop, and
one with other settings makes again what they change. OUTPUT gets sizes.csv, sizes.md, precision.png and memory.png after every
half: of what is asked for, and of all other cells that earlier commands made with these settings.
"""

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import compiled_step
import measure
import size_cells
import size_table
from kept import Kept
from size_cells import ACCELERATOR, Cell

sys.path.insert(0, str(measure.ROOT))  # a child is started by its path, not as a module

from survey import dataset, files
from survey.errors import InputError

SIZES = (416, 512, 608, 800)  # the study's
BACKBONES = ("original", "dense")
HEADS = ("yolo3", "yolo3_dense_2", "yolo3_dense_1")


@dataclass(frozen=True, slots=True)
class Job:
    """One half of a cell.

    Attributes:
      cell: whose.
      half: "compile", "host" or "train", with the seed.
      settings: it is made again when they change.
      command: for people, and for --dry_run.
      work: does it, gives what to keep.
    """

    cell: Cell
    half: str
    settings: dict[str, Any]
    command: str
    work: Callable[[], dict[str, Any]]


def main(argv: list[str] | None = None) -> int:
    """Does what is not done; returns 1 if something failed."""
    options = arguments().parse_args(argv)
    try:
        check(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    kept = Kept(options.output / "cells.json")
    todo = [job for job in jobs(options) if not kept.done(job.cell.name, job.half, job.settings)]
    if options.dry_run:
        for job in todo:
            print(job.command)
        return 0
    failed = 0
    for number, job in enumerate(todo, start=1):
        print(f"size_sweep: {number} of {len(todo)}: {job.cell.name}, {job.half}", flush=True)
        try:
            kept.keep(job.cell.name, job.half, job.settings, job.work())
        except (RuntimeError, InputError) as error:  # one cell that cannot be says nothing of the others
            print(f"size_sweep: {job.cell.name}, {job.half} failed: {error}", file=sys.stderr, flush=True)
            failed += 1
        write(options, kept)
    write(options, kept)
    print((options.output / "sizes.md").read_text())
    print(f"size_sweep: {failed} of {len(todo)} failed" if failed else f"size_sweep: open {options.output}/sizes.md")
    return 1 if failed else 0


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="size_sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the results; one that is there is completed")
    parser.add_argument("--sizes", type=numbers, default=SIZES, help="sides of the images in px (default 416,512,608,800)")
    parser.add_argument("--backbones", type=names, default=BACKBONES, help="of --model yolo (default original,dense)")
    parser.add_argument("--heads", type=names, default=HEADS, help="of --model yolo (default all three)")
    parser.add_argument("--batch_size", type=int, default=8, help="images a step, of every cell (default 8)")
    parser.add_argument("--train_batch_size", type=int, help="of the train half (default: --batch_size)")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="the compile half")
    parser.add_argument("--train", action=argparse.BooleanOptionalAction, default=True, help="the train half")
    parser.add_argument("--host_memory", action="store_true", help="also measure each step's memory on this machine's CPU")
    parser.add_argument("--num_classes", type=int, help="of the compiled step (default: the dataset's)")
    parser.add_argument("--cache", help="folder of compiles already done, as of `rookery preflight`")
    parser.add_argument("--dataset", help='written by `rookery shard`; "{size}" in it stands for the size')
    parser.add_argument("--shard", help="flags of `rookery shard` to cut one dataset a size with, without --patch_size")
    parser.add_argument("--steps", type=int, default=1000, help="of training (default 1000)")
    parser.add_argument("--seeds", type=numbers, default=(0,), help="of training; several give mean and spread (default 0)")
    parser.add_argument("--init", default="scratch", help="as of `rookery train` (default scratch)")
    parser.add_argument("--flags", default="", help="more flags of `rookery train`, in one string, for both halves")
    parser.add_argument("--train_flags", default="", help="and for the train half only, such as --learning_rate=0.0005")
    parser.add_argument("--dry_run", action="store_true", help="print the commands that are left to do, and do nothing")
    return parser


def numbers(text: str) -> tuple[int, ...]:
    """A list of numbers, ascending."""
    return tuple(sorted({int(part) for part in text.split(",")}))


def names(text: str) -> tuple[str, ...]:
    """A list of names, in their order."""
    return tuple(dict.fromkeys(text.split(",")))


def check(options: argparse.Namespace) -> None:
    """Refuses before any work starts what would fail hours later.

    Raises:
      InputError: something is missing, or a dataset does not suit the sizes.
    """
    from tpu_train.models import yolo_networks

    for size, backbone, head in itertools.product(options.sizes, options.backbones, options.heads):
        default = yolo_networks.BACKBONES[backbone].default_version if backbone in yolo_networks.BACKBONES else yolo_networks.V3
        yolo_networks.check(backbone, head, default, image_sizes={f"--sizes={size}": size})
    for flag in ("batch_size", "train_batch_size", "num_classes", "steps"):
        if (value := getattr(options, flag)) is not None and value < 1:
            raise InputError(f"--{flag}={value}: must be at least 1")
    if options.dataset and options.shard:
        raise InputError("--dataset and --shard: one of them says where the images come from: drop the other")
    if options.train and not (options.dataset or options.shard):
        raise InputError("--dataset is missing: give it or --shard to train, or --no-train to compile only")
    if options.dataset:
        for size in options.sizes:
            folder = size_cells.folder_of(options, size)
            data = dataset.read(folder)
            if data.patch_size < size:
                raise InputError(
                    f"--sizes={size}: {folder} has patches of {data.patch_size} px: shard again with "
                    f"--patch_size {max(options.sizes)}, or let --shard cut a dataset for each size"
                )
            options.num_classes = options.num_classes or len(data.classes)
    if (options.compile or options.host_memory) and not options.num_classes:
        raise InputError("--num_classes is missing: give it, or --dataset, which knows it, or --no-compile")


def jobs(options: argparse.Namespace) -> list[Job]:
    """What is asked for: all compiles, then all trainings, seed after seed."""
    wanted = {"compile": options.compile, "host": options.host_memory, "train": options.train}
    return [job for job in halves(options, asked(options)) if wanted[job.half.split()[0]]]


def asked(options: argparse.Namespace) -> list[Cell]:
    """The cells of this command."""
    return [Cell(*each) for each in itertools.product(options.sizes, options.backbones, options.heads)]


def halves(options: argparse.Namespace, cells: Sequence[Cell]) -> Iterator[Job]:
    """All that could be done of cells with these settings, asked for or not: what is already there belongs into the table."""
    common = {"batch_size": options.batch_size, "init": options.init, "flags": options.flags}
    for cell in cells if options.num_classes else ():
        step = {**common, "num_classes": options.num_classes}
        command = size_cells.preflight(cell, options)
        yield Job(
            cell, "compile", {**step, "accelerator": ACCELERATOR}, shlex.join(command), lambda c=command: compiled_step.ask(c)
        )
        said = f"# {cell.name}: two steps on this machine's CPU, as --mem_eval of rookery train"
        yield Job(cell, "host", step, said, lambda c=cell: apart(_host, size_cells.planned(c, options)))
    for seed, cell in itertools.product(options.seeds if options.dataset or options.shard else (), cells):
        said = shlex.join(size_cells.training(cell, options, seed))
        if options.shard:
            said = f"{shlex.join(size_cells.sharding(options, cell.size))} && {said}"
        flags = shlex.join(size_cells.training_flags(options))
        settings = {**common, "batch_size": size_cells.training_batch(options), "flags": flags, "steps": options.steps}
        settings["dataset"] = size_cells.images(options, cell.size)
        yield Job(cell, f"train {seed}", settings, said, lambda c=cell, s=seed: trained(c, options, s))


def trained(cell: Cell, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The validation after the last step.

    Raises:
      RuntimeError: a command failed.
    """
    if options.shard:
        run(size_cells.sharding(options, cell.size))  # does nothing where it is done
    run(size_cells.training(cell, options, seed))
    found = json.loads((size_cells.run_folder(cell, options, seed) / "history.json").read_text())["validations"][-1]
    assert found["step"] == options.steps, "the run stopped early"
    data = dataset.read(size_cells.folder_of(options, cell.size))
    flags = [f"--backbone={cell.backbone}", f"--head={cell.head}", f"--num_classes={len(data.classes)}"]
    return {**found, "parameters": parameters((*flags, f"--image_size={cell.size}", *size_cells.training_flags(options)))}


def run(command: list[str]) -> None:
    """A verb.

    Raises:
      RuntimeError: it failed; with the end of what it said.
    """
    line = [sys.executable, "-m", *command]
    done = subprocess.run(line, cwd=measure.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} ended with {done.returncode}:\n{done.stdout[-3000:]}")


@functools.cache
def parameters(flags: tuple[str, ...]) -> int:
    """Numbers in a model, trained or not."""
    return int(apart(_parameters, ["--model=yolo", "--init=scratch", *flags])["parameters"])


def apart(function: Callable[[list[str]], dict[str, Any]], flags: list[str]) -> dict[str, Any]:
    """Calls a function in a process of its own, whose TensorFlow goes with it."""
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, flags).result()


def _configured(flags: list[str]) -> Any:
    from survey.flags import parse
    from tpu_train import configure, plan
    from tpu_train.options import Options

    options, _ = parse(Options, ["--dataset=", "--model_dir=", *flags], prog="rookery train")
    return configure.experiment(options, plan.without_dataset(options))


def _parameters(flags: list[str]) -> dict[str, Any]:
    from official.core import task_factory

    return {"parameters": task_factory.get_task(_configured(flags).task).build_model().count_params()}


def _host(flags: list[str]) -> dict[str, Any]:
    from tpu_train import memory

    found = memory.host(_configured(flags))
    return {"host_bytes": found.step_bytes, "tensorflow_bytes": found.tensorflow_bytes}


def write(options: argparse.Namespace, kept: Kept) -> None:
    """The table in both forms, and the plots, of what is done so far."""
    cells = tabled(options, kept)
    every = list(halves(options, cells))
    rows = [row([job for job in every if job.cell == cell], cell, kept, options) for cell in cells]
    done = (job for job in every if job.half == "compile" and kept.done(job.cell.name, job.half, job.settings))
    compiles = [kept.of(job.cell.name)[job.half] for job in done]
    files.make_folder(str(options.output))
    files.write(str(options.output / "sizes.csv"), size_table.as_csv(rows))
    files.write(str(options.output / "sizes.md"), size_table.markdown(rows, note(options, compiles, rows)).encode())
    batches = {size_table.MEMORY: options.batch_size, size_table.PRECISION: size_cells.training_batch(options)}
    for name, plot in size_table.plots(rows, batches).items():
        files.write(str(options.output / name), plot)


def tabled(options: argparse.Namespace, kept: Kept) -> list[Cell]:
    """The cells of this command and what earlier ones made with these settings, in one order whichever came first."""
    cells = asked(options)
    cells += [cell for cell in map(Cell.named, kept.subjects()) if cell not in cells and made(options, cell, kept)]
    backbones = list(dict.fromkeys([*BACKBONES, *(cell.backbone for cell in cells)]))
    return sorted(cells, key=lambda cell: (cell.size, backbones.index(cell.backbone), HEADS.index(cell.head)))


def made(options: argparse.Namespace, cell: Cell, kept: Kept) -> bool:
    """Whether something of a cell was made with these settings."""
    try:
        return any(kept.done(cell.name, job.half, job.settings) for job in halves(options, [cell]))
    except OSError:  # its dataset is no longer there: with what it was made cannot be said
        return False


def row(mine: Sequence[Job], cell: Cell, kept: Kept, options: argparse.Namespace) -> dict[str, Any]:
    """A line of the table; what is not known is absent. Only halves made with these settings count."""
    found: dict[str, Any] = {"size_px": cell.size, "backbone": cell.backbone, "head": cell.head, "batch_size": options.batch_size}
    runs = []
    for job in mine:
        if kept.done(cell.name, job.half, job.settings):
            half = kept.of(cell.name)[job.half]
            found |= {name: half[name] for name in size_table.HEADER if name in half and name not in size_table.METRICS}
            runs += [half] if job.half.startswith("train") else []
    if runs:
        found |= {"steps": options.steps, "seeds": len(runs)}
        for metric in size_table.METRICS:
            values = [each[metric] for each in runs if metric in each]  # a metric that is not finite is not kept
            if values:
                found[metric] = mean(values)
            if len(values) > 1:
                found[f"{metric}_sd"] = stdev(values)
    return found


def note(options: argparse.Namespace, compiles: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> str:
    """What the numbers of the table are, and with what compiler those of its compiles were found."""
    judged = any("seeds" in each for each in rows)
    said = [f"HBM and images/s: `rookery preflight`, one chip of {ACCELERATOR}, {options.batch_size} images; not a forecast"]
    said[0] += f" ({compiled_step.made(compiles)})." if compiles else "."
    if any("host_bytes" in each for each in rows):
        said.append("CPU memory: measured, above what TensorFlow itself takes.")
    if judged:
        seeds = f"seed{'s' * (len(options.seeds) > 1)} {', '.join(map(str, options.seeds))}"
        images = f"`rookery shard {options.shard}`" if options.shard else options.dataset
        step = f"{options.steps} steps of {size_cells.training_batch(options)} images"
        said.append(f"AP and F1: {step}, --init {options.init}, {seeds}; {images}.")
    if options.flags:
        said.append(f"With {options.flags}.")
    if judged and options.train_flags:
        said.append(f"In training with {options.train_flags}.")
    return f"{' '.join(said)}\n\n{measure.machine('tensorflow', 'tf-models-official')}"


if __name__ == "__main__":
    sys.exit(main())
