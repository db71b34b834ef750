"""Which patches to label by hand so that the count's interval shrinks most, as a folder of pictures and boxes to correct.

sample.json          the design: strata, patches, inclusion probabilities, seed, and of which detections
sample.csv           one line a patch, for people
patch_NNNNNN.png     its pixels; the core, in which objects count, is in sample.csv and not drawn
patch_NNNNNN.xml     the model's own boxes in patch pixels, Pascal VOC, to be corrected

Patches are ordered by how uncertain their count is and cut into strata of about equal total uncertainty, so that Neyman's
allocation (Journal of the Royal Statistical Society 97, 1934), n proportional to N times the standard deviation, gives each about
as many. There are many strata of three patches rather than few large ones: uncertain patches differ most among themselves.
"""

import csv
import dataclasses
import hashlib
import io
import os
from dataclasses import dataclass
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from inference.counting.expected import Units
from survey import boxes as box_math
from survey import files
from survey.detections import Detections, Manifest
from survey.errors import InputError
from survey.geometry import Mosaic, Window
from survey.raster import Raster

FILE = "sample.json"
TABLE = "sample.csv"
FORMAT_VERSION = 1

# Two a stratum are the least that give a variance; with three the interval is 10 to 40 % shorter at 30 labels and still covers,
# with four or more it covers less where counts are sparse (92 % in simulation).
PER_STRATUM = 3
# Of a patch in which nothing was found we know little: a missed colony, a new habitat. It counts as uncertain as this share of
# an average patch's expected number, and at least as one object in fifty patches.
BACKGROUND_SHARE, BACKGROUND = 0.2, 0.02
# Half the longer side of an object is enough of a halo; half as much again for the few that are larger than those found.
HALO, LARGE = 0.75, 99


@dataclass(frozen=True)
class Design:
    """How a sample is drawn.

    Attributes:
      strata: int [N], the stratum of every unit.
      sizes: int [H], units in each stratum.
      counts: int [H], how many of them to label.
      uncertainty: float64 [N], the standard deviation that the model gives each unit's residual.
    """

    strata: np.ndarray
    sizes: np.ndarray
    counts: np.ndarray
    uncertainty: np.ndarray

    def error(self) -> float:
        """The standard error of the total that the model expects of this design."""
        square = np.bincount(self.strata, self.uncertainty**2, len(self.sizes)) / self.sizes
        return float(np.sqrt((self.sizes**2 * (1 - self.counts / self.sizes) / self.counts * square).sum()))


@dataclass(frozen=True, slots=True)
class Patch:
    """One patch to label.

    Attributes:
      patch_id: its number among all patches of the survey.
      mosaic: name.
      window: its pixels in the mosaic: the core and a halo around it, as far as the mosaic goes.
      core: the part that counts, in mosaic pixels.
      stratum: number.
      probability: with which it was drawn.
      image, annotation: names of its files in the folder.
      annotation_sha256: of the annotation as it was written, to tell whether anybody changed it.
    """

    patch_id: int
    mosaic: str
    window: tuple[int, int, int, int]
    core: tuple[int, int, int, int]
    stratum: int
    probability: float
    image: str
    annotation: str
    annotation_sha256: str


@dataclass(frozen=True)
class Sample:
    """What `sample.json` holds, beside its format_version.

    Attributes:
      seed: of the draw.
      patch_size, overlap_px: the grid of patches, whose cores are the units.
      halo_px: seen around a core, so that an object whose centre lies in it is seen whole. Were objects cut at its edge, the
        centre of what is left would lie inside: they would count on both sides.
      sizes: patches in each stratum.
      patches: the drawn ones, by number.
      detections: sha256 of the files of the detections that it is of, by file name.
    """

    seed: int
    patch_size: int
    overlap_px: int
    halo_px: int
    sizes: tuple[int, ...]
    patches: tuple[Patch, ...]
    detections: dict[str, str]


def uncertainty(expected: np.ndarray, variances: np.ndarray, recall: float) -> np.ndarray:
    """Standard deviation of each unit's true number about the expected one, as far as the model knows.

    Its square: Poisson-binomial for what was found, geometric for what was missed, and BACKGROUND.

    Args:
      expected: float [N], expected number in each unit.
      variances: float [N], of what was found.
      recall: share of objects that are found.

    Returns:
      float64 [N].
    """
    missed = expected * (1 - recall) / recall
    deviations: np.ndarray = np.sqrt(variances + missed + BACKGROUND_SHARE * expected.mean() + BACKGROUND)
    return deviations


