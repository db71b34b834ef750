"""A trained checkpoint as a SavedModel with the raw heads and a decoded signature (the model contract, `survey.model`)."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tf_keras
import yaml
from official.core import task_factory

from survey import calibration, dataset, files, model, provenance
from survey.errors import InputError
from tpu_train import registry
from tpu_train.experiments.detector import DetectorTask
from tpu_train.run_folder import BEST, CONFIG


class Exported(tf.Module):
    """The model behind two signatures, both from uint8 pixels.

    `raw` is what `inference.decode` turns into boxes. `decoded` is Model Garden's own decoding and suppression, for users who
    have nothing but the SavedModel, and as a second opinion in our tests.
    """

    def __init__(self, task: DetectorTask, network: tf_keras.Model) -> None:
        super().__init__()
        self._task = task
        self.network = network
        self._size = task.task_config.model.input_size[0]
        spec = tf.TensorSpec([None, self._size, self._size, 3], tf.uint8, name="images")
        self.raw = tf.function(self._raw, input_signature=[spec])
        self.decoded = tf.function(self._decoded, input_signature=[spec])

    def _outputs(self, images: tf.Tensor) -> Any:
        return self._task.outputs(self.network, tf.cast(images, tf.float32), self._size)

    def _raw(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._task.raw(self._outputs(images))

    def _decoded(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._task.detections(self.network, self._outputs(images), self._size)


def write(
    folder: str,
    model_dir: str,
    best: dict[str, float],
    record: Mapping[str, Any],
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
      record: of the run: its "model", and the digest of the "dataset" that it learned from.
      score_threshold: a detection counts from this score on.
      score_floor: detections below are never kept.
      nms_iou: boxes of one class that overlap more are one object.

    Returns:
      The spec that belongs to it.

    Raises:
      InputError: the run has no checkpoint, or its dataset has changed since.
    """
    config = registry.experiment(record["model"])
    config.override(yaml.safe_load(files.read(os.path.join(model_dir, CONFIG))))
    checkpoint = tf.train.latest_checkpoint(os.path.join(model_dir, BEST))
    if checkpoint is None:
        raise InputError(f"--model_dir={model_dir} has no checkpoint in best/: run `rookery train` to its end")
    data = dataset.read(config.task.dataset)
    if dataset.digest(config.task.dataset) != record["dataset"]:
        raise InputError(f"{config.task.dataset} is not the dataset that {model_dir} was trained on: train again")
    config.task.suppress(score_floor=score_floor, nms_iou=nms_iou)
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
        heads=task.heads,
        score_threshold=score_threshold,
        score_floor=score_floor,
        nms_iou=nms_iou,
        overlap_px=data.overlap_px,
        gsd_m=_gsd_range(data),
        bands=tuple(sorted({mosaic.bands for mosaic in data.mosaics})),
        calibration=calibration.read(os.path.join(model_dir, BEST)),
        validation=best,
        dataset_digest=record["dataset"],
        versions=provenance.versions("tensorflow", "tf-models-official", "numpy"),
    )


def _gsd_range(data: dataset.Dataset) -> tuple[float, float] | None:
    """Smallest and largest metres per pixel of the patches of a dataset, None where a mosaic does not say."""
    if data.gsd_m is not None:
        return data.gsd_m, data.gsd_m
    known = [mosaic.gsd_m for mosaic in data.mosaics if mosaic.gsd_m is not None]
    return (min(known), max(known)) if known and len(known) == len(data.mosaics) else None
