"""What people marked: annotations brought together with the mosaics they belong to."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from survey import boxes
from survey.annotations import placing
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
      counts: objects_read, objects_clipped_to_mosaic, objects_empty_or_outside_mosaic; and where there are any,
        objects_given_twice, objects_on_several_mosaics, images_without_objects_not_among_mosaics.
      offenders: for the reasons that point at a mistake, the first cases in words.
    """

    objects: dict[str, Objects]
    counts: dict[str, int]
    offenders: dict[str, list[str]]


def by_mosaic(
    annotations: Iterable[Annotation],
    mosaics: Sequence[Mosaic],
    classes: LabelMap,
    *,
    named_in: str,
    images: Iterable[str] = (),
) -> Truth:
    """Annotations grouped by mosaic, in its pixels and clipped to it; a box of which nothing is left is dropped and counted.

    Args:
      annotations: in any order and frame. One that names an image belongs to the mosaic of that file name, without folder and
        ending; one in map coordinates to every mosaic that shows it.
      mosaics: all of them.
      classes: the label map.
      named_in: whose classes they are, for the error.
      images: further images that were searched for objects; one without annotations is an empty mosaic.

    Raises:
      InputError: an image that is not among the mosaics, another image size than the mosaic's, a class that is not in the map, or
        map coordinates that fit no mosaic.
    """
    annotations = annotations if isinstance(annotations, Sequence) else list(annotations)
    known = {_key(mosaic.name): mosaic for mosaic in mosaics}
    ids = {name: i for i, name in enumerate(classes, start=1)}
    class_ids = np.zeros(len(annotations), np.int32)
    on_map: list[int] = []
    named: dict[str, list[int]] = {}
    lists: dict[tuple[str, tuple[int, int] | None], list[int]] = {}
    for i, annotation in enumerate(annotations):
        if annotation.frame == "map":
            here = on_map
        else:
            key = (annotation.image, annotation.image_size)
            if key not in lists:  # a survey has a million objects and few images: each is looked up once
                lists[key] = named.setdefault(_mosaic_of(annotation, known).name, [])
            here = lists[key]
        if annotation.class_name not in ids:
            raise InputError(
                f"{annotation.source} has class {annotation.class_name!r}, which {named_in} lacks (it has {', '.join(classes)}): "
                f"add it there, or correct it to {nearest(annotation.class_name, classes)!r}"
            )
        here.append(i)
        class_ids[i] = ids[annotation.class_name]

    tally = _Tally(annotations)
    tally.counts["objects_read"] = len(annotations)
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    by_name = {mosaic.name: mosaic for mosaic in mosaics}
    for name, indices in named.items():
        placed = placing.in_pixels([annotations[i] for i in indices], by_name[name])
        parts.setdefault(name, []).append((np.array(indices, np.int64), placed))
    for mosaic, chosen, placed in _from_map(annotations, on_map, mosaics, tally):
        parts.setdefault(mosaic.name, []).append((chosen, placed))
    objects = {}
    for name, pairs in parts.items():
        chosen, placed = (np.concatenate(part) for part in zip(*pairs, strict=True))
        boxes_mosaic_px, rows = _clipped(placed, chosen, class_ids, by_name[name], tally)
        objects[name] = Objects(boxes_mosaic_px, class_ids[rows])
    for image in images:
        searched = known.get(_key(stem(image)))
        if searched is not None:
            objects.setdefault(searched.name, Objects.none())
        else:
            tally.counts["images_without_objects_not_among_mosaics"] += 1
    return Truth(objects=objects, counts=dict(tally.counts), offenders=tally.offenders())


