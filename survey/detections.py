"""The detections contract: what `predict` writes, and `evaluate` and `report` read.

detections.json      this manifest: model, mosaics, threshold, counts
detections.parquet   every detection above the score floor, in mosaic pixels
other files                            views of them, see inference.outputs and docs/outputs.md
"""

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from survey import files
from survey.dataset import mosaic_from_json
from survey.geometry import Mosaic
from survey.labels import LabelMap

MANIFEST = "detections.json"
TABLE = "detections.parquet"
FORMAT_VERSION = 1

SCHEMA = pa.schema(
    [
        ("mosaic", pa.string()),
        ("patch_id", pa.int64()),  # the patch that owns it, numbered over the mosaics of this prediction
        ("class_id", pa.int32()),  # from 1
        ("class_name", pa.string()),
        ("score", pa.float32()),
        ("y0", pa.float32()),  # box in mosaic pixels, half-open
        ("x0", pa.float32()),
        ("y1", pa.float32()),
        ("x1", pa.float32()),
    ]
)


@dataclass(frozen=True)
class Detections:
    """The detections of one mosaic as arrays, best score first.

    Attributes:
      boxes_mosaic_px: float32 [N, 4], yxyx.
      scores: float32 [N], in [0, 1].
      class_ids: int32 [N], from 1.
      patch_ids: int64 [N].
    """

    boxes_mosaic_px: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    patch_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, keep: np.ndarray) -> "Detections":
        """The detections that an index or mask array [N] selects."""
        return Detections(self.boxes_mosaic_px[keep], self.scores[keep], self.class_ids[keep], self.patch_ids[keep])


@dataclass(frozen=True)
class Manifest:
    """What a folder of detections is about.

    Attributes:
      model: folder of the model, for people.
      model_digest: `model.digest` of it.
      classes: the label map.
      score_threshold: detections with at least this score count.
      mosaics: what was searched, in the order of their patch numbers.
      counts: objects per mosaic and class: {mosaic: {class: number}}.
      counters: patches and detections read, kept and suppressed, by reason.
      options: the options of the run.
      versions: of the packages that made it.
    """

    model: str
    model_digest: str
    classes: LabelMap
    score_threshold: float
    mosaics: tuple[Mosaic, ...]
    counts: dict[str, dict[str, int]]
    counters: dict[str, int]
    options: dict[str, Any]
    versions: dict[str, str]


def write(folder: str, manifest: Manifest, found: dict[str, Detections]) -> None:
    """Writes `detections.parquet`, then `detections.json`, whose presence says that the folder is complete.

    Args:
      folder: where.
      manifest: what it is about.
      found: detections of each mosaic, by name.
    """
    files.write_table(os.path.join(folder, TABLE), to_table(found, manifest.classes))
    files.write_json(os.path.join(folder, MANIFEST), {"format_version": FORMAT_VERSION, **dataclasses.asdict(manifest)})


def to_table(found: dict[str, Detections], classes: LabelMap) -> pa.Table:
    """The table of SCHEMA, mosaics by name, best score first within each."""
    parts = []
    for name in sorted(found):
        one = found[name]
        y0, x0, y1, x1 = one.boxes_mosaic_px.T.astype(np.float32).reshape(4, -1)
        labels = [classes[i - 1] for i in one.class_ids]
        columns = [[name] * len(one), one.patch_ids, one.class_ids, labels, one.scores, y0, x0, y1, x1]
        parts.append(pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA))
    return pa.concat_tables(parts) if parts else SCHEMA.empty_table()


def read(folder: str) -> tuple[Manifest, dict[str, Detections]]:
    """Reads a folder of detections; every mosaic of the manifest is a key, also one without detections.

    Raises:
      InputError: no manifest there, or one of another format version.
    """
    path = os.path.join(folder, MANIFEST)
    value = files.read_json(path, "a detections manifest written by `rookery predict`")
    files.check_contract(path, value, FORMAT_VERSION, Manifest)
    mosaics = tuple(mosaic_from_json(mosaic) for mosaic in value["mosaics"])
    manifest = Manifest(**{**value, "classes": tuple(value["classes"]), "mosaics": mosaics})
    table = files.read_table(os.path.join(folder, TABLE))
    owner = table["mosaic"].to_numpy(zero_copy_only=False)
    boxes = np.stack([table[side].to_numpy() for side in ("y0", "x0", "y1", "x1")], axis=1)
    everything = Detections(boxes, table["score"].to_numpy(), table["class_id"].to_numpy(), table["patch_id"].to_numpy())
    return manifest, {mosaic.name: everything.take(owner == mosaic.name) for mosaic in mosaics}
