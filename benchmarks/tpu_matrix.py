"""Every shipped experiment on every TPU that is rented: does its training step compile, what does it take, how fast can it be?

    python benchmarks/tpu_matrix.py [--experiments NAME,...] [--accelerators TYPE,...] [--output docs/tpu_matrix.md]

Runs `rookery preflight --max_batch` for each pair and writes the page after each. Compiles that are done are remembered, so
the same command goes on after a stop. On two cores a pair takes between 5 and 20 minutes; --no-search leaves the largest batch
out and takes a quarter of that.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import measure

BATCH = 8  # images of a chip
ACCELERATORS = ("v4-8", "v5litepod-8", "v5p-8", "v6e-8")
CHIPS = {"v4-8": 4, "v5litepod-8": 8, "v5p-8": 4, "v6e-8": 8}
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Experiment:
    """A configuration, and the sizes that it is for.

    Attributes:
      backbone: of its command.
      image_size: side of the training crops in pixels.
      patch_size: side of the patches in pixels.
      max_level: coarsest of the pyramid, as fitted to the boxes of the dataset that the configuration is for; None for a YOLO's.
      classes: without background.
      flags: further ones of its command.
    """

    backbone: str
    image_size: int
    patch_size: int
    max_level: int | None
    classes: int
    flags: tuple[str, ...] = ()


EXPERIMENTS = {
    "retinanet_lite0_cpu": Experiment("efficientnet_lite0", 256, 416, 5, 1),  # scripts/quickstart.sh
    "retinanet_lite0_bccd": Experiment("efficientnet_lite0", 448, 640, 6, 3),
    "retinanet_r50_tpu": Experiment("resnet50", 640, 640, 7, 8),
    "retinanet_spinenet49_tpu": Experiment("spinenet49", 640, 640, 7, 8),
    "yolo_lite0_bccd": Experiment("efficientnet_lite0", 416, 640, None, 3, ("--model=yolo", "--head=yolo3_dense_2")),
}
HEADER = ("experiment", "TPU", "fits", "HBM of a chip", "of", "largest batch", "step at least", "limit", "images/s/chip at most")
PAGE = """# The training steps on TPUs

The training step of every shipped experiment, compiled by the TPU's own compiler without a TPU; {batch} images a chip, bfloat16.
Bounds are what arithmetic and memory allow at their peak, not forecasts; the largest batch is one chip's, in steps of eight.
[preflight.md](preflight.md) explains each figure.

{table}

Sizes in pixels, crop of patch: {sizes}.

Written by `python benchmarks/tpu_matrix.py`; {machine}; {versions}; {day}.
"""


def main() -> None:
    """Compiles every pair and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", default=",".join(EXPERIMENTS))
    parser.add_argument("--accelerators", default=",".join(ACCELERATORS))
    parser.add_argument("--output", type=Path, default=measure.ROOT / "docs/tpu_matrix.md")
    parser.add_argument("--cache", help="folder of compiles already done, as of `rookery preflight`")
    parser.add_argument("--search", action=argparse.BooleanOptionalAction, default=True, help="the largest batch")
    options = parser.parse_args()
    rows: list[list[str]] = []
    versions = ""
    for name in options.experiments.split(","):
        for accelerator in options.accelerators.split(","):
            answers = preflight(name, accelerator, options)
            rows.append(row(name, answers))
            print(" | ".join(rows[-1]), flush=True)
            versions = versions or ", ".join(f"{k} {v}" for k, v in answers["steps"]["train"].get("versions", {}).items())
            options.output.write_text(page(rows, versions))


def preflight(name: str, accelerator: str, options: argparse.Namespace) -> dict[str, Any]:
    """The answers for a pair.

    Raises:
      RuntimeError: the command could not be carried out; with what it said.
    """
    what = EXPERIMENTS[name]
    flags = [
        f"--accelerator={accelerator}",
        f"--config=tpu_train/configs/{name}.yaml",
        f"--backbone={what.backbone}",
        "--init=scratch",
        f"--image_size={what.image_size}",
        f"--patch_size={what.patch_size}",
        *([f"--max_level={what.max_level}"] if what.max_level else []),
        f"--num_classes={what.classes}",
        f"--batch_size={BATCH * CHIPS[accelerator]}",
        *what.flags,
        *(["--max_batch"] if options.search else []),
    ]
    return ask(flags, options.cache)


def ask(flags: Sequence[str], cache: str | None) -> dict[str, Any]:
    """What `rookery preflight` answers of a training step.

    Args:
      flags: of the command.
      cache: folder of compiles already done; None for the command's own.

    Raises:
      RuntimeError: the command could not be carried out; with what it said.
    """
    with tempfile.TemporaryDirectory(prefix="rookery_matrix_") as folder:
        path = Path(folder, "answers.json")
        command = [sys.executable, "-m", "rookery", "preflight", *flags, "--step=train", f"--json={path}"]
        if cache:
            command.append(f"--cache={cache}")
        done = subprocess.run(command, cwd=measure.ROOT, stdout=subprocess.PIPE, text=True, check=False)
        if not path.exists():
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")
        answers: dict[str, Any] = json.loads(path.read_text())
        return answers


def row(name: str, answers: dict[str, Any]) -> list[str]:
    """A line of the table."""
    step, where = answers["steps"]["train"], answers["accelerator"]
    hbm = f"{step['hbm_bytes'] / GIB:.2f} GiB" if step["hbm_bytes"] else "?"
    line = [name, where["generation"], "yes" if step["compiles"] else f"no: {step['message']}", hbm]
    line.append(f"{where['hbm_bytes'] / GIB:.2f} GiB")
    found = answers["largest_batch_per_replica"]
    line.append("not searched" if found is None else largest(found))
    if not step["compiles"]:
        return [*line, "", "", ""]
    rate = step["images_per_s_per_replica_at_most"] * where["replicas"] / where["chips"]
    return [*line, f"{1e3 * step['bound_s']:.2f} ms", step["limit"], f"{rate:,.0f}"]


def largest(found: dict[str, Any]) -> str:
    """The largest batch that was seen to fit, and the smallest that was not."""
    return f"{found['batch']}" + (f" ({found['refused']} do not fit)" if found["refused"] else " or more")


def page(rows: list[list[str]], versions: str) -> str:
    """The page as Markdown."""
    sizes = ", ".join(f"{name} {what.image_size} of {what.patch_size}" for name, what in EXPERIMENTS.items())
    return PAGE.format(
        batch=BATCH,
        table=measure.table(list(HEADER), rows),
        sizes=sizes,
        machine=measure.machine("tensorflow", "tf-models-official"),
        versions=versions,
        day=date.today().isoformat(),
    )


if __name__ == "__main__":
    main()