class _Tally:
    """Counts by reason, and the first cases of each in the order of the annotations."""

    def __init__(self, annotations: Sequence[Annotation]) -> None:
        self._annotations = annotations
        self._cases: dict[str, list[tuple[int, str]]] = {}
        self.counts: Counter[str] = Counter(objects_read=0, objects_clipped_to_mosaic=0, objects_empty_or_outside_mosaic=0)

    def add(self, reason: str, indices: np.ndarray, boxes_mosaic_px: np.ndarray | None = None) -> None:
        """Counts these annotations; a reason that never occurs stays out, but for those that every summary shows."""
        if not len(indices):
            return
        self.counts[reason] += len(indices)
        order = np.argsort(indices, kind="stable")[:OFFENDERS_SHOWN]
        for row in order.tolist():
            one = self._annotations[indices[row]]
            box = one.box
            if boxes_mosaic_px is not None and (one.frame != "pixels" or one.side is not None):
                y0, x0, y1, x1 = boxes_mosaic_px[row].round(2).tolist()
                box = (y0, x0, y1, x1)
            unit = f" in {one.crs}" if boxes_mosaic_px is None and one.frame == "map" else ""
            self._cases.setdefault(reason, []).append((int(indices[row]), f"{one.source}: {one.class_name} at yxyx {box}{unit}"))

    def offenders(self) -> dict[str, list[str]]:
        """The first cases of each reason in words."""
        return {reason: [text for _, text in sorted(cases)[:OFFENDERS_SHOWN]] for reason, cases in self._cases.items()}


def _clipped(
    placed: np.ndarray, chosen: np.ndarray, class_ids: np.ndarray, mosaic: Mosaic, tally: _Tally
) -> tuple[np.ndarray, np.ndarray]:
    """What a mosaic shows of boxes in its pixels: (clipped boxes [M, 4], their annotations [M])."""
    clipped = boxes.clip(placed, mosaic.height, mosaic.width)
    shown = boxes.area(clipped) > 0  # also false where a corner is not a number
    tally.add("objects_empty_or_outside_mosaic", chosen[~shown], placed[~shown])
    # The very same box and class twice is a file read twice, or a double click; two objects never agree to the last digit.
    _, first = np.unique(np.column_stack([placed, class_ids[chosen]]), axis=0, return_index=True)
    new = np.zeros(len(chosen), bool)
    new[first] = True
    tally.add("objects_given_twice", chosen[shown & ~new], placed[shown & ~new])
    kept = shown & new
    changed = kept & (clipped != placed).any(axis=1)
    tally.add("objects_clipped_to_mosaic", chosen[changed], placed[changed])
    return clipped[kept], chosen[kept]


def _from_map(
    annotations: Sequence[Annotation], on_map: Sequence[int], mosaics: Sequence[Mosaic], tally: _Tally
) -> Iterator[tuple[Mosaic, np.ndarray, np.ndarray]]:
    """Objects in map coordinates: (mosaic, annotations [M], boxes [M, 4] in its pixels)."""
    if not on_map:
        return
    here = np.array(on_map, np.int64)
    times = np.zeros(len(here), np.int64)
    for mosaic, chosen, placed in placing.on_mosaics([annotations[i] for i in on_map], mosaics):
        times[chosen] += 1
        yield mosaic, here[chosen], placed
    if not times.any():
        one, (y0, x0, y1, x1) = annotations[on_map[0]], annotations[on_map[0]].box
        corners = mosaics[0].to_map(np.array([(0, 0), (mosaics[0].height, mosaics[0].width)]))
        (left, top), (right, bottom) = corners.tolist()
        raise InputError(
            f"none of the {len(on_map)} objects in map coordinates lies on a mosaic: the first, in {one.source}, is at x "
            f"{x0:.12g} to {x1:.12g}, y {y0:.12g} to {y1:.12g} in {one.crs}; {mosaics[0].path} reaches from ({left:.12g}, "
            f"{top:.12g}) to ({right:.12g}, {bottom:.12g}) in {mosaics[0].crs}: check the CRS of both"
        )
    tally.add("objects_empty_or_outside_mosaic", here[times == 0])
    tally.add("objects_on_several_mosaics", here[times > 1])


def _key(name: str) -> str:
    """A name as it is compared: macOS stores accents as separate characters (NFD), annotation tools as one (NFC)."""
    return unicodedata.normalize("NFC", name)


def _mosaic_of(annotation: Annotation, known: dict[str, Mosaic]) -> Mosaic:
    mosaic = known.get(_key(stem(annotation.image)))
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
