"""CSV for spreadsheets and R: one line an object, and one line for each count."""

import csv
import io

import numpy as np
import pyarrow as pa

from inference.outputs import lines, placing
from inference.outputs.job import Block, Job
from inference.outputs.publishing import stream
from survey import files

CSV = "detections.csv"
COUNTS = "counts.csv"
COLUMNS = ("mosaic", "class", "score", "y0", "x0", "y1", "x1", "map_x", "map_y", "crs", "longitude", "latitude")


def check(job: Job) -> None:
    """Nothing can be wrong with it."""


def write(job: Job) -> list[str]:
    """Writes CSV and COUNTS."""
    with stream(job.path(CSV)) as out:
        out((",".join(COLUMNS) + "\n").encode())
        classes = [_cell(name) for name in job.manifest.classes]
        for block in job.blocks():
            out(lines.encoded(_rows(block, job.class_names(block.found.class_ids, classes))))
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["mosaic", "class", "count"])
    for mosaic in job.manifest.mosaics:
        tally = np.bincount(job.counted[mosaic.name].class_ids, minlength=len(job.manifest.classes) + 1)
        writer.writerows([mosaic.name, label, int(tally[i])] for i, label in enumerate(job.manifest.classes, start=1))
    files.write(job.path(COUNTS), table.getvalue().encode())
    return [CSV, COUNTS]


def _rows(block: Block, labels: pa.Array) -> pa.Array:
    """Lines: box in mosaic pixels, and the centre of the box on the map where the mosaic has a place there."""
    mosaic, boxes = block.mosaic, block.found.boxes_mosaic_px
    parts: list[lines.Column] = [_cell(mosaic.name) + ",", labels, ",", lines.numbers(block.found.scores)]
    for side in boxes.T:
        parts += [",", lines.numbers(side)]
    if not placing.on_map(mosaic):
        return lines.joined(*parts, ",,,,,\n")
    points = placing.centers(mosaic, boxes)
    # Four decimals are a tenth of a millimetre in metres; nine are that in degrees.
    digits = 4 if mosaic.gsd_m is not None else 9
    for axis in points.T:
        parts += [",", lines.numbers(axis.round(digits))]
    parts.append(f",{_cell(mosaic.crs or '')},")
    if not placing.on_earth(mosaic):
        return lines.joined(*parts, ",\n")
    longitude, latitude = placing.degrees(mosaic, points).T
    return lines.joined(*parts, _degrees(longitude), ",", _degrees(latitude), "\n")


def _degrees(values: np.ndarray) -> pa.Array:
    """Empty where the projection has no such place."""
    written = lines.numbers(values.round(9))
    finite = np.isfinite(values)
    return written if finite.all() else pa.array(np.where(finite, written.to_numpy(zero_copy_only=False), ""), pa.string())


def _cell(text: str) -> str:
    """A cell, quoted where CSV asks for it."""
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow([text])
    return out.getvalue()
