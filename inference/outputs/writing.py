"""All formats of detections by name, and the one function that writes them.

csv      detections.csv, counts.csv                    any mosaic
coco     detections.coco.json, .coco_results.json      any mosaic
geojson  detections.geojson                            mosaics with a place on the earth
gpkg     detections.gpkg                               mosaics with a place on the map
yolo, voc, cvat   relabel/                             any mosaic; tiles of large ones need their pixels
density  density/MOSAIC.tif                            needs the size of its cells
crops    crops/                                        needs the mosaics' pixels
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from inference.outputs import coco, crops, cvat, density, geojson, geopackage, placing, tables, voc, yolo
from inference.outputs.job import Job, Settings
from survey import flags
from survey.detections import Detections, Manifest
from survey.errors import InputError
from survey.geometry import Mosaic


class Format(Protocol):
    """What each format's module offers."""

    def check(self, job: Job) -> None:
        """Refuses, before anything is written, what would stop `write`: an InputError."""

    def write(self, job: Job) -> list[str]:
        """Writes the format, each file in one step, and names the files, relative to the folder."""


FORMATS: dict[str, Format] = {
    "csv": tables,
    "coco": coco,
    "geojson": geojson,
    "gpkg": geopackage,
    "yolo": yolo,
    "voc": voc,
    "cvat": cvat,
    "density": density,
    "crops": crops,
}
DEFAULT_FORMATS = ("csv", "coco", "geojson", "gpkg")


def write(
    folder: str,
    manifest: Manifest,
    found: dict[str, Detections],
    formats: Sequence[str] = DEFAULT_FORMATS,
    *,
    settings: Settings | None = None,
    notes: list[str] | None = None,
) -> list[str]:
    """Writes detections in the formats asked for; the ones that count, where a format does not say otherwise.

    Args:
      folder: where, local or gs://.
      manifest: of the detections.
      found: all detections of each mosaic, by name.
      formats: keys of FORMATS.
      settings: of the formats.
      notes: gets what people should know, line by line: a map format leaves out mosaics that have no place on the map.

    Returns:
      Names of the files written, relative to the folder.

    Raises:
      InputError: an unknown format, or one that cannot be written; then nothing was.
    """
    check_formats(formats)
    counted = {name: one.take(_counts(one, manifest.score_threshold)) for name, one in found.items()}
    job = Job(folder, manifest, found, counted, settings or Settings(), [] if notes is None else notes)
    for name in formats:
        FORMATS[name].check(job)
    return [file for name in dict.fromkeys(formats) for file in FORMATS[name].write(job)]


def check_formats(formats: Sequence[str], among: Sequence[str] = tuple(FORMATS)) -> None:
    """Refuses a format that there is none of.

    Args:
      formats: as the command line gives them.
      among: the ones allowed; `rookery predict` writes only those that need nothing but detections, so that no flag of a format
        and no file in the way can spoil the end of a long job.

    Raises:
      InputError: names the nearest, and all; or the verb that writes the format.
    """
    for name in formats:
        if name not in FORMATS:
            near = flags.nearest(name, FORMATS)
            raise InputError(f"--formats has {name!r}: did you mean {near!r}? There are {', '.join(FORMATS)}")
        if name not in among:
            raise InputError(
                f"--formats has {name!r}: here must be any of {', '.join(among)}; `rookery convert` writes the others"
            )
    if not formats:
        raise InputError(f"--formats is empty: give one or more of {', '.join(FORMATS)}")


def count(found: dict[str, Detections], classes: tuple[str, ...], score_threshold: float) -> dict[str, dict[str, int]]:
    """Objects per mosaic and class that reach the threshold, zeros included: {mosaic: {class: number}}."""
    counts = {}
    for name, one in found.items():
        tally = np.bincount(one.class_ids[_counts(one, score_threshold)], minlength=len(classes) + 1)
        counts[name] = {label: int(tally[i]) for i, label in enumerate(classes, start=1)}
    return counts


def frame(mosaic: Mosaic) -> str:
    """In which coordinates a mosaic's detections can be given, in words."""
    return f"map coordinates, {mosaic.crs}" if placing.on_map(mosaic) else "pixels (x right, y down)"


def _counts(one: Detections, score_threshold: float) -> np.ndarray:
    """Which detections reach the threshold, [N] bool; compared in float32, as scores are, so that 0.7 reaches 0.7."""
    reached: np.ndarray = one.scores >= np.float32(score_threshold)
    return reached
