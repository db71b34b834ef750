"""Our training step beside Model Garden's, both compiled for one chip of a TPU, on this machine, without the TPU.

    python benchmarks/tpu_step.py [--model retinanet|yolo] [--accelerator v5litepod-8] [--optimizer sgd|shipped] [--cache FOLDER]

--model retinanet: ResNet-50 with a pyramid of 256 features at levels 3 to 7, four convolutions of 256 in each head, nine anchors
a place (76,725 at 640 px), eight classes. --model yolo: YOLOv3 on Darknet-53, nine anchors, eight classes, 200 padded boxes, and
the search for predictions to ignore. Both in bfloat16, without exchange of batch statistics. Each compile takes minutes;
`rookery train` runs the same step.

    Model Garden    its task's step: images and targets come from the host, which has cropped, resized and assigned
    rookery         from uint8 pixels and boxes: resampling, flips, colour, anchor assignment, guard, counts of objects

Both have the same optimizer and loss, and are run by Model Garden's `Trainer`. `sgd` is momentum and nothing else, as of
`shared/lab`; `shipped` is what RetinaNet trains with by `tpu_train/configs/retinanet_r50_tpu.yaml` (weight decay, clipping,
averaged weights), and YOLO by default. A loop whose length hangs on data is counted once: Model Garden's search of YOLO is one.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(Path(__file__).parent.parent))  # a child is started by its path, not as a module

from survey import accelerators
from tpu_train.preflight import compiler, hlo, traffic

CONFIG = Path(__file__).parent.parent / "tpu_train/configs/retinanet_r50_tpu.yaml"
STOCK, OURS = "Model Garden", "rookery"
SIZES = {"retinanet": 640, "yolo": 416}  # sides of images in px
LEVELS = (3, 7)
CLASSES = 8
MAX_BOXES = 104  # a hundred objects, Model Garden's limit, in eights
ANCHOR = {"num_scales": 3, "aspect_ratios": [0.5, 1.0, 2.0], "anchor_size": 4.0}
# Issue 5: what ours may take, as a share of Model Garden's.
ALLOWED = {"GFLOP": 1.03, "HBM traffic, MB": 1.05, "HBM temporaries, MB": 1.0}
SGD = {
    "optimizer": {"type": "sgd", "sgd": {"momentum": 0.9}},
    "ema": None,
    "learning_rate": {"type": "constant", "constant": {"learning_rate": 0.01}},
    "warmup": {"type": None},
}


@dataclasses.dataclass(frozen=True)
class Result:
    """What the compiler says of one step.

    Attributes:
      compiled: its answer.
      moved: HBM traffic of the module.
      parameters: of the model.
    """

    compiled: compiler.Compiled
    moved: traffic.Traffic
    parameters: int


def main() -> None:
    """Lowers and compiles both, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(SIZES), default="retinanet")
    parser.add_argument("--accelerator", default="v5litepod-8")
    parser.add_argument("--batch_size", type=int, default=8, help="images of one chip")
    parser.add_argument("--image_size", type=int, help=f"in px (default: {SIZES['retinanet']}, of yolo {SIZES['yolo']})")
    parser.add_argument("--optimizer", choices=("sgd", "shipped"), default="sgd", help="for both")
    parser.add_argument("--largest", type=int, default=15, help="instructions to list of each")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds for one compile")
    parser.add_argument("--cache", type=Path, help="folder of compiles already done (default: compiles afresh)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--only", choices=(STOCK, OURS), help="compile one of the two, into the cache")
    options = parser.parse_args()
    size = options.image_size or SIZES[options.model]
    topology = accelerators.parse(options.accelerator).chip.topology
    results = {}
    with ExitStack() as stack:
        cache = options.cache or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rookery_benchmark_")))
        for name in (options.only,) if options.only else (STOCK, OURS):
            # Each in a process of its own: a compile should have the memory to itself.
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                job = pool.submit(lowered, options.model, name, options.batch_size, size, options.optimizer)
                text, parameters, seconds = job.result()
            print(f"{name}: lowered in {seconds:.0f} s, {len(text) / 1e6:.1f} MB of StableHLO", file=sys.stderr, flush=True)
            outcome = compiler.compile(text, topology, cache=cache, timeout_s=options.timeout)
            if isinstance(outcome, compiler.Refused):
                sys.exit(f"{name}: {outcome.message}")
            print(f"{name}: compiled in {outcome.seconds:.0f} s", file=sys.stderr, flush=True)
            results[name] = Result(outcome, traffic.measure(hlo.parse(outcome.hlo)), parameters)
    versions = next(iter(results.values())).compiled.versions
    title = (
        f"{options.model}: one step of {options.batch_size} images of {size} px on one chip, {topology}, optimizer "
        f"{options.optimizer}, jax {versions['jax']}, libtpu {versions['libtpu']}"
    )
    print(f"\n{title}")
    if not options.only:
        print(f"\n{table(results, options.batch_size)}")
    for name, result in results.items():
        print(f"\n{name}: HBM traffic by part, and by the largest instructions\n\n{listing(result, options.largest)}")
    if options.json:
        options.json.write_text(json.dumps({"title": title} | {name: as_dict(each) for name, each in results.items()}, indent=1))


