"""How fast a mosaic becomes detections, beside SAHI and beside the bare model; and how much memory that takes.

    python benchmarks/survey_inference.py --mode stub  [--side 10000] [--repeats 3] [--sahi_python PATH]
    python benchmarks/survey_inference.py --mode real --model FOLDER --image PNG --annotations XML [--side 10000]
    python benchmarks/survey_inference.py --mode memory [--side 60000]

stub    A model that costs nothing and finds 20 boxes a patch: what is left is reading, cutting, decoding and stitching.
real    An exported model on a survey photo laid out to a large mosaic: beside the model's forward pass alone, and AP.
memory  Peak memory of a worker, less what it had when the model was loaded.

Each contender is a process of its own, on the same two cores, in turn. The clock starts when it has imported its packages, loaded
its model and run one batch, and stops when it holds the boxes of the whole mosaic.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import measure
import numpy as np
import shard_throughput
import simplejpeg
import synthetic

ROOT = Path(__file__).parent.parent
STUB_SIZE, STUB_OVERLAP_PX = 512, 64
CELL_PX = 64
# As in sahi_peer.py, which runs where this file cannot be imported.
STUB_CELLS = [(row, column) for row in (1, 2, 3, 4) for column in (1, 2, 3, 4, 5)]


def main() -> None:
    """Measures and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=("stub", "real", "memory"), required=True)
    parser.add_argument("--side", type=int, help="side of the mosaic in pixels (default 10000; memory 60000)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", type=int, nargs=2, default=(0, 1))
    parser.add_argument("--model", help="real: a folder written by `rookery export`")
    parser.add_argument("--image", help="real: a survey photo")
    parser.add_argument("--annotations", help="real: its objects")
    parser.add_argument("--annotation_format", default="voc")
    parser.add_argument("--overlap", type=int, help="real: pixels (default: a quarter of a patch)")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--sahi_python", help="Python of an environment with SAHI; by default one is made")
    parser.add_argument("--work", help="folder for mosaics, kept; by default a temporary one")
    parser.add_argument("--ours", help=argparse.SUPPRESS)  # this script as a contender: the folder with its job
    options = parser.parse_args()
    if options.ours:
        ours(Path(options.ours))
        return
    options.side = options.side or (60_000 if options.mode == "memory" else 10_000)
    with tempfile.TemporaryDirectory(prefix="rookery_benchmark_") as name:
        folder = Path(options.work or name)
        folder.mkdir(parents=True, exist_ok=True)
        {"stub": stub_table, "real": real_table, "memory": memory_table}[options.mode](folder, options)
    print(f"\n{measure.machine('tensorflow', 'simplejpeg', 'numpy', 'apache-beam')}")


def stub_table(folder: Path, options: argparse.Namespace) -> None:
    """Ours and SAHI with models that cost nothing, and the whole verb less its start-up."""
    mosaic, tiny = stub_mosaic(folder, options.side), stub_mosaic(folder, STUB_SIZE)
    job = {"image": str(mosaic), "model": str(stub_model(folder)), "overlap_px": STUB_OVERLAP_PX, "batch_size": 8}
    sahi = options.sahi_python or shard_throughput.install_sahi(folder)
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.repeats):
        runs.setdefault("rookery: search and stitch", []).append(contender(folder, job, options.cores))
        if sahi:
            runs.setdefault("SAHI 0.12.8", []).append(peer(sahi, job, STUB_SIZE, options.cores))
        for name, image in (("verb", mosaic), ("start-up", tiny)):
            runs.setdefault(name, []).append(verb(folder, image, job["model"], options.cores))
    commands = {name: runs.pop(name) for name in ("verb", "start-up")}
    whole, start = ({key: median(run[key] for run in found) for key in ("wall_s", "cpu_s")} for found in commands.values())
    rate = options.side**2 / 1e6
    middle = {name: {key: median(run[key] for run in found) for key in found[0]} for name, found in runs.items()}
    best = {name: min(run["wall_s"] for run in found) for name, found in runs.items()}
    sahi_s = middle.get("SAHI 0.12.8", {}).get("wall_s")
    rows = [
        [
            name,
            f"{one['wall_s']:.2f}",
            f"{best[name]:.2f}",
            f"{one['cpu_s']:.2f}",
            f"{rate / one['wall_s']:.1f}",
            f"{sahi_s / one['wall_s']:.2f}" if sahi_s else "",
            f"{one['boxes']:,.0f}",
            f"{one['peak_mib']:.0f}",
        ]
        for name, one in middle.items()
    ]
    net = whole["wall_s"] - start["wall_s"]
    ratio = f"{sahi_s / net:.2f}" if sahi_s else ""
    rows.append(
        [
            "rookery predict, less start-up",
            f"{net:.2f}",
            "",
            f"{whole['cpu_s'] - start['cpu_s']:.2f}",
            f"{rate / net:.1f}",
            ratio,
            "",
            "",
        ]
    )
    print(f"\nstub model, {options.side:,} x {options.side:,} px, two cores, medians of {options.repeats} runs in turn:\n")
    print(measure.table(["", "s", "best s", "CPU s", "Mpx/s", "x SAHI", "boxes", "peak MiB"], rows))
    print(f"\nstart-up (the verb on one patch): {start['wall_s']:.2f} s, {start['cpu_s']:.2f} CPU s")


