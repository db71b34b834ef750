"""A trained checkpoint as a SavedModel with the raw heads and a decoded signature (the model contract, `survey.model`)."""

import logging
import os
from typing import Any

import tensorflow as tf
import tf_keras
import yaml
from official.core import task_factory

from survey import calibration, dataset, files, model, provenance
from survey.errors import InputError
from survey.heads import RetinaNetHeads
from tpu_train import registry
from tpu_train.experiments import retinanet
from tpu_train.run_folder import BEST, CONFIG


class Exported(tf.Module):
    """The model behind two signatures, both from uint8 pixels.

    `raw` is what `inference.decode` turns into boxes. `decoded` is Model Garden's own decoding and suppression, for users who
    have nothing but the SavedModel, and as a second opinion in our tests.
    """

    def __init__(self, task: retinanet.RetinaNetTask, network: tf_keras.Model) -> None:
        super().__init__()
        self._task = task
        self.network = network
        self._size = task.task_config.model.input_size[0]
        spec = tf.TensorSpec([None, self._size, self._size, 3], tf.uint8, name="images")
        self.raw = tf.function(self._raw, input_signature=[spec])
        self.decoded = tf.function(self._decoded, input_signature=[spec])

    def _outputs(self, images: tf.Tensor) -> dict[str, Any]:
        frame = tf.fill([tf.shape(images)[0], 2], float(self._size))
        return self.network(self._task.normalize(tf.cast(images, tf.float32)), image_shape=frame, training=False)

    def _raw(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = self._outputs(images)
        columns = self._task.task_config.model.num_classes
        return {
            "raw_boxes": _flat(outputs["box_outputs"], 4),
            "raw_scores": _flat(outputs["cls_outputs"], columns)[..., 1:],  # column 0 is the background, which is never trained
        }

    def _decoded(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = self._outputs(images)
        return {
            "detection_boxes": outputs["detection_boxes"],
            "detection_scores": outputs["detection_scores"],
            "detection_classes": outputs["detection_classes"],
            "num_detections": outputs["num_detections"],
        }


def _flat(levels: dict[str, tf.Tensor], depth: int) -> tf.Tensor:
    """Heads [B, h, w, A * depth] of each level as one float32 [B, N, depth], in the order of `AnchorSpec.boxes`."""
    parts = [tf.reshape(levels[level], [tf.shape(levels[level])[0], -1, depth]) for level in sorted(levels, key=int)]
    return tf.cast(tf.concat(parts, axis=1), tf.float32)


def write(
    folder: str,
    model_dir: str,
    best: dict[str, float],
    trained_on: str,
    *,
    score_threshold: float,
    score_floor: float,
    nms_iou: float,
) -> model.ModelSpec:
    """Writes the SavedModel of a run's best checkpoint.

    Args:
      folder: for the SavedModel.
      model_dir: of the run.
      best: the best validation's metrics.
      trained_on: digest of the dataset that the run learned from.
      score_threshold: a detection counts from this score on.
      score_floor: detections below are never kept.
      nms_iou: boxes of one class that overlap more are one object.

    Returns:
      The spec that belongs to it.

    Raises:
      InputError: the run has no checkpoint, or its dataset has changed since.
    """
    config = registry.experiment("retinanet")
    config.override(yaml.safe_load(files.read(os.path.join(model_dir, CONFIG))))
    checkpoint = tf.train.latest_checkpoint(os.path.join(model_dir, BEST))
    if checkpoint is None:
        raise InputError(f"--model_dir={model_dir} has no checkpoint in best/: run `rookery train` to its end")
    data = dataset.read(config.task.dataset)
    if dataset.digest(config.task.dataset) != trained_on:
        raise InputError(f"{config.task.dataset} is not the dataset that {model_dir} was trained on: train again")
    config.task.model.detection_generator.override({"pre_nms_score_threshold": score_floor, "nms_iou_threshold": nms_iou})
    task = task_factory.get_task(config.task)
    network = task.build_model()
    exported = Exported(task, network)
    exported.raw.get_concrete_function()  # creates the variables that the checkpoint fills
    tf.train.Checkpoint(model=network).restore(checkpoint).assert_existing_objects_matched().expect_partial()
    tf.get_logger().setLevel(logging.ERROR)  # Keras warns of a layer without weights that it will not save as a Keras layer
    tf.saved_model.save(exported, folder, signatures={"raw": exported.raw, "serving_default": exported.decoded})
    return model.ModelSpec(
        image_size=config.task.model.input_size[0],
        classes=data.classes,
        heads=RetinaNetHeads(
            anchors=retinanet.anchor_spec(config.task.model),
            box_scales=tuple(config.task.model.detection_generator.box_coder_weights or (1.0, 1.0, 1.0, 1.0)),
        ),
        score_threshold=score_threshold,
        score_floor=score_floor,
        nms_iou=nms_iou,
        overlap_px=data.overlap_px,
        gsd_m=_gsd_range(data),
        bands=tuple(sorted({mosaic.bands for mosaic in data.mosaics})),
        calibration=calibration.read(os.path.join(model_dir, BEST)),
        validation=best,
        dataset_digest=trained_on,
        versions=provenance.versions("tensorflow", "tf-models-official", "numpy"),
    )


def _gsd_range(data: dataset.Dataset) -> tuple[float, float] | None:
    """Smallest and largest metres per pixel of the patches of a dataset, None where a mosaic does not say."""
    if data.gsd_m is not None:
        return data.gsd_m, data.gsd_m
    known = [mosaic.gsd_m for mosaic in data.mosaics if mosaic.gsd_m is not None]
    return (min(known), max(known)) if known and len(known) == len(data.mosaics) else None