def table(results: dict[str, Result], images: int) -> str:
    """Both steps side by side."""
    figures = {
        "GFLOP": lambda each: each.compiled.flops / 1e9,
        "HBM traffic, MB": lambda each: each.moved.total_bytes / 1e6,
        "HBM traffic without padding, MB": lambda each: each.moved.logical_bytes / 1e6,
        "HBM temporaries, MB": lambda each: each.compiled.temporary_bytes / 1e6,
        "HBM arguments, MB": lambda each: each.compiled.argument_bytes / 1e6,
        "code, MB": lambda each: each.compiled.code_bytes / 1e6,
    }
    lines = [f"{'':34}{STOCK:>14}{OURS:>12}{'ratio':>9}{'at most':>9}"]
    for name, figure in figures.items():
        stock, ours = figure(results[STOCK]), figure(results[OURS])
        allowed = f"{ALLOWED[name]:.2f}" if name in ALLOWED else ""
        lines.append(f"{name:34}{stock:14,.0f}{ours:12,.0f}{ours / stock:9.3f}{allowed:>9}".rstrip())
        if name in ALLOWED:
            lines.append(f"{'  an image':34}{stock / images:14,.1f}{ours / images:12,.1f}")
    once = {name: len(each.moved.uncounted_loops) for name, each in results.items()}
    if any(once.values()):
        lines.append(f"{'loops counted once':34}{once[STOCK]:14}{once[OURS]:12}")
    lines.append(f"{'parameters':34}{results[STOCK].parameters:14,}{results[OURS].parameters:12,}")
    lines.append(f"{'compile, s':34}{results[STOCK].compiled.seconds:14,.0f}{results[OURS].compiled.seconds:12,.0f}")
    return "\n".join(lines)


def listing(result: Result, largest: int) -> str:
    """Where the bytes of a step go."""
    total = result.moved.total_bytes
    parts = [f"{moved / 1e6:9,.0f} MB {moved / total:6.1%}  {part}" for part, moved in result.moved.by_part().items()]
    rows = [
        f"{row.bytes / 1e6:9,.0f} MB {row.bytes / total:6.1%}  {row.opcode} {row.name}: {row.op_name or '?'}"
        for row in result.moved.rows[:largest]
    ]
    return "\n".join([*parts, "", *rows])


def as_dict(result: Result) -> dict[str, Any]:
    """For JSON."""
    fields = (field.name for field in dataclasses.fields(result.compiled))
    figures = {name: getattr(result.compiled, name) for name in fields if name not in ("hlo", "versions")}
    moved = {"hbm_traffic_bytes": result.moved.total_bytes, "hbm_traffic_logical_bytes": result.moved.logical_bytes}
    loops = {"loops_counted_once": list(result.moved.uncounted_loops)}
    return figures | moved | loops | {"by_part": result.moved.by_part(), "parameters": result.parameters}


def lowered(model: str, name: str, batch_size: int, image_size: int, optimizer: str) -> tuple[str, int, float]:
    """StableHLO, parameters, and the seconds that it took; TensorFlow is imported here, in a child."""
    import yolo_step

    from tpu_train import precision

    begun = time.monotonic()
    makers = {"retinanet": {STOCK: stock, OURS: ours}, "yolo": {STOCK: yolo_step.stock, OURS: yolo_step.ours}}
    with precision.computing("mixed_bfloat16"):
        traced = makers[model][name](batch_size, image_size, optimizer)
        text = traced.lower()
    return text, traced.network.count_params(), time.monotonic() - begun


def ours(batch_size: int, image_size: int, optimizer: str) -> Any:
    """The step that `rookery train` runs, as `lowering.Traced`."""
    from tpu_train.preflight import lowering

    return lowering.trace(experiment(batch_size, image_size, optimizer), replicas=1, step="train")