def design(deviations: np.ndarray, number: int) -> Design:
    """Strata of equal total uncertainty, and Neyman's allocation.

    Args:
      deviations: float [N], above 0, of each unit.
      number: units to label, at most N, at least 2.
    """
    wanted = max(1, number // PER_STRATUM)
    order = np.argsort(deviations, kind="stable")
    total = np.cumsum(deviations[order])
    middle = (total - deviations[order] / 2) / total[-1]
    strata = np.empty(len(deviations), np.int64)
    strata[order] = np.minimum(middle * wanted, wanted - 1).astype(np.int64)
    # A unit that is worth more than a stratum leaves the next one empty.
    strata = np.unique(strata, return_inverse=True)[1]
    sizes, sums = np.bincount(strata), np.bincount(strata, deviations)
    counts = np.minimum(sizes, 2)
    while counts.sum() < number:
        # Optimal for whole numbers (Wright, The American Statistician 66, 2012): the next unit goes where it gains most.
        gain = np.where(counts < sizes, sums / np.sqrt(counts * (counts + 1)), -1.0)
        counts[int(np.argmax(gain))] += 1
    return Design(strata, sizes, counts, deviations)


def draw(planned: Design, seed: int) -> np.ndarray:
    """Numbers of the units to label, int [n], ascending; at random without replacement within each stratum."""
    rng = np.random.default_rng(seed)
    chosen = [rng.choice(np.flatnonzero(planned.strata == h), k, replace=False) for h, k in enumerate(planned.counts.tolist())]
    return np.sort(np.concatenate(chosen))


def write(
    folder: str, manifest: Manifest, found: dict[str, Detections], units: Units, planned: Design, seed: int, of: dict[str, str]
) -> Sample:
    """Draws and writes the sample; `sample.json` comes last.

    Args:
      folder: new, or without a sample.
      manifest: of the detections.
      found: all of them, by mosaic.
      units: the patches of the survey.
      planned: the design.
      seed: of the draw.
      of: digests of the detections.

    Raises:
      InputError: the folder holds a sample, whose labels would be overwritten, or a mosaic is gone or of another size.
    """
    if files.exists(os.path.join(folder, FILE)):
        raise InputError(f"--output={folder} holds a sample already, perhaps with labels in it: name a new folder")
    halo_px = halo(manifest, found, units.grids[0].overlap_px)
    patches: list[Patch] = []
    rasters: dict[str, list[int]] = {}
    for unit in draw(planned, seed).tolist():
        rasters.setdefault(units.locate(unit)[0].name, []).append(unit)
    for mosaic in manifest.mosaics:
        if mosaic.name not in rasters:
            continue
        one = found[mosaic.name]
        one = one.take(one.scores >= np.float32(manifest.score_threshold))
        with Raster(mosaic.path, stretch=mosaic.stretch) as raster:
            _check_size(raster, mosaic)
            for unit in rasters[mosaic.name]:
                patches.append(_patch(unit, units, planned, halo_px))
                content = _voc(patches[-1], one, manifest)
                patches[-1] = dataclasses.replace(patches[-1], annotation_sha256=hashlib.sha256(content).hexdigest())
                png = io.BytesIO()
                Image.fromarray(raster.read(Window(*patches[-1].window))).save(png, "PNG")
                files.write(os.path.join(folder, patches[-1].image), png.getvalue())
                files.write(os.path.join(folder, patches[-1].annotation), content)
    grid = units.grids[0]
    sample = Sample(seed, grid.patch_size, grid.overlap_px, halo_px, tuple(planned.sizes.tolist()), tuple(patches), of)
    files.write(os.path.join(folder, TABLE), _as_csv(sample).encode())
    files.write_json(os.path.join(folder, FILE), {"format_version": FORMAT_VERSION, **dataclasses.asdict(sample)})
    return sample


def read(folder: str, of: dict[str, str]) -> Sample:
    """Reads a sample.

    Args:
      folder: that `write` wrote.
      of: digests of the detections to be counted.

    Raises:
      InputError: no sample there, or one of other detections.
    """
    path = os.path.join(folder, FILE)
    value = files.read_json(path, "a sample written by `rookery count --label_sample`")
    files.check_contract(path, value, FORMAT_VERSION, Sample)
    if value["detections"] != of:
        raise InputError(
            f"--sample={folder} was drawn from other detections than --detections: its patches and probabilities mean nothing "
            "there; name the detections that it was drawn from, or draw a new sample with --label_sample"
        )
    patches = [Patch(**{**one, "window": tuple(one["window"]), "core": tuple(one["core"])}) for one in value["patches"]]
    return Sample(**{**value, "sizes": tuple(value["sizes"]), "patches": tuple(patches)})


def as_mosaics(sample: Sample) -> tuple[Mosaic, ...]:
    """The patches as images that annotations can name."""
    sizes = [Window(*patch.window) for patch in sample.patches]
    return tuple(
        Mosaic(os.path.splitext(patch.image)[0], patch.image, size.height, size.width)
        for patch, size in zip(sample.patches, sizes, strict=True)
    )


def in_core(patch: Patch, boxes_patch_px: np.ndarray) -> np.ndarray:
    """Which boxes [N, 4] of a patch have their centre in its core: bool [N]."""
    y, x = patch.window[:2]
    y0, x0, y1, x1 = patch.core
    return box_math.inside(box_math.centers(boxes_patch_px), y0 - y, x0 - x, y1 - y, x1 - x)


def untouched(sample: Sample, paths: list[str]) -> int:
    """How many of the annotation files are just as they were written."""
    written = {patch.annotation: patch.annotation_sha256 for patch in sample.patches}
    return sum(written.get(os.path.basename(path)) == files.sha256(path) for path in paths)


def halo(manifest: Manifest, found: dict[str, Detections], overlap_px: int) -> int:
    """Pixels to show around a core: as patches are searched, or more where the detections that count are large."""
    sides = [np.zeros(0)]
    for one in found.values():
        boxes = one.boxes_mosaic_px[one.scores >= np.float32(manifest.score_threshold)]
        sides.append((boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0))
    every = np.concatenate(sides)
    large = float(np.percentile(every, LARGE)) if len(every) else 0.0
    return max(overlap_px // 2, int(np.ceil(HALO * large)))


def _patch(unit: int, units: Units, planned: Design, halo_px: int) -> Patch:
    mosaic, grid, row, column = units.locate(unit)
    core = grid.core(row, column)
    around = Window(core.y0 - halo_px, core.x0 - halo_px, core.y1 + halo_px, core.x1 + halo_px)
    stratum = int(planned.strata[unit])
    name = f"patch_{unit:06d}"
    return Patch(
        patch_id=unit,
        mosaic=mosaic.name,
        window=dataclasses.astuple(around.intersect(Window(0, 0, mosaic.height, mosaic.width))),
        core=dataclasses.astuple(core),
        stratum=stratum,
        probability=float(planned.counts[stratum] / planned.sizes[stratum]),
        image=f"{name}.png",
        annotation=f"{name}.xml",
        annotation_sha256="",
    )


def _check_size(raster: Raster, mosaic: Mosaic) -> None:
    info = raster.info()
    if (info.height, info.width) != (mosaic.height, mosaic.width):
        raise InputError(
            f"{mosaic.path} is {info.width} x {info.height} px, but was {mosaic.width} x {mosaic.height} px when searched: its "
            "patches would show other places; put the searched image back, or predict again"
        )


def _voc(patch: Patch, counted: Detections, manifest: Manifest) -> bytes:
    """The detections that count as far as they lie in the patch, as Pascal VOC."""
    window = Window(*patch.window)
    moved = box_math.shift(counted.boxes_mosaic_px.astype(np.float64), -window.y0, -window.x0)
    moved = box_math.clip(moved, window.height, window.width)
    lines = [
        "<annotation>",
        f"  <filename>{patch.image}</filename>",
        f"  <size><width>{window.width}</width><height>{window.height}</height><depth>3</depth></size>",
    ]
    for i in np.flatnonzero(box_math.area(moved) > 0).tolist():
        y0, x0, y1, x1 = moved[i].round(1).tolist()
        name = escape(manifest.classes[counted.class_ids[i] - 1])
        corners = f"<xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
        lines.append(f"  <object><name>{name}</name><bndbox>{corners}</bndbox></object>")
    return "\n".join([*lines, "</annotation>", ""]).encode()


def _as_csv(sample: Sample) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    sides = ("y0", "x0", "y1", "x1")
    header = [
        "patch_id",
        "mosaic",
        *(f"window_{s}" for s in sides),
        *(f"core_{s}" for s in sides),
        "probability",
        "stratum",
        "image",
    ]
    writer.writerow(header)
    for one in sample.patches:
        writer.writerow([one.patch_id, one.mosaic, *one.window, *one.core, f"{one.probability:.6g}", one.stratum, one.image])
    return out.getvalue()
