"""Files without tiles are read once, front to back: JPEG, PNG and striped TIFF to shards, beside windows read with rasterio.

    python benchmarks/untiled.py [--side 12000]

"passes" is what the command asked the system to read, less its start-up, in file sizes: one for the digest of the file and one
for the pixels. The peer, as most scripts do, reads window after window and leaves the rest to GDAL with its default cache.
"""

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

import measure
import rasterio
import shard_throughput as throughput
import synthetic

FORMATS = {
    "JPEG": ("jpg", {"driver": "JPEG", "QUALITY": 90}),
    "PNG": ("png", {"driver": "PNG", "ZLEVEL": 1}),
    "striped TIFF, deflate": ("tif", {"driver": "GTiff", "compress": "deflate", "ZLEVEL": 1, "blockysize": 16}),
}


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=12_000)
    parser.add_argument("--core", type=int, default=0)
    options = parser.parse_args()
    core, side = [options.core], options.side
    rows = []
    with tempfile.TemporaryDirectory(prefix="rookery_benchmark_") as name:
        folder = Path(name)
        pixels = synthetic.pixels(side).transpose(2, 0, 1)
        throughput.survey(folder, "tiny", throughput.PATCH)
        start = shard(folder, "tiny.tif", core)
        for kind, (ending, profile) in FORMATS.items():
            path = folder / f"mosaic.{ending}"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                with rasterio.open(path, "w", width=side, height=side, count=3, dtype="uint8", **profile) as out:
                    out.write(pixels)
            synthetic.write_coco(path.with_suffix(".json"), path.name, side)
            usage = shard(folder, path.name, core)
            size = path.stat().st_size / 1e6
            output = throughput.fresh(folder)
            output.mkdir()
            loop = [sys.executable, "-c", throughput.RASTERIO_LOOP, str(path), str(output), "512", "90"]
            peer = measure.run(loop, cores=core)
            speed = side**2 / 1e6 / (usage.cpu_s - start.cpu_s)
            rows.append(
                [
                    kind,
                    f"{size:.0f}",
                    f"{(usage.read_mb - start.read_mb) / size:.2f}",
                    f"{usage.rss_mib:.0f}",
                    f"{usage.cpu_s:.1f}",
                    f"{speed:.1f}",
                    f"{peer.cpu_s:.1f}",
                    f"{peer.rss_mib:.0f}",
                ]
            )
            path.unlink()
    header = ["12,000²" if side == 12_000 else f"{side:,}²", "file MB", "passes", "peak MiB", "CPU s", "Mpx/CPU s less start-up"]
    print(measure.table([*header, "rasterio loop: CPU s", "peak MiB"], rows))
    print(f"\n{measure.machine('rasterio', 'imagecodecs', 'tifffile', 'apache-beam')}")


def shard(folder: Path, image: str, core: list[int]) -> measure.Usage:
    """One run of `rookery shard` with overlapping patches and two splits, so that shards of both need the same rows."""
    output = throughput.fresh(folder)
    command = [sys.executable, "-m", "pipeline.shard", f"--mosaics={folder}/{image}"]
    command += [
        "--annotation_format=coco",
        f"--annotations={folder}/{Path(image).stem}.json",
        "--patch_size=512",
        "--overlap=64",
        f"--output={output}",
    ]
    split = "--split=train=1" if image.startswith("tiny") else "--split=train=0.8,val=0.2"
    return measure.run([*command, split], cores=core)


if __name__ == "__main__":
    main()
