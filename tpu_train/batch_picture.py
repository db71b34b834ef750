"""A batch as the network sees it, drawn and counted: for `rookery show-batch`, and for TensorBoard at the start of a run."""

import functools
import operator
from dataclasses import dataclass

import numpy as np
from official.core import config_definitions

from survey import boxes as box_math
from survey import dataset
from survey.drawing import Style, class_style
from tpu_train import patches, pictures, truncation
from tpu_train.augment import Augment
from tpu_train.batch_view import BatchView
from tpu_train.pictures import Key, Layer, Tile
from tpu_train.truncation import Objects

BARELY = Style("#FFFFFF", "2 3")
ANCHOR = Style("#FFFFFF", "")


@dataclass(frozen=True, slots=True)
class Fit:
    """How well the anchors fit the objects of a batch, M objects.

    Attributes:
      best_iou: float [M], with the best anchor.
      positive: int [M], anchors that are to find the object.
    """

    best_iou: np.ndarray
    positive: np.ndarray


class BatchPicture:
    """Draws and counts a view of a batch.

    Args:
      folder: of the dataset.
      config: of the run.
      view: what the network sees.
    """

    def __init__(self, folder: str, config: config_definitions.ExperimentConfig, view: BatchView) -> None:
        self._config, self._view = config, view
        data = dataset.read(folder)
        self._classes, self._mosaics = data.classes, [mosaic.name for mosaic in data.mosaics]
        self._places = patches.places(folder, patch_ids=view.patch_ids.tolist())
        self._objects = [Objects(*fates) for fates in view.fates.tolist()]

    def sheet(self, where: str, *, augmented: bool = True, anchors: bool = False) -> np.ndarray:
        """The batch as one picture, uint8 [H, W, 3].

        Args:
          where: dataset, split, step, seed: for the heading.
          augmented: what the view is.
          anchors: draw them too.
        """
        view, config = self._view, self._config.task
        scale = self._scale()
        size, patch = view.images.shape[1], config.model.input_size[0]
        whole = f"whole patches of {patch} px"
        what = f"{len(view)} {f'crops of {size} px out of patches of {patch} px' if augmented else whole}"
        shown = f"{what}, drawn {scale} times as large" if scale > 1 else what
        return pictures.sheet(
            [self._tile(i, anchors) for i in range(len(view))],
            scale,
            (
                where if len(self._mosaics) > 1 else f"{where}, mosaic {self._mosaics[0]}",
                f"{shown}; {describe(config.augmentation)}" if augmented else f"{shown}; not augmented",
            ),
            self._legend(anchors),
        )

    def summary(self) -> list[str]:
        """The same in numbers, as lines for the terminal."""
        view, config = self._view, self._config.task
        total = functools.reduce(operator.add, self._objects, Objects())
        per_class = np.bincount(view.classes.ravel(), minlength=len(self._classes) + 1)[1:]
        named = ", ".join(f"{name} {number:,}" for name, number in zip(self._classes, per_class.tolist(), strict=True))
        lines = [
            f"patches: {', '.join(map(str, view.patch_ids.tolist()))}",
            truncation.meter(total, max_boxes=config.max_boxes, min_visible=config.augmentation.min_visible),
            f"classes: {named}",
        ]
        fits = [self._fit(i) for i in range(len(view))]
        best = np.concatenate([fit.best_iou for fit in fits])
        if len(best):
            positive = np.concatenate([fit.positive for fit in fits])
            line = f"anchors: best IoU {np.median(best):.2f} (median), {np.median(positive):g} learn each object (median)"
            if config.match_threshold < 1:  # from 1 on it is no IoU, see tpu_train/yolo/targets.py
                low = int((best < config.match_threshold).sum())
                line += (
                    f"; {low:,} of {len(best):,} objects have none of IoU {config.match_threshold:g}, only their best one learns"
                )
            lines.append(line)
        return lines

    def _scale(self) -> int:
        real = self._view.classes > 0
        return pictures.factor(self._view.images.shape[1], np.sqrt(box_math.area(self._view.boxes[real])))

    def _tile(self, i: int, anchors: bool) -> Tile:
        view, objects, patch_id = self._view, self._objects[i], int(self._view.patch_ids[i])
        # Records of other files than the split's own may have other numbers.
        place = self._places.get(patch_id)
        boxes, classes = view.boxes[i], view.classes[i]
        layers = [Layer(boxes[view.barely[i]], BARELY, thin=True)]
        dots = None
        if anchors:
            dots = np.unique(box_math.centers(view.anchors[view.positive[i]]), axis=0)
            layers.append(Layer(self._best_anchors(i), ANCHOR, thin=True))
        for class_id in np.unique(classes[classes > 0]).tolist():
            mine = boxes[classes == class_id]
            # One class needs no names: they would hide what the picture is for.
            names = (self._classes[class_id - 1],) * len(mine) if len(self._classes) > 1 else ()
            layers.append(Layer(mine, class_style(class_id - 1), names))
        fates = ((objects.outside, "outside"), (objects.barely, "barely visible"), (objects.capped, "CUT BY THE CAP"))
        lost = [f"{number} {fate}" for number, fate in fates if number]
        captions = (
            f"patch {patch_id}: row {place.row}, column {place.column}" if place else f"patch {patch_id}",
            *((place.mosaic if place else "",) if len(self._mosaics) > 1 else ()),
            ", ".join([f"{objects.learned} box{'' if objects.learned == 1 else 'es'}", *lost]),
        )
        return Tile(view.images[i], tuple(layers), captions, dots)

    def _legend(self, anchors: bool) -> list[Key]:
        counts = np.bincount(self._view.classes.ravel(), minlength=len(self._classes) + 1)
        keys = [
            Key(f"{name} ({counts[i + 1]:,})", class_style(i)) for i, name in enumerate(self._classes) if counts[i + 1]
        ]  # fmt: skip
        if any(objects.barely for objects in self._objects):
            share = 100 * self._config.task.augmentation.min_visible
            keys.append(Key(f"less than {share:g} % visible: not taught", BARELY))
        if anchors:
            keys += [Key("best anchor of an object", ANCHOR), Key("centre of an anchor that learns", None)]
        return keys

    def _best_anchors(self, i: int) -> np.ndarray:
        boxes = self._view.boxes[i][self._view.classes[i] > 0]
        return self._view.anchors[box_math.iou(self._view.anchors, boxes).argmax(axis=0)] if len(boxes) else boxes

    def _fit(self, i: int) -> Fit:
        boxes = self._view.boxes[i][self._view.classes[i] > 0]
        if not len(boxes):
            return Fit(np.zeros(0), np.zeros(0, int))
        overlap = box_math.iou(self._view.anchors, boxes)
        owner = overlap[self._view.positive[i]].argmax(axis=1)
        return Fit(overlap.max(axis=0), np.bincount(owner, minlength=len(boxes)))


def describe(augmentation: Augment) -> str:
    """The values of an augmentation for people, those that change nothing left out.

    >>> describe(Augment(scale_min=1.0, scale_max=1.0, flip=True, quarter_turn=False, contrast=0.0))
    'flips, brightness ±0.1, saturation ±0.2, white balance ±0.1'
    """
    parts = []
    if not augmentation.scale_min == augmentation.scale_max == 1.0:
        parts.append(f"scale {augmentation.scale_min:g} to {augmentation.scale_max:g}")
    parts += [name for name, on in (("flips", augmentation.flip), ("quarter turns", augmentation.quarter_turn)) if on]
    for name in ("brightness", "contrast", "saturation", "white_balance"):
        value = getattr(augmentation, name)
        if value:
            parts.append(f"{name.replace('_', ' ')} ±{value:g}")
    if augmentation.jitter:
        parts.append(f"sides ×{1 / (1 + augmentation.jitter):.2f} to ×{1 + augmentation.jitter:.2f}")
    for name, what in (("mosaic", "a mosaic of four"), ("mixup", "a mixture of two")):
        if getattr(augmentation, name):
            parts.append(f"{what} for {getattr(augmentation, name):.0%}")
    return ", ".join(parts) or "no augmentation"
