"""What `shard` will do, decided before any pixel is read: which patches, in which split, with which boxes, in which shard.

Everything here is a pure function of the mosaics' headers, the annotations and the options, so the plan, and with it every
byte of the dataset, does not depend on the runner or the number of workers. What only pixels can tell (a patch that holds
nothing, a file that breaks off) is a fact of the file too: workers report it, and `Plan.without` takes those patches out.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline import labelling, proof, split
from pipeline.patches import PatchTable, PlannedPatch, PlannedShard, shards
from pipeline.proof import Proof
from survey import boxes, labels, truth
from survey.annotations.annotation import Annotation
from survey.dataset import QUANTILES, Statistics, shard_file
from survey.errors import InputError
from survey.geometry import Mosaic
from survey.labels import LabelMap
from survey.mosaics import numbered
from survey.truth import Objects

# float32 holds whole numbers up to 2**24: `tf.strings.to_number` without a type gives float32, and Model Garden's legacy parsers
# call it so (official/legacy/detection/dataloader/retinanet_parser.py:36); its vision parsers use int64 (facts, trap 1).
FLOAT32_IDS = 2**24
# That parser casts to int32, and TPUs count in int32 by choice: no number beyond survives there.
LARGEST_ID = 2**31 - 1

# A split of many shards has a multiple of so many: hosts of a TPU pod, and workers that cut, come in powers of two and get equal
# shares. A split of few shards keeps them large.
HOSTS = 8

# A shard of 256 patches is a square of 16 x 16: of all shapes it shares the fewest tiles with its neighbours.
BLOCK_SIDE = 16


@dataclass(frozen=True, slots=True)
class Tiling:
    """How mosaics become patches.

    Attributes:
      patch_size: side of a patch in pixels.
      overlap_px: pixels that neighbouring patches share, at least.
      min_visible: an object is labelled in a patch that shows at least this share of its area.
      records_per_shard: at most so many patches in one file.
      negatives_per_positive: so many empty training patches are kept for each with objects; None keeps all.
      gsd_m: ground resolution to which mosaics are resampled first, in metres; None leaves them.
    """

    patch_size: int
    overlap_px: int
    min_visible: float
    records_per_shard: int
    negatives_per_positive: float | None = None
    gsd_m: float | None = None


@dataclass(frozen=True)
class Plan:
    """A dataset, all but its pixels.

    Attributes:
      mosaics: the files, in the order of their patch numbers.
      classes: the label map.
      tiling: how they are cut.
      split_names: in the order of the files.
      table: all patches, shard by shard in the order of the records.
      split_by: "mosaic", "block", "list", "fold", or "all" for a single split.
      proof: that splits share no pixel.
      counts: everything read, kept, clipped and dropped, by reason.
      offenders: for the reasons that point at a mistake, the first cases in words.
    """

    mosaics: tuple[Mosaic, ...]
    classes: LabelMap
    tiling: Tiling
    split_names: tuple[str, ...]
    table: PatchTable
    split_by: str
    proof: Proof
    counts: dict[str, int]
    offenders: dict[str, list[str]]
    shards: tuple[PlannedShard, ...] = field(repr=False)
    statistics: Statistics

    @property
    def patches(self) -> list[PlannedPatch]:
        """All records, shard by shard; slow for millions."""
        return [patch for shard in self.shards for patch in shard.patches]

    @property
    def gsd_m(self) -> float | None:
        """Ground resolution of the patches, None where mosaics stay as they are."""
        return self.tiling.gsd_m

    def digest(self, **options: Any) -> str:
        """Names what will be written: equal digests, equal bytes.

        Args:
          **options: whatever else goes into the bytes, as JSON values.
        """
        total = hashlib.sha256(json.dumps([options, self.classes, dataclasses.asdict(self.tiling)]).encode())
        for mosaic in self.mosaics:
            total.update(json.dumps(dataclasses.asdict(dataclasses.replace(mosaic, path=""))).encode())
        for shard in self.shards:
            total.update(f"{shard.file} {len(shard)}\n".encode())
        self.table.feed(total.update)
        return total.hexdigest()

    def without(self, patch_ids: np.ndarray, counts: dict[str, int]) -> "Plan":
        """The plan that was carried out after all: some patches could not be, or need not be, written.

        Args:
          patch_ids: int [N], those that are not in the files.
          counts: added to the plan's, to say why.

        Raises:
          InputError: a split is left without any patch, or train without any object.
        """
        kept = ~np.isin(self.table.patch_ids, patch_ids)
        table = self.table.take(np.flatnonzero(kept))
        ends = np.cumsum([0, *(len(shard) for shard in self.shards)])
        number = np.add.reduceat(kept, ends[:-1]) if len(kept) else np.zeros(len(self.shards), int)
        left = shards(
            table, [(s.file, s.split, n) for s, n in zip(self.shards, number.tolist(), strict=True)], self.mosaics, self.gsd_m
        )
        lost = len(np.unique(self.table.object_ids)) - len(np.unique(table.object_ids))
        total = Counter(self.counts)
        total.update(counts)
        total["objects_labelled"] -= lost
        for i, name in enumerate(self.split_names):
            total[f"patches_{name}"] = int((table.splits == i).sum())
            if not total[f"patches_{name}"]:
                raise InputError(
                    f"split {name} is left without any patch: {len(patch_ids):,} hold no data or cannot be read; leave empty "
                    "mosaics out of --mosaics, or give more to this split"
                )
        return dataclasses.replace(
            self,
            table=table,
            shards=left,
            counts=dict(sorted(total.items())),
            statistics=_statistics(table, self.classes, self.split_names),
            proof=proof.check(self.mosaics, _shown(table)),
        )


def make(
    mosaics: Sequence[Mosaic],
    annotations: Iterable[Annotation],
    *,
    classes: LabelMap | None,
    tiling: Tiling,
    rule: split.Rule,
    images: Iterable[str] = (),
) -> Plan:
    """Plans a dataset.

    Args:
      mosaics: of a survey, with names that differ.
      annotations: of these mosaics.
      classes: the label map, None to take the classes seen.
      tiling: how mosaics become patches.
      rule: how patches are divided.
      images: further images that were searched for objects.

    Raises:
      InputError: an annotation of an unknown image or class, no object at all, a split that cannot be made, a mosaic without
        ground resolution where one is asked for, or more patches than their numbers can name.
    """
    annotations = list(annotations)
    if classes is None:
        classes = labels.from_names(annotation.class_name for annotation in annotations)
    marked = truth.by_mosaic(annotations, mosaics, classes, named_in="the label map", images=images)
    if not any(len(objects.class_ids) for objects in marked.objects.values()):
        raise InputError(
            f"--annotations hold {len(annotations)} objects, of which none lies in a mosaic: there is nothing to learn from"
        )
    del annotations
    return from_truth(mosaics, marked, classes=classes, tiling=tiling, rule=rule)


def from_truth(mosaics: Sequence[Mosaic], marked: truth.Truth, *, classes: LabelMap, tiling: Tiling, rule: split.Rule) -> Plan:
    """Plans a dataset from objects that were already brought together with their mosaics; see `make`."""
    scaled = [mosaic if tiling.gsd_m is None else mosaic.at_gsd(tiling.gsd_m) for mosaic in mosaics]
    scaled = list(numbered(scaled, patch_size=tiling.patch_size, overlap_px=tiling.overlap_px))
    by_name = {mosaic.name: mosaic for mosaic in mosaics}
    sources = tuple(dataclasses.replace(by_name[m.name], first_patch_id=m.first_patch_id) for m in scaled)
    grids = {mosaic.name: mosaic.grid(tiling.patch_size, tiling.overlap_px) for mosaic in scaled}
    total = sum(len(grid) for grid in grids.values())
    if total > LARGEST_ID:
        raise InputError(
            f"--patch_size={tiling.patch_size} --overlap={tiling.overlap_px}: {total:,} patches, and "
            f"numbers above {LARGEST_ID:,} are lost where they are cast to int32; use larger patches, or make several datasets"
        )

    assignment = split.assign(grids, rule, proof.groups(sources))
    counts = Counter(marked.counts)
    parts, first_object = [], 0
    for i, (mosaic, origin) in enumerate(zip(scaled, sources, strict=True)):
        objects = marked.objects.get(mosaic.name, Objects.none())
        scale = (origin.height / mosaic.height, origin.width / mosaic.width)
        boxes_px = objects.boxes_mosaic_px / np.array([*scale, *scale])
        where = labelling.Place(i, mosaic.first_patch_id, grids[mosaic.name], scale, assignment.cells[mosaic.name])
        parts.append(labelling.patches(where, boxes_px, objects.class_ids, first_object, tiling.min_visible, counts))
        first_object += len(objects.class_ids)
        counts["mosaics_without_objects"] += not len(objects.class_ids)
        labelling.count_large(boxes_px, tiling.overlap_px, counts)
    table = PatchTable.join(parts)
    table, checked = _apart_on_ground(sources, table, counts)
    split.refuse_empty(split.Assignment(assignment.by, assignment.names, {"": table.splits}), grids)
    counts["patches_between_splits"] = total - len(table)
    if tiling.negatives_per_positive is not None:
        table = _thinned(table, assignment.names.index("train"), tiling.negatives_per_positive, counts)
    for i, name in enumerate(assignment.names):
        counts[f"patches_{name}"] = int((table.splits == i).sum())
    counts["mosaics"] = len(sources)
    order, files = _in_files(table, sources, assignment.names, tiling.records_per_shard)
    table = table.take(order)
    return Plan(
        mosaics=sources,
        classes=classes,
        tiling=tiling,
        split_names=assignment.names,
        table=table,
        split_by=assignment.by,
        proof=checked,
        counts=dict(sorted(counts.items())),
        offenders=marked.offenders,
        shards=shards(table, files, sources, tiling.gsd_m),
        statistics=_statistics(table, classes, assignment.names),
    )


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


def _apart_on_ground(mosaics: Sequence[Mosaic], table: PatchTable, counts: Counter[str]) -> tuple[PatchTable, Proof]:
    """Leaves out patches of the larger split that show ground which another mosaic shows in a smaller one; then proves it."""
    overlapping = proof.overlapping_mosaics(mosaics)
    pairs, _ = proof.sharing_ground(mosaics, _shown(table), overlapping)
    number = np.bincount(table.splits)
    side = (number[table.splits[pairs[:, 1]]] > number[table.splits[pairs[:, 0]]]).astype(int)
    out = np.unique(pairs[np.arange(len(pairs)), side])
    counts["patches_on_ground_of_another_split"] = len(out)
    lost = np.unique(table.object_ids)
    if len(out):
        table = table.take(np.setdiff1d(np.arange(len(table)), out))
        gone = len(lost) - len(np.unique(table.object_ids))
        counts["objects_in_no_patch"] += gone
        counts["objects_labelled"] -= gone
    checked = proof.check(mosaics, _shown(table))
    assert checked.holds, checked
    return table, checked


def _thinned(table: PatchTable, train: int, negatives_per_positive: float, counts: Counter[str]) -> PatchTable:
    """Keeps so many empty patches of train, chosen by a fixed hash. Other splits keep theirs: precision is measured there."""
    empty = np.flatnonzero((table.splits == train) & (table.objects == 0))
    positive = int(((table.splits == train) & (table.objects > 0)).sum())
    keep = min(len(empty), round(positive * negatives_per_positive))
    # Another hash than the order of records, by the offset: or the kept ones would be the first of every shard.
    chosen = shuffled(table.patch_ids[empty] + 2**40)[:keep]
    out = np.delete(empty, chosen)
    counts["empty_patches_left_out"] = len(out)
    return table.take(np.setdiff1d(np.arange(len(table)), out))


def _in_files(
    table: PatchTable, mosaics: Sequence[Mosaic], names: Sequence[str], records_per_shard: int
) -> tuple[np.ndarray, list[tuple[str, str, int]]]:
    order, files = [], []
    near = _by_place(table, mosaics)
    for i, name in enumerate(names):
        members = near[table.splits[near] == i]
        number = -(-len(members) // records_per_shard)
        if number > 2 * HOSTS:
            number = -(-number // HOSTS) * HOSTS
        for k, part in enumerate(np.array_split(members, number)):  # sizes differ by one at most
            files.append((shard_file(name, k, number), name, len(part)))
            order.append(part[shuffled(table.patch_ids[part])])
    return np.concatenate(order), files


def _by_place(table: PatchTable, mosaics: Sequence[Mosaic]) -> np.ndarray:
    """Patches in an order in which a shard's worth of them lies close together: indices, int [P].

    Neighbours share tiles of the file, and a tile should be decoded once: scattered over the mosaic, overlapping patches would
    cost four decodes each. Training mixes the shards again (`tpu_train.input` reads several at a time and shuffles). A file
    without tiles is cut row by row, because reading a row costs the whole row.
    """
    blocks = np.array([not mosaic.one_pass for mosaic in mosaics])[table.mosaics]
    down, across = (np.where(blocks, cells // BLOCK_SIDE, 0) for cells in (table.rows, table.columns))
    return np.lexsort((table.patch_ids, across, down, table.mosaics))


def _shown(table: PatchTable) -> proof.Shown:
    return proof.Shown(table.mosaics, table.sources, table.splits)


def _statistics(table: PatchTable, classes: LabelMap, names: Sequence[str]) -> Statistics:
    box_split = np.repeat(table.splits, table.objects)
    per_split = np.bincount(box_split, minlength=len(names))
    per_class = np.bincount(table.class_ids, minlength=len(classes) + 1)
    train = names.index("train")
    if not per_split[train]:
        raise InputError(
            "the split train holds no object: give more annotated mosaics, a larger share to train in --split, or a smaller "
            "--min_visible"
        )
    sides = np.sqrt(boxes.area(table.boxes_patch_px[box_split == train]))
    return Statistics(
        objects=dict(zip(names, per_split.tolist(), strict=True)),
        objects_per_class={name: int(per_class[i]) for i, name in enumerate(classes, start=1)},
        max_objects_per_patch=int(table.objects.max()),
        box_sides_px={name: round(float(np.quantile(sides, q)), 3) for name, q in QUANTILES.items()},
    )
