"""RetinaNet: Model Garden's model and loss, with input, augmentation and target assignment that suit surveys and TPUs.

Lin et al. 2017, Focal Loss for Dense Object Detection (https://arxiv.org/abs/1708.02002).
"""

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import tensorflow as tf
import tf_keras
from official.core import config_definitions as cfg
from official.core import exp_factory, task_factory
from official.modeling import optimization
from official.vision.configs import common, decoders
from official.vision.configs import retinanet as garden
from official.vision.tasks import retinanet as garden_task

from survey.anchors import AnchorSpec
from tpu_train import augment, pretrained, sources, targets, truncation
from tpu_train import input as host
from tpu_train.crop import Crop
from tpu_train.models import backbones, efficientnet_lite, networks
from tpu_train.optimizers import Rates
from tpu_train.run_folder import BEST
from tpu_train.shards import Shard
from tpu_train.validation import Validation

if TYPE_CHECKING:
    from tpu_train.guard import Guard
    from tpu_train.validation_pictures import ValidationPictures

NAME = "rookery_retinanet"
LITE0 = backbones.BACKBONES["efficientnet_lite0"]
LOSSES = ("total_loss", "cls_loss", "box_loss", "model_loss")  # as `build_losses` returns them
# What became of the objects of a batch, in this order of their fate: all that the records hold, those beyond `max_boxes`, those
# that the crop does not show, and those of which it shows too little.
OBJECTS = ("objects", "objects_capped", "objects_outside", "objects_barely")


class View(NamedTuple):
    """A batch as the model sees it.

    Attributes:
      images: float32 [B, S, S, 3], pixels 0..255.
      boxes: float32 [B, M, 4], yxyx in pixels of the images, clipped to them.
      classes: int32 [B, M], ids from 1, 0 for padding and for objects that the view lost.
    """

    images: tf.Tensor
    boxes: tf.Tensor
    classes: tf.Tensor


@dataclasses.dataclass
class Model(garden.RetinaNet):
    """Model Garden's RetinaNet with our backbones; `num_classes` counts the background, as there."""

    backbone: efficientnet_lite.Backbone = dataclasses.field(
        default_factory=lambda: efficientnet_lite.Backbone(type="efficientnet_lite0")
    )


@dataclasses.dataclass
class Data(cfg.DataConfig):
    """A split of a dataset.

    Attributes:
      split: its name.
    """

    split: str = ""


@dataclasses.dataclass
class Task(garden.RetinaNetTask):
    """What is learned from what.

    Attributes:
      dataset: folder written by `rookery shard`.
      train_size: side of the training crops in pixels; validation and inference see whole patches (model.input_size).
      max_boxes: rows of the padded boxes of a patch.
      init: "imagenet", "scratch", or the path of a Model Garden checkpoint.
      pixel_offset, pixel_scale: the network sees (pixel - offset) / scale, one value for each channel; the defaults are those of
        the ImageNet weights.
      foreground_prior: what the classifier says of every anchor before it has learned anything; its final bias.
      backbone_rate: learning rate of the backbone as a share of the others'.
      freeze_steps: the backbone keeps its weights for so many first steps, until the new head has stopped tearing at them.
      freeze_level: the backbone keeps its weights up to this level of the pyramid (stride 2^level), batch statistics included; 0
        trains all of it. Early layers are generic, and most of a step's time goes through them backward.
      match_threshold, unmatched_threshold: IoU from which an anchor is positive, and below which it is background.
      augmentation: how training images vary.
      validation_iou: IoU at which validation calls an object found.
      seed: of shuffling and augmentation.
    """

    model: Model = dataclasses.field(default_factory=Model)
    train_data: Data = dataclasses.field(default_factory=lambda: Data(split="train", is_training=True))
    validation_data: Data = dataclasses.field(default_factory=lambda: Data(split="val"))
    dataset: str = ""
    train_size: int = 0
    max_boxes: int = 0
    init: str = "imagenet"
    pixel_offset: list[float] = dataclasses.field(default_factory=lambda: list(LITE0.pixel_offset))
    pixel_scale: list[float] = dataclasses.field(default_factory=lambda: list(LITE0.pixel_scale))
    foreground_prior: float = 0.01
    backbone_rate: float = 1.0
    freeze_steps: int = 0
    freeze_level: int = 2
    match_threshold: float = 0.5
    unmatched_threshold: float = 0.4
    augmentation: augment.Augment = dataclasses.field(default_factory=augment.Augment)
    validation_iou: float = 0.5
    seed: int = 0


