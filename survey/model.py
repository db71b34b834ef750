"""The model contract: what `tpu_train` exports and `inference` reads.

model.json    this spec: all that is needed to turn the raw heads into boxes
saved_model/  a SavedModel with two signatures, both taking `images` uint8 [B, image_size, image_size, 3] RGB:
  raw              the arrays of `spec.heads` (`survey.heads`), float32; of an exported RetinaNet: raw_boxes [B, N, 4]
                   (ty, tx, th, tw), raw_scores [B, N, K] logits, one row an anchor in the order of `AnchorSpec.boxes`, one
                   column a class of the label map (no background column)
  serving_default  detection_boxes [B, M, 4] yxyx patch pixels, detection_scores [B, M], detection_classes [B, M] from 1,
                   num_detections [B]
"""

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

from survey import files, heads
from survey.heads import RetinaNetHeads, YoloHeads
from survey.labels import LabelMap

SPEC = "model.json"
SAVED_MODEL = "saved_model"
FORMAT_VERSION = 2


@dataclass(frozen=True)
class ModelSpec:
    """What a model's raw outputs mean.

    Attributes:
      image_size: side of the square input in pixels.
      classes: the label map.
      heads: what the raw arrays are and which boxes their numbers stand for.
      score_threshold: a detection counts from this score on; on validation, the one that counts best among those of nearly
        the best F1.
      score_floor: detections below are not kept at all.
      nms_iou: boxes of one class that overlap more than this are the same object.
      overlap_px: overlap of patches that the model was validated with.
      gsd_m: smallest and largest metres on the ground per pixel of the training patches; both are the same for a dataset that
        was resampled (`rookery shard --gsd_m`). None where a mosaic does not say.
      bands: how many colour bands the training mosaics have, each number once, ascending; empty where nobody knows.
      calibration: knots (score, probability that a detection of that score is an object), ascending in both; empty where
        nobody knows.
      validation: metrics on the validation split, by name.
      dataset_digest: `dataset.digest` of the training data.
      versions: of the packages that made it.
    """

    image_size: int
    classes: LabelMap
    heads: RetinaNetHeads | YoloHeads
    score_threshold: float
    score_floor: float
    nms_iou: float
    overlap_px: int
    gsd_m: tuple[float, float] | None
    bands: tuple[int, ...]
    calibration: tuple[tuple[float, float], ...]
    validation: dict[str, float]
    dataset_digest: str
    versions: dict[str, str]


def write(folder: str, spec: ModelSpec) -> None:
    """Writes `model.json`, the last step of an export."""
    value = {"format_version": FORMAT_VERSION, **dataclasses.asdict(spec), "heads": heads.to_json(spec.heads)}
    files.write_json(os.path.join(folder, SPEC), value)


def read(folder: str) -> ModelSpec:
    """Reads the `model.json` of a folder.

    Raises:
      InputError: there is none, it is of another version, or its heads are of a kind that nobody here can decode.
    """
    return read_file(os.path.join(folder, SPEC))


def read_file(path: str) -> ModelSpec:
    """Reads a `model.json` by its path; see `read`."""
    value: dict[str, Any] = files.read_json(path, "a model spec written by `rookery export`")
    files.check_contract(path, value, FORMAT_VERSION, ModelSpec)
    return ModelSpec(
        **{
            **value,
            "classes": tuple(value["classes"]),
            "heads": heads.from_json(value["heads"], path),
            "gsd_m": None if value["gsd_m"] is None else tuple(value["gsd_m"]),
            "bands": tuple(value["bands"]),
            "calibration": tuple((score, probability) for score, probability in value["calibration"]),
        }
    )


def digest(folder: str) -> str:
    """Names a model by its spec and weights."""
    return files.sha256_of_folder(folder)
