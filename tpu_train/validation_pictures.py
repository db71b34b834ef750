"""A few validation patches with what the network finds in them, the same ones at every validation: to watch it learn."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from survey import boxes as box_math
from survey import dataset, metrics
from survey.drawing import FALSE, FOUND, MISSED, Style
from survey.geometry import Window
from tpu_train import patches, pictures
from tpu_train.patches import Place
from tpu_train.pictures import Layer, Tile

COUNT = 6  # patches; at 416 px each adds about half a megabyte to the event file at every validation
MAX_BOXES = 500  # drawn of a patch: an untrained network finds something at every anchor


class ValidationPictures:
    """Keeps the detections of some patches and draws them.

    Fill it like `Validation`, then write: `add` takes every batch and keeps its patches only; the next validation replaces
    what the last one left.

    Args:
      folder: of the dataset.
      split: that is validated.
      iou: from which a detection has found an object.
      count: how many patches.
    """

    def __init__(self, folder: str, split: str, *, iou: float, count: int = COUNT) -> None:
        data = dataset.read(folder)
        self._classes, self._iou = data.classes, iou
        self._places = choose(list(patches.places(folder, split=split).values()), count)
        most = max(1, data.statistics.max_objects_per_patch)
        self._images = patches.read(folder, self._places, patch_size=data.patch_size, max_boxes=most)["image"].numpy()
        self._outputs: dict[int, dict[str, np.ndarray]] = {}

    @property
    def patch_ids(self) -> tuple[int, ...]:
        """The patches that are drawn, in their order."""
        return tuple(place.patch_id for place in self._places)

    def add(self, batch: dict[str, np.ndarray]) -> None:
        """Keeps what a batch says of the chosen patches; `batch` is that of `Validation.add`."""
        for i, patch_id in enumerate(batch["patch_id"].tolist()):
            if patch_id in self.patch_ids:
                self._outputs[patch_id] = {name: values[i] for name, values in batch.items()}

    def pictures(self, threshold: float) -> dict[int, np.ndarray]:
        """Each patch that was added, by number, with detections from this score on, as uint8 [H, W, 3]."""
        truth_sides = [np.sqrt(box_math.area(one["truth_boxes"][one["truth_classes"] > 0])) for one in self._outputs.values()]
        scale = pictures.factor(self._images.shape[1], np.concatenate(truth_sides) if truth_sides else np.zeros(0))
        return {
            place.patch_id: pictures.draw(self._tile(place, self._images[i], self._outputs[place.patch_id], threshold), scale)
            for i, place in enumerate(self._places)
            if place.patch_id in self._outputs
        }

    def write(self, step: int, threshold: float) -> None:
        """Writes the pictures with the default summary writer, each under a name of its own: a slider over the steps for each."""
        for rank, (patch_id, picture) in enumerate(self.pictures(threshold).items()):
            tf.summary.image(f"validation/{rank}_patch_{patch_id}", picture[None], step=step)

    def _tile(self, place: Place, image: np.ndarray, one: dict[str, np.ndarray], threshold: float) -> Tile:
        real = one["truth_classes"] > 0
        truth, truth_classes = one["truth_boxes"][real], one["truth_classes"][real]
        sure = np.flatnonzero(one["scores"][: int(one["count"])] >= threshold)[:MAX_BOXES]
        boxes, scores, classes = one["boxes"][sure], one["scores"][sure], one["classes"][sure]
        found, seen = np.zeros(len(boxes), bool), np.zeros(len(truth), bool)
        for class_id in np.unique(classes).tolist():
            mine, wanted = np.flatnonzero(classes == class_id), np.flatnonzero(truth_classes == class_id)
            index = metrics.match(boxes[mine], scores[mine], truth[wanted], [self._iou]).truth_index[0]
            found[mine] = index >= 0
            seen[wanted[index[index >= 0]]] = True

        def labels(which: np.ndarray) -> tuple[str, ...]:
            names = [f"{self._classes[i - 1]} " if len(self._classes) > 1 else "" for i in classes[which].tolist()]
            return tuple(f"{name}{score:.2f}" for name, score in zip(names, scores[which].tolist(), strict=True))

        return Tile(
            image,
            (
                Layer(truth[seen], MISSED, thin=True),
                Layer(truth[~seen], MISSED),
                Layer(boxes[found], FOUND, labels(found)),
                Layer(boxes[~found], Style(FALSE.colour, ""), labels(~found)),
            ),
            (
                f"patch {place.patch_id}: row {place.row}, column {place.column}; score ≥ {threshold:.2f}",
                place.mosaic,
                f"found {found.sum()} (blue), missed {(~seen).sum()} (dashed), false {(~found).sum()} (red)",
            ),
        )


def choose(places: Sequence[Place], count: int) -> list[Place]:
    """Patches that stand for a split: from the fullest to the sparsest in even steps of rank, and one without objects.

    A crowd shows missed neighbours and doubles, a sparse patch shows how exact the boxes are, and only an empty one shows what is
    taken for an object where there is none. No two share ground, as far as that can be had: neighbours overlap, and would show
    the same objects twice. Nothing is drawn by lot: a run that is repeated, or continued elsewhere, shows the same patches.
    """
    ranked = sorted((place for place in places if place.objects), key=lambda place: (-place.objects, place.patch_id))
    # The middle one: the first and the last lie at the edge of a mosaic, where there often is nothing at all.
    bare = sorted((place for place in places if not place.objects), key=lambda place: place.patch_id)
    chosen: list[Place] = []
    for target in np.linspace(0, len(ranked) - 1, min(len(ranked), count - bool(bare))).round().astype(int).tolist():
        _take(ranked, target, chosen)
    if bare and len(chosen) < count:
        _take(bare, len(bare) // 2, chosen)
    return chosen


def _take(pool: Sequence[Place], target: int, chosen: list[Place]) -> None:
    """Adds the patch nearest to a rank that is free, and if there is one that shares no ground with those chosen."""
    free = sorted((place for place in pool if place not in chosen), key=lambda place: abs(pool.index(place) - target))
    apart = (place for place in free if not any(_share_ground(place, other) for other in chosen))
    chosen.append(next(apart, free[0]))


def _share_ground(a: Place, b: Place) -> bool:
    return a.mosaic == b.mosaic and Window(*a.window).intersect(Window(*b.window)).area > 0