@exp_factory.register_config_factory(NAME)
def experiment() -> cfg.ExperimentConfig:
    """Defaults for fine-tuning on one survey; `train.py` fills in what the dataset says."""
    return cfg.ExperimentConfig(
        task=Task(
            model=Model(
                decoder=decoders.Decoder(type="fpn", fpn=decoders.FPN(num_filters=64)),
                head=garden.RetinaNetHead(num_convs=2, num_filters=64),
                # Model Garden's default momentum averages over 1,000 steps, longer than a short fine-tuning.
                norm_activation=common.NormActivation(activation="relu", use_sync_bn=False, norm_momentum=0.97),
                detection_generator=garden.DetectionGenerator(pre_nms_score_threshold=0.05, nms_iou_threshold=0.5),
            ),
            use_coco_metrics=False,
        ),
        trainer=cfg.TrainerConfig(
            optimizer_config=optimization.OptimizationConfig(
                {
                    "optimizer": {"type": "adamw", "adamw": {"weight_decay_rate": 1e-4, "gradient_clip_norm": 10.0}},
                    "ema": {"average_decay": 0.99},
                    "learning_rate": {"type": "cosine", "cosine": {"initial_learning_rate": 1e-3}},
                    "warmup": {"type": "linear", "linear": {"warmup_steps": 50}},
                }
            ),
            best_checkpoint_export_subdir=BEST,
            best_checkpoint_eval_metric="f1",
            best_checkpoint_metric_comp="higher",
        ),
        restrictions=["task.train_data.is_training != None"],
    )


def anchor_spec(model: garden.RetinaNet) -> AnchorSpec:
    """The anchors that a model configuration means."""
    anchor = model.anchor
    ratios = tuple(anchor.aspect_ratios)
    return AnchorSpec(model.min_level, model.max_level, anchor.num_scales, ratios, anchor.anchor_size)


