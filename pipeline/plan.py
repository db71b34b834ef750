"""What `shard` will do, decided before any pixel is read: which patches, in which split, with which boxes, in which shard.

Everything here is a pure function of the mosaics' headers, the annotations and the options, so the plan, and with it every
byte of the dataset, does not depend on the runner or the number of workers.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import split
from survey import boxes, labels
from survey.annotations.annotation import Annotation
from survey.dataset import QUANTILES, Statistics, shard_file
from survey.errors import InputError
from survey.flags import nearest
from survey.geometry import Mosaic, PatchGrid, Window
from survey.labels import LabelMap

OFFENDERS_SHOWN = 3  # enough to find the mistake in the annotation tool; the counts say how many there are


@dataclass(frozen=True, slots=True)
class Objects:
    """The labelled objects of one mosaic, clipped to it.

    Attributes:
      boxes_mosaic_px: [N, 4], yxyx.
      class_ids: [N], from 1.
    """

    boxes_mosaic_px: np.ndarray
    class_ids: np.ndarray


@dataclass(frozen=True, slots=True)
class PlannedPatch:
    """One record to be written.

    Attributes:
      patch_id: its number in the dataset.
      mosaic: name of the mosaic.
      row, column: its cell in the mosaic's grid.
      window: its pixels in the mosaic.
      split: where it goes.
      boxes_patch_px: [N, 4], yxyx in patch pixels, clipped to the patch.
      class_ids: [N], from 1.
    """

    patch_id: int
    mosaic: str
    row: int
    column: int
    window: Window
    split: str
    boxes_patch_px: np.ndarray
    class_ids: np.ndarray


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """One work item: a whole TFRecord file, its patches in the order of its records."""

    file: str
    split: str
    patches: tuple[PlannedPatch, ...]


@dataclass(frozen=True)
class Plan:
    """A dataset, all but its pixels.

    Attributes:
      mosaics: in the order of their patch numbers.
      classes: the label map.
      shards: every file, split by split.
      split_by: "mosaic", "block", or "all" for a single split.
      statistics: of the objects.
      counts: everything read, kept, clipped and dropped, by reason.
      offenders: for the reasons that point at a mistake, the first cases in words.
    """

    mosaics: tuple[Mosaic, ...]
    classes: LabelMap
    shards: tuple[PlannedShard, ...]
    split_by: str
    statistics: Statistics
    counts: dict[str, int]
    offenders: dict[str, list[str]]

    @property
    def patches(self) -> list[PlannedPatch]:
        """All records, shard by shard."""
        return [patch for shard in self.shards for patch in shard.patches]

    def digest(self, **options: Any) -> str:
        """Names what will be written: equal digests, equal bytes.

        Args:
          **options: whatever else goes into the bytes, as JSON values.
        """
        total = hashlib.sha256(json.dumps([options, self.classes]).encode())
        for mosaic in self.mosaics:
            total.update(json.dumps(dataclasses.asdict(dataclasses.replace(mosaic, path=""))).encode())
        for shard in self.shards:
            total.update(shard.file.encode())
            for patch in shard.patches:
                total.update(json.dumps([patch.patch_id, dataclasses.astuple(patch.window)]).encode())
                total.update(patch.boxes_patch_px.astype("<f8").tobytes() + patch.class_ids.astype("<i8").tobytes())
        return total.hexdigest()


def make(
    mosaics: Sequence[Mosaic],
    annotations: Iterable[Annotation],
    *,
    classes: LabelMap | None,
    patch_size: int,
    overlap_px: int,
    fractions: Mapping[str, float],
    min_visible: float,
    records_per_shard: int,
) -> Plan:
    """Plans a dataset.

    Args:
      mosaics: in any order, without patch numbers.
      annotations: of these mosaics.
      classes: the label map, None to take the classes seen.
      patch_size: side of a patch in pixels.
      overlap_px: pixels that neighbouring patches share, at least.
      fractions: share of the patches for each split; they sum to 1.
      min_visible: an object is labelled in a patch that shows at least this share of its area.
      records_per_shard: at most so many patches in one file.

    Raises:
      InputError: an annotation of an unknown image or class, no object at all, or a split that cannot be made.
    """
    annotations = list(annotations)
    mosaics = numbered(mosaics, patch_size, overlap_px)
    if classes is None:
        classes = labels.from_names(annotation.class_name for annotation in annotations)
    counts: Counter[str] = Counter()
    offenders: dict[str, list[str]] = {}

    def count(reason: str, number: int = 1, case: str = "") -> None:
        counts[reason] += number
        if case and len(offenders.setdefault(reason, [])) < OFFENDERS_SHOWN:
            offenders[reason].append(case)

    objects = by_mosaic(mosaics, annotations, classes, count)
    grids = {mosaic.name: mosaic.grid(patch_size, overlap_px) for mosaic in mosaics}
    assignment = split.assign(grids, fractions)
    patches: list[PlannedPatch] = []
    for mosaic in mosaics:
        patches += _patches(
            mosaic, grids[mosaic.name], assignment.cells[mosaic.name], objects.get(mosaic.name), min_visible, count
        )
    for name in fractions:
        counts[f"patches_{name}"] = sum(patch.split == name for patch in patches)
    counts["mosaics"] = len(mosaics)
    counts["patches_between_splits"] = sum(len(grid) for grid in grids.values()) - len(patches)
    shards = tuple(
        shard
        for name in fractions
        for shard in _shards(name, [patch for patch in patches if patch.split == name], records_per_shard)
    )
    statistics = _statistics(patches, classes, list(fractions))
    return Plan(mosaics, classes, shards, assignment.by, statistics, dict(sorted(counts.items())), offenders)


def numbered(mosaics: Sequence[Mosaic], patch_size: int, overlap_px: int) -> tuple[Mosaic, ...]:
    """The mosaics in the order of their names, each with the number of its first patch."""
    first, result = 0, []
    for mosaic in sorted(mosaics, key=lambda mosaic: mosaic.name):
        result.append(dataclasses.replace(mosaic, first_patch_id=first))
        first += len(mosaic.grid(patch_size, overlap_px))
    return tuple(result)


def by_mosaic(
    mosaics: Sequence[Mosaic], annotations: Sequence[Annotation], classes: LabelMap, count: Callable[..., None]
) -> dict[str, Objects]:
    """Annotations grouped by mosaic and clipped to it; what is left of nothing is dropped and counted.

    Args:
      mosaics: all of them.
      annotations: in any order; the image's file name without folder and ending is the mosaic's name.
      classes: the label map.
      count: called with a reason, a number, and a case in words.

    Raises:
      InputError: an image that is not among the mosaics, another image size than the mosaic's, a class the label map lacks.
    """
    known = {mosaic.name: mosaic for mosaic in mosaics}
    ids = {name: i for i, name in enumerate(classes, start=1)}
    kept: dict[str, list[tuple[np.ndarray, int]]] = {}
    for annotation in annotations:
        mosaic = known.get(stem(annotation.image))
        if mosaic is None:
            near = known[nearest(stem(annotation.image), known)].path
            raise InputError(
                f"{annotation.source} annotates image {annotation.image!r}, which is not among the {len(known)} mosaics "
                f"(nearest: {near}): add the image to --mosaics, or leave the file out of --annotations"
            )
        if annotation.image_size not in (None, (mosaic.height, mosaic.width)):
            raise InputError(
                f"{annotation.source} was made for an image of (height, width) {annotation.image_size}, but {mosaic.path} has "
                f"{(mosaic.height, mosaic.width)}: its boxes would be misplaced; annotate this version of the image"
            )
        if annotation.class_name not in ids:
            raise InputError(
                f"{annotation.source} has class {annotation.class_name!r}, which the label map lacks (it has "
                f"{', '.join(classes)}): add it to the label map, or correct it to {nearest(annotation.class_name, classes)!r}"
            )
        count("objects_read")
        box = np.array([annotation.box])
        clipped = boxes.clip(box, mosaic.height, mosaic.width)
        case = f"{annotation.source}: {annotation.class_name} at yxyx {annotation.box}"
        if not boxes.area(clipped)[0] > 0:  # also where a corner is not a number
            count("objects_empty_or_outside_mosaic", case=case)
            continue
        if (clipped != box).any():
            count("objects_clipped_to_mosaic", case=case)
        kept.setdefault(mosaic.name, []).append((clipped[0], ids[annotation.class_name]))
    if not kept:
        raise InputError(
            f"--annotations hold {len(annotations)} objects, of which none lies in a mosaic: there is nothing to learn from"
        )
    count("mosaics_without_objects", len(known) - len(kept))
    return {
        name: Objects(np.array([box for box, _ in pairs]), np.array([class_id for _, class_id in pairs]))
        for name, pairs in kept.items()
    }


def stem(path: str) -> str:
    r"""File name without folder and ending, as it names a mosaic; annotation tools on Windows write backslashes.

    >>> stem("C:\\survey\\north.1.tif")
    'north.1'
    """
    name = path.replace("\\", "/").rsplit("/", 1)[-1]
    return name.rsplit(".", 1)[0] if "." in name[1:] else name


def label(window: Window, boxes_mosaic_px: np.ndarray, min_visible: float) -> tuple[np.ndarray, np.ndarray]:
    """What a patch shows of boxes.

    Args:
      window: the patch.
      boxes_mosaic_px: [N, 4], yxyx.
      min_visible: share of a box's area, 0 to 1.

    Returns:
      (boxes in patch pixels, clipped, [N, 4]; which of them are visible enough to be labelled, [N] bool). A sliver of an
      object at the border looks like nothing, and teaching the model to find it costs it precision everywhere.
    """
    clipped = boxes.clip(boxes.shift(boxes_mosaic_px, -window.y0, -window.x0), window.height, window.width)
    visible = boxes.area(clipped)
    return clipped, (visible > 0) & (visible >= min_visible * boxes.area(boxes_mosaic_px))


def shuffled(patch_ids: np.ndarray) -> np.ndarray:
    """The order of records: patch numbers sorted by a fixed hash, so that neighbours on the ground end up apart.

    The hash is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014): the same on every machine, unlike a library's
    random generator, whose stream may change with its version.

    Args:
      patch_ids: int [N].

    Returns:
      Indices into patch_ids, [N].
    """
    value = np.asarray(patch_ids).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(value ^ (value >> np.uint64(31)), kind="stable")


def _patches(
    mosaic: Mosaic,
    grid: PatchGrid,
    cells: Mapping[tuple[int, int], str],
    objects: Objects | None,
    min_visible: float,
    count: Callable[..., None],
) -> list[PlannedPatch]:
    objects = objects or Objects(np.zeros((0, 4)), np.zeros(0, np.int64))
    touching: dict[tuple[int, int], list[int]] = {}
    for i, box in enumerate(objects.boxes_mosaic_px):
        for cell in grid.cells_touching(box):
            touching.setdefault(cell, []).append(i)
    labelled: set[int] = set()
    result = []
    for cell in grid.cells():
        if cell not in cells:
            continue
        window = grid.window(*cell)
        near = np.array(touching.get(cell, []), np.int64)
        shown, kept = label(window, objects.boxes_mosaic_px[near], min_visible)
        labelled.update(near[kept].tolist())
        count("boxes_too_little_visible_in_patch", int((~kept).sum()))
        patch_id = mosaic.first_patch_id + grid.index(*cell)
        result.append(PlannedPatch(patch_id, mosaic.name, *cell, window, cells[cell], shown[kept], objects.class_ids[near[kept]]))
    count("objects_in_no_patch", len(objects.class_ids) - len(labelled))
    count("objects_labelled", len(labelled))
    return result


def _shards(name: str, patches: Sequence[PlannedPatch], records_per_shard: int) -> list[PlannedShard]:
    order = shuffled(np.array([patch.patch_id for patch in patches]))
    number = -(-len(patches) // records_per_shard)
    parts = np.array_split(order, number)  # sizes differ by one at most
    return [PlannedShard(shard_file(name, i, number), name, tuple(patches[j] for j in part)) for i, part in enumerate(parts)]


def _statistics(patches: Sequence[PlannedPatch], classes: LabelMap, splits: Sequence[str]) -> Statistics:
    per_split: Counter[str] = Counter(dict.fromkeys(splits, 0))
    per_class: Counter[int] = Counter()
    for patch in patches:
        per_split[patch.split] += len(patch.class_ids)
        per_class.update(patch.class_ids.tolist())
    if not per_split["train"]:
        raise InputError(
            "the split train holds no object: give more annotated mosaics, a larger share to train in --split, or a smaller "
            "--min_visible"
        )
    sides = np.sqrt(np.concatenate([boxes.area(patch.boxes_patch_px) for patch in patches if patch.split == "train"]))
    return Statistics(
        objects=dict(per_split),
        objects_per_class={name: per_class[i] for i, name in enumerate(classes, start=1)},
        max_objects_per_patch=max(len(patch.class_ids) for patch in patches),
        box_sides_px={name: round(float(np.quantile(sides, q)), 3) for name, q in QUANTILES.items()},
    )
