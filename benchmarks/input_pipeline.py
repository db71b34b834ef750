"""How fast the host feeds a training step, beside bare decoding and beside Model Garden's input of RetinaNet and of YOLO.

    python benchmarks/input_pipeline.py [--images 512] [--seconds 10] [--repeats 5] [--json FILE]

The same records for all: 640 px JPEGs as `rookery shard` writes them by default, 50 boxes an image. Every repeat runs all
contenders in turn, each in a process of its own that fills its buffers first and is then timed:

    decode only          TFRecord, the picture's bytes, tf.io.decode_jpeg, batch: what no input on this host can beat
    rookery              what `rookery train` reads, the same for RetinaNet and YOLO: shuffled, with boxes, and where the view of
                         each image lies; the rest happens on the device, mosaics too
    MG RetinaNet         Model Garden's InputReader, decoder and parser: scale 0.5 to 2, flip, targets for 76,725 anchors
    MG YOLO, no mosaic   its YoloTask's, as its experiment yolo_darknet (v3 and v4) has them: flip, colour, targets, mosaic off
    MG YOLO              the same with its mosaics, three quarters of the images
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(Path(__file__).parent.parent))  # a child is started by its path, not as a module

import measure
import numpy as np
import synthetic

from pipeline import records

SIZE = 640
BOXES = 50
BATCH = 8
SHARDS = 8
CLASSES = ("bird", "nest")
DECODE, OURS = "decode only", "rookery"
RETINANET, PLAIN_YOLO, YOLO = "MG RetinaNet", "MG YOLO, no mosaic", "MG YOLO"
ALL = (DECODE, OURS, RETINANET, PLAIN_YOLO, YOLO)


def main() -> None:
    """Measures all contenders, or as a child one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="records, read again and again")
    parser.add_argument("--seconds", type=float, default=10.0, help="timed, of each contender in each repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--jpeg_quality", type=int, default=95, help="of the records, as of `rookery shard`")
    parser.add_argument("--jpeg_subsampling", choices=records.SUBSAMPLINGS, default="444", help="the same")
    parser.add_argument("--json", default="", help="also write the rates to this file")
    parser.add_argument("--contender", choices=ALL, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        print(json.dumps(timed(options.contender, options.folder, options.images, options.seconds)))
        return
    with tempfile.TemporaryDirectory(prefix="rookery_benchmark_") as name:
        encoding = records.Encoding("jpeg", options.jpeg_quality, options.jpeg_subsampling)
        size = write_records(Path(name), options.images, encoding)
        found: dict[str, list[dict[str, float]]] = {contender: [] for contender in ALL}
        for _ in range(options.repeats):
            for contender, results in found.items():
                results.append(child(contender, name, options))
    report(found, options, size)


def write_records(folder: Path, images: int, encoding: records.Encoding) -> float:
    """Shards of natural-looking patches with boxes of 16 to 96 px; returns the mean size of a picture in kB."""
    rng = np.random.default_rng(0)
    pictures = [encoding.encode(synthetic.texture(seed, SIZE)) for seed in range(min(images, 32))]
    for shard in range(SHARDS):
        contents = []
        for patch_id in range(shard, images, SHARDS):
            sides = rng.uniform(16, 96, (BOXES, 2))
            corners = rng.uniform(0, SIZE - sides)
            contents.append(
                records.example(
                    patch_id=patch_id,
                    filename="synthetic.tif",
                    encoded=pictures[patch_id % len(pictures)],
                    patch_size=SIZE,
                    boxes_patch_px=np.concatenate([corners, corners + sides], axis=1),
                    class_ids=rng.integers(1, len(CLASSES) + 1, BOXES),
                    classes=CLASSES,
                )
            )
        records.write_tfrecord(str(folder / f"train-{shard:05d}-of-{SHARDS:05d}.tfrecord"), contents)
    return sum(map(len, pictures)) / len(pictures) / 1e3


def child(contender: str, folder: str, options: argparse.Namespace) -> dict[str, float]:
    """One contender once, in a process of its own.

    Raises:
      RuntimeError: it failed; with what it said.
    """
    command = [sys.executable, __file__, f"--contender={contender}", f"--folder={folder}", f"--images={options.images}"]
    done = subprocess.run([*command, f"--seconds={options.seconds}"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{contender} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def timed(contender: str, folder: Path, images: int, seconds: float) -> dict[str, float]:
    """Images a second, images a CPU second, and the peak memory in MiB, of one contender in this process."""
    inputs = {DECODE: decode_only, OURS: ours, RETINANET: retinanet, PLAIN_YOLO: plain_yolo, YOLO: yolo}
    batches = inputs[contender](str(folder), images)
    # An epoch, or for the slow twice the timed seconds: threads have started, AUTOTUNE has settled, buffers have been filled.
    begun, seen = time.perf_counter(), 0
    while seen < images and time.perf_counter() - begun < 2 * seconds:
        next(batches)
        seen += BATCH
    begun, cpu, seen = time.perf_counter(), time.process_time(), 0
    while (passed := time.perf_counter() - begun) < seconds:
        next(batches)
        seen += BATCH
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"images_per_s": seen / passed, "images_per_cpu_s": seen / (time.process_time() - cpu), "peak_mib": peak}


def decode_only(folder: str, images: int) -> Iterator[Any]:
    """Bare decoding."""
    import tensorflow as tf

    def picture(serialized: tf.Tensor) -> tf.Tensor:
        example = tf.io.parse_single_example(serialized, {"image/encoded": tf.io.FixedLenFeature([], tf.string)})
        return tf.ensure_shape(tf.io.decode_jpeg(example["image/encoded"], channels=3), [SIZE, SIZE, 3])

    serialized = tf.data.TFRecordDataset(tf.io.gfile.glob(f"{folder}/*.tfrecord")).repeat()
    decoded = serialized.map(picture, num_parallel_calls=tf.data.AUTOTUNE)
    return iter(decoded.batch(BATCH, drop_remainder=True).prefetch(tf.data.AUTOTUNE))


def ours(folder: str, images: int) -> Iterator[Any]:
    """What `rookery train --model yolo` reads, and RetinaNet alike."""
    from official.core import task_factory

    from tpu_train import configure, plan, shards, sources
    from tpu_train.options import Options

    options = Options(
        dataset="",
        model_dir="",
        model="yolo",
        backbone="original",
        init="scratch",
        image_size=SIZE,
        num_classes=len(CLASSES),
        max_boxes=BOXES,
        batch_size=BATCH,
    )
    config = configure.experiment(options, plan.without_dataset(options))
    task = task_factory.get_task(config.task)
    paths = sorted(Path(folder).glob("*.tfrecord"))
    task.shards = {sources.TRAINING: [shards.Shard(str(path), shards.count_records(str(path))) for path in paths]}
    return iter(task.build_inputs(config.task.train_data))


def retinanet(folder: str, images: int) -> Iterator[Any]:
    """Model Garden's own input of its RetinaNet task, with the augmentation of its published recipes."""
    from official.vision.configs import retinanet
    from official.vision.dataloaders import input_reader, retinanet_input, tf_example_decoder

    config = retinanet.DataConfig(
        input_path=f"{folder}/*.tfrecord",
        is_training=True,
        global_batch_size=BATCH,
        shuffle_buffer_size=images,  # its 10,000 would only lengthen the start
    )
    model = retinanet.RetinaNet()
    parser = retinanet_input.Parser(
        output_size=[SIZE, SIZE],
        min_level=model.min_level,
        max_level=model.max_level,
        num_scales=model.anchor.num_scales,
        aspect_ratios=model.anchor.aspect_ratios,
        anchor_size=model.anchor.anchor_size,
        aug_rand_hflip=True,
        aug_scale_min=0.5,
        aug_scale_max=2.0,
        max_num_instances=100,
    )
    decoder = tf_example_decoder.TfExampleDecoder()
    reader = input_reader.InputReader(config, decoder_fn=decoder.decode, parser_fn=parser.parse_fn(is_training=True))
    return iter(reader.read())


def yolo(folder: str, images: int) -> Iterator[Any]:
    """Model Garden's own input of its YOLO task, as its experiment for v3 and v4 has it."""
    return _yolo(folder, images, mosaic=True)


def plain_yolo(folder: str, images: int) -> Iterator[Any]:
    """The same without mosaics."""
    return _yolo(folder, images, mosaic=False)


def _yolo(folder: str, images: int, *, mosaic: bool) -> Iterator[Any]:
    from official.core import exp_factory
    from official.projects.yolo.configs import yolo as garden
    from official.projects.yolo.tasks import yolo as garden_task

    assert garden.yolo_darknet  # importing it registers the experiment
    config = exp_factory.get_exp_config("yolo_darknet").task
    config.model.num_classes, config.model.input_size = len(CLASSES), [SIZE, SIZE, 3]
    data = config.train_data
    data.input_path, data.global_batch_size, data.shuffle_buffer_size = f"{folder}/*.tfrecord", BATCH, images
    data.decoder.simple_decoder.coco91_to_80 = False  # the records do not have COCO's classes
    if not mosaic:
        data.parser.mosaic.mosaic_frequency = 0.0
    return iter(garden_task.YoloTask(config).build_inputs(data))


def report(found: dict[str, list[dict[str, float]]], options: argparse.Namespace, kilobytes: float) -> None:
    """Prints the table and writes the JSON."""
    rates = {name: [result["images_per_s"] for result in results] for name, results in found.items()}
    rows = []
    for name, results in found.items():
        # Of each repeat the ratio: what else the machine did then slowed its neighbour, too.
        ratios = [
            f"{median(mine / other for mine, other in zip(rates[name], rates[peer], strict=True)):.2f}"
            for peer in (DECODE, RETINANET, PLAIN_YOLO, YOLO)
        ]
        rows.append(
            [
                name,
                f"{median(rates[name]):.0f}",
                f"{min(rates[name]):.0f}-{max(rates[name]):.0f}",
                *ratios,
                f"{median(result['images_per_cpu_s'] for result in results):.0f}",
                f"{max(result['peak_mib'] for result in results):.0f}",
            ]
        )
    print(
        f"{options.images} records of {SIZE} px, {kilobytes:.0f} kB a picture, {BOXES} boxes, batches of {BATCH}; "
        f"medians of {options.repeats} repeats of {options.seconds:g} s, in turn:\n"
    )
    peers = [f"x {peer}" for peer in (RETINANET, PLAIN_YOLO, YOLO)]
    header = ["", "images/s", "least-most", f"x {DECODE}", *peers, "images/CPU s", "peak MiB"]
    print(measure.table(header, rows))
    print(f"\n{measure.machine('tensorflow', 'tf-models-official')}")
    if options.json:
        summary = {
            "cores": os.cpu_count(),
            "image_size": SIZE,
            "boxes": BOXES,
            "picture_kb": round(kilobytes, 1),
            "images_per_s": {name: round(median(values), 1) for name, values in rates.items()},
        }
        Path(options.json).write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
