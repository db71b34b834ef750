"""Validation as the survey will be counted: each patch answers for its core, and whole mosaics are compared, without a cap."""

from typing import Any

import numpy as np

from survey import boxes as box_math
from survey import calibration, dataset, metrics

# Less than what F1 on a few hundred objects varies by chance: its standard error is some 0.03.
F1_SLACK = 0.02

# Patches of one mosaic share its light and its habitat, so mosaics are the better units of error; with fewer of them than this
# their own spread is too uncertain, and patches must do.
MOSAICS_AS_UNITS = 10


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

    def result(self, iou: float) -> dict[str, Any]:
        """Metrics over everything added.

        Args:
          iou: at which an object counts as found, for F1, the count and the calibration.

        Returns:
          ap50, ap (COCO), ap_at_iou; score_threshold, the best for counting among those of nearly the best F1, and there f1,
          precision, recall, count, true_count; objects_found, of detections of any score; what `_counting` gives; and
          `calibration`, float64 [K, 2], the knots of `survey.calibration`. All but the last are single numbers.
        """
        frames = [metrics.Frame(*map(np.concatenate, zip(*parts, strict=True))) for parts in self._parts.values()]
        per_class = metrics.outcomes(frames, len(self._dataset.classes), (*metrics.COCO_IOUS, iou))
        together = metrics.pooled(per_class)
        best = metrics.best_count(together, iou, f1_slack=F1_SLACK)
        knots = calibration.fit(together.scores, together.at(iou))
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
            "objects_found": int(together.at(iou).sum()),
            **self._counting(knots),
        }
        numbers: dict[str, Any] = {name: float(np.nan_to_num(value)) for name, value in values.items()}
        return {**numbers, calibration.KEY: np.array(knots, np.float64).reshape(-1, 2)}

    def _counting(self, knots: calibration.Knots) -> dict[str, float]:
        """How well calibrated detections count, for the intervals of `rookery count`.

        The unit j (a mosaic, or a patch's core where mosaics are few) has y objects and an expected number f of found ones, the
        sum of the probabilities of its detections. Objects are R = sum(y) / sum(f) for each that is expected. With
        residuals e = y - R f, the standard error of R by linearisation is sqrt(J / (J - 1) * sum(e^2)) / sum(f) (Cochran,
        "Sampling Techniques", 3rd edition, 1977, equation 2.46).

        Returns:
          calibrated_count: sum(f). count_error: the standard error of R relative to R. count_dispersion: sum(e^2) / sum(y), 1
          were the residuals Poisson. count_units: J. The last three are 0 where fewer than two units hold anything.
        """
        units = []
        for parts in self._parts.values():
            pairs = []
            for _, scores, _, truth, _ in parts:
                pairs.append((float(len(truth)), float(calibration.apply(knots, scores).sum()) if knots else 0.0))
            units.append(pairs)
        rows = [(sum(y for y, _ in pairs), sum(f for _, f in pairs)) for pairs in units]
        if len(rows) < MOSAICS_AS_UNITS:
            rows = [pair for pairs in units for pair in pairs]
        y, f = np.array(rows, np.float64).reshape(-1, 2).T
        values = {"calibrated_count": float(f.sum()), "count_error": 0.0, "count_dispersion": 0.0, "count_units": 0.0}
        if len(y) > 1 and y.sum() > 0 and f.sum() > 0:
            squares = float(((y - y.sum() / f.sum() * f) ** 2).sum())
            values["count_error"] = float(np.sqrt(len(y) / (len(y) - 1) * squares) / y.sum())
            values["count_dispersion"] = squares / float(y.sum())
            values["count_units"] = float(len(y))
        return values
