"""RetinaNet: Model Garden's model and loss, with input, augmentation and target assignment that suit surveys and TPUs.

Lin et al. 2017, Focal Loss for Dense Object Detection (https://arxiv.org/abs/1708.02002).
"""

import dataclasses
from typing import Any

import tensorflow as tf
import tf_keras
from official.core import config_definitions as cfg
from official.core import exp_factory, task_factory
from official.modeling import optimization
from official.vision.configs import common, decoders
from official.vision.configs import retinanet as garden
from official.vision.tasks import retinanet as garden_task

from survey.anchors import AnchorSpec
from tpu_train import augment, pretrained, targets
from tpu_train import input as host
from tpu_train.models import efficientnet_lite
from tpu_train.train import BEST
from tpu_train.validation import Validation

NAME = "rookery_retinanet"


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
      pixel_offset, pixel_scale: the network sees (pixel - offset) / scale; the defaults are those of the ImageNet weights.
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
    pixel_offset: float = efficientnet_lite.PIXEL_OFFSET
    pixel_scale: float = efficientnet_lite.PIXEL_SCALE
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
      start_step: steps that earlier starts of this run have trained; set it before the inputs are built.
    """

    start_step = 0

    def build_model(self) -> tf_keras.Model:
        """The model, built for images of any size: training crops and whole patches share it."""
        model_config = self.task_config.model
        size = model_config.input_size
        model_config.override({"input_size": [None, None, 3]})
        try:
            model = super().build_model()
        finally:
            model_config.override({"input_size": size})
        _train_only(
            model.backbone,
            above=self.task_config.freeze_level if self.task_config.init != "scratch" else 0,
            up_to=model_config.max_level,
        )
        return model

    def initialize(self, model: tf_keras.Model) -> None:
        """Loads the weights that `init` names."""
        init = self.task_config.init
        if init == "imagenet":
            pretrained.load_lite0(model.backbone, pretrained.lite0_weights_path())
        elif init != "scratch":
            pretrained.load_checkpoint(model, init)

    def build_inputs(self, params: Data, input_context: tf.distribute.InputContext | None = None) -> tf.data.Dataset:
        """Batches of `tpu_train.input.read`."""
        return host.read(
            self.task_config.dataset,
            params.split,
            training=params.is_training,
            batch_size=params.global_batch_size,
            max_boxes=self.task_config.max_boxes,
            seed=self.task_config.seed,
            start_step=self.start_step,
            context=input_context,
        )

    def train_step(self, inputs: dict[str, tf.Tensor], model, optimizer, metrics=None) -> dict[str, Any]:  # type: ignore[no-untyped-def]
        """One step on a batch of `tpu_train.input`: a random view of each image, targets, then Model Garden's step."""
        config = self.task_config
        # Stateless: the augmentation of a step depends on the seed and the step alone, so that a resumed run repeats it.
        seed = tf.stack([config.seed, tf.cast(optimizer.iterations, tf.int32)])
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        images, boxes, classes = augment.random_view(
            inputs["image"],
            inputs["boxes"],
            inputs["classes"],
            size=config.train_size,
            config=config.augmentation,
            seed=tf.random.experimental.stateless_fold_in(seed, replica),
        )
        labels = self.targets(boxes, classes, config.train_size)
        return super().train_step((self.normalize(images), labels), model, optimizer, metrics)

    def validation_step(self, inputs: dict[str, tf.Tensor], model, metrics=None) -> dict[str, Any]:  # type: ignore[no-untyped-def]
        """Detections on whole patches, and the loss."""
        size = self.task_config.model.input_size[0]
        images = inputs["image"]
        frame = tf.fill([images.shape[0], 2], float(size))
        outputs = model(self.normalize(tf.cast(images, tf.float32)), image_shape=frame, training=False)
        labels = self.targets(inputs["boxes"], inputs["classes"], size)
        losses = self.build_losses(outputs=outputs, labels=labels, aux_losses=model.losses)
        names = ("total_loss", "cls_loss", "box_loss", "model_loss")
        for metric in metrics or []:
            metric.update_state(dict(zip(names, losses, strict=True))[metric.name])
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
            state.add({name: values[i].numpy() for name, values in replicas.items()})
        return state

    def reduce_aggregated_logs(self, aggregated_logs: Validation, global_step: Any = None) -> dict[str, float]:
        """Metrics of `tpu_train.validation` over all patches."""
        return aggregated_logs.result(self.task_config.validation_iou)

    def normalize(self, images: tf.Tensor) -> tf.Tensor:
        """Pixels 0..255 as the backbone wants them, in the compute type of the policy."""
        images = (images - self.task_config.pixel_offset) / self.task_config.pixel_scale
        return tf.cast(images, tf_keras.mixed_precision.global_policy().compute_dtype)

    def targets(self, boxes: tf.Tensor, classes: tf.Tensor, size: int) -> dict[str, Any]:
        """Labels in the form of Model Garden's loss, all levels in one entry.

        Args:
          boxes: float32 [B, M, 4], yxyx in pixels of an image of `size`.
          classes: int32 [B, M], 0 for padding.
          size: side of the images in pixels.
        """
        config = self.task_config
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


def _train_only(backbone: tf_keras.Model, *, above: int, up_to: int) -> None:
    """Leaves trainable only what lies between two levels of the pyramid.

    Layers that lead to level `above` keep their weights, and Keras then also uses their stored batch statistics; layers that only
    lead to levels beyond `up_to` have no use: the pyramid does not look there.
    """
    features = {int(level): feature for level, feature in backbone.output.items()}

    def leading_to(levels: list[int]) -> set[str]:
        return {layer.name for layer in tf_keras.Model(backbone.inputs, [features[level] for level in levels]).layers}

    wanted = leading_to([level for level in features if level <= up_to])
    if above:
        wanted -= leading_to([above])
    for layer in backbone.layers:
        layer.trainable = layer.name in wanted
