"""How fast a mosaic becomes shards, on one core and on two, beside tools that cut the same tiles.

    python benchmarks/shard_throughput.py [--side 20000] [--repeats 3] [--scaling_side 40000]

A JPEG-tiled BigTIFF is cut into 512 px patches of quality 90, colour at full resolution. Ours writes TFRecords with annotations,
ledger and digests; the peers write the bare JPEGs. Every repeat runs all of them in turn, pinned to the same core.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import measure
import simplejpeg
import synthetic
from measure import Usage

PATCH = 512
QUALITY = 90

RASTERIO_LOOP = """
import sys, warnings, rasterio, simplejpeg
from rasterio.windows import Window
source, folder, size, quality = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
warnings.simplefilter("ignore")
with rasterio.open(source) as dataset:
    for y in range(0, dataset.height, size):
        for x in range(0, dataset.width, size):
            pixels = dataset.read([1, 2, 3], window=Window(x, y, size, size), boundless=False).transpose(1, 2, 0).copy()
            with open(f"{folder}/{y}_{x}.jpg", "wb") as file:
                file.write(simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling="444"))
"""
SAHI = """
import sys
from PIL import Image
Image.MAX_IMAGE_PIXELS = None
from sahi.slicing import slice_image
slice_image(sys.argv[1], output_file_name="s", output_dir=sys.argv[2], slice_height=int(sys.argv[3]),
    slice_width=int(sys.argv[3]), overlap_height_ratio=0, overlap_width_ratio=0, out_ext=".jpg", verbose=False)
