"""YOLO v3, v4 and scaled: Model Garden's networks, with input, augmentation, targets and loss inside the compiled step.

The papers stand with the numbers that they chose, in `tpu_train.models.yolo_networks`. Targets and loss are `tpu_train.yolo`'s,
equal to Model Garden's.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from official.core import config_definitions as cfg
from official.core import exp_factory, task_factory
from official.vision.modeling.layers import detection_generator

from survey.errors import InputError
from survey.heads import YoloHeads
from tpu_train.experiments import detector
from tpu_train.models import darknet, mish, networks
from tpu_train.yolo import loss, targets
from tpu_train.yolo.targets import Targets

NAME = "rookery_yolo"


@dataclasses.dataclass
class Task(detector.Config):
    """What is learned from what; `configure.py` fills in what belongs to the version and to the network.

    Attributes:
      match_threshold: which anchors learn an object, see `tpu_train.yolo.targets`.
      best_match_only: Model Garden's: an object that no anchor suits is learned by none.
      weight_decay: of kernels in the loss, as Model Garden's YOLO has it; the optimizer's own comes on top.
    """

    model: darknet.Model = dataclasses.field(default_factory=darknet.Model)
    match_threshold: float = 0.4
    best_match_only: bool = False
    weight_decay: float = 0.0

    def suppress(self, *, score_floor: float, nms_iou: float) -> None:
        """Sets from which score detections are kept, and from which IoU two of one class are one object."""
        self.model.detection_generator.override({"iou_thresh": score_floor, "nms_thresh": nms_iou})


@exp_factory.register_config_factory(NAME)
def experiment() -> cfg.ExperimentConfig:
    """Defaults for fine-tuning on one survey; `configure.py` fills in what the dataset says."""
    return detector.experiment(Task())


def heads(model: darknet.Model) -> YoloHeads:
    """The raw heads that a model configuration means."""
    span, generator = model.backbone.get(), model.detection_generator
    anchors, _ = model.anchor_boxes.get(span.min_level, span.max_level)
    levels = tuple(range(span.min_level, span.max_level + 1))
    (box_type,) = {generator.box_type.get()[str(level)] for level in levels}
    scale_xy = generator.scale_xy.get()
    return YoloHeads(
        levels=levels,
        anchors_px=tuple(tuple((float(width), float(height)) for width, height in anchors[str(level)]) for level in levels),
        box_type=box_type,
        scale_xy=tuple(float(scale_xy[str(level)]) for level in levels),
    )


def loss_settings(model: darknet.Model) -> loss.LossSettings:
    """The loss that a model configuration means.

    Raises:
      InputError: a setting other than the weight of objectness differs between levels, or is out of its range.
    """
    given, levels = model.loss, [str(level) for level in heads(model).levels]

    def one(name: str) -> Any:
        values = {level: getattr(given, name).get()[level] for level in levels}
        if len(set(values.values())) > 1:
            raise InputError(f"task.model.loss.{name}={values}: must be the same on all levels; set {name}.all instead")
        return values[levels[0]]

    return loss.LossSettings(
        scaled=given.use_scaled_loss,
        ignore_threshold=one("ignore_thresh"),
        box_loss=one("box_loss_type"),
        box_weight=one("iou_normalizer"),
        class_weight=one("cls_normalizer"),
        object_weights=tuple(given.object_normalizer.get()[level] for level in levels),
        label_smoothing=given.label_smoothing,
        objectness_smoothing=one("objectness_smooth"),
        update_on_repeat=given.update_on_repeat,
        largest_box_gradient=one("max_delta"),
    )


@task_factory.register_task_cls(Task)
class YoloTask(detector.DetectorTask):
    """A YOLO in the task of this house's detectors."""

    LOSSES = ("total_loss", "box_loss", "object_loss", "cls_loss")

    def build_model(self) -> tf_keras.Model:
        """The model, for images of any size: training crops and whole patches share it."""
        config = self.task_config
        # Model Garden halves it: darknet's decay is of the gradient, not of the loss (tasks/yolo.py).
        model = darknet.build(config.model, l2=config.weight_decay / 2)
        mish.replace(model)
        frozen = config.freeze_level if config.init != "scratch" else 0
        networks.train_only(model.backbone, above=frozen, up_to=self.heads.levels[-1])
        return model

    @property
    def heads(self) -> YoloHeads:
        """One array a level."""
        return heads(self.task_config.model)

    def anchor_boxes(self, size: int) -> np.ndarray:
        """All anchors of an image: float32 [N, 4], yxyx in pixels."""
        return self.heads.boxes(size)

    def targets(self, boxes: tf.Tensor, classes: tf.Tensor, size: int) -> Targets:
        """What each level learns; see `DetectorTask.targets`."""
        config = self.task_config
        with tf.name_scope("targets"):
            return targets.assign(
                self.heads,
                boxes,
                classes,
                image_size=size,
                match_threshold=config.match_threshold,
                best_match_only=config.best_match_only,
                neighbours=config.model.loss.use_scaled_loss,
            )

    def positive(self, assigned: Targets, size: int) -> tf.Tensor:
        """Bool [B, N]: which anchor is to find an object."""
        return targets.positive(self.heads, assigned, size)

    def losses(self, outputs: Mapping[str, Any], assigned: Targets, model: tf_keras.Model) -> Sequence[tf.Tensor]:
        """What is minimised, weight decay included, and its parts as Model Garden reports them: boxes, objectness, classes."""
        config = self.task_config.model
        raw = {int(level): value for level, value in outputs["raw_output"].items()}
        found = loss.loss(self.heads, loss_settings(config), raw, assigned, num_classes=config.num_classes)
        total = found.total
        if config.loss.use_scaled_loss:
            # Model Garden minimises its sum over the replicas; the step divides by their number, as is right for all others.
            total *= tf.distribute.get_strategy().num_replicas_in_sync
        if model.losses:
            total += tf.add_n([tf.cast(each, tf.float32) for each in model.losses])
        return total, found.box, found.objectness, found.classes

    def outputs(self, model: tf_keras.Model, images: tf.Tensor, size: int) -> dict[str, Any]:
        """Raw heads of each level, float32: what the network gives in inference before any decoding."""
        del size
        raw = model(self.normalize(images), training=False)["raw_output"]
        return {"raw_output": {level: tf.cast(value, tf.float32) for level, value in raw.items()}}

    def raw(self, outputs: dict[str, Any]) -> dict[str, tf.Tensor]:
        """raw_output_{l} [B, h, w, A * (5 + C)] of each level."""
        return {f"raw_output_{level}": value for level, value in outputs["raw_output"].items()}

    def detections(self, model: tf_keras.Model, outputs: dict[str, Any], size: int) -> dict[str, tf.Tensor]:
        """What Model Garden makes of the raw heads, from boxes clipped to the image, as everywhere in this house.

        Its own YOLO suppresses boxes as they come, and two that hang over the edge overlap otherwise: validation would then judge
        other detections than `inference.decode` finds. Its classes count from 0.
        """
        settings, decoder, raw = self.task_config.model.detection_generator, model.detection_generator, outputs["raw_output"]
        parts = [decoder.parse_prediction_path(str(level), raw[str(level)]) for level in self.heads.levels]
        boxes = tf.clip_by_value(tf.concat([boxes for _, boxes, _ in parts], axis=1), 0.0, 1.0)
        scores = tf.concat([scores for _, _, scores in parts], axis=1)
        boxes, scores, classes, count = detection_generator._generate_detections_v2(
            boxes[:, :, tf.newaxis],
            scores,
            pre_nms_top_k=settings.pre_nms_points,
            max_num_detections=settings.max_boxes,
            nms_iou_threshold=settings.nms_thresh,
            pre_nms_score_threshold=settings.iou_thresh,
        )
        real = tf.range(tf.shape(classes)[1])[None, :] < count[:, None]
        return {
            "detection_boxes": boxes * float(size),
            "detection_scores": scores,
            "detection_classes": tf.where(real, tf.cast(classes, tf.int32) + 1, 0),
            "num_detections": count,
        }
