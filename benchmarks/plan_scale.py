"""Planning a very large survey: seconds and memory, phase by phase, in one table.

    python benchmarks/plan_scale.py                    1,000,000 objects on 500 mosaics of 20,000 x 20,000 px, from COCO JSON
    python benchmarks/plan_scale.py --format csv_boxes --objects 100000

Nothing is drawn: planning reads headers and annotations, and headers are taken as read. The target is 60 s and 2 GiB in all.
"""

import argparse
import csv
import gc
import json
import resource
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from pipeline import patches, plan, proof, split
from survey import labels, truth
from survey.annotations import every
from survey.annotations.reading import ReadOptions
from survey.geometry import Mosaic

T = TypeVar("T")
CLASSES = ("adult", "pup", "shadow")
TARGET_SECONDS, TARGET_GIB = 60.0, 2.0


def main() -> None:
    """Plans, measures, prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--mosaics", type=int, default=500)
    parser.add_argument("--side_px", type=int, default=20_000)
    parser.add_argument("--patch_size", type=int, default=512)
    parser.add_argument("--overlap", type=int, default=64)
    parser.add_argument("--split_by", choices=["auto", "mosaic", "block"], default="auto")
    parser.add_argument("--format", choices=["coco", "csv_boxes", "voc"], default="coco")
    options = parser.parse_args()

    side = options.side_px
    mosaics = [
        Mosaic(
            f"m{i:04d}", f"survey/m{i:04d}.tif", side, side, 3, "EPSG:32617",
            (0.1, 0.0, 1e5 + i % 25 * side * 0.1, 0.0, -0.1, 4e6 - i // 25 * side * 0.1), 0.1, f"{i:064x}",
        )
        for i in range(options.mosaics)
    ]  # fmt: skip
    rows: list[tuple[str, float, float]] = []

    def timed(phase: str, work: Callable[[], T]) -> T:
        gc.collect()
        with _Peak() as peak:
            began = time.perf_counter()
            result = work()
            seconds = time.perf_counter() - began
        rows.append((phase, seconds, peak.gib))
        return result

    with tempfile.TemporaryDirectory() as folder:
        paths = _write(Path(folder), options.format, mosaics, options.objects)
        size = sum(Path(path).stat().st_size for path in paths) / 1e6
        base = _rss_gib()
        read = timed(
            f"read annotations ({options.format}, {size:.0f} MB)", lambda: every.read(paths, options.format, ReadOptions())
        )
    classes = labels.from_names(one.class_name for one in read.annotations)
    marked = timed(
        "group by mosaic, clip",
        lambda read=read: truth.by_mosaic(read.annotations, mosaics, classes, named_in="it", images=read.images),
    )
    del read
    tiling = plan.Tiling(options.patch_size, options.overlap, 0.3, 256)
    made = timed(
        "grids, splits, boxes in patches, shards, proof",
        lambda: plan.from_truth(mosaics, marked, classes=classes, tiling=tiling, rule=split.Rule(options.split_by)),
    )
    shown = proof.Shown(made.table.mosaics, made.table.sources, made.table.splits)
    checked = timed("  of which the proof", lambda: proof.check(made.mosaics, shown))
    timed("digest", made.digest)
    timed("ledger", lambda: patches.ledger(made.table, made.shards, made.mosaics))

    print(
        f"{options.objects:,} objects on {options.mosaics} mosaics of {side:,} x {side:,} px: {len(made.table):,} patches of "
        f"{options.patch_size} px in {len(made.shards):,} shards, {len(made.table.class_ids):,} boxes, split by {made.split_by}, "
        f"{checked.pairs_compared:,} + {checked.ground_pairs_compared:,} pairs compared\n"
    )
    print(f"{'phase':<50} {'seconds':>8} {'peak RSS, GiB':>14}")
    for phase, seconds, gib in rows:
        print(f"{phase:<50} {seconds:>8.2f} {gib:>14.2f}")
    total = sum(seconds for phase, seconds, _ in rows if not phase.startswith(" "))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{'all':<50} {total:>8.2f} {peak:>14.2f}   (target {TARGET_SECONDS:.0f} s, {TARGET_GIB:.0f} GiB; before: {base:.2f} GiB)"
    )


def _write(folder: Path, kind: str, mosaics: list[Mosaic], objects: int) -> list[str]:
    """Annotation files with objects of 10 to 60 px, in clusters as animals lie."""
    rng = np.random.default_rng(0)
    side = mosaics[0].width
    of = np.sort(rng.integers(0, len(mosaics), objects))
    centre = rng.uniform(0, side - 1100, (len(mosaics) * 20, 2))
    corner = np.round(centre[of * 20 + rng.integers(0, 20, objects)] + rng.uniform(0, 1000, (objects, 2)), 1)
    size = np.round(rng.uniform(10, 60, (objects, 2)), 1)
    names = rng.integers(0, len(CLASSES), objects)
    values = zip(of.tolist(), corner.tolist(), size.tolist(), names.tolist(), strict=True)
    if kind == "coco":
        images = [{"id": i, "file_name": f"{m.name}.tif", "height": side, "width": side} for i, m in enumerate(mosaics)]
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
        found = [
            {"id": n, "image_id": i, "category_id": c + 1, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
            for n, (i, (y, x), (h, w), c) in enumerate(values, start=1)
        ]
        path = folder / "all.json"
        path.write_text(json.dumps({"images": images, "categories": categories, "annotations": found}))
        return [str(path)]
    if kind == "csv_boxes":
        path = folder / "all.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image_path", "xmin", "ymin", "xmax", "ymax", "label"])
            writer.writerows([f"{mosaics[i].name}.tif", x, y, x + w, y + h, CLASSES[c]] for i, (y, x), (h, w), c in values)
        return [str(path)]
    texts = [
        f"<annotation><filename>{m.name}.tif</filename><size><width>{side}</width><height>{side}</height></size>" for m in mosaics
    ]
    parts: list[list[str]] = [[text] for text in texts]
    for i, (y, x), (h, w), c in values:
        corners = f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
        parts[i].append(f"<object><name>{CLASSES[c]}</name><bndbox>{corners}</bndbox></object>")
    for mosaic, part in zip(mosaics, parts, strict=True):
        (folder / f"{mosaic.name}.xml").write_text("".join(part) + "</annotation>")
    return [str(folder / f"{mosaic.name}.xml") for mosaic in mosaics]


class _Peak:
    """The largest resident memory while it is open, looked at twenty times a second."""

    def __enter__(self) -> "_Peak":
        self.gib = _rss_gib()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            self.gib = max(self.gib, _rss_gib())


def _rss_gib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**30


if __name__ == "__main__":
    main()