"""
SAHI_VERSION = "0.12.8"


def main() -> None:
    """Measures and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=20_000, help="side of the mosaic in pixels")
    parser.add_argument("--scaling_side", type=int, default=40_000, help="side for two workers beside one; 0 leaves it out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", type=int, nargs=2, default=(0, 1), help="the first alone for one worker, both for two")
    parser.add_argument("--no_sahi", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rookery_benchmark_") as name:
        folder = Path(name)
        peers_table(folder, options)
        if options.scaling_side:
            scaling_table(folder, options)
    print(f"\n{measure.machine('simplejpeg', 'tifffile', 'rasterio', 'apache-beam')}")


def peers_table(folder: Path, options: argparse.Namespace) -> None:
    """One core: ours, `vips dzsave`, a rasterio loop, SAHI's slicer."""
    survey(folder, "large", options.side)
    survey(folder, "tiny", PATCH)
    core = options.cores[:1]
    contenders: dict[str, Callable[[], Usage]] = {
        "rookery shard": lambda: shard(folder, "large", core),
        "start-up": lambda: shard(folder, "tiny", core),
        "vips dzsave": lambda: dzsave(folder, core),
        "rasterio loop": lambda: loop(folder, core),
    }
    sahi = None if options.no_sahi else install_sahi(folder)
    if sahi:
        contenders[f"SAHI {SAHI_VERSION} slice_image"] = lambda: slicer(folder, sahi, core)
    if not shutil.which("vips"):
        print("no vips here (apt-get install libvips-tools): its row is left out")
        del contenders["vips dzsave"]
    usages: dict[str, list[Usage]] = {name: [] for name in contenders}
    for _ in range(options.repeats):
        for name, contender in contenders.items():
            usages[name].append(contender())
    medians = {name: measure.middle(found) for name, found in usages.items()}
    start = medians.pop("start-up")
    whole = medians["rookery shard"]
    rows = {
        "rookery shard, whole command": whole,
        "rookery shard, less its start-up": Usage(
            whole.wall_s - start.wall_s, whole.cpu_s - start.cpu_s, whole.rss_mib, whole.read_mb
        ),
        **{name: usage for name, usage in medians.items() if name != "rookery shard"},
    }
    peer = rows.get("vips dzsave")
    megapixels = options.side**2 / 1e6
    print(f"\n{options.side:,} x {options.side:,} px, one core, medians of {options.repeats} runs in turn:\n")
    lines = [
        [
            name,
            f"{usage.wall_s:.2f}",
            f"{usage.cpu_s:.2f}",
            f"{megapixels / usage.wall_s:.1f}",
            f"{megapixels / usage.cpu_s:.1f}",
            f"{peer.cpu_s / usage.cpu_s:.2f}" if peer else "",
            f"{usage.rss_mib:.0f}",
        ]
        for name, usage in rows.items()
    ]
    header = ["", "s", "CPU s", "Mpx/s", "Mpx/CPU s", "x dzsave (CPU)", "peak MiB"]
    print(measure.table(header, lines))
    print(f"\nstart-up (the same command on one patch): {start.wall_s:.2f} s, {start.cpu_s:.2f} CPU s")


def scaling_table(folder: Path, options: argparse.Namespace) -> None:
    """Two worker processes on two cores beside one on one."""
    survey(folder, "wide", options.scaling_side)
    survey(folder, "tiny", PATCH)
    flags = {1: [], 2: ["--direct_num_workers=2"]}
    usages: dict[tuple[str, int], list[Usage]] = {}
    for _ in range(options.repeats):
        for workers, more in flags.items():
            for name in ("wide", "tiny"):
                usages.setdefault((name, workers), []).append(shard(folder, name, options.cores[:workers], more))
    # Of wall time the best: what the machine can do when nobody else uses it. Where others do, the work that two workers add
    # to that of one (CPU) still tells what two free cores would give, but for an uneven share of the shards.
    best = {key: min(usage.wall_s for usage in found) for key, found in usages.items()}
    work = {key: min(usage.cpu_s for usage in found) for key, found in usages.items()}
    net = {workers: best["wide", workers] - best["tiny", workers] for workers in flags}
    net_work = {workers: work["wide", workers] - work["tiny", workers] for workers in flags}
    rows = [
        [
            f"{workers} worker{'s' * (workers > 1)}",
            f"{best['wide', workers]:.2f}",
            f"{net[workers]:.2f}",
            f"{options.scaling_side**2 / 1e6 / net[workers]:.1f}",
            f"{net[1] / net[workers]:.2f}",
            f"{net_work[workers]:.2f}",
            f"{workers * net_work[1] / net_work[workers]:.2f}",
        ]
        for workers in flags
    ]
    print(f"\n{options.scaling_side:,} x {options.scaling_side:,} px, best of {options.repeats} runs in turn:\n")
    header = ["", "s", "s less start-up", "Mpx/s", "x one worker", "CPU s less start-up", "x one worker on free cores"]
    print(measure.table(header, rows))


def survey(folder: Path, name: str, side: int) -> None:
    """Mosaic and annotations, made once."""
    if not (folder / f"{name}.tif").exists():
        synthetic.write_tiled_jpeg(folder / f"{name}.tif", side)
        synthetic.write_coco(folder / f"{name}.json", f"{name}.tif", side)


def shard(folder: Path, name: str, cores: list[int], more: list[str] | None = None) -> Usage:
    """One run of `rookery shard` into a new folder."""
    output = fresh(folder)
    command = [sys.executable, "-m", "pipeline.shard", f"--mosaics={folder}/{name}.tif", f"--annotations={folder}/{name}.json"]
    command += [
        "--annotation_format=coco",
        f"--patch_size={PATCH}",
        "--overlap=0",
        "--split=train=1",
        f"--jpeg_quality={QUALITY}",
        f"--output={output}",
    ]
    return measure.run([*command, *(more or [])], cores=cores)


def dzsave(folder: Path, cores: list[int]) -> Usage:
    """One run of vips with one thread; checks that it writes the colour resolution that ours does."""
    output = fresh(folder)
    output.mkdir()
    command = [
        "vips",
        "dzsave",
        f"{folder}/large.tif",
        f"{output}/d",
        "--suffix",
        f".jpg[Q={QUALITY}]",
        "--tile-size",
        str(PATCH),
    ]
    usage = measure.run([*command, "--overlap", "0", "--depth", "one"], cores=cores, environment={"VIPS_CONCURRENCY": "1"})
    tile = next((output / "d_files").rglob("*.jpg")).read_bytes()
    assert simplejpeg.decode_jpeg_header(tile)[3] == "444", "vips halves chroma below quality 90"
    return usage


def loop(folder: Path, cores: list[int]) -> Usage:
    """Window by window with rasterio, encoded with the same library as ours."""
    output = fresh(folder)
    output.mkdir()
    return measure.run(
        [sys.executable, "-c", RASTERIO_LOOP, f"{folder}/large.tif", str(output), str(PATCH), str(QUALITY)], cores=cores
    )


def slicer(folder: Path, python: Path, cores: list[int]) -> Usage:
    """SAHI's slicer, with the JPEG quality that it chooses."""
    output = fresh(folder)
    return measure.run([str(python), "-c", SAHI, f"{folder}/large.tif", str(output), str(PATCH)], cores=cores)


def install_sahi(folder: Path) -> Path | None:
    """The Python of a new environment with SAHI; None where it cannot be installed."""
    environment = folder / "sahi"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    done = subprocess.run(
        [environment / "bin" / "pip", "install", "-q", f"sahi=={SAHI_VERSION}"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(f"SAHI {SAHI_VERSION} cannot be installed here, its row is left out: {done.stderr.strip().splitlines()[-1]}")
        return None
    return environment / "bin" / "python"


def fresh(folder: Path) -> Path:
    """A name for an output folder, after removing the last one."""
    output = folder / "output"
    shutil.rmtree(output, ignore_errors=True)
    return output


if __name__ == "__main__":
    main()
