"""Planned patches as columns: a million of them with their boxes in a hundred megabytes, handed to workers shard by shard."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa

from survey.dataset import LEDGER_SCHEMA
from survey.geometry import Mosaic, Window

PER_BOX = ("boxes_patch_px", "class_ids", "object_ids")


@dataclass(frozen=True, slots=True, eq=False)
class PlannedPatch:
    """One record to be written.

    Attributes:
      patch_id: its number in the dataset.
      mosaic: name of the mosaic.
      row, column: its cell in the mosaic's grid.
      window: its pixels in the mosaic at the dataset's ground resolution.
      source: the pixels of the file that it is made of; the same as window where mosaics are not resampled.
      scale: pixels of the file for one of the patch, down and across.
      split: where it goes.
      boxes_patch_px: [N, 4], yxyx in patch pixels, clipped to the patch.
      class_ids: [N], from 1.
    """

    patch_id: int
    mosaic: str
    row: int
    column: int
    window: Window
    source: Window
    scale: tuple[float, float]
    split: str
    boxes_patch_px: np.ndarray
    class_ids: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class PatchTable:
    """Many patches.

    Attributes:
      patch_ids: int64 [P].
      mosaics: int32 [P], index of the mosaic.
      rows, columns: int32 [P].
      windows: int32 [P, 4], yxyx in pixels of the mosaic at the dataset's ground resolution.
      sources: int32 [P, 4], yxyx in pixels of the file.
      splits: int8 [P], index of the split.
      first_box: int64 [P + 1]; patch i has the boxes first_box[i] to first_box[i + 1].
      boxes_patch_px: float64 [B, 4].
      class_ids: int32 [B], from 1.
      object_ids: int64 [B], which object of the survey it is; several patches may show one.
    """

    patch_ids: np.ndarray
    mosaics: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    windows: np.ndarray
    sources: np.ndarray
    splits: np.ndarray
    first_box: np.ndarray
    boxes_patch_px: np.ndarray
    class_ids: np.ndarray
    object_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.patch_ids)

    @property
    def objects(self) -> np.ndarray:
        """Boxes of each patch, int64 [P]."""
        return np.diff(self.first_box)

    def take(self, indices: np.ndarray) -> "PatchTable":
        """Some of the patches, in the order given."""
        number = self.objects[indices]
        first = np.r_[0, np.cumsum(number)]
        boxes = np.repeat(self.first_box[indices] - first[:-1], number) + np.arange(first[-1])
        columns = {
            f.name: getattr(self, f.name)[boxes if f.name in PER_BOX else indices] for f in fields(self) if f.name != "first_box"
        }
        return PatchTable(**columns, first_box=first)

    def part(self, begin: int, end: int) -> "PatchTable":
        """Patches begin to end, without copying."""
        low, high = self.first_box[begin], self.first_box[end]
        columns = {
            f.name: getattr(self, f.name)[slice(low, high) if f.name in PER_BOX else slice(begin, end)]
            for f in fields(self)
            if f.name != "first_box"
        }
        return PatchTable(**columns, first_box=self.first_box[begin : end + 1] - low)

    @classmethod
    def join(cls, parts: "Sequence[PatchTable]") -> "PatchTable":
        """Tables one after the other."""
        columns = {
            f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls) if f.name != "first_box"
        }
        return cls(**columns, first_box=np.r_[0, np.cumsum(np.concatenate([part.objects for part in parts]))])

    def feed(self, update: Callable[[Any], None]) -> None:
        """Hands every byte that decides what is written to a hash, the same on every machine."""
        for column in fields(self):
            values = getattr(self, column.name)
            if column.name != "object_ids":
                update(np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"))).data)


@dataclass(frozen=True, slots=True, eq=False)
class PlannedShard:
    """One work item: a whole TFRecord file, its patches in the order of its records.

    Attributes:
      file: its name.
      split: whose it is.
      table: its patches; `mosaics` count within this shard.
      mosaics: names.
      scales: pixels of the file for one of the patch, of each mosaic.
    """

    file: str
    split: str
    table: PatchTable
    mosaics: tuple[str, ...]
    scales: tuple[tuple[float, float], ...]

    def __len__(self) -> int:
        return len(self.table)

    @property
    def patches(self) -> tuple[PlannedPatch, ...]:
        """The patches one by one."""
        table, first = self.table, self.table.first_box.tolist()
        return tuple(
            PlannedPatch(
                patch_id=int(table.patch_ids[i]),
                mosaic=self.mosaics[table.mosaics[i]],
                row=int(table.rows[i]),
                column=int(table.columns[i]),
                window=Window(*table.windows[i].tolist()),
                source=Window(*table.sources[i].tolist()),
                scale=self.scales[table.mosaics[i]],
                split=self.split,
                boxes_patch_px=table.boxes_patch_px[first[i] : first[i + 1]],
                class_ids=table.class_ids[first[i] : first[i + 1]],
            )
            for i in range(len(table))
        )


def shards(
    table: PatchTable, files: Sequence[tuple[str, str, int]], mosaics: Sequence[Mosaic], gsd_m: float | None
) -> tuple[PlannedShard, ...]:
    """Work items.

    Args:
      table: all patches, file by file in the order of their records.
      files: (name, split, number of patches) of each.
      mosaics: the files, as the table counts them.
      gsd_m: ground resolution of the patches, None where mosaics stay as they are.
    """
    scales = [(1.0, 1.0)] * len(mosaics)
    if gsd_m is not None:
        targets = [mosaic.at_gsd(gsd_m) for mosaic in mosaics]
        scales = [(m.height / t.height, m.width / t.width) for m, t in zip(mosaics, targets, strict=True)]
    result, begin = [], 0
    for file, split, number in files:
        part = table.part(begin, begin + number)
        used, within = np.unique(part.mosaics, return_inverse=True)
        columns = {column.name: getattr(part, column.name) for column in fields(part)}
        part = PatchTable(**{**columns, "mosaics": within.astype(np.int32)})
        result.append(PlannedShard(file, split, part, tuple(mosaics[i].name for i in used), tuple(scales[i] for i in used)))
        begin += number
    return tuple(result)


def ledger(table: PatchTable, planned: Sequence[PlannedShard], mosaics: Sequence[Mosaic]) -> pa.Table:
    """The ID ledger: one row per record, by patch number: from a number to its pixels, its file, its split, its place in a shard.

    Args:
      table: all patches, shard by shard.
      planned: the shards.
      mosaics: as the table counts them.
    """
    sizes = [len(shard) for shard in planned]
    order = np.argsort(table.patch_ids, kind="stable")
    of_shard = np.repeat(np.arange(len(planned)), sizes)[order]
    record = (np.arange(len(table)) - np.repeat(np.cumsum(sizes) - sizes, sizes))[order]

    def words(values: list[str], indices: np.ndarray) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array(indices.astype(np.int32)), pa.array(values, pa.string())).cast(pa.string())

    of_mosaic = table.mosaics[order]
    columns = {
        "patch_id": table.patch_ids[order],
        "mosaic": words([mosaic.name for mosaic in mosaics], of_mosaic),
        "row": table.rows[order],
        "column": table.columns[order],
        **{side: np.ascontiguousarray(table.sources[order, i]) for i, side in enumerate(("y0", "x0", "y1", "x1"))},
        "mosaic_sha256": words([mosaic.sha256 for mosaic in mosaics], of_mosaic),
        "split": words([shard.split for shard in planned], of_shard),
        "shard": words([shard.file for shard in planned], of_shard),
        "record": record.astype(np.int32),
        "objects": table.objects[order].astype(np.int32),
    }
    return pa.table([columns[name] for name in LEDGER_SCHEMA.names], schema=LEDGER_SCHEMA)
