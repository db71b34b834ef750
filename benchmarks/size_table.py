"""The table and the two plots of `size_sweep.py`: rows are dictionaries of HEADER, without what is not known."""

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import measure

GIB = 2**30
METRICS = ("ap50", "ap", "f1")
HEADER = (
    "size_px", "backbone", "head", "batch_size", "parameters", "compiles", "hbm_bytes", "hbm_capacity_bytes",
    "images_per_s_at_most", "host_bytes", "steps", "seeds", "ap50", "ap50_sd", "ap", "ap_sd", "f1", "f1_sd",
)  # fmt: skip
PRECISION, MEMORY = "precision.png", "memory.png"
# Colour-blind friendly (Okabe and Ito), and no line is told by its colour alone.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9")
DASHES, MARKERS = ("-", "--", ":"), ("o", "s", "^")
DODGE_PX = 3.0  # between networks, so that bars of spread do not cover each other
# Title, column, column of its spread, and what one unit of the axis is.
PANELS = {
    PRECISION: (("", "ap50", "ap50_sd", 1.0),),
    MEMORY: (("HBM of one chip, compiled", "hbm_bytes", "", GIB), ("on a CPU, measured", "host_bytes", "", GIB)),
}

Row = Mapping[str, Any]


def as_csv(rows: Sequence[Row]) -> bytes:
    """The table in full, for other programs."""
    text = io.StringIO()
    writer = csv.DictWriter(text, HEADER, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def markdown(rows: Sequence[Row], note: str) -> str:
    """The table for people."""
    header = ["px", "backbone", "head", "parameters", "HBM", "images/s a chip at most", "CPU memory", "AP50", "COCO AP", "F1"]
    lines = []
    for each in rows:
        line = [str(each["size_px"]), each["backbone"], each["head"]]
        line.append(f"{each['parameters'] / 1e6:.2f} M" if "parameters" in each else "")
        hbm = f"{each['hbm_bytes'] / GIB:.2f} GiB" if each.get("hbm_bytes") else ""
        line.append(hbm if each.get("compiles", True) else f"no: {hbm}" if hbm else "no")
        line.append(f"{each['images_per_s_at_most']:,.0f}" if "images_per_s_at_most" in each else "")
        line.append(f"{each['host_bytes'] / GIB:.2f} GiB" if "host_bytes" in each else "")
        for metric in METRICS:
            spread = f" ± {each[f'{metric}_sd']:.3f}" if f"{metric}_sd" in each else ""
            line.append(f"{each[metric]:.3f}{spread}" if metric in each else "")
        lines.append(line)
    return f"{measure.table(header, lines)}\n\n{note}\n"


def plots(rows: Sequence[Row], batches: Mapping[str, int]) -> dict[str, bytes]:
    """The study's two plots, as PNG by file name: precision and memory over the size; none of what no row knows.

    Args:
      rows: of the table.
      batches: images of a step, by file name.
    """
    found = {}
    for name, panels in PANELS.items():
        known = [panel for panel in panels if any(panel[1] in each for each in rows)]
        if known:
            steps = max((each["steps"] for each in rows if "steps" in each), default=0)
            title = f"memory of a training step of {batches[name]} images"
            if name == PRECISION:
                title = f"average precision at IoU 0.5, after {steps:,} steps of {batches[name]} images"
            found[name] = _plot(rows, known, "AP50" if name == PRECISION else "GiB", title)
    return found


def _plot(rows: Sequence[Row], panels: Sequence[tuple[str, str, str, float]], unit: str, title: str) -> bytes:
    """A line a network: colour is the backbone, dashes and markers are the head."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes, backbones, heads = (list(dict.fromkeys(each[name] for each in rows)) for name in ("size_px", "backbone", "head"))
    figure, grid = pyplot.subplots(
        1, len(panels), figsize=(2.4 + 4.6 * len(panels), 4.2), dpi=120, layout="constrained", squeeze=False
    )
    lines = {}
    for axes, (name, column, spread, one) in zip(grid[0], panels, strict=True):
        for (b, backbone), (h, head) in itertools.product(enumerate(backbones), enumerate(heads)):
            known = [each for each in rows if (each["backbone"], each["head"]) == (backbone, head) and each.get(column)]
            if known:
                aside = DODGE_PX * (b * len(heads) + h - (len(backbones) * len(heads) - 1) / 2) if spread else 0.0
                lines[f"{backbone}, {head}"] = axes.errorbar(
                    [each["size_px"] + aside for each in known],
                    [each[column] / one for each in known],
                    yerr=[each.get(spread, 0.0) / one for each in known] if any(spread in each for each in known) else None,
                    color=COLOURS[b % len(COLOURS)],
                    linestyle=DASHES[h % len(DASHES)],
                    marker=MARKERS[h % len(MARKERS)],
                    capsize=3,
                )
        capacity = max((each.get("hbm_capacity_bytes", 0) for each in rows), default=0) / one
        most = max((each.get(column, 0) for each in rows), default=0) / one
        if column == "hbm_bytes" and most > capacity / 2 > 0:  # far above all lines it would press them flat
            axes.axhline(capacity, color="#555555", linestyle=(0, (1, 1)), linewidth=1)
            axes.annotate(f"the chip has {capacity:.2f}", (0.02, capacity), xycoords=("axes fraction", "data"), va="top",
                          color="#555555")  # fmt: skip
        elif column == "hbm_bytes" and capacity:
            name = f"{name} (the chip has {capacity:.2f} GiB)"
        axes.set(xlabel="side of the training images, px", ylabel=unit)
        if column != "ap50":  # twice as high is twice as much; of precision the differences count
            axes.set_ylim(0, None)
        axes.set_title(name, fontsize=9)
        axes.set_xticks(sizes)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(list(lines.values()), list(lines), loc="outside right center", fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    pyplot.close(figure)
    return stream.getvalue()
