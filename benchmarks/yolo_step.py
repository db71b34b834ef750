"""The steps that `tpu_step.py --model yolo` compares: that of `rookery train --model yolo`, and Model Garden's own."""

from typing import Any

CLASSES = 8
# What experiment yolo_darknet pads to (official/projects/yolo/configs/yolo.py). Its search looks at 150 of them, ours at all.
MAX_BOXES = 200
BACKBONE, HEAD, VERSION = "original", "yolo3", "v3"


def experiment(batch_size: int, image_size: int, optimizer: str) -> Any:
    """What the flags of `rookery train` make, without a dataset; anchors are Model Garden's.

    Args:
      batch_size: images a step.
      image_size: side of crops and patches in pixels.
      optimizer: "sgd", momentum and nothing else, or "shipped", the experiment's own.
    """
    import tpu_step

    from tpu_train import configure, plan
    from tpu_train.options import Options

    options = Options(
        dataset="",
        model_dir="",
        model="yolo",
        backbone=BACKBONE,
        head=HEAD,
        yolo=VERSION,
        init="scratch",
        image_size=image_size,
        num_classes=CLASSES,
        max_boxes=MAX_BOXES,
        batch_size=batch_size,
    )
    config = configure.experiment(options, plan.without_dataset(options))
    config.task.freeze_level = 0
    if optimizer == "sgd":
        tpu_step.use_sgd(config)
    return config


def ours(batch_size: int, image_size: int, optimizer: str) -> Any:
    """The step that `rookery train` runs, as `lowering.Traced`."""
    from tpu_train.preflight import lowering

    return lowering.trace(experiment(batch_size, image_size, optimizer), replicas=1, step="train")


def stock(batch_size: int, image_size: int, optimizer: str) -> Any:
    """Model Garden's step with the network, the loss and the optimizer of ours, as `lowering.Traced`."""
    import tensorflow as tf
    from official.core import base_task, base_trainer
    from official.core import config_definitions as cfg
    from official.projects.yolo.tasks import yolo as garden_task

    from tpu_train.experiments import yolo
    from tpu_train.preflight import lowering

    mine = experiment(batch_size, image_size, optimizer)
    heads = yolo.heads(mine.task.model)
    config = cfg.ExperimentConfig(task=garden_config(heads, image_size), trainer=mine.trainer)
    nothing = labels(heads, image_size, tf.zeros([1, 4]), tf.zeros([1]))  # all that matters is its shapes
    inputs = {
        "images": tf.TensorSpec([batch_size, image_size, image_size, 3]),  # float32, as of its recipe for v3 and v4
        **{name: tf.TensorSpec([batch_size, *value.shape], value.dtype) for name, value in nothing.items()},
    }
    with tf.distribute.OneDeviceStrategy("/cpu:0").scope():
        task = garden_task.YoloTask(config.task)
        model = task.build_model()
        trainer = base_trainer.Trainer(
            config,
            task,
            model=model,
            # Not the YOLO task's own, which splits variables into groups for its "sgd_torch": ours has no such groups.
            optimizer=base_task.Task.create_optimizer(config.trainer.optimizer_config),
            evaluate=False,
            train_dataset=[inputs],  # never read
        )

        def train_step(*tensors: Any) -> None:
            trainer.train_step(iter([as_parsed(dict(zip(inputs, tensors, strict=True)))]))

        return lowering.Traced("train", tf.function(train_step, jit_compile=True), inputs, trainer.model, trainer)


def garden_config(heads: Any, image_size: int) -> Any:
    """Model Garden's task with the network and the loss that `rookery train` configures."""
    from official.projects.yolo.configs import yolo as garden

    from tpu_train.models import yolo_networks

    task = garden.YoloTask(annotation_file=None)
    anchors_px = [anchor for level in heads.anchors_px for anchor in level]
    model = yolo_networks.overrides(BACKBONE, HEAD, VERSION, anchors_px=anchors_px, num_classes=CLASSES)["model"]
    task.model.override({**model, "input_size": [image_size, image_size, 3]})
    return task


def labels(heads: Any, image_size: int, boxes: Any, classes: Any) -> dict[str, Any]:
    """What Model Garden's parser makes of the objects of an image, flat: padded to the same shapes whatever they are.

    Args:
      heads: geometry of the network's raw heads.
      image_size: side in pixels.
      boxes: float32 [N, 4], yxyx as shares of the side, N from 1 to MAX_BOXES.
      classes: float32 [N], from 0.
    """
    import tensorflow as tf
    from official.projects.yolo.ops import anchor

    from tpu_train.models import yolo_networks

    levels = [str(level) for level in heads.levels]
    version = yolo_networks.VERSIONS[VERSION]
    labeler = anchor.YoloAnchorLabeler(
        anchors={level: [list(one) for one in each] for level, each in zip(levels, heads.anchors_px, strict=True)},
        level_strides={level: 2 ** int(level) for level in levels},
        center_radius=dict(zip(levels, heads.scale_xy, strict=True)),
        max_num_instances=MAX_BOXES,
        match_threshold=version.match_threshold,
        best_matches_only=version.best_match_only,
        use_tie_breaker=True,
        darknet=True,
    )
    parts = dict(zip(("inds", "upds", "true_conf"), labeler(boxes, classes, image_size, image_size), strict=True))
    flat = {f"{part}/{level}": value for part, values in parts.items() for level, value in values.items()}
    missing = MAX_BOXES - boxes.shape[0]
    return {
        "bbox": tf.pad(boxes, [[0, missing], [0, 0]]),
        "classes": tf.pad(classes, [[0, missing]], constant_values=-1.0),
        **flat,
    }


def as_parsed(flat: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Images and labels as Model Garden's parser gives them, from one dict."""
    parsed: dict[str, Any] = {name: flat[name] for name in ("bbox", "classes")}
    for part in ("inds", "upds", "true_conf"):
        parsed[part] = {name.split("/")[1]: value for name, value in flat.items() if name.startswith(f"{part}/")}
    return flat["images"], parsed
