"""The experiment of a run: Model Garden's configuration, from the flags, the dataset and what users override."""

import functools
import operator
from typing import Any

import tensorflow as tf
import yaml
from official.core import config_definitions
from official.modeling import hyperparams

from survey.anchors import AnchorSpec
from survey.errors import InputError
from survey.heads import YoloHeads
from tpu_train import augment, precision, registry, schedules
from tpu_train.experiments import yolo
from tpu_train.models import backbones, yolo_networks
from tpu_train.options import YOLO, Options
from tpu_train.plan import Plan, head, version

# What a flag says, and its flag: the rest of the program reads either, so that both must say the same.
SAID_BY_FLAGS = {
    "trainer.train_steps": "steps",
    "trainer.validation_interval": "validate_every",
    "trainer.steps_per_loop": "steps_per_loop",
    "task.train_data.global_batch_size": "batch_size",
    "task.train_data.split": "train_split",
    "task.train_size": "image_size",
    "task.init": "init",
    "task.seed": "seed",
    "task.backbone_rate": "backbone_rate",
    "task.freeze_steps": "freeze_steps",
}


def experiment(options: Options, plan: Plan) -> config_definitions.ExperimentConfig:
    """The experiment of a run.

    In rising precedence: its defaults; the dataset's facts and the flags; --config; of the flags --schedule, --learning_rate and
    --precision, where they are given; --params_override.

    Raises:
      InputError: an override names a key that does not exist, contradicts a flag, or has a value that the backbone cannot have.
    """
    config = registry.experiment(options.model)
    said = _from_dataset(options, plan)
    config.override(said)
    _override(config, "--config", options.config)
    if options.schedule is not None or options.learning_rate is not None:
        _override(config, "--schedule", _rates(config, options))
    if options.precision is not None:
        _override(config, "--precision", {"runtime": {"mixed_precision_dtype": options.precision}})
    _override(config, "--params_override", options.params_override)
    config.validate()
    _check_flags(config, said)
    _check(config, options)
    return config


def _from_dataset(options: Options, plan: Plan) -> dict[str, Any]:
    network = _yolo(options, plan) if isinstance(plan.anchors, YoloHeads) else _retinanet(options, plan, plan.anchors)
    judging = options.train_split if options.validation else options.val_split
    model = {**network.pop("model"), "input_size": [plan.patch_size, plan.patch_size, 3]}
    return {
        "task": {
            **network,
            "dataset": options.dataset,
            "train_size": plan.image_size,
            "max_boxes": plan.max_boxes,
            "init": options.init,
            "seed": options.seed,
            "backbone_rate": options.backbone_rate,
            "freeze_steps": options.freeze_steps,
            "prefetch": not options.disable_prefetch,
            "model": model,
            "train_data": {"split": options.train_split, "global_batch_size": options.batch_size},
            "validation_data": {"split": judging, "global_batch_size": options.batch_size},
        },
        "trainer": {
            "train_steps": options.steps,
            "validation_interval": plan.validate_every,
            "steps_per_loop": options.steps_per_loop or 0,  # 0: fitted to the device
            "optimizer_config": schedules.overrides("cosine", peak=schedules.PEAK, steps=options.steps),
        },
    }


def _retinanet(options: Options, plan: Plan, anchors: AnchorSpec) -> dict[str, Any]:
    """Overrides of the task that only a RetinaNet has."""
    task = backbones.overrides(options.backbone, min_level=anchors.min_level, max_level=anchors.max_level)
    task["model"] |= {
        "num_classes": plan.num_classes + 1,  # Model Garden's RetinaNet counts the background
        "anchor": {
            "num_scales": anchors.num_scales,
            "aspect_ratios": list(anchors.aspect_ratios),
            "anchor_size": anchors.anchor_size,
        },
        "detection_generator": {"max_num_detections": plan.max_detections},
    }
    return task


