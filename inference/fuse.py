"""Several looks at one patch as one: by several models, and at the patch as it is and mirrored.

Boxes are fused by weighted boxes fusion (Solovyev, Wang and Gabruseva 2021, https://arxiv.org/abs/1910.13302, in the authors' own
library, `ensemble_boxes`): boxes of one class that overlap are averaged, each weighted by its score. With T looks, of which n saw
the object, the score is the mean of those n scores times min(n, T) / T, so what only one look saw counts for little.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inference.decode import Found
from survey import boxes
from survey.errors import InputError
from survey.model import ModelSpec

FLIPS = ("none", "horizontal", "vertical", "both")


@dataclass(frozen=True, slots=True)
class Flip:
    """One way to look at a patch.

    Attributes:
      rows: mirrored top to bottom.
      columns: mirrored left to right.
    """

    rows: bool = False
    columns: bool = False

    def images(self, images: np.ndarray) -> np.ndarray:
        """The patches [n, S, S, 3] as this look sees them."""
        if not (self.rows or self.columns):
            return images
        return np.ascontiguousarray(images[:, :: -1 if self.rows else 1, :: -1 if self.columns else 1])

    def undo(self, found: Found, patch_size: int) -> Found:
        """What was found in the mirrored patch, in pixels of the patch as it is."""
        y0, x0, y1, x1 = found.boxes_patch_px.T
        if self.rows:
            y0, y1 = patch_size - y1, patch_size - y0
        if self.columns:
            x0, x1 = patch_size - x1, patch_size - x0
        return found._replace(boxes_patch_px=np.stack([y0, x0, y1, x1], axis=1))


def looks(flips: str) -> tuple[Flip, ...]:
    """The looks that `--flips` asks for, the patch as it is first; `both` is four: either way, and both at once."""
    rows = (False, True) if flips in ("vertical", "both") else (False,)
    columns = (False, True) if flips in ("horizontal", "both") else (False,)
    return tuple(Flip(rows=down, columns=across) for down in rows for across in columns)


def fuse(views: Sequence[Found], *, patch_size: int, nms_iou: float, score_floor: float) -> Found:
    """One patch as several looks saw it.

    Args:
      views: what each found, in pixels of the patch as it is.
      patch_size: its side in pixels.
      nms_iou: boxes of one class that overlap more than this are the same object, here as within a single look.
      score_floor: what scores less once it is averaged is left out.

    Returns:
      The fused boxes, best score first; a single view as it is.
    """
    if len(views) == 1:
        return views[0]
    from ensemble_boxes.ensemble_boxes_wbf import weighted_boxes_fusion  # here: most runs never need it

    solid = [_solid(view) for view in views]
    corners, scores, labels = weighted_boxes_fusion(
        [np.clip(view.boxes_patch_px[:, [1, 0, 3, 2]].astype(np.float64) / patch_size, 0, 1) for view in solid],  # x before y
        [view.scores for view in solid],
        [view.class_ids for view in solid],
        iou_thr=nms_iou,
        conf_type="avg",
    )
    fused = (corners[:, [1, 0, 3, 2]] * patch_size).astype(np.float32)
    scores, class_ids = scores.astype(np.float32), labels.astype(np.int32)
    # Sorted in full: the library leaves the order of equal scores open. Averages move, and may come to overlap: hence the NMS.
    order = np.lexsort((*fused.T[::-1], class_ids, -scores))
    order = order[scores[order] >= np.float32(score_floor)]
    fused, scores, class_ids = fused[order], scores[order], class_ids[order]
    kept = boxes.nms(fused, scores, nms_iou, class_ids)
    return Found(fused[kept], scores[kept], class_ids[kept])


def common(specs: Sequence[ModelSpec], folders: Sequence[str]) -> ModelSpec:
    """What holds for several models together.

    The largest `nms_iou` and `overlap_px`: neighbours that one model tells apart stay apart. The largest `score_floor`: below it
    some model is silent. The mean `score_threshold`: scores are averaged. Calibration and validation are each model's own.

    Args:
      specs: of the models.
      folders: where they lie, for errors.

    Raises:
      InputError: they look for different classes, or take patches of different sizes.
    """
    first = specs[0]
    if len(specs) == 1:
        return first
    for spec, folder in zip(specs, folders, strict=True):
        if spec.classes != first.classes:
            raise InputError(
                f"--model: {folder} finds {', '.join(spec.classes)}, {folders[0]} finds {', '.join(first.classes)}: models "
                "that are fused must have the same classes in the same order; train them on the same dataset"
            )
        if spec.image_size != first.image_size:
            raise InputError(
                f"--model: {folder} takes patches of {spec.image_size} px, {folders[0]} of {first.image_size} px: models "
                "that are fused must take the same; train them on the same dataset"
            )
    return dataclasses.replace(
        first,
        score_threshold=float(np.mean([spec.score_threshold for spec in specs])),
        score_floor=max(spec.score_floor for spec in specs),
        nms_iou=max(spec.nms_iou for spec in specs),
        overlap_px=max(spec.overlap_px for spec in specs),
        calibration=(),
        validation={},
    )


def _solid(found: Found) -> Found:
    """Without boxes of no area, which the library would complain of."""
    keep = boxes.area(found.boxes_patch_px) > 0
    return Found(found.boxes_patch_px[keep], found.scores[keep], found.class_ids[keep])