def experiment(batch_size: int, image_size: int, optimizer: str) -> Any:
    """The shipped configuration for TPUs, on a dataset of Model Garden's classes and anchors."""
    import yaml

    from tpu_train import registry
    from tpu_train.models import backbones

    config = registry.experiment("retinanet")
    config.override({"task": backbones.overrides("resnet50", min_level=LEVELS[0], max_level=LEVELS[1])})
    model = {"num_classes": CLASSES + 1, "input_size": [image_size, image_size, 3], "anchor": ANCHOR}
    task = {"init": "scratch", "train_size": image_size, "max_boxes": MAX_BOXES, "model": model}
    config.override({"task": {**task, "train_data": {"global_batch_size": batch_size}}})
    config.override({"trainer": {"train_steps": 1, "validation_interval": 1}})
    config.override(yaml.safe_load(CONFIG.read_text()))
    if optimizer == "sgd":
        config.task.losses.override({"l2_weight_decay": 0.0})
        use_sgd(config)
    else:
        config.trainer.override({"optimizer_config": {"learning_rate": {"cosine": {"decay_steps": 1000}}}})
    return config


def use_sgd(config: Any) -> None:
    """Momentum and nothing else."""
    config.trainer.override({"optimizer_config": SGD})
    # Overriding goes key by key, and would leave the clipping.
    config.trainer.optimizer_config.optimizer.sgd.override({"global_clipnorm": None})
    config.trainer.optimizer_config.ema = None


def stock(batch_size: int, image_size: int, optimizer: str) -> Any:
    """Model Garden's step with the optimizer and the weight decay of ours, as `lowering.Traced`."""
    import tensorflow as tf
    import tf_keras
    from official.core import base_trainer
    from official.core import config_definitions as cfg
    from official.vision.configs import retinanet as garden
    from official.vision.tasks import retinanet as garden_task

    from tpu_train.preflight import lowering

    mine = experiment(batch_size, image_size, optimizer)
    config = cfg.ExperimentConfig(
        task=garden.RetinaNetTask(
            model=garden.RetinaNet(num_classes=CLASSES + 1, input_size=[image_size, image_size, 3]),
            losses=garden.Losses(l2_weight_decay=mine.task.losses.l2_weight_decay),
            annotation_file=None,
        ),
        trainer=mine.trainer,
    )
    config.task.model.norm_activation.use_sync_bn = False
    compute = tf_keras.mixed_precision.global_policy().compute_dtype
    sides = {level: -(-image_size // 2**level) for level in range(LEVELS[0], LEVELS[1] + 1)}
    places = 3 * ANCHOR["num_scales"]  # aspect ratios x scales
    anchors = sum(places * side**2 for side in sides.values())
    inputs = {
        "images": tf.TensorSpec([batch_size, image_size, image_size, 3], compute),
        **{f"cls_targets/{level}": tf.TensorSpec([batch_size, side, side, places], tf.int32) for level, side in sides.items()},
        **{f"box_targets/{level}": tf.TensorSpec([batch_size, side, side, 4 * places]) for level, side in sides.items()},
        "cls_weights": tf.TensorSpec([batch_size, anchors]),
        "box_weights": tf.TensorSpec([batch_size, anchors]),
    }
    with tf.distribute.OneDeviceStrategy("/cpu:0").scope():
        task = garden_task.RetinaNetTask(config.task)
        trainer = base_trainer.Trainer(
            config,
            task,
            model=task.build_model(),
            optimizer=task.create_optimizer(config.trainer.optimizer_config),
            evaluate=False,
            train_dataset=[inputs],  # never read
        )

        def train_step(*tensors: Any) -> None:
            trainer.train_step(iter([as_parsed(dict(zip(inputs, tensors, strict=True)))]))

        return lowering.Traced("train", tf.function(train_step, jit_compile=True), inputs, trainer.model, trainer)


def as_parsed(flat: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Images and labels as Model Garden's parser gives them, from one dict."""
    labels: dict[str, Any] = {name: value for name, value in flat.items() if name.endswith("weights")}
    for kind in ("cls_targets", "box_targets"):
        labels[kind] = {name.split("/")[1]: value for name, value in flat.items() if name.startswith(f"{kind}/")}
    return flat["images"], labels | {"attribute_targets": {}}


if __name__ == "__main__":
    main()
