"""How memory and speed grow with the size of the images or of the batch: one compile for each, a table and a picture."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from survey.accelerators import Slice
from survey.errors import InputError
from tpu_train.preflight.answers import GIB, table
from tpu_train.preflight.compiler import Compiled
from tpu_train.preflight.examine import Examined

NAMES = ("image_size", "global_batch_size")
TABLE, PICTURE = "sweep.csv", "sweep.png"
HEADER = (
    "batch_per_replica", "compiles", "hbm_bytes", "argument_bytes", "temporary_bytes", "flops", "hbm_traffic_bytes", "compute_s",
    "memory_s", "images_per_s_per_replica_at_most",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sweep:
    """What varies.

    Attributes:
      name: one of NAMES.
      values: of it, ascending.
    """

    name: str
    values: tuple[int, ...]


def parse(text: str) -> Sweep:
    """The sweep that `--sweep` asks for.

    >>> parse("image_size=512,416")
    Sweep(name='image_size', values=(416, 512))

    Raises:
      InputError: it is not a known name with two or more numbers.
    """
    name, _, values = text.partition("=")
    numbers = sorted({int(value) for value in values.split(",") if value.strip().isdecimal()})
    if name not in NAMES or len(numbers) != len(values.split(",")) or len(numbers) < 2 or numbers[0] < 1:
        raise InputError(
            f"--sweep={text}: must be {' or '.join(NAMES)}, an equals sign, and two or more different numbers above 0, such as "
            "image_size=416,512,608,800"
        )
    return Sweep(name, tuple(numbers))


def rows(found: Mapping[int, Examined]) -> list[list[object]]:
    """A row of HEADER for each value."""
    lines: list[list[object]] = []
    for value, step in found.items():
        line: list[object] = [value, step.lowered.batch, step.compiles, step.hbm_bytes]
        if isinstance(step.outcome, Compiled) and step.traffic is not None and step.bound is not None:
            outcome = step.outcome
            line += [outcome.argument_bytes, outcome.temporary_bytes, outcome.flops, step.traffic.total_bytes]
            line += [step.bound.compute_s, step.bound.memory_s, step.bound.images_per_s]
        lines.append(line + [""] * (len(HEADER) + 1 - len(line)))
    return lines


def as_csv(name: str, found: Mapping[int, Examined]) -> bytes:
    """The table in full, for other programs: bytes and seconds of one replica's step."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([name, *HEADER])
    writer.writerows(rows(found))
    return stream.getvalue().encode()


def text(name: str, found: Mapping[int, Examined], where: Slice) -> str:
    """The table for people."""
    lines = []
    for value, step in found.items():
        hbm = f"{step.hbm_bytes / GIB:.2f} GiB" if step.hbm_bytes else "?"
        line = [f"{value}", f"{step.lowered.batch}", hbm, "yes" if step.compiles else "no"]
        if isinstance(step.outcome, Compiled) and step.traffic is not None and step.bound is not None:
            batch = step.lowered.batch
            line += [
                f"{step.outcome.temporary_bytes / batch / 2**20:.0f} MiB",
                f"{step.outcome.flops / batch / 1e9:.1f} GFLOP",
                f"{step.traffic.total_bytes / batch / 1e9:.2f} GB",
                f"{1e3 * step.bound.bound_s:.2f} ms",
                f"{step.bound.images_per_s * where.chip.devices:,.0f} ({step.bound.limit})",
            ]
        lines.append(line + [""] * (9 - len(line)))
    header = [name, "batch", f"HBM of {where.chip.hbm_bytes / GIB:.2f} GiB", "fits", "temporaries/image", "FLOPs/image",
              "traffic/image", "step at least", "images/s a chip at most"]  # fmt: skip
    return "\n".join(table(header, lines))


def picture(name: str, found: Mapping[int, Examined], where: Slice, title: str) -> bytes:
    """HBM, and the bound of images a second, over what varies: a PNG. The capacity is a line unless it is far above."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    capacity = where.chip.hbm_bytes / GIB
    known = {value: step for value, step in found.items() if step.hbm_bytes}
    fit = {value: step for value, step in known.items() if step.bound is not None}
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), dpi=120, layout="constrained")
    left.plot(list(known), [step.hbm_bytes / GIB for step in known.values()], "o-", color="#0072b2")
    refused = [value for value in known if value not in fit]
    left.plot(refused, [known[value].hbm_bytes / GIB for value in refused], "x", color="#d55e00", markersize=12, mew=2)
    if 2 * max((step.hbm_bytes for step in known.values()), default=0) > where.chip.hbm_bytes:
        left.axhline(capacity, color="#d55e00", linestyle="--")
        left.annotate(f"{where.chip.generation} has {capacity:.2f} GiB", (0.02, capacity), xycoords=("axes fraction", "data"),
                      va="bottom", color="#d55e00")  # fmt: skip
    left.set(xlabel=_axis(name), ylabel=f"GiB of HBM, one replica (of {capacity:.2f})", ylim=(0, None))
    right.plot(
        list(fit), [step.bound.images_per_s * where.chip.devices for step in fit.values() if step.bound], "o-", color="#009e73"
    )
    right.set(xlabel=_axis(name), ylabel="images/s a chip, at most", ylim=(0, None))
    for axes in (left, right):
        axes.set_xticks(list(found))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    pyplot.close(figure)
    return stream.getvalue()


def _axis(name: str) -> str:
    return {"image_size": "side of the training images, px", "global_batch_size": "images a step, all replicas"}[name]


def common_level(sizes: Sequence[int], most: int) -> int:
    """The coarsest level of a pyramid that images of all these sizes can have, up to `most`.

    >>> common_level([416, 512, 608, 800], 7), common_level([512, 640], 7)
    (5, 7)
    """
    return max(level for level in range(most + 1) if all(size % 2**level == 0 for size in sizes))
