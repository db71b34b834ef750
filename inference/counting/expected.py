"""What a model expects in each unit of a survey: calibrated scores, summed over the cores of patches or over mosaics."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from survey import boxes, calibration
from survey.detections import Detections, Manifest
from survey.errors import InputError
from survey.geometry import Mosaic, PatchGrid
from survey.model import ModelSpec

# Without a calibration a detection is taken for an object or not, by the threshold; so sure is nobody.
UNCALIBRATED = 0.75


@dataclass(frozen=True)
class Worth:
    """What a detection's score is worth.

    Attributes:
      knots: of the calibration; none where the model has none.
      threshold: without a calibration, detections from this score on are worth 1 and others 0.
      recall: share of objects that are found, for the uncertainty only.
    """

    knots: calibration.Knots
    threshold: float
    recall: float

    @classmethod
    def of(cls, spec: ModelSpec | None, manifest: Manifest) -> "Worth":
        """The worth of a model's scores; `spec` is None where the model is gone."""
        at = spec.validation if spec is not None else {}
        recall = at["objects_found"] / at["true_count"] if at.get("true_count") and "objects_found" in at else 0.8
        return cls(spec.calibration if spec is not None else (), manifest.score_threshold, min(max(recall, 0.1), 0.99))

    def of_scores(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(expected number of objects, its variance) of each detection, float64 [N]."""
        if self.knots:
            p = calibration.apply(self.knots, scores)
            return p, p * (1 - p)
        counts = (scores >= np.float32(self.threshold)).astype(np.float64)
        return counts, counts * UNCALIBRATED * (1 - UNCALIBRATED)


@dataclass(frozen=True)
class Units:
    """The cores of the patches of a survey, numbered through all mosaics in the manifest's order.

    Attributes:
      mosaics: all of them.
      grids: of each mosaic.
      first: number of each mosaic's first unit, and at the end the number of units.
      numbers: float64 [N, C], expected objects of each class in each unit.
      variances: float64 [N, C].
    """

    mosaics: tuple[Mosaic, ...]
    grids: tuple[PatchGrid, ...]
    first: tuple[int, ...]
    numbers: np.ndarray
    variances: np.ndarray

    def __len__(self) -> int:
        return self.first[-1]

    def locate(self, unit: int) -> tuple[Mosaic, PatchGrid, int, int]:
        """The mosaic of a unit, its grid, and the unit's row and column there."""
        i = int(np.searchsorted(self.first, unit, side="right")) - 1
        return self.mosaics[i], self.grids[i], *self.grids[i].cell(unit - self.first[i])


def in_cores(manifest: Manifest, found: dict[str, Detections], worth: Worth, patch_size: int, overlap_px: int) -> Units:
    """What is expected in the core of every patch.

    Args:
      manifest: of the detections.
      found: all of them, by mosaic.
      worth: of scores.
      patch_size: side of the patches in pixels.
      overlap_px: of neighbouring patches.
    """
    grids = tuple(mosaic.grid(patch_size, overlap_px) for mosaic in manifest.mosaics)
    first = (0, *np.cumsum([len(grid) for grid in grids]).tolist())
    numbers, variances = (np.zeros((first[-1], len(manifest.classes))) for _ in range(2))
    for mosaic, grid, begin in zip(manifest.mosaics, grids, first[:-1], strict=True):
        one = found[mosaic.name]
        unit = begin + core_of(grid, boxes.centers(one.boxes_mosaic_px))
        p, variance = worth.of_scores(one.scores)
        np.add.at(numbers, (unit, one.class_ids - 1), p)
        np.add.at(variances, (unit, one.class_ids - 1), variance)
    return Units(manifest.mosaics, grids, first, numbers, variances)


def in_mosaics(manifest: Manifest, found: dict[str, Detections], worth: Worth) -> np.ndarray:
    """What is expected in each mosaic, float64 [mosaics, C]."""
    rows = []
    for mosaic in manifest.mosaics:
        one = found[mosaic.name]
        rows.append(np.bincount(one.class_ids - 1, worth.of_scores(one.scores)[0], len(manifest.classes)))
    return np.array(rows, np.float64)


def core_of(grid: PatchGrid, points: np.ndarray) -> np.ndarray:
    """The number of the patch whose core holds each (y, x) point [N, 2] of a mosaic, int [N]; the nearest for points outside."""
    rows = np.array([grid.core(row, 0).y0 for row in range(grid.rows)])
    columns = np.array([grid.core(0, column).x0 for column in range(grid.columns)])
    row = np.clip(np.searchsorted(rows, points[:, 0], side="right") - 1, 0, grid.rows - 1)
    column = np.clip(np.searchsorted(columns, points[:, 1], side="right") - 1, 0, grid.columns - 1)
    return row * grid.columns + column


def patch_geometry(manifest: Manifest, spec: ModelSpec | None, patch_size: int | None) -> tuple[int, int]:
    """(side of a patch, overlap) in pixels of the patches to be labelled: as they were searched, unless asked otherwise.

    Raises:
      InputError: nothing says how large they are, or they would overlap more than their size.
    """
    overlap = int(manifest.options.get("overlap_px", spec.overlap_px if spec is not None else 0))
    if patch_size is not None:
        if patch_size <= overlap:
            raise InputError(f"--patch_size={patch_size}: must be above the overlap of {overlap} px of the searched patches")
        return patch_size, overlap
    if spec is None:
        raise InputError(
            f"--patch_size is needed: the model {manifest.model}, which says how large patches are, is not there; or name its "
            "folder with --model"
        )
    return spec.image_size, overlap


def stratum_numbers(mosaics: Sequence[Mosaic], strata: dict[str, str]) -> dict[str, list[int]]:
    """The mosaics of each stratum, by their position."""
    members: dict[str, list[int]] = {}
    for i, mosaic in enumerate(mosaics):
        if mosaic.name in strata:
            members.setdefault(strata[mosaic.name], []).append(i)
    return dict(sorted(members.items()))
