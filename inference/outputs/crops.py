"""Pictures of single detections: JPEG files with an index, to be looked through, sorted, or fed to `identify`.

A crop is a square about the detection, CONTEXT times its longer side, at the mosaic's own resolution. It moves inward at the edge
of the mosaic rather than showing black. The box is not drawn: the index says where it is.
"""

import csv
import io

import numpy as np
import simplejpeg

from inference.outputs.job import Job, open_mosaic
from survey import files
from survey.detections import Detections
from survey.errors import InputError
from survey.geometry import Mosaic, Window

FOLDER = "crops"
INDEX = f"{FOLDER}/index.csv"
OF = ("best", "worst", "all")
COLUMNS = ("file", "mosaic", "class", "score", "y0", "x0", "y1", "x1", "crop_y0", "crop_x0", "crop_height", "crop_width")
CONTEXT = 2.0  # enough around an object to judge what it is
MIN_PX, MAX_PX = 64, 1024  # of a side: a 10 px bird with its surroundings; the middle of an object as large as the mosaic
JPEG_QUALITY = 90
MAX_CROPS = 100_000  # a folder with more files is slow on every file system, and nobody looks through it


def check(job: Job) -> None:
    """Refuses a number that cannot be, an output of another run, and mosaics that are not there.

    Raises:
      InputError: what is wrong.
    """
    settings = job.settings
    if settings.crops_of not in OF:
        raise InputError(f"--crops_of={settings.crops_of}: must be one of {', '.join(OF)}")
    if not 1 <= settings.crops <= MAX_CROPS:
        raise InputError(f"--crops={settings.crops}: must be from 1 to {MAX_CROPS:,} of each class")
    picked = {mosaic.name: rows for mosaic, rows in _chosen(job)}
    number = sum(map(len, picked.values()))
    if number > MAX_CROPS:
        raise InputError(
            f"--crops_of={settings.crops_of} would write {number:,} crops: at most {MAX_CROPS:,} are written; raise "
            "--score_threshold, or take --crops_of=best with --crops"
        )
    if files.names(job.path(FOLDER)):
        raise InputError(f"{job.path(FOLDER)} is not empty: remove it, or give another --output, so that no two runs mix")
    for mosaic in job.manifest.mosaics:
        if len(picked[mosaic.name]):
            with open_mosaic(mosaic):
                pass  # opening checks it


def write(job: Job) -> list[str]:
    """Writes the crops, then INDEX."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    written: list[str] = []
    for mosaic, rows in _chosen(job):
        if not len(rows):
            continue
        found = job.counted[mosaic.name].take(rows)
        with open_mosaic(mosaic) as raster:
            for box, score, class_id in zip(found.boxes_mosaic_px, found.scores, found.class_ids, strict=True):
                part = window(box, mosaic)
                pixels = np.ascontiguousarray(raster.read(part))
                name = f"{len(written) + 1:06d}.jpg"
                encoded = simplejpeg.encode_jpeg(pixels, quality=JPEG_QUALITY, colorsubsampling="444")
                files.write(job.path(f"{FOLDER}/{name}"), encoded)
                place = [part.y0, part.x0, part.height, part.width]
                writer.writerow([name, mosaic.name, job.manifest.classes[class_id - 1], str(score), *map(str, box), *place])
                written.append(f"{FOLDER}/{name}")
    files.write(job.path(INDEX), table.getvalue().encode())
    return [*written, INDEX]


def window(box: np.ndarray, mosaic: Mosaic) -> Window:
    """The pixels around a box (y0, x0, y1, x1), inside the mosaic."""
    y0, x0, y1, x1 = box.tolist()
    side = round(min(max(CONTEXT * max(y1 - y0, x1 - x0), MIN_PX), MAX_PX))
    height, width = min(side, mosaic.height), min(side, mosaic.width)
    top = min(max(round((y0 + y1 - height) / 2), 0), mosaic.height - height)
    left = min(max(round((x0 + x1 - width) / 2), 0), mosaic.width - width)
    return Window(top, left, top + height, left + width)


def _chosen(job: Job) -> list[tuple[Mosaic, np.ndarray]]:
    """Which detections that count are shown of each mosaic, by row from the top, so that it is read once front to back."""
    everything = [(mosaic, job.counted[mosaic.name]) for mosaic in job.manifest.mosaics]
    kept = [np.arange(len(found)) for _, found in everything]
    if job.settings.crops_of != "all":
        owners = np.repeat(np.arange(len(everything)), [len(found) for _, found in everything])
        places = np.concatenate(kept)
        scores = np.concatenate([found.scores for _, found in everything])
        class_ids = np.concatenate([found.class_ids for _, found in everything])
        order = np.argsort(scores if job.settings.crops_of == "worst" else -scores, kind="stable")
        of_class = [order[class_ids[order] == i][: job.settings.crops] for i in range(1, len(job.manifest.classes) + 1)]
        picked = np.concatenate(of_class)
        kept = [places[picked[owners[picked] == i]] for i in range(len(everything))]
    return [(mosaic, _from_the_top(found, rows)) for (mosaic, found), rows in zip(everything, kept, strict=True)]


def _from_the_top(found: Detections, rows: np.ndarray) -> np.ndarray:
    sides = found.boxes_mosaic_px[rows]
    ordered: np.ndarray = rows[np.lexsort((sides[:, 1], sides[:, 0]))]
    return ordered