def real_table(folder: Path, options: argparse.Namespace) -> None:
    """The bare forward pass and ours in turn, SAHI once, on the same patches, with AP."""
    sys.path.insert(0, str(ROOT))
    from survey import matching, metrics, model

    spec = model.read(options.model)
    overlap_px = spec.image_size // 4 if options.overlap is None else options.overlap
    mosaic, truth = real_mosaic(folder, options, spec.classes)
    job = {"image": str(mosaic), "model": options.model, "overlap_px": overlap_px, "batch_size": options.batch_size, "bare": True}
    job["found"] = str(folder / "ours.json")
    repeated = [contender(folder, job, options.cores) for _ in range(options.repeats)]
    repeated.sort(key=lambda run: run["bare_wall_s"] / run["wall_s"])
    runs = {"rookery": repeated[len(repeated) // 2]}
    sahi = options.sahi_python or shard_throughput.install_sahi(folder)
    if sahi:
        runs["SAHI 0.12.8"] = peer(sahi, {**job, "found": str(folder / "sahi.json")}, spec.image_size, options.cores)
    patches = runs["rookery"]["patches"]
    bare_s, bare_cpu_s = (runs["rookery"][key] for key in ("bare_wall_s", "bare_cpu_s"))
    rows = [
        ["bare forward pass", f"{bare_s:.1f}", f"{bare_cpu_s:.1f}", f"{patches / bare_s:.2f}", "1.00", "1.00", "", "", "", ""]
    ]
    for name, file in (("rookery", "ours.json"), ("SAHI 0.12.8", "sahi.json")):
        if name in runs:
            found = np.array(json.loads((folder / file).read_text()), np.float32).reshape(-1, 5)
            frame = matching.Frame(
                found[:, [1, 0, 3, 2]], found[:, 4], np.ones(len(found), np.int32), truth, np.ones(len(truth), np.int32)
            )
            scored = metrics.outcomes([frame], 1, [0.4, 0.5])
            wall, cpu = runs[name]["wall_s"], runs[name]["cpu_s"]
            joining = runs[name]["stitch_s" if name == "rookery" else "joining_s"]
            row = [name, f"{wall:.1f}", f"{cpu:.1f}", f"{patches / wall:.2f}", f"{bare_s / wall:.2f}", f"{bare_cpu_s / cpu:.2f}"]
            row += [f"{joining:.1f}", f"{len(found):,}"]
            rows.append([*row, f"{metrics.ap50(scored):.3f}", f"{metrics.average_precision(scored[0], 0.4):.3f}"])
    print(f"\n{options.side:,} x {options.side:,} px, {len(truth):,} objects, {patches:,.0f} patches of {spec.image_size} px")
    print(f"overlapping by {overlap_px} px, batches of {options.batch_size}, two cores, {options.model};")
    print(f"of ours the middle one of {options.repeats} runs, of SAHI one:\n")
    pace = ["patches/s", "rate of the bare pass's", "the same in CPU s"]
    print(measure.table(["", "s", "CPU s", *pace, "joining, s", "boxes", "AP50", "AP at IoU 0.4"], rows))
    ratios = ", ".join(f"{run['bare_wall_s'] / run['wall_s']:.2f}" for run in repeated)
    print(f"\nrate of the bare pass's in each run: {ratios}; half of the bare pass before, half after; all boxes with a score of")
    print(f"{spec.score_floor:g} or more; SAHI joins them by NMS and IoU, which it chooses by itself at a floor below 0.1")


def memory_table(folder: Path, options: argparse.Namespace) -> None:
    """Ours alone: SAHI holds the mosaic, side * side * 3 bytes, several times."""
    mosaic = stub_mosaic(folder, options.side)
    job = {"image": str(mosaic), "model": str(stub_model(folder)), "overlap_px": STUB_OVERLAP_PX, "batch_size": 8}
    one = contender(folder, job, options.cores)
    grown = one["peak_mib"] - one["loaded_mib"]
    row = [
        f"{one['wall_s']:.1f}",
        f"{options.side**2 / 1e6 / one['wall_s']:.1f}",
        f"{one['boxes']:,.0f}",
        f"{one['stitch_s']:.2f}",
    ]
    print(f"\nstub model, {options.side:,} x {options.side:,} px ({options.side**2 * 3 / 2**30:.1f} GiB of pixels), two cores:\n")
    header = ["s", "Mpx/s", "boxes", "of it stitching, s", "MiB with the model loaded", "peak MiB", "more, MiB"]
    print(measure.table(header, [[*row, f"{one['loaded_mib']:.0f}", f"{one['peak_mib']:.0f}", f"{grown:.0f}"]]))


def ours(folder: Path) -> None:
    """A contender: searches and stitches as a worker does, and prints one line of JSON."""
    sys.path.insert(0, str(ROOT))
    from inference import parts, stitch
    from inference.decode import Decoder
    from inference.model_runner import ModelRunner
    from inference.search import Detector, search
    from survey import model
    from survey.geometry import PatchGrid
    from survey.raster import Raster

    job = json.loads((folder / "job.json").read_text())
    spec = model.read(job["model"])
    runner = ModelRunner(job["model"], spec, job["batch_size"])
    detector = Detector([(runner, Decoder(spec))])
    noise = np.random.default_rng(0).integers(0, 256, (runner.batch_size, spec.image_size, spec.image_size, 3)).astype(np.uint8)
    detector.decode(detector.run(noise))
    loaded = memory()["VmRSS"]

    def bare(patches: int) -> tuple[float, float]:
        """Seconds and CPU seconds of the forward pass alone."""
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(-(-patches // runner.batch_size)):
            runner(noise)
        return time.perf_counter() - wall, time.process_time() - cpu

    result: dict[str, float] = {}
    with Raster(job["image"]) as raster:
        info = raster.info()
    grid = PatchGrid(info.height, info.width, spec.image_size, job["overlap_px"])
    if job.get("bare"):
        bare(runner.batch_size)
        before = bare(len(grid) // 2)
    wall, cpu = time.perf_counter(), time.process_time()
    with Raster(job["image"]) as raster:
        raster.info()
        claimed = parts.concatenate([claim.found for claim in search(raster, grid, range(len(grid)), detector)])
    searched = time.perf_counter()
    found, _ = stitch.stitch(claimed, grid, first_patch_id=0, nms_iou=spec.nms_iou)
    end = time.perf_counter()
    result |= {"wall_s": end - wall, "cpu_s": time.process_time() - cpu, "stitch_s": end - searched, "boxes": len(found)}
    result |= {"patches": len(grid), "loaded_mib": loaded, "peak_mib": memory()["VmHWM"]}
    if job.get("bare"):
        after = bare(len(grid) - len(grid) // 2)
        result |= {"bare_wall_s": before[0] + after[0], "bare_cpu_s": before[1] + after[1]}
    if job.get("found"):
        rows = np.concatenate([found.boxes_mosaic_px[:, [1, 0, 3, 2]], found.scores[:, None]], axis=1)
        Path(job["found"]).write_text(json.dumps(rows.tolist()))
    print(json.dumps(result))


def contender(folder: Path, job: dict[str, Any], cores: list[int]) -> dict[str, float]:
    """Ours in a process of its own."""
    (folder / "job.json").write_text(json.dumps(job))
    return spoken([sys.executable, __file__, "--mode=stub", f"--ours={folder}"], cores)


def peer(python: str, job: dict[str, Any], size: int, cores: list[int]) -> dict[str, float]:
    """SAHI in a process of its own; with a real model it takes TensorFlow from this environment."""
    command = [str(python), str(Path(__file__).with_name("sahi_peer.py")), job["image"], f"--size={size}"]
    command += [f"--overlap_px={job['overlap_px']}", f"--batch_size={job['batch_size']}"]
    if "found" in job:
        packages = Path(np.__file__).parent.parent
        command += [
            f"--found={job['found']}",
            f"--model={Path(job['model']).resolve()}",
            f"--main={packages}",
            f"--repository={ROOT}",
            "--postprocess=NMS",
            "--metric=IOU",
        ]
    return spoken(command, cores)


def verb(folder: Path, image: Path, model: str, cores: list[int]) -> dict[str, float]:
    """The whole command, into a new folder."""
    with tempfile.TemporaryDirectory(dir=folder) as output:
        command = [sys.executable, "-m", "inference.predict", f"--model={model}", f"--mosaics={image}", f"--output={output}/out"]
        usage = measure.run(command, cores=cores)
    return dataclasses.asdict(usage)


def spoken(command: list[str], cores: list[int]) -> dict[str, float]:
    """Runs a contender on some cores; the JSON of its last line."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, preexec_fn=lambda: os.sched_setaffinity(0, cores), cwd=ROOT
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    line = done.stdout.strip().splitlines()[-1]
    print(f"{Path(command[1]).name}: {line}", file=sys.stderr)  # SAHI may take many minutes: what is measured is seen at once
    result: dict[str, float] = json.loads(line)
    return result


def memory() -> dict[str, float]:
    """MiB of this process, now and at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))}


def stub_mosaic(folder: Path, side: int) -> Path:
    """A JPEG-tiled BigTIFF, made once."""
    path = folder / f"synthetic-{side}.tif"
    if not path.exists():
        synthetic.write_tiled_jpeg(path, side)
    return path


def stub_model(folder: Path) -> Path:
    """A SavedModel whose heads are constants: 64 cells of 64 px with one anchor of 40 px, 20 of them with a score of 0.9."""
    sys.path.insert(0, str(ROOT))
    import tensorflow as tf

    from survey import model
    from survey.anchors import AnchorSpec
    from survey.heads import RetinaNetHeads

    anchors = AnchorSpec(6, 6, num_scales=1, aspect_ratios=(1.0,), anchor_size=40 / CELL_PX)
    spec = model.ModelSpec(
        image_size=STUB_SIZE,
        classes=("object",),
        heads=RetinaNetHeads(anchors, (1.0, 1.0, 1.0, 1.0)),
        score_threshold=0.5,
        score_floor=0.05,
        nms_iou=0.5,
        overlap_px=STUB_OVERLAP_PX,
        gsd_m=None,
        bands=(),
        calibration=(),
        validation={},
        dataset_digest="0" * 64,
        versions={},
    )
    cells = STUB_SIZE // CELL_PX
    logits = np.full((1, cells * cells, 1), -9.0, np.float32)
    logits[0, [row * cells + column for row, column in STUB_CELLS]] = np.log(9.0)  # a score of 0.9

    class Stub(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, STUB_SIZE, STUB_SIZE, 3], tf.uint8, name="images")])
        def raw(self, images: Any) -> dict[str, Any]:
            batch = tf.shape(images)[0]
            return {
                "raw_boxes": tf.zeros([batch, cells * cells, 4]),
                "raw_scores": tf.tile(tf.constant(logits), [batch, 1, 1]),
            }

    path = folder / "stub_model"
    if not (path / model.SPEC).exists():
        stub = Stub()
        tf.saved_model.save(stub, str(path / model.SAVED_MODEL), signatures={"raw": stub.raw})
        model.write(str(path), spec)
    return path


