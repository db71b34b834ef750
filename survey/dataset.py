"""The dataset contract: what `pipeline` writes and `tpu_train` reads.

    dataset.json      this manifest
    labels.pbtxt      the label map (survey.labels)
    patches.parquet   the ID ledger: one row per patch, from its number to its pixels
    {split}-00000-of-00004.tfrecord

A record is a tf.train.Example in the Object Detection API's keys, boxes normalised to the patch, plus `image/patch_id`.
"""

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from survey import files
from survey.errors import InputError
from survey.geometry import Mosaic, PatchGrid
from survey.labels import LabelMap

MANIFEST = "dataset.json"
LABELS = "labels.pbtxt"
LEDGER = "patches.parquet"
FORMAT_VERSION = 1

LEDGER_SCHEMA = pa.schema(
    [
        ("patch_id", pa.int64()),
        ("mosaic", pa.string()),
        ("row", pa.int32()),
        ("column", pa.int32()),
        ("y0", pa.int32()),  # window in mosaic pixels, half-open
        ("x0", pa.int32()),
        ("y1", pa.int32()),
        ("x1", pa.int32()),
        ("split", pa.string()),
        ("shard", pa.string()),
        ("record", pa.int32()),  # position within the shard
        ("objects", pa.int32()),
    ]
)

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}


@dataclass(frozen=True, slots=True)
class Shard:
    """One TFRecord file.

    Attributes:
      file: name within the dataset folder.
      records: patches in it.
      sha256: digest of the file.
    """

    file: str
    records: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Statistics:
    """What training must know of the objects.

    Attributes:
      objects: boxes in each split's patches; one object counts in every patch that shows it.
      objects_per_class: the same over all splits, by class name.
      max_objects_per_patch: the most boxes in one patch, over all splits.
      box_sides_px: quantiles (QUANTILES) of sqrt(area) of the training boxes, in patch pixels.
    """

    objects: dict[str, int]
    objects_per_class: dict[str, int]
    max_objects_per_patch: int
    box_sides_px: dict[str, float]


@dataclass(frozen=True)
class Dataset:
    """A written dataset.

    Attributes:
      patch_size: side of every image, in pixels.
      overlap_px: overlap of neighbouring patches.
      classes: the label map.
      splits: shards of each split, in order.
      mosaics: where the pixels came from, in the order of their patch numbers.
      statistics: of the objects.
      counts: everything read, written, clipped and dropped, by reason.
      options: the options that made it, for provenance and for refusing to mix runs.
    """

    patch_size: int
    overlap_px: int
    classes: LabelMap
    splits: dict[str, tuple[Shard, ...]]
    mosaics: tuple[Mosaic, ...]
    statistics: Statistics
    counts: dict[str, int]
    options: dict[str, Any]

    def records(self, split: str) -> int:
        """Patches in a split."""
        return sum(shard.records for shard in self.splits[split])

    def locate(self, patch_id: int) -> tuple[Mosaic, PatchGrid, int, int]:
        """The mosaic, its grid, and the row and column of a patch.

        Raises:
          InputError: the number lies outside the dataset.
        """
        for mosaic in self.mosaics:
            grid = mosaic.grid(self.patch_size, self.overlap_px)
            if 0 <= (index := patch_id - mosaic.first_patch_id) < len(grid):
                return mosaic, grid, *grid.cell(index)
        raise InputError(f"patch_id={patch_id} is not in this dataset: patches.parquet lists its numbers")


def write(folder: str, dataset: Dataset) -> None:
    """Writes `dataset.json`, the last step of making a dataset: a folder with it is complete."""
    files.write_json(os.path.join(folder, MANIFEST), {"format_version": FORMAT_VERSION, **dataclasses.asdict(dataset)})


def read(folder: str) -> Dataset:
    """Reads `dataset.json`.

    Raises:
      InputError: there is none, or it is of another format version.
    """
    path = os.path.join(folder, MANIFEST)
    value = files.read_json(path, "a dataset manifest written by `rookery shard`")
    files.check_version(path, value, FORMAT_VERSION)
    return Dataset(
        patch_size=value["patch_size"],
        overlap_px=value["overlap_px"],
        classes=tuple(value["classes"]),
        splits={name: tuple(Shard(**shard) for shard in shards) for name, shards in value["splits"].items()},
        mosaics=tuple(mosaic_from_json(mosaic) for mosaic in value["mosaics"]),
        statistics=Statistics(**value["statistics"]),
        counts=value["counts"],
        options=value["options"],
    )


def digest(folder: str) -> str:
    """Names a dataset by its content: sha256 of its manifest, which holds the digests of everything else."""
    return files.sha256(os.path.join(folder, MANIFEST))


def mosaic_from_json(value: dict[str, Any]) -> Mosaic:
    """A mosaic from its JSON form."""
    transform = value["transform"]
    return Mosaic(**{**value, "transform": None if transform is None else tuple(transform)})


def shard_file(split: str, index: int, count: int) -> str:
    """Name of a shard.

    >>> shard_file("train", 0, 4)
    'train-00000-of-00004.tfrecord'
    """
    return f"{split}-{index:05d}-of-{count:05d}.tfrecord"
