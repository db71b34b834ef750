"""Patches by their numbers: what the ledger says of them, and their records as `tpu_train.input` would give them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf

from survey import dataset, files
from survey.errors import InputError
from tpu_train import crop as crops
from tpu_train import input as host
from tpu_train.crop import Crop


@dataclass(frozen=True, slots=True)
class Place:
    """A row of the ledger.

    Attributes:
      patch_id: its number.
      mosaic: name.
      row, column: of the patch in the mosaic's grid.
      window: (y0, x0, y1, x1) in pixels of the mosaic.
      split, shard, record: where its record is.
      objects: in its record.
    """

    patch_id: int
    mosaic: str
    row: int
    column: int
    window: tuple[int, int, int, int]
    split: str
    shard: str
    record: int
    objects: int


def places(folder: str, *, patch_ids: Sequence[int] | None = None, split: str | None = None) -> dict[int, Place]:
    """Rows of the ledger by patch number, in the order of the numbers.

    Args:
      folder: of the dataset.
      patch_ids: of these patches, as far as they are there; None for all.
      split: of this split; None for any.
    """
    table = files.read_table(os.path.join(folder, dataset.LEDGER))
    if patch_ids is not None:
        table = table.filter(pc.is_in(table["patch_id"], pa.array(patch_ids, pa.int64())))
    if split is not None:
        table = table.filter(pc.equal(table["split"], split))
    rows = table.sort_by("patch_id").to_pylist()
    return {
        row["patch_id"]: Place(
            row["patch_id"], row["mosaic"], row["row"], row["column"], (row["y0"], row["x0"], row["y1"], row["x1"]),
            row["split"], row["shard"], row["record"], row["objects"],
        )
        for row in rows
    }  # fmt: skip


def wanted(folder: str, patch_ids: Sequence[int], split: str) -> list[Place]:
    """These patches of a split, in this order.

    Raises:
      InputError: one is not in the dataset, or not in the split.
    """
    found = places(folder, patch_ids=patch_ids)
    for patch_id in patch_ids:
        if patch_id not in found:
            raise InputError(f"patch {patch_id} is not in {folder}: {dataset.LEDGER} lists its patches")
        if found[patch_id].split != split:
            there = found[patch_id].split
            raise InputError(f"patch {patch_id} is in split {there}, not in {split}: give --split {there}, or leave it out")
    return [found[patch_id] for patch_id in patch_ids]


def read(
    folder: str, chosen: Sequence[Place], *, patch_size: int, max_boxes: int, crop: Crop | None = None, seed: int = 0
) -> dict[str, tf.Tensor]:
    """One batch of these patches, with the values of `tpu_train.input.decode`, in this order.

    Views of a crop are numbered as those of the first batch of a run.
    """
    decoded = []
    for number, place in enumerate(chosen):
        record = next(iter(tf.data.TFRecordDataset(os.path.join(folder, place.shard)).skip(place.record).take(1)))
        decoded.append(host.decode(record, patch_size, max_boxes, crop, crops.seeds(seed, 0, number) if crop else None))
    return {name: tf.stack([one[name] for one in decoded]) for name in decoded[0]}
