"""Every backbone and head of `--model yolo` on a TPU: does the training step compile, what does it take, how fast can it be?

    python benchmarks/yolo_matrix.py [--backbones NAME,...] [--heads NAME,...] [--image_size 416] [--batch_size 8]

Runs `rookery preflight` for each pair, with the version of YOLO that the backbone has by default, and writes the page after each.
Compiles that are done are remembered, so the same command goes on after a stop. On two cores a pair takes 5 to 20 minutes.
"""

import argparse
import sys
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import measure
import tpu_matrix

from tpu_train.models import yolo_networks

CLASSES = 8
HEADER = (
    "backbone", "head", "version", "strides", "parameters", "fits", "HBM of a chip", "TFLOP a step", "step at least", "limit",
    "images/s/chip at most",
)  # fmt: skip
PAGE = """# YOLO's training steps on a TPU

The training step of every backbone and head of `rookery train --model yolo`, compiled by the TPU's own compiler without a TPU,
for one chip {generation} with {hbm}: {batch} images of {size} px, {classes} classes, room for {boxes} objects an image, bfloat16,
AdamW with averaged weights. Bounds are what arithmetic and memory allow at their peak, not forecasts.
[preflight.md](preflight.md) explains each figure.

{table}

{done} of {all} pairs.

Written by `python benchmarks/yolo_matrix.py`; {machine}; {versions}; {day}.
"""


def main() -> None:
    """Compiles every pair and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", default=",".join(yolo_networks.BACKBONES))
    parser.add_argument("--heads", default=",".join(yolo_networks.HEADS))
    parser.add_argument("--accelerator", default="v5litepod-1", help="of one chip")
    parser.add_argument("--image_size", type=int, default=416)
    parser.add_argument("--batch_size", type=int, default=8, help="images of a chip")
    parser.add_argument("--output", type=Path, default=measure.ROOT / "docs/yolo_matrix.md")
    parser.add_argument("--cache", help="folder of compiles already done, as of `rookery preflight`")
    options = parser.parse_args()
    pairs = [(backbone, head) for backbone in options.backbones.split(",") for head in options.heads.split(",")]
    rows: list[list[str]] = []
    for backbone, head in pairs:
        flags = [
            f"--accelerator={options.accelerator}",
            "--model=yolo",
            f"--backbone={backbone}",
            f"--head={head}",
            "--init=scratch",
            f"--image_size={options.image_size}",
            f"--num_classes={CLASSES}",
            f"--batch_size={options.batch_size}",
        ]
        answers = tpu_matrix.ask(flags, options.cache)
        rows.append(row(backbone, head, answers))
        print(" | ".join(rows[-1]), flush=True)
        options.output.write_text(page(rows, answers, options, len(pairs)))


def row(backbone: str, head: str, answers: dict[str, Any]) -> list[str]:
    """A line of the table."""
    step = answers["steps"]["train"]
    strides = ", ".join(str(1 << level) for level in yolo_networks.levels(backbone, head))
    line = [backbone, head, yolo_networks.BACKBONES[backbone].default_version, strides, f"{step['parameters'] / 1e6:.1f} M"]
    line.append("yes" if step["compiles"] else f"no: {step['message']}")
    line.append(f"{step['hbm_bytes'] / tpu_matrix.GIB:.2f} GiB" if step["hbm_bytes"] else "?")
    if not step["compiles"]:
        return [*line, "", "", "", ""]
    rate = step["images_per_s_per_replica_at_most"]
    return [*line, f"{step['flops'] / 1e12:.2f}", f"{1e3 * step['bound_s']:.2f} ms", step["limit"], f"{rate:,.0f}"]


def page(rows: list[list[str]], answers: dict[str, Any], options: argparse.Namespace, pairs: int) -> str:
    """The page as Markdown, with the settings of the last answers, which all share."""
    step, where = answers["steps"]["train"], answers["accelerator"]
    return PAGE.format(
        generation=where["generation"],
        hbm=f"{where['hbm_bytes'] / tpu_matrix.GIB:.2f} GiB of HBM",
        batch=options.batch_size,
        size=options.image_size,
        classes=CLASSES,
        boxes=step["inputs"]["boxes"]["shape"][1],
        table=measure.table(list(HEADER), rows),
        done=len(rows),
        all=pairs,
        machine=measure.machine("tensorflow", "tf-models-official"),
        versions=", ".join(f"{name} {version}" for name, version in step.get("versions", {}).items()),
        day=date.today().isoformat(),
    )


if __name__ == "__main__":
    main()
