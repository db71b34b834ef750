"""The training run: configuration, strategy, and Model Garden's trainer in orbit's loop, with a progress line."""

import logging
import os
import time
from typing import Any

import orbit
import tensorflow as tf
import tf_keras
import yaml
from official.core import base_trainer, config_definitions, task_factory, train_utils
from official.modeling import hyperparams

from survey import files
from survey.errors import InputError
from survey.progress import Progress
from tpu_train import registry
from tpu_train import strategy as strategies
from tpu_train.plan import Plan
from tpu_train.train import BEST_RECORD, Options

CONFIG = "params.yaml"


def configure(options: Options, plan: Plan) -> config_definitions.ExperimentConfig:
    """The experiment with, in rising precedence: its defaults, the dataset's facts, --config, the flags, --params_override.

    Raises:
      InputError: an override names a key that does not exist.
    """
    config = registry.experiment(options.model)
    anchors = plan.anchors
    config.override(
        {
            "task": {
                "dataset": options.dataset,
                "train_size": plan.image_size,
                "max_boxes": plan.max_boxes,
                "init": options.init,
                "seed": options.seed,
                "model": {
                    "num_classes": plan.num_classes + 1,  # Model Garden's RetinaNet counts the background
                    "input_size": [plan.patch_size, plan.patch_size, 3],
                    "min_level": anchors.min_level,
                    "max_level": anchors.max_level,
                    "anchor": {
                        "num_scales": anchors.num_scales,
                        "aspect_ratios": list(anchors.aspect_ratios),
                        "anchor_size": anchors.anchor_size,
                    },
                    "detection_generator": {"max_num_detections": plan.max_detections},
                },
                "train_data": {"split": options.train_split, "global_batch_size": options.batch_size},
                "validation_data": {"split": options.val_split, "global_batch_size": options.batch_size},
            },
            "trainer": {
                "train_steps": options.steps,
                "validation_interval": plan.validate_every,
                "steps_per_loop": min(20, plan.validate_every),
                "checkpoint_interval": plan.validate_every,
                "max_to_keep": 2,
                "optimizer_config": {"learning_rate": {"cosine": {"decay_steps": options.steps}}},
            },
        }
    )
    given: dict[str, Any] = {}
    if options.learning_rate is not None:
        given = {"trainer": {"optimizer_config": {"learning_rate": {"cosine": {"initial_learning_rate": options.learning_rate}}}}}
    try:
        for override in (options.config, given, options.params_override):
            if override:
                config = hyperparams.override_params_dict(config, override, is_strict=True)
    except (KeyError, ValueError, OSError, yaml.YAMLError) as error:
        raise InputError(f"--config or --params_override: {error}") from error
    config.validate()
    backbone = config.task.model.backbone.type
    if config.task.init == "imagenet" and backbone != "efficientnet_lite0":
        raise InputError(f"--init=imagenet has weights for efficientnet_lite0, not for {backbone}: give a checkpoint, or scratch")
    return config