def _yolo(options: Options, plan: Plan) -> dict[str, Any]:
    """Overrides of the task that only a YOLO has."""
    assert isinstance(plan.anchors, YoloHeads)
    task = yolo_networks.overrides(
        options.backbone,
        head(options),
        version(options),
        anchors_px=[anchor for level in plan.anchors.anchors_px for anchor in level],
        num_classes=plan.num_classes,  # and its YOLO does not
    )
    task["model"]["detection_generator"] |= {"max_boxes": plan.max_detections}
    matching = yolo_networks.VERSIONS[version(options)]
    return {**task, "match_threshold": matching.match_threshold, "best_match_only": matching.best_match_only}


def _override(config: config_definitions.ExperimentConfig, flag: str, values: Any) -> None:
    """Applies overrides strictly: a key must exist."""
    try:
        if values:
            hyperparams.override_params_dict(config, values, is_strict=True)
    except tf.errors.NotFoundError as error:
        raise InputError(f"{flag}={values}: neither a.b=1,a.c=2, nor a YAML file that exists") from error
    except (KeyError, ValueError, OSError, yaml.YAMLError) as error:
        raise InputError(f"{flag}: {error}") from error


def _rates(config: config_definitions.ExperimentConfig, options: Options) -> dict[str, Any]:
    """The schedule that the flags ask for; what they leave open is as the configuration has it."""
    rate = config.trainer.optimizer_config.learning_rate
    schedule = options.schedule or {"stepwise": "step"}.get(rate.type, rate.type)
    peaks = {
        "cosine": rate.cosine.initial_learning_rate,
        "stepwise": (rate.stepwise.values or [None])[0],
        "constant": rate.constant.learning_rate,
    }
    peak = options.learning_rate if options.learning_rate is not None else peaks.get(rate.type)
    if schedule not in schedules.NAMES or peak is None:
        raise InputError(
            f"--config has a learning rate of type {rate.type}, which the flags cannot change: give --schedule and "
            "--learning_rate both, or neither"
        )
    return {"trainer": {"optimizer_config": schedules.overrides(schedule, peak=peak, steps=options.steps)}}


def _check_flags(config: config_definitions.ExperimentConfig, said: dict[str, Any]) -> None:
    """Refuses overrides of what the flags say, which would be half obeyed."""
    for key, name in SAID_BY_FLAGS.items():
        path = key.split(".")
        asked, found = functools.reduce(operator.getitem, path, said), functools.reduce(getattr, path, config)
        if found != asked:
            raise InputError(
                f"{key}={found} in --config or --params_override: --{name}, given or by default, says {asked}; what has a flag "
                f"is said by the flag: give --{name}={found}, or drop the key"
            )


def _check(config: config_definitions.ExperimentConfig, options: Options) -> None:
    """Refuses what the backbone cannot do, overrides included."""
    task = config.task
    precision.policy(config, "")  # refuses what cannot be
    augment.check(task.augmentation)
    sizes = {
        f"task.train_size={task.train_size}": task.train_size,
        f"task.model.input_size={task.model.input_size[0]}": task.model.input_size[0],
    }
    frozen = task.freeze_level if task.init != "scratch" else 0
    if options.model == YOLO:
        yolo_networks.check(options.backbone, head(options), version(options), image_sizes=sizes, freeze_level=frozen)
        yolo_networks.check_init(options.backbone, task.init)
        yolo.loss_settings(task.model)  # refuses what cannot be
        return
    if task.model.backbone.type != backbones.BACKBONES[options.backbone].config["type"]:
        raise InputError(
            f"task.model.backbone.type={task.model.backbone.type}, but --backbone={options.backbone}: choose it by the flag, "
            "which also sets its pixels and its pyramid"
        )
    backbones.check(
        options.backbone,
        min_level=task.model.min_level,
        max_level=task.model.max_level,
        image_sizes=sizes,
        freeze_level=frozen,
    )
    backbones.check_init(options.backbone, task.init)
