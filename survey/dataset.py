"""The dataset contract: what `pipeline` writes and `tpu_train` reads.

    dataset.json      this manifest
    labels.pbtxt      the label map (survey.labels)
    patches.parquet   the ID ledger: one row per patch, from its number to its pixels
    {split}-00000-of-00004.tfrecord

A record is a tf.train.Example in the Object Detection API's keys, boxes normalised to the patch, plus `image/patch_id`.
"""

import dataclasses
import os
from bisect import bisect_right
from dataclasses import dataclass, field
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
        (
            "y0",
            pa.int32(),
        ),  # pixels of the file that the patch was made of, half-open; beyond the mosaic only where it is smaller
        ("x0", pa.int32()),
        ("y1", pa.int32()),
        ("x1", pa.int32()),
        ("mosaic_sha256", pa.string()),
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
      gsd_m: ground resolution to which the mosaics were resampled before they were cut, None where they were not. The mosaics
        above are always the files as they are, and so are the windows of the ledger.
      no_shared_pixels: the proof that splits do not leak: how it was checked, how many pairs were compared (pipeline.proof).
    """

    patch_size: int
    overlap_px: int
    classes: LabelMap
    splits: dict[str, tuple[Shard, ...]]
    mosaics: tuple[Mosaic, ...]
    statistics: Statistics
    counts: dict[str, int]
    options: dict[str, Any]
    gsd_m: float | None = None
    no_shared_pixels: dict[str, Any] = field(default_factory=dict)

    def records(self, split: str) -> int:
        """Patches in a split."""
        return sum(shard.records for shard in self.splits[split])

    def grid(self, mosaic: Mosaic) -> PatchGrid:
        """The patches of one of the mosaics, in pixels of the dataset's ground resolution."""
        return (mosaic if self.gsd_m is None else mosaic.at_gsd(self.gsd_m)).grid(self.patch_size, self.overlap_px)

    def locate(self, patch_id: int) -> tuple[Mosaic, PatchGrid, int, int]:
        """The mosaic, its grid, and the row and column of a patch.

        Raises:
          InputError: the number lies outside the dataset.
        """
        place = bisect_right(self.mosaics, patch_id, key=lambda mosaic: mosaic.first_patch_id) - 1
        if place >= 0:
            mosaic = self.mosaics[place]
            grid = self.grid(mosaic)
            if (index := patch_id - mosaic.first_patch_id) < len(grid):
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
    files.check_contract(path, value, FORMAT_VERSION, Dataset)
    return Dataset(
        patch_size=value["patch_size"],
        overlap_px=value["overlap_px"],
        classes=tuple(value["classes"]),
        splits={name: tuple(Shard(**shard) for shard in shards) for name, shards in value["splits"].items()},
        mosaics=tuple(mosaic_from_json(mosaic) for mosaic in value["mosaics"]),
        statistics=Statistics(**value["statistics"]),
        counts=value["counts"],
        options=value["options"],
        gsd_m=value.get("gsd_m"),
        no_shared_pixels=value.get("no_shared_pixels", {}),
    )


def digest(folder: str) -> str:
    """Names a dataset by its content: sha256 of its manifest, which holds the digests of everything else."""
    return files.sha256(os.path.join(folder, MANIFEST))


def mosaic_from_json(value: dict[str, Any]) -> Mosaic:
    """A mosaic from its JSON form."""
    transform, stretch = value["transform"], value.get("stretch")
    return Mosaic(
        **{
            **value,
            "transform": None if transform is None else tuple(transform),
            "stretch": None if stretch is None else tuple((low, high) for low, high in stretch),
        }
    )


def shard_file(split: str, index: int, count: int) -> str:
    """Name of a shard.

    >>> shard_file("train", 0, 4)
    'train-00000-of-00004.tfrecord'
    """
    return f"{split}-{index:05d}-of-{count:05d}.tfrecord"
