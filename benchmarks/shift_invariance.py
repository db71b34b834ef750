"""How much a count changes when nothing but the place of the patches changes.

    python benchmarks/shift_invariance.py --model FOLDER --image PNG [--shifts 20]

One photo is searched again and again. Each time the first stride of the grid is shortened by chance, down and across, so that all
patches but those at the edges see other pixels; the ground, the model and its threshold stay. A row of the table is one way to
search; it gives the mean and the standard deviation, in % of the mean, of two counts:

thresholded   detections with the model's `score_threshold` or more, as in counts.csv
calibrated    the sum of the probabilities that `calibration` in model.json gives to all detections, as in `rookery count`

The photo should be one that the model was not trained on: there, scores are higher than on any survey.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import measure
import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from inference import fuse, parts, stitch  # noqa: E402
from inference.decode import Decoder  # noqa: E402
from inference.model_runner import ModelRunner  # noqa: E402
from inference.search import Detector, search  # noqa: E402
from survey import calibration, model  # noqa: E402
from survey.detections import Detections  # noqa: E402
from survey.geometry import PatchGrid  # noqa: E402
from survey.raster import Raster  # noqa: E402

BORDERLINE = 0.05  # scores this near to the threshold
SEED = 0


@dataclass(frozen=True)
class ShiftedGrid(PatchGrid):
    """A grid whose first stride is shortened: patches start at 0, s, s + stride, ..., and at the far edge.

    Attributes:
      down_px, across_px: the first stride, from 1 to `patch_size - overlap_px`, where it is the grid without a shift.
    """

    down_px: int
    across_px: int

    @cached_property
    def row_starts(self) -> tuple[int, ...]:
        """First row of pixels of each row of patches."""
        return self._starts(self.height, self.down_px)

    @cached_property
    def column_starts(self) -> tuple[int, ...]:
        """First column of pixels of each column of patches."""
        return self._starts(self.width, self.across_px)

    def _starts(self, length: int, first_px: int) -> tuple[int, ...]:
        last = max(0, length - self.patch_size)
        return (0, *range(first_px, last, self.patch_size - self.overlap_px), last) if last else (0,)


@dataclass(frozen=True, slots=True)
class Way:
    """One way to search; a row of the table.

    Attributes:
      overlap_px: that patches share.
      flips: of `fuse.FLIPS`.
      step_px: shifts are whole multiples of this.
    """

    overlap_px: int
    flips: str = "none"
    step_px: int = 1

    def __str__(self) -> str:
        looks = "" if self.flips == "none" else f", --flips={self.flips}"
        return f"overlap {self.overlap_px} px{looks}" + (f", shifts by whole {self.step_px} px" if self.step_px > 1 else "")


def main() -> None:
    """Measures and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder written by `rookery export`")
    parser.add_argument("--image", required=True, help="a survey photo that the model has not seen")
    parser.add_argument("--shifts", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=8)
    options = parser.parse_args()
    spec = model.read(options.model)
    size, own = spec.image_size, spec.overlap_px
    runner, decoder = ModelRunner(options.model, spec, options.batch_size), Decoder(spec)
    # Anchors of the coarsest level stand this far apart: patches moved by whole steps have theirs on the same pixels.
    coarsest = 2 ** max(decoder_levels(spec))
    ways = [Way(own), *(Way(overlap) for overlap in (size // 8, size // 4, size // 2) if overlap != own)]
    ways += [Way(own, step_px=coarsest), Way(own, flips="both")]
    rows = []
    with Raster(options.image) as raster:
        for way in ways:
            begun = time.perf_counter()
            detector = Detector([(runner, decoder)], fuse.looks(way.flips), size, spec.nms_iou, spec.score_floor)
            found = [
                one(raster, detector, way, shift, spec) for shift in shifts(size - way.overlap_px, way.step_px, options.shifts)
            ]
            rows.append([str(way), *row(found, spec)])
            print(f"{' | '.join(rows[-1])} ({time.perf_counter() - begun:.0f} s)", file=sys.stderr)
    print(f"\n{Path(options.image).name}, {options.shifts} shifts of the grid of {size} px patches, {options.model}:\n")
    header = ["", "thresholded", "from to", "sd, %", f"within {BORDERLINE} of the threshold", "calibrated", "from to", "sd, %"]
    print(measure.table(header, rows))
    print(f"\nscore_threshold {spec.score_threshold:.3f}; {measure.machine('tensorflow', 'numpy')}")


def decoder_levels(spec: model.ModelSpec) -> list[int]:
    """Levels of the pyramid that the model finds objects on."""
    heads = spec.heads
    return list(range(heads.anchors.min_level, heads.anchors.max_level + 1)) if heads.kind == "retinanet" else list(heads.levels)


def shifts(stride_px: int, step_px: int, number: int) -> list[tuple[int, int]]:
    """First strides (down, across), drawn by chance and the same in every run."""
    drawn = np.random.default_rng(SEED).integers(0, stride_px // step_px, (number, 2))
    # Whole steps away from the grid without a shift.
    return [(int(stride_px - down * step_px), int(stride_px - across * step_px)) for down, across in drawn]


def one(raster: Raster, detector: Detector, way: Way, first_px: tuple[int, int], spec: model.ModelSpec) -> Detections:
    """Searches the photo once."""
    info = raster.info()
    grid = ShiftedGrid(info.height, info.width, spec.image_size, way.overlap_px, *first_px)
    claimed = parts.concatenate([claim.found for claim in search(raster, grid, range(len(grid)), detector)])
    return stitch.stitch(claimed, grid, first_patch_id=0, nms_iou=spec.nms_iou)[0]


def row(found: list[Detections], spec: model.ModelSpec) -> list[str]:
    """The cells of one way to search."""
    threshold = np.float32(spec.score_threshold)
    counts = [np.array([int((one.scores >= threshold).sum()) for one in found], float)]
    if spec.calibration:
        counts.append(np.array([calibration.apply(spec.calibration, one.scores).sum() for one in found]))
    cells = [[f"{c.mean():.1f}", f"{c.min():.0f} to {c.max():.0f}", f"{100 * c.std(ddof=1) / c.mean():.2f}"] for c in counts]
    near = np.mean([(np.abs(one.scores - threshold) < BORDERLINE).sum() for one in found])
    return [*cells[0], f"{near:.0f}", *(cells[1] if spec.calibration else ["no calibration", "", ""])]


if __name__ == "__main__":
    main()
