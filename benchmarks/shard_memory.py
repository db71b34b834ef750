"""Memory of a worker, and time per megapixel, as mosaics grow; beside a slicer that holds the mosaic in memory.

    python benchmarks/shard_memory.py [--sides 5000 10000 20000 40000 60000] [--repeats 2]

One worker in one process, which plans, cuts and commits. The mosaics are JPEG-tiled BigTIFFs.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import measure
import shard_throughput as throughput
from measure import Usage

# Pillow, which SAHI and many training scripts open images with, keeps the whole one: 3 bytes a pixel, and often a copy.
PILLOW = """
import sys
from PIL import Image
Image.MAX_IMAGE_PIXELS = None
Image.open(sys.argv[1]).load()
"""


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[5_000, 10_000, 20_000, 40_000, 60_000])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--pillow_up_to", type=int, default=20_000, help="largest side for the peer")
    parser.add_argument("--overlap", type=int, default=0, help="of neighbouring patches")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rookery_benchmark_") as name:
        folder, core = Path(name), [options.core]
        throughput.survey(folder, "tiny", throughput.PATCH)
        usages: dict[int, list[Usage]] = {side: [] for side in (0, *options.sides)}
        pillow: dict[int, Usage] = {}
        for side in options.sides:
            throughput.survey(folder, str(side), side)
            # Small ones more often: their few tenths of a second are less than the start-up that is taken off.
            for _ in range(options.repeats * max(1, min(5, 400_000_000 // side**2))):
                usages[0].append(throughput.shard(folder, "tiny", core))
                usages[side].append(throughput.shard(folder, str(side), core))
            if side <= options.pillow_up_to:
                pillow[side] = measure.run([sys.executable, "-c", PILLOW, f"{folder}/{side}.tif"], cores=core)
            (folder / f"{side}.tif").unlink()
    start = measure.middle(usages.pop(0))
    found = {side: measure.middle(several) for side, several in usages.items()}
    each = {side: 1000 * (usage.cpu_s - start.cpu_s) / (side**2 / 1e6) for side, usage in found.items()}
    mean = statistics.mean(each.values())
    rows = [
        [
            f"{side:,}²",
            f"{usage.rss_mib:.0f}",
            f"{pillow[side].rss_mib:.0f}" if side in pillow else "",
            f"{usage.wall_s:.1f}",
            f"{each[side]:.2f}",
            f"{100 * (each[side] / mean - 1):+.0f} %",
        ]
        for side, usage in found.items()
    ]
    print(measure.table(["px", "peak MiB", "Pillow, load only: MiB", "s", "CPU ms/Mpx less start-up", "from their mean"], rows))
    print(
        f"\nstart-up {start.cpu_s:.2f} CPU s, {start.rss_mib:.0f} MiB; {measure.machine('tifffile', 'simplejpeg', 'apache-beam')}"
    )


if __name__ == "__main__":
    main()
