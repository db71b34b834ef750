"""What the network sees at a step: the batch, its augmentation and its targets, by the very code that trains."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from official.core import config_definitions, task_factory

from tpu_train import mosaic, patches
from tpu_train.experiments.detector import DetectorTask
from tpu_train.mosaic import View
from tpu_train.sources import Sources


@dataclass(frozen=True)
class BatchView:
    """A batch as the network gets it, B patches of S px with up to M objects and N anchors.

    Attributes:
      images: uint8 [B, S, S, 3], its pixels before normalisation, rounded.
      boxes: float32 [B, M, 4], yxyx in these pixels, clipped to them.
      classes: int32 [B, M], ids from 1; 0 for padding and for what the crop lost.
      barely: bool [B, M], of which the crop shows too little to learn from; none where images were combined.
      fates: int32 [B, 4], what became of the objects of each image, see `tpu_train.mosaic.View`.
      patch_ids: int64 [B].
      anchors: float32 [N, 4], yxyx in pixels of the images.
      positive: bool [B, N], whether the anchor is to find an object.
    """

    images: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    barely: np.ndarray
    fates: np.ndarray
    patch_ids: np.ndarray
    anchors: np.ndarray
    positive: np.ndarray

    def __len__(self) -> int:
        return len(self.patch_ids)

    def rows(self, wanted: np.ndarray) -> "BatchView":
        """Some of the patches, by their positions in the batch."""
        return BatchView(
            self.images[wanted],
            self.boxes[wanted],
            self.classes[wanted],
            self.barely[wanted],
            self.fates[wanted],
            self.patch_ids[wanted],
            self.anchors,
            self.positive[wanted],
        )


def at_step(config: config_definitions.ExperimentConfig, files: Sources, step: int, *, augmented: bool = True) -> BatchView:
    """The batch that a run trains on when it has trained `step` steps.

    That of a run on one CPU or GPU. A TPU turns and colours the same crops of the same patches otherwise: it draws other random
    numbers, and with R replicas each takes a batch of 1/R of the size with numbers of its own.

    Args:
      config: of the run (`tpu_train.configure`).
      files: that it reads.
      step: steps already trained; 0 gives the first batch.
      augmented: False for the whole patches of that batch, as validation would see them.
    """
    task = task_factory.get_task(config.task)
    task.shards, task.start_step = files.shards, step
    inputs = task.read(config.task.train_data, task.crop if augmented else None)
    return of_inputs(task, next(iter(inputs)), step, augmented=augmented)


def of_patches(
    config: config_definitions.ExperimentConfig, wanted: Sequence[patches.Place], step: int, *, augmented: bool = True
) -> BatchView:
    """The view of a batch made of these patches, with the random numbers of a step; see `at_step`."""
    task = task_factory.get_task(config.task)
    inputs = patches.read(
        config.task.dataset,
        wanted,
        patch_size=task.crop.patch_size,
        max_boxes=config.task.max_boxes,
        crop=task.crop if augmented else None,
        seed=config.task.seed,
    )
    return of_inputs(task, inputs, step, augmented=augmented)


def of_inputs(task: DetectorTask, inputs: dict[str, tf.Tensor], step: int, *, augmented: bool = True) -> BatchView:
    """The view of a batch of `tpu_train.input`.

    Args:
      task: says how patches are viewed and which anchors there are.
      inputs: as `task.read` gives them, with views if augmented.
      step: whose random numbers to use.
      augmented: False for the patches as they are.
    """

    @tf.function  # as in training: line by line, sums are rounded otherwise
    def viewed() -> tuple[View, tf.Tensor]:
        if augmented:
            view = task.view(inputs, tf.constant(step, tf.int64))
        else:
            boxes, classes = inputs["boxes"], inputs["classes"]
            view = View(tf.cast(inputs["image"], tf.float32), boxes, classes, mosaic.fates_of(inputs, boxes, classes))
        size = view.images.shape[1]
        return view, task.positive(task.targets(view.boxes, view.classes, size), size)

    view, positive = tf.nest.map_structure(lambda value: value.numpy(), viewed())
    read = inputs["classes"].numpy()
    alone = not (augmented and mosaic.wanted(task.task_config.augmentation, len(read)))
    shown = (view.boxes[..., 2:] > view.boxes[..., :2]).all(axis=-1)
    barely = (read > 0) & (view.classes == 0) & shown if alone else np.zeros(view.classes.shape, bool)
    return BatchView(
        images=np.clip(np.round(view.images), 0, 255).astype(np.uint8),
        boxes=view.boxes,
        classes=view.classes,
        barely=barely,
        fates=view.fates,
        patch_ids=inputs["patch_id"].numpy(),
        anchors=task.anchor_boxes(view.images.shape[1]),
        positive=positive,
    )
