"""Every backbone and head of `--model yolo` on a TPU: does the training step compile, what does it take, how fast can it be?

    python benchmarks/yolo_matrix.py [--backbones NAME,...] [--heads NAME,...] [--image_size 416] [--batch_size 8]

Runs `rookery preflight` for each pair, with the version of YOLO that the backbone has by default, unless it is in the file of
answers beside the page, a JSON, and writes both after each: the same command goes on after a stop, and once the step has changed
--again asks all. On two cores a pair takes 5 to 20 minutes.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import compiled_step
import measure
from kept import Kept

sys.path.insert(0, str(measure.ROOT))

from tpu_train.models import yolo_networks

CLASSES = 3  # BCCD's, as in docs/sizes: a step that is in both is compiled once
PART = "train"  # of the answers
HEADER = (
    "backbone", "head", "version", "strides", "parameters", "fits", "HBM of a chip", "TFLOP a step", "step at least", "limit",
    "images/s/chip at most",
)  # fmt: skip
PAGE = """# YOLO's training steps on a TPU

The training step of every backbone and head of `rookery train --model yolo`, compiled by the TPU's own compiler without a TPU,
for one chip {generation} with {hbm:.2f} GiB of HBM: {batch} images of {size} px, {classes} classes, room for {boxes} objects an
image, bfloat16, AdamW with averaged weights. Bounds are what arithmetic and memory allow at their peak, not forecasts.
[preflight.md](preflight.md) explains each figure.

{table}

{done} of {all} pairs. Written by `python benchmarks/yolo_matrix.py`; {made}.
"""


def main() -> None:
    """Compiles every pair that is not known and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", default=",".join(yolo_networks.BACKBONES))
    parser.add_argument("--heads", default=",".join(yolo_networks.HEADS))
    parser.add_argument("--accelerator", default="v5litepod-1", help="of one chip")
    parser.add_argument("--image_size", type=int, default=416)
    parser.add_argument("--batch_size", type=int, default=8, help="images of a chip")
    parser.add_argument("--output", type=Path, default=measure.ROOT / "docs/yolo_matrix.md")
    parser.add_argument("--cache", help="folder of compiles already done, as of `rookery preflight`")
    parser.add_argument("--again", action="store_true", help="ask also what is known")
    options = parser.parse_args()
    kept = Kept(options.output.with_suffix(".json"))
    for backbone in options.backbones.split(","):
        for head in options.heads.split(","):
            subject, settings = f"{backbone} {head}", {"flags": flags(backbone, head, options)}
            if options.again or not kept.done(subject, PART, settings):
                found = compiled_step.ask(compiled_step.command(settings["flags"], options.cache))
                kept.keep(subject, PART, settings, found)
                print(" | ".join(row(backbone, head, found)), flush=True)
                options.output.write_text(page(kept, options))
    options.output.write_text(page(kept, options))


def flags(backbone: str, head: str, options: argparse.Namespace) -> list[str]:
    """Of `rookery preflight`, for a pair."""
    return [
        f"--accelerator={options.accelerator}",
        "--model=yolo",
        f"--backbone={backbone}",
        f"--head={head}",
        "--init=scratch",
        f"--image_size={options.image_size}",
        f"--num_classes={CLASSES}",
        f"--batch_size={options.batch_size}",
    ]


def row(backbone: str, head: str, found: dict[str, Any]) -> list[str]:
    """A line of the table."""
    strides = ", ".join(str(1 << level) for level in yolo_networks.levels(backbone, head))
    flops = f"{found['flops'] / 1e12:.2f}" if found["compiles"] else ""
    network = [backbone, head, yolo_networks.BACKBONES[backbone].default_version, strides, f"{found['parameters'] / 1e6:.1f} M"]
    return [*network, compiled_step.fits(found), compiled_step.hbm(found), flops, *compiled_step.bound(found)]


def page(kept: Kept, options: argparse.Namespace) -> str:
    """The page as Markdown: all that is known with these settings, whatever was asked for this time."""
    pairs = [(backbone, head) for backbone in yolo_networks.BACKBONES for head in yolo_networks.HEADS]
    known = [
        (*pair, kept.of(" ".join(pair))[PART])
        for pair in pairs
        if kept.done(" ".join(pair), PART, {"flags": flags(*pair, options)})
    ]
    answers = [found for *_, found in known]
    return PAGE.format(
        generation=answers[0]["generation"],
        hbm=answers[0]["hbm_capacity_bytes"] / compiled_step.GIB,
        batch=options.batch_size,
        size=options.image_size,
        classes=CLASSES,
        boxes=answers[0]["boxes"],
        table=measure.table(list(HEADER), [row(*each) for each in known]),
        done=len(known),
        all=len(pairs),
        made=compiled_step.made(answers),
    )


if __name__ == "__main__":
    main()
