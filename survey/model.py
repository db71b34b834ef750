"""The model contract: what `tpu_train` exports and `inference` reads.

model.json    this spec: all that is needed to turn the raw heads into boxes
saved_model/  a SavedModel with two signatures, both taking `images` uint8 [B, image_size, image_size, 3] RGB:
  raw              raw_boxes float32 [B, N, 4] (ty, tx, th, tw), raw_scores float32 [B, N, K] logits, one row an anchor in the
                   order of `AnchorSpec.boxes`, one column a class of the label map (no background column)
  serving_default  detection_boxes [B, M, 4] yxyx patch pixels, detection_scores [B, M], detection_classes [B, M] from 1,
                   num_detections [B]
"""

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

from survey import files
from survey.anchors import AnchorSpec
from survey.errors import InputError
from survey.labels import LabelMap

SPEC = "model.json"
SAVED_MODEL = "saved_model"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class ModelSpec:
    """What a model's raw outputs mean.

    Attributes:
      architecture: "retinanet".
      image_size: side of the square input in pixels.
      classes: the label map.
      anchors: the pyramid that the raw boxes are relative to.
      box_scales: the box coder's (y, x, h, w) factors: raw values are divided by them before decoding.
      score_threshold: a detection counts from this score on; on validation, the one that counts best among those of nearly
        the best F1.
      score_floor: detections below are not kept at all.
      nms_iou: boxes of one class that overlap more than this are the same object.
      overlap_px: overlap of patches that the model was validated with.
      gsd_m: metres on the ground per pixel that the training mosaics were resampled to; None where each kept its own.
      validation: metrics on the validation split, by name.
      dataset_digest: `dataset.digest` of the training data.
      versions: of the packages that made it.
    """

    architecture: str
    image_size: int
    classes: LabelMap
    anchors: AnchorSpec
    box_scales: tuple[float, float, float, float]
    score_threshold: float
    score_floor: float
    nms_iou: float
    overlap_px: int
    gsd_m: float | None
    validation: dict[str, float]
    dataset_digest: str
    versions: dict[str, str]


def write(folder: str, spec: ModelSpec) -> None:
    """Writes `model.json`, the last step of an export."""
    files.write_json(os.path.join(folder, SPEC), {"format_version": FORMAT_VERSION, **dataclasses.asdict(spec)})


def read(folder: str) -> ModelSpec:
    """Reads `model.json`.

    Raises:
      InputError: there is none, it is of another version, or of an architecture that nobody here can decode.
    """
    path = os.path.join(folder, SPEC)
    value: dict[str, Any] = files.read_json(path, "a model spec written by `rookery export`")
    files.check_contract(path, value, FORMAT_VERSION, ModelSpec)
    if value["architecture"] != "retinanet":
        raise InputError(f"{path}: architecture={value['architecture']!r} cannot be decoded; known: retinanet")
    anchors = value["anchors"]
    return ModelSpec(
        **{
            **value,
            "classes": tuple(value["classes"]),
            "anchors": AnchorSpec(**{**anchors, "aspect_ratios": tuple(anchors["aspect_ratios"])}),
            "box_scales": tuple(value["box_scales"]),
        }
    )


def digest(folder: str) -> str:
    """Names a model by its spec and weights."""
    return files.sha256_of_folder(folder)