@task_factory.register_task_cls(Task)
class RetinaNetTask(garden_task.RetinaNetTask):
    """Model Garden's task with the input of `tpu_train.input` and targets made on the device.

    Attributes:
      shards: files of training and of validation; set them before the inputs are built.
      start_step: steps that earlier starts of this run have trained; set it before the inputs are built.
      guard: watches the loss; set it before the first step, or every loss will do.
      rates: of the optimizer that the task has made.
      pictures: are shown every batch of detections.
    """

    shards: Mapping[str, Sequence[Shard]] = types.MappingProxyType({})
    start_step = 0
    guard: "Guard | None" = None
    rates: Rates | None = None
    pictures: "ValidationPictures | None" = None

    def build_model(self) -> tf_keras.Model:
        """The model, built for images of any size: training crops and whole patches share it."""
        model_config = self.task_config.model
        size = model_config.input_size
        model_config.override({"input_size": [None, None, 3]})
        try:
            model = super().build_model()
        finally:
            model_config.override({"input_size": size})
        networks.complete(model)
        networks.set_prior(model, self.task_config.foreground_prior)
        frozen = self.task_config.freeze_level if self.task_config.init != "scratch" else 0
        networks.train_only(model.backbone, above=frozen, up_to=model_config.max_level)
        return model

    def initialize(self, model: tf_keras.Model) -> None:
        """Loads the weights that `init` names, and says what was filled."""
        print(f"train: {pretrained.initialize(model, self.task_config.init).line()}", flush=True)

    def build_inputs(self, params: Data, input_context: tf.distribute.InputContext | None = None) -> tf.data.Dataset:
        """Batches of `tpu_train.input.read`: of random views for training, of whole patches for validation."""
        return self.read(params, self.crop if params.is_training else None, input_context)

    @property
    def crop(self) -> Crop:
        """Of which every training image shows a view."""
        config, varied = self.task_config, self.task_config.augmentation
        return Crop(config.model.input_size[0], config.train_size, varied.scale_min, varied.scale_max)

    def read(self, params: Data, crop: Crop | None, input_context: tf.distribute.InputContext | None = None) -> tf.data.Dataset:
        """Batches of `tpu_train.input.read`, as a crop shows the patches; by default whole ones."""
        config = self.task_config
        return host.read(
            self.shards[sources.TRAINING if params.is_training else sources.VALIDATION],
            patch_size=config.model.input_size[0],
            max_boxes=config.max_boxes,
            training=params.is_training,
            batch_size=params.global_batch_size,
            crop=crop,
            seed=config.seed,
            start_step=self.start_step,
            context=input_context,
        )

    def input_spec(self, batch_size: int, *, training: bool) -> dict[str, tf.TensorSpec]:
        """Shapes and types of the batches that one replica gets, see `tpu_train.input.decode`."""
        crop, boxes = self.crop, self.task_config.max_boxes
        side = crop.window if training else crop.patch_size
        spec = {
            "image": tf.TensorSpec([batch_size, side, side, 3], tf.uint8),
            "boxes": tf.TensorSpec([batch_size, boxes, 4], tf.float32),
            "classes": tf.TensorSpec([batch_size, boxes], tf.int32),
            "objects": tf.TensorSpec([batch_size], tf.int32),
            "patch_id": tf.TensorSpec([batch_size], tf.int64),
        }
        return {**spec, "view": tf.TensorSpec([batch_size, 3], tf.float32)} if training else spec

    def create_optimizer(self, optimizer_config, runtime_config=None):  # type: ignore[no-untyped-def]
        """Model Garden's optimizer, with a rate of its own for the backbone where one is asked for."""
        optimizer = super().create_optimizer(optimizer_config, runtime_config)
        self.rates = Rates(optimizer, self.task_config.backbone_rate, self.task_config.freeze_steps)
        return optimizer

    def build_metrics(self, training: bool = True) -> list[tf_keras.metrics.Metric]:
        """Means of the losses; in training also sums that tell what became of the objects (`view`)."""
        metrics: list[tf_keras.metrics.Metric] = super().build_metrics(training)
        if training:
            metrics += [tf_keras.metrics.Sum(name, dtype=tf.float32) for name in OBJECTS]
        return metrics

    def view(self, inputs: dict[str, tf.Tensor], step: tf.Tensor, replica: tf.Tensor | int = 0) -> View:
        """What the model sees of a batch at a step.

        Args:
          inputs: a batch of `tpu_train.input` with views.
          step: int [], steps trained so far.
          replica: number of the replica, whose images vary differently.
        """
        config = self.task_config
        # Stateless: the augmentation of a step depends on the seed and the step alone, so that a resumed run repeats it.
        with tf.name_scope("augmentation"):  # what profilers and `rookery preflight` call it
            seed = tf.stack([config.seed, tf.cast(step, tf.int32)])
            images, boxes, classes = augment.random_view(
                inputs["image"],
                inputs["boxes"],
                inputs["classes"],
                inputs["view"],
                size=config.train_size,
                config=config.augmentation,
                seed=tf.random.experimental.stateless_fold_in(seed, replica),
            )
        return View(images, boxes, classes)

    def train_step(self, inputs: dict[str, tf.Tensor], model, optimizer, metrics=None) -> dict[str, Any]:  # type: ignore[no-untyped-def]
        """One step on a batch of `tpu_train.input`: a random view of each image, targets, loss, gradients."""
        strategy, step = tf.distribute.get_strategy(), optimizer.iterations
        view = self.view(inputs, step, tf.distribute.get_replica_context().replica_id_in_sync_group)
        labels = self.targets(view.boxes, view.classes, self.task_config.train_size)
        with tf.GradientTape() as tape:
            outputs = model(self.normalize(view.images), training=True)
            outputs = tf.nest.map_structure(lambda value: tf.cast(value, tf.float32), outputs)
            losses = self.build_losses(outputs=outputs, labels=labels, aux_losses=model.losses)
            scaled = losses[0] / strategy.num_replicas_in_sync
        weights = model.trainable_variables
        gradients = tape.gradient(scaled, weights)
        if self.guard:  # a batch that is not healthy, or that broke the run before it was rolled back, teaches nothing
            healthy = self.guard.observe(step, losses[0], inputs["patch_id"])
            gradients = [tf.where(healthy, gradient, tf.zeros_like(gradient)) for gradient in gradients]
            losses = [tf.where(healthy, loss, 0.0) for loss in losses]  # or the means of the whole loop would be NaN
        if self.rates:
            self.rates.slow_down(model.backbone.trainable_variables)
        optimizer.apply_gradients(list(zip(gradients, weights, strict=True)))
        values = {**dict(zip(LOSSES, losses, strict=True)), **_objects(inputs, view)}
        for metric in metrics or []:
            metric.update_state(values[metric.name])
        return {self.loss: losses[0]}

    def meter(self, sums: Mapping[str, float]) -> str:
        """One line on what became of objects, from the sums of OBJECTS."""
        config = self.task_config
        objects = truncation.Objects(*(int(sums[name]) for name in OBJECTS))
        return truncation.meter(objects, max_boxes=config.max_boxes, min_visible=config.augmentation.min_visible)

    def validation_step(self, inputs: dict[str, tf.Tensor], model, metrics=None) -> dict[str, Any]:  # type: ignore[no-untyped-def]
        """Detections on whole patches, and the loss."""
        size = self.task_config.model.input_size[0]
        images = inputs["image"]
        frame = tf.fill([images.shape[0], 2], float(size))
        outputs = model(self.normalize(tf.cast(images, tf.float32)), image_shape=frame, training=False)
        labels = self.targets(inputs["boxes"], inputs["classes"], size)
        losses = self.build_losses(outputs=outputs, labels=labels, aux_losses=model.losses)
        for metric in metrics or []:
            metric.update_state(dict(zip(LOSSES, losses, strict=True))[metric.name])
        return {
            self.loss: losses[0],
            "detections": {
                "patch_id": inputs["patch_id"],
                "boxes": outputs["detection_boxes"],
                "scores": outputs["detection_scores"],
                "classes": outputs["detection_classes"],
                "count": outputs["num_detections"],
                "truth_boxes": inputs["boxes"],
                "truth_classes": inputs["classes"],
            },
        }

    def aggregate_logs(self, state: Validation | None = None, step_outputs: Any = None) -> Validation:
        """Collects the detections of every replica on the host."""
        state = state or Validation(self.task_config.dataset)
        replicas = step_outputs["detections"]
        for i in range(len(replicas["patch_id"])):
            batch = {name: values[i].numpy() for name, values in replicas.items()}
            state.add(batch)
            if self.pictures is not None:
                self.pictures.add(batch)
        return state

    def reduce_aggregated_logs(self, aggregated_logs: Validation, global_step: Any = None) -> dict[str, float]:
        """Metrics of `tpu_train.validation` over all patches."""
        return aggregated_logs.result(self.task_config.validation_iou)

    def normalize(self, images: tf.Tensor) -> tf.Tensor:
        """Pixels 0..255 as the backbone wants them, in the compute type of the policy."""
        images = (images - tf.constant(self.task_config.pixel_offset)) / tf.constant(self.task_config.pixel_scale)
        return tf.cast(images, tf_keras.mixed_precision.global_policy().compute_dtype)

    def targets(self, boxes: tf.Tensor, classes: tf.Tensor, size: int) -> dict[str, Any]:
        """Labels in the form of Model Garden's loss, all levels in one entry.

        Args:
          boxes: float32 [B, M, 4], yxyx in pixels of an image of `size`.
          classes: int32 [B, M], 0 for padding.
          size: side of the images in pixels.
        """
        config = self.task_config
        with tf.name_scope("targets"):
            assigned = targets.assign(
                anchor_spec(config.model).boxes(size),
                boxes,
                classes,
                match_threshold=config.match_threshold,
                unmatched_threshold=config.unmatched_threshold,
            )
        return {
            "cls_targets": {"all": assigned.classes},
            "box_targets": {"all": assigned.boxes},
            "cls_weights": assigned.class_weights,
            "box_weights": assigned.box_weights,
        }


def _objects(inputs: dict[str, tf.Tensor], view: View) -> dict[str, tf.Tensor]:
    """How many objects of a batch met which fate, see OBJECTS."""
    held = inputs["classes"] > 0
    lost = held & (view.classes == 0)
    shown = tf.reduce_all(view.boxes[..., 2:] > view.boxes[..., :2], axis=-1)

    def count(flags: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.cast(flags, tf.int32))

    objects = tf.reduce_sum(inputs["objects"])
    return dict(zip(OBJECTS, (objects, objects - count(held), count(lost & ~shown), count(lost & shown)), strict=True))
