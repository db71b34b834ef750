"""TensorBoard's pictures of a run: the first batch that it trained on, and a few validation patches at every validation."""

import tensorflow as tf
from official.core import config_definitions

from tpu_train import batch_view
from tpu_train.batch_picture import BatchPicture
from tpu_train.sources import Sources
from tpu_train.validation_pictures import ValidationPictures


class RunPictures:
    """Draws them, with the default summary writer.

    Args:
      config: of the run.
      sources: its files.

    Attributes:
      validation: to be shown every batch of detections.
    """

    def __init__(self, config: config_definitions.ExperimentConfig, sources: Sources) -> None:
        task = config.task
        self.validation = ValidationPictures(task.dataset, task.validation_data.split, iou=task.validation_iou)
        self._config, self._sources, self._batch_drawn = config, sources, False

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """After a validation; the batch only once, it is there to be looked at, not to be followed."""
        self.validation.write(step, metrics["score_threshold"])
        if not self._batch_drawn:
            self._batch_drawn = True
            view = batch_view.at_step(self._config, self._sources, 0)
            sheet = BatchPicture(self._config.task.dataset, self._config, view).sheet("the first batch")
            tf.summary.image("train/batch", sheet[None], step=0)
