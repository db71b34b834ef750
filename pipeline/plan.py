"""What `shard` will do, decided before any pixel is read: which patches, in which split, with which boxes, in which shard.

Everything here is a pure function of the mosaics' headers, the annotations and the options, so the plan, and with it every
byte of the dataset, does not depend on the runner or the number of workers.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import split
from survey import boxes, labels, truth
from survey.annotations.annotation import Annotation
from survey.dataset import QUANTILES, Statistics, shard_file
from survey.errors import InputError
from survey.geometry import Mosaic, PatchGrid, Window
from survey.labels import LabelMap
from survey.truth import Objects


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
      mosaics: numbered (`survey.mosaics`).
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
    if classes is None:
        classes = labels.from_names(annotation.class_name for annotation in annotations)
    marked = truth.by_mosaic(annotations, mosaics, classes, named_in="the label map")
    if not any(len(objects.class_ids) for objects in marked.objects.values()):
        raise InputError(
            f"--annotations hold {len(annotations)} objects, of which none lies in a mosaic: there is nothing to learn from"
        )
    counts = Counter(marked.counts)

    grids = {mosaic.name: mosaic.grid(patch_size, overlap_px) for mosaic in mosaics}
    assignment = split.assign(grids, fractions)
    patches: list[PlannedPatch] = []
    for mosaic in mosaics:
        objects = marked.objects.get(mosaic.name, Objects.none())
        patches += _patches(mosaic, grids[mosaic.name], assignment.cells[mosaic.name], objects, min_visible, counts)
        counts["mosaics_without_objects"] += not len(objects.class_ids)
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
    return Plan(tuple(mosaics), classes, shards, assignment.by, statistics, dict(sorted(counts.items())), marked.offenders)


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
    objects: Objects,
    min_visible: float,
    counts: Counter[str],
) -> list[PlannedPatch]:
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
        counts["boxes_too_little_visible_in_patch"] += int((~kept).sum())
        patch_id = mosaic.first_patch_id + grid.index(*cell)
        result.append(PlannedPatch(patch_id, mosaic.name, *cell, window, cells[cell], shown[kept], objects.class_ids[near[kept]]))
    counts["objects_in_no_patch"] += len(objects.class_ids) - len(labelled)
    counts["objects_labelled"] += len(labelled)
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
