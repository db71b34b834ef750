"""YOLO labels: one txt an image, a line an object; `data.yaml` for Ultralytics and CVAT, `classes.txt` for LabelImg."""

import yaml

from inference.outputs import lines, relabelling
from inference.outputs.job import Job
from inference.outputs.relabelling import FOLDER, Labels
from survey import files
from survey.errors import InputError
from survey.mosaics import stem

LABELS = f"{FOLDER}/labels"
DATA = f"{FOLDER}/data.yaml"
# Of the image's side: at 4,096 px a billionth of a pixel, so that what is read back is what was written.
DIGITS = 12


def check(job: Job) -> None:
    """Refuses what `relabelling.check` does, and a mosaic whose labels would be taken for the list of classes."""
    from survey.annotations.yolo import NAMES  # with all formats, which `--help` should not wait for

    relabelling.check(job, LABELS)
    for mosaic in job.manifest.mosaics:
        if f"{mosaic.name}.txt" in NAMES:
            raise InputError(f"mosaic {mosaic.path}: YOLO keeps the names of the classes in {mosaic.name}.txt; rename the mosaic")


def write(job: Job) -> list[str]:
    """Writes the images, DATA, and LABELS."""
    written = relabelling.write_images(job)
    names = list(job.manifest.classes)
    # Ultralytics finds the labels of images/a.jpg in labels/a.txt; both splits are the same until somebody splits them.
    value = {"path": ".", "train": "images", "val": "images", "names": dict(enumerate(names))}
    files.write(job.path(DATA), yaml.safe_dump(value, allow_unicode=True, sort_keys=False).encode())
    classes = f"{LABELS}/classes.txt"
    files.write(job.path(classes), ("\n".join(names) + "\n").encode())
    written += [DATA, classes]
    for one in relabelling.labels(job):
        name = f"{LABELS}/{stem(one.image.name)}.txt"
        files.write(job.path(name), _text(one))
        written.append(name)
    return written


def _text(one: Labels) -> bytes:
    y0, x0, y1, x1 = (lines.decimals(side) for side in one.boxes_px.T)
    height, width = one.image.window.height, one.image.window.width
    parts: list[lines.Column] = [lines.numbers(one.class_ids - 1)]
    for values in ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height):
        parts += [" ", lines.numbers(values.round(DIGITS))]
    return lines.encoded(lines.joined(*parts, "\n"))
