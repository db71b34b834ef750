"""RetinaNet: Model Garden's model and loss, with input, augmentation and target assignment that suit surveys and TPUs.

Lin et al. 2017, Focal Loss for Dense Object Detection (https://arxiv.org/abs/1708.02002).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from official.core import config_definitions as cfg
from official.core import exp_factory, task_factory
from official.vision.configs import common, decoders
from official.vision.configs import retinanet as garden
from official.vision.tasks import retinanet as garden_task

from survey.anchors import AnchorSpec
from survey.heads import RetinaNetHeads
from tpu_train import targets
from tpu_train.experiments import detector
from tpu_train.models import efficientnet_lite, networks

NAME = "rookery_retinanet"


@dataclasses.dataclass
class Model(garden.RetinaNet):
    """Model Garden's RetinaNet with our backbones; `num_classes` counts the background, as there."""

    backbone: efficientnet_lite.Backbone = dataclasses.field(
        default_factory=lambda: efficientnet_lite.Backbone(type="efficientnet_lite0")
    )


@dataclasses.dataclass
class Task(detector.Config, garden.RetinaNetTask):
    """What is learned from what.

    Attributes:
      foreground_prior: what the classifier says of every anchor before it has learned anything; its final bias.
      match_threshold, unmatched_threshold: IoU from which an anchor is positive, and below which it is background.
    """

    model: Model = dataclasses.field(default_factory=Model)
    foreground_prior: float = 0.01
    match_threshold: float = 0.5
    unmatched_threshold: float = 0.4

    def suppress(self, *, score_floor: float, nms_iou: float) -> None:
        """Sets from which score detections are kept, and from which IoU two of one class are one object."""
        self.model.detection_generator.override({"pre_nms_score_threshold": score_floor, "nms_iou_threshold": nms_iou})


@exp_factory.register_config_factory(NAME)
def experiment() -> cfg.ExperimentConfig:
    """Defaults for fine-tuning on one survey; `configure.py` fills in what the dataset says."""
    return detector.experiment(
        Task(
            model=Model(
                decoder=decoders.Decoder(type="fpn", fpn=decoders.FPN(num_filters=64)),
                head=garden.RetinaNetHead(num_convs=2, num_filters=64),
                # Model Garden's default momentum averages over 1,000 steps, longer than a short fine-tuning.
                norm_activation=common.NormActivation(activation="relu", use_sync_bn=False, norm_momentum=0.97),
                detection_generator=garden.DetectionGenerator(pre_nms_score_threshold=0.05, nms_iou_threshold=0.5),
            ),
            use_coco_metrics=False,
        )
    )


def anchor_spec(model: garden.RetinaNet) -> AnchorSpec:
    """The anchors that a model configuration means."""
    anchor = model.anchor
    ratios = tuple(anchor.aspect_ratios)
    return AnchorSpec(model.min_level, model.max_level, anchor.num_scales, ratios, anchor.anchor_size)


@task_factory.register_task_cls(Task)
class RetinaNetTask(detector.DetectorTask, garden_task.RetinaNetTask):
    """Model Garden's network and loss in the task of this house's detectors."""

    LOSSES = ("total_loss", "cls_loss", "box_loss", "model_loss")  # as `build_losses` returns them

    def build_model(self) -> tf_keras.Model:
        """The model, built for images of any size: training crops and whole patches share it."""
        model_config = self.task_config.model
        size = model_config.input_size
        model_config.override({"input_size": [None, None, 3]})
        try:
            model = garden_task.RetinaNetTask.build_model(self)
        finally:
            model_config.override({"input_size": size})
        networks.complete(model)
        networks.set_prior(model, self.task_config.foreground_prior)
        frozen = self.task_config.freeze_level if self.task_config.init != "scratch" else 0
        networks.train_only(model.backbone, above=frozen, up_to=model_config.max_level)
        return model

    @property
    def heads(self) -> RetinaNetHeads:
        """Boxes and class logits of all levels, one after the other."""
        model = self.task_config.model
        scales = tuple(model.detection_generator.box_coder_weights or (1.0, 1.0, 1.0, 1.0))
        return RetinaNetHeads(anchors=anchor_spec(model), box_scales=scales)

    def anchor_boxes(self, size: int) -> np.ndarray:
        """All anchors of an image: float32 [N, 4], yxyx in pixels."""
        return anchor_spec(self.task_config.model).boxes(size)

    def targets(self, boxes: tf.Tensor, classes: tf.Tensor, size: int) -> dict[str, Any]:
        """Labels in the form of Model Garden's loss, all levels in one entry; see `DetectorTask.targets`."""
        config = self.task_config
        with tf.name_scope("targets"):
            assigned = targets.assign(
                self.anchor_boxes(size),
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

    def positive(self, assigned: dict[str, Any], size: int) -> tf.Tensor:
        """Bool [B, N]: which anchor is to find an object."""
        return assigned["box_weights"] > 0

    def losses(self, outputs: dict[str, Any], assigned: dict[str, Any], model: tf_keras.Model) -> Sequence[tf.Tensor]:
        """Model Garden's: total, focal, Huber, and the total with weight decay."""
        losses: Sequence[tf.Tensor] = self.build_losses(outputs=outputs, labels=assigned, aux_losses=model.losses)
        return losses

    def outputs(self, model: tf_keras.Model, images: tf.Tensor, size: int) -> dict[str, Any]:
        """Heads of each level, and detections where the network makes them."""
        frame = tf.fill([tf.shape(images)[0] if images.shape[0] is None else images.shape[0], 2], float(size))
        outputs: dict[str, Any] = model(self.normalize(images), image_shape=frame, training=False)
        return outputs

    def raw(self, outputs: dict[str, Any]) -> dict[str, tf.Tensor]:
        """raw_boxes [B, N, 4] and raw_scores [B, N, K]."""
        columns = self.task_config.model.num_classes
        return {
            "raw_boxes": _flat(outputs["box_outputs"], 4),
            "raw_scores": _flat(outputs["cls_outputs"], columns)[..., 1:],  # column 0 is the background, which is never trained
        }

    def detections(self, model: tf_keras.Model, outputs: dict[str, Any], size: int) -> dict[str, tf.Tensor]:
        """What the network's detection generator found."""
        return {name: outputs[name] for name in detector.DETECTIONS}


def _flat(levels: dict[str, tf.Tensor], depth: int) -> tf.Tensor:
    """Heads [B, h, w, A * depth] of each level as one float32 [B, N, depth], in the order of `AnchorSpec.boxes`."""
    parts = [tf.reshape(levels[level], [tf.shape(levels[level])[0], -1, depth]) for level in sorted(levels, key=int)]
    return tf.cast(tf.concat(parts, axis=1), tf.float32)
