"""What people marked: annotations brought together with the mosaics they belong to."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from survey import boxes
from survey.annotations.annotation import Annotation
from survey.errors import InputError
from survey.flags import nearest
from survey.geometry import Mosaic
from survey.labels import LabelMap
from survey.mosaics import stem

OFFENDERS_SHOWN = 3  # enough to find the mistake in the annotation tool; the counts say how many there are


@dataclass(frozen=True, slots=True)
class Objects:
    """The labelled objects of one mosaic, clipped to it.

    Attributes:
      boxes_mosaic_px: float64 [N, 4], yxyx.
      class_ids: int32 [N], from 1.
    """

    boxes_mosaic_px: np.ndarray
    class_ids: np.ndarray

    @classmethod
    def none(cls) -> "Objects":
        """A mosaic in which nobody found anything."""
        return cls(np.zeros((0, 4)), np.zeros(0, np.int32))


@dataclass(frozen=True, slots=True)
class Truth:
    """The labelled objects of a survey.

    Attributes:
      objects: by mosaic name; mosaics that no annotation names are absent.
      counts: objects_read, objects_clipped_to_mosaic, objects_empty_or_outside_mosaic.
      offenders: for the reasons that point at a mistake, the first cases in words.
    """

    objects: dict[str, Objects]
    counts: dict[str, int]
    offenders: dict[str, list[str]]


def by_mosaic(annotations: Iterable[Annotation], mosaics: Sequence[Mosaic], classes: LabelMap, *, named_in: str) -> Truth:
    """Annotations grouped by mosaic and clipped to it; a box of which nothing is left is dropped and counted.

    Args:
      annotations: in any order; the image's file name without folder and ending is the mosaic's name.
      mosaics: all of them.
      classes: the label map.
      named_in: whose classes they are, for the error.

    Raises:
      InputError: an image that is not among the mosaics, another image size than the mosaic's, a class that is not in the map.
    """
    known = {mosaic.name: mosaic for mosaic in mosaics}
    ids = {name: i for i, name in enumerate(classes, start=1)}
    counts: Counter[str] = Counter(objects_read=0, objects_clipped_to_mosaic=0, objects_empty_or_outside_mosaic=0)
    offenders: dict[str, list[str]] = {}
    kept: dict[str, list[tuple[np.ndarray, int]]] = {}
    for annotation in annotations:
        mosaic = _mosaic_of(annotation, known)
        if annotation.class_name not in ids:
            raise InputError(
                f"{annotation.source} has class {annotation.class_name!r}, which {named_in} lacks (it has {', '.join(classes)}): "
                f"add it there, or correct it to {nearest(annotation.class_name, classes)!r}"
            )
        counts["objects_read"] += 1
        box = np.array([annotation.box], np.float64)
        clipped = boxes.clip(box, mosaic.height, mosaic.width)
        here = kept.setdefault(mosaic.name, [])
        if not boxes.area(clipped)[0] > 0:  # also where a corner is not a number
            reason = "objects_empty_or_outside_mosaic"
        else:
            here.append((clipped[0], ids[annotation.class_name]))
            if (clipped == box).all():
                continue
            reason = "objects_clipped_to_mosaic"
        counts[reason] += 1
        if len(offenders.setdefault(reason, [])) < OFFENDERS_SHOWN:
            offenders[reason].append(f"{annotation.source}: {annotation.class_name} at yxyx {annotation.box}")
    return Truth(
        objects={
            name: Objects(np.array([box for box, _ in pairs]).reshape(-1, 4), np.array([i for _, i in pairs], np.int32))
            for name, pairs in kept.items()
        },
        counts=dict(counts),
        offenders=offenders,
    )


def _mosaic_of(annotation: Annotation, known: dict[str, Mosaic]) -> Mosaic:
    mosaic = known.get(stem(annotation.image))
    if mosaic is None:
        near = known[nearest(stem(annotation.image), known)].path
        raise InputError(
            f"{annotation.source} annotates image {annotation.image!r}, which is not among the {len(known)} mosaics "
            f"(nearest: {near}): add the image to the mosaics, or leave the file out of --annotations"
        )
    if annotation.image_size not in (None, (mosaic.height, mosaic.width)):
        raise InputError(
            f"{annotation.source} was made for an image of (height, width) {annotation.image_size}, but {mosaic.path} has "
            f"{(mosaic.height, mosaic.width)}: its boxes would be misplaced; annotate this version of the image"
        )
    return mosaic