def real_mosaic(folder: Path, options: argparse.Namespace, classes: tuple[str, ...]) -> tuple[Path, np.ndarray]:
    """The photo laid out side by side, as a JPEG-tiled BigTIFF; and its objects [N, 4] whose centre is on the mosaic."""
    import tifffile

    from survey import mosaics, truth
    from survey.annotations import every
    from survey.annotations.reading import ReadOptions
    from survey.geometry import Window
    from survey.raster import Raster

    (one,) = mosaics.read([options.image], patch_size=64, overlap_px=0)
    read = every.read([options.annotations], options.annotation_format, ReadOptions())
    marked = truth.by_mosaic(read.annotations, [one], classes, named_in="the model", images=read.images)
    boxes = marked.objects[one.name].boxes_mosaic_px.astype(np.float32)
    side = options.side
    corners = [(y, x) for y in range(0, side, one.height) for x in range(0, side, one.width)]
    objects = np.concatenate([boxes + np.array([y, x, y, x], np.float32) for y, x in corners])
    objects = np.clip(objects[(objects[:, :2] + objects[:, 2:] < 2 * side).all(axis=1)], 0, side)
    path = folder / f"real-{side}.tif"
    if not path.exists():
        with Raster(options.image) as raster:
            photo = raster.read(Window(0, 0, one.height, one.width))
        cells = range(0, side, synthetic.TILE)
        pixels = np.tile(photo, (-(-side // one.height), -(-side // one.width), 1))[:side, :side]
        pixels = np.pad(pixels, ((0, synthetic.TILE), (0, synthetic.TILE), (0, 0)))
        # Encoded here: tifffile would store the colours as they are and call them YCbCr.
        tiles = (
            simplejpeg.encode_jpeg(
                np.ascontiguousarray(pixels[y : y + synthetic.TILE, x : x + synthetic.TILE]), quality=95, colorsubsampling="420"
            )
            for y in cells
            for x in cells
        )
        how = {"compression": "jpeg", "photometric": "ycbcr", "subsampling": (2, 2), "bigtiff": True}
        shape = {"shape": (side, side, 3), "dtype": "uint8", "tile": (synthetic.TILE, synthetic.TILE)}
        tifffile.imwrite(path, tiles, **shape, **how)
    return path, objects


if __name__ == "__main__":
    main()
