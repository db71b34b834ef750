"""Validation as the survey will be counted: each patch answers for its core, and whole mosaics are compared, without a cap."""

import numpy as np

from survey import boxes as box_math
from survey import dataset, metrics

# Less than what F1 on a few hundred objects varies by chance: its standard error is some 0.03.
F1_SLACK = 0.02


class Validation:
    """Collects detections and objects of validation patches, in mosaic pixels, and turns them into metrics."""

    def __init__(self, folder: str) -> None:
        self._dataset = dataset.read(folder)
        self._parts: dict[str, list[tuple[np.ndarray, ...]]] = {}

    def add(self, batch: dict[str, np.ndarray]) -> None:
        """Adds a batch.

        Args:
          batch: patch_id int64 [B], -1 for padding; boxes float32 [B, D, 4] yxyx in patch pixels, scores float32 [B, D], classes
            int32 [B, D] from 1, count int32 [B] of them that are real; truth_boxes float32 [B, M, 4], truth_classes int32 [B, M],
            0 for padding.
        """
        for i, patch_id in enumerate(batch["patch_id"].tolist()):
            if patch_id < 0:
                continue
            mosaic, grid, row, column = self._dataset.locate(patch_id)
            window, core = grid.window(row, column), grid.core(row, column)
            real = batch["truth_classes"][i] > 0
            count = int(batch["count"][i])

            def owned(boxes: np.ndarray, window=window, core=core) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[no-untyped-def]
                boxes = box_math.shift(boxes, window.y0, window.x0)
                return boxes, box_math.inside(box_math.centers(boxes), core.y0, core.x0, core.y1, core.x1)

            boxes, mine = owned(batch["boxes"][i, :count])
            truth, mine_true = owned(batch["truth_boxes"][i][real])
            self._parts.setdefault(mosaic.name, []).append(
                (
                    boxes[mine],
                    batch["scores"][i, :count][mine],
                    batch["classes"][i, :count][mine],
                    truth[mine_true],
                    batch["truth_classes"][i][real][mine_true],
                )
            )

    def result(self, iou: float) -> dict[str, float]:
        """Metrics over everything added.

        Args:
          iou: at which an object counts as found, for F1 and the count.

        Returns:
          ap50, ap (COCO), ap_at_iou; score_threshold, the best for counting among those of nearly the best F1, and there f1,
          precision, recall, count, true_count.
        """
        frames = [metrics.Frame(*map(np.concatenate, zip(*parts, strict=True))) for parts in self._parts.values()]
        per_class = metrics.outcomes(frames, len(self._dataset.classes), (*metrics.COCO_IOUS, iou))
        best = metrics.best_count(metrics.pooled(per_class), iou, f1_slack=F1_SLACK)
        values = {
            "ap50": metrics.ap50(per_class),
            "ap": metrics.coco_ap(per_class),
            "ap_at_iou": metrics.mean_average_precision(per_class, [iou]),
            "score_threshold": best.threshold,
            "f1": best.f1,
            "precision": best.precision,
            "recall": best.recall,
            "count": best.tp + best.fp,
            "true_count": best.tp + best.fn,
        }
        return {name: float(np.nan_to_num(value)) for name, value in values.items()}