def train(config: config_definitions.ExperimentConfig, options: Options, plan: Plan) -> None:
    """Trains to the last step, from the last checkpoint in the model folder if there is one, and validates on the way."""
    trained = steps_done(options.model_dir)
    if trained >= options.steps and os.path.exists(os.path.join(options.model_dir, BEST_RECORD)):
        print(f"train: {options.model_dir} already has its {trained} steps, nothing to do")
        return
    logging.getLogger("absl").setLevel(logging.WARNING)
    files.write(os.path.join(options.model_dir, CONFIG), yaml.safe_dump(config.as_dict(), sort_keys=False).encode())
    tf_keras.utils.set_random_seed(options.seed)
    # Grappler turns the sums of Model Garden's box decoding into temporary variables whose names collide between levels
    # (AlreadyExistsError: .../AddOpsRewrite_add_3/tmp_var).
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    strategy, device = strategies.pick()
    if device.startswith("CPU"):
        tf.config.experimental.enable_op_determinism()  # costs nothing there, and two runs of one seed agree to the last bit
    if device.startswith("TPU"):
        tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    print(
        f"train: {options.model} on {device}; crops of {plan.image_size} px, batch {options.batch_size}, "
        f"anchors {anchor_sides(plan)} px, up to {plan.max_boxes} objects a patch",
        flush=True,
    )
    orbit.controller._log = logging.getLogger(__name__).info  # it prints every dict that passes; our actions say it shorter
    with strategy.scope():  # the whole run: Model Garden swaps averaged weights only inside it
        task = task_factory.get_task(config.task)
        task.start_step = trained
        trainer = base_trainer.Trainer(
            config,
            task,
            model=task.build_model(),
            optimizer=task.create_optimizer(config.trainer.optimizer_config),
            checkpoint_exporter=train_utils.maybe_create_best_ckpt_exporter(config, options.model_dir),
        )
        manager = tf.train.CheckpointManager(
            trainer.checkpoint,
            directory=options.model_dir,
            max_to_keep=config.trainer.max_to_keep,
            step_counter=trainer.global_step,
            checkpoint_interval=config.trainer.checkpoint_interval,
            init_fn=trainer.initialize,
        )
        controller = orbit.Controller(
            strategy=strategy,
            trainer=trainer,
            evaluator=trainer,
            global_step=trainer.global_step,
            steps_per_loop=config.trainer.steps_per_loop,
            checkpoint_manager=manager,
            summary_dir=os.path.join(options.model_dir, "summaries"),
            train_actions=[_Report(options, trainer.global_step)],
            eval_actions=[_print_validation],
        )
        every, done = config.trainer.validation_interval, int(trainer.global_step.numpy())
        while done < options.steps:
            # Validation comes at multiples of its interval also after a restart, so that a stop changes nothing in the result.
            done = min(options.steps, (done // every + 1) * every)
            controller.train(done)
            controller.evaluate()
    print(f"train: done; next: rookery export --model_dir {options.model_dir} --output MODEL", flush=True)


def steps_done(model_dir: str) -> int:
    """Steps of the last checkpoint in a folder, 0 without one."""
    latest = tf.train.latest_checkpoint(model_dir)
    return int(tf.train.load_variable(latest, "global_step/.ATTRIBUTES/VARIABLE_VALUE")) if latest else 0


def anchor_sides(plan: Plan) -> str:
    """Smallest and largest anchor side in pixels, for people."""
    spec = plan.anchors
    largest = spec.anchor_size * 2 ** (spec.max_level + (spec.num_scales - 1) / spec.num_scales)
    return f"{spec.anchor_size * 2**spec.min_level:.0f} to {largest:.0f}"


class _Report:
    """An orbit action that shows step, losses, images per second and time left."""

    def __init__(self, options: Options, step: tf.Variable) -> None:
        self._options, self._step = options, step
        self._progress: Progress | None = None
        self._last = time.monotonic()

    def __call__(self, outputs: dict[str, Any]) -> None:
        step = int(self._step.numpy())
        if self._progress is None:
            # The first loop compiles the step: rate and time left are counted from its end.
            self._progress = Progress("train", self._options.steps, "steps", start=step)
        losses = ", ".join(f"{name} {float(outputs[f'{name}_loss']):.3f}" for name in ("cls", "box", "total"))
        self._progress.update(step, f"loss {losses}")


def _print_validation(outputs: dict[str, Any]) -> None:
    value = {name: float(tensor) for name, tensor in outputs.items() if name in _SHOWN}
    print(
        "validate: AP50 {ap50:.3f}, AP {ap:.3f}, F1 {f1:.3f} at score {score_threshold:.2f}, "
        "counted {count:.0f} of {true_count:.0f}".format(**value),
        flush=True,
    )


_SHOWN = ("ap50", "ap", "f1", "score_threshold", "count", "true_count")
