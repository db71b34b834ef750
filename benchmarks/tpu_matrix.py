"""Every shipped experiment on every TPU that is rented: does its training step compile, what does it take, how fast can it be?

    python benchmarks/tpu_matrix.py [--experiments NAME,...] [--accelerators TYPE,...] [--output docs/tpu_matrix.md]

Runs `rookery preflight --max_batch` for each pair that is not yet in the file of answers beside the page, a JSON, and writes both
after each: the same command goes on after a stop, and once the step has changed a new file of answers is due (--again). On two
cores a pair takes between 3 and 20 minutes, most of them for the largest batch; --no-search leaves it out.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import compiled_step
import measure
from kept import Kept

sys.path.insert(0, str(measure.ROOT))

from tpu_train.preflight import fit

BATCH = 8  # images of a chip
ACCELERATORS = ("v4-8", "v5litepod-8", "v5p-8", "v6e-8")
CHIPS = {"v4-8": 4, "v5litepod-8": 8, "v5p-8": 4, "v6e-8": 8}
PART = "train"  # of the answers


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
Bounds are what arithmetic and memory allow at their peak, not forecasts; the largest batch is one chip's, in steps of eight, the
largest whose memory the compiler can lay out.
[preflight.md](preflight.md) explains each figure.

{table}

Sizes in pixels, crop of patch: {sizes}.

{done} of {all} pairs, of {searched} with the largest batch. Written by `python benchmarks/tpu_matrix.py`; {made}.
"""


def main() -> None:
    """Compiles every pair that is not known and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", default=",".join(EXPERIMENTS))
    parser.add_argument("--accelerators", default=",".join(ACCELERATORS))
    parser.add_argument("--output", type=Path, default=measure.ROOT / "docs/tpu_matrix.md")
    parser.add_argument("--cache", help="folder of compiles already done, as of `rookery preflight`")
    parser.add_argument("--search", action=argparse.BooleanOptionalAction, default=True, help="the largest batch")
    parser.add_argument("--again", action="store_true", help="ask also what is known")
    options = parser.parse_args()
    kept = Kept(options.output.with_suffix(".json"))
    for name in options.experiments.split(","):
        for accelerator in options.accelerators.split(","):
            subject, settings = f"{name} {accelerator}", {"flags": flags(name, accelerator)}
            known = kept.done(subject, PART, settings) and (searched(kept.of(subject)[PART]) or not options.search)
            if options.again or not known:
                asked = [*settings["flags"], *(["--max_batch"] if options.search else [])]
                found = compiled_step.ask(compiled_step.command(asked, options.cache))
                kept.keep(subject, PART, settings, found)
                print(" | ".join(row(name, found)), flush=True)
                options.output.write_text(page(kept))
    options.output.write_text(page(kept))


def flags(name: str, accelerator: str) -> list[str]:
    """Of `rookery preflight`, for a pair."""
    what = EXPERIMENTS[name]
    return [
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
    ]


def row(name: str, found: dict[str, Any]) -> list[str]:
    """A line of the table."""
    capacity = f"{found['hbm_capacity_bytes'] / compiled_step.GIB:.2f} GiB"
    most = largest(found["largest"]) if found["largest"] else "not searched"
    step = [compiled_step.fits(found), compiled_step.hbm(found), capacity, most]
    return [name, found["generation"], *step, *compiled_step.bound(found)]


def searched(found: dict[str, Any]) -> bool:
    """Whether the largest batch was searched to the end."""
    most = found["largest"]
    return most is not None and (most["batch"] >= fit.MOST or fit.Largest(most["batch"], most["refused"], ()).exact)


def largest(found: dict[str, int]) -> str:
    """The largest batch that was seen to fit, and the smallest that was not."""
    return f"{found['batch']}" + (f" ({found['refused']} do not fit)" if found["refused"] else " or more")


def page(kept: Kept) -> str:
    """The page as Markdown: all that is known, whatever was asked for this time."""
    pairs = [(name, accelerator) for name in EXPERIMENTS for accelerator in ACCELERATORS]
    known = [(pair[0], kept.of(" ".join(pair))[PART]) for pair in pairs if kept.of(" ".join(pair))]
    return PAGE.format(
        batch=BATCH,
        table=measure.table(list(HEADER), [row(*each) for each in known]),
        sizes=", ".join(f"{name} {what.image_size} of {what.patch_size}" for name, what in EXPERIMENTS.items()),
        done=len(known),
        all=len(pairs),
        searched=sum(searched(found) for _, found in known),
        made=compiled_step.made([found for _, found in known]),
    )


if __name__ == "__main__":
    main()
