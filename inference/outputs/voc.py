"""Pascal VOC XML: one file an image, for LabelImg, CVAT, Label Studio and DeepForest."""

from html import escape  # XML's own module loads urllib

import numpy as np

from inference.outputs import lines, relabelling
from inference.outputs.job import Job
from inference.outputs.relabelling import FOLDER, Labels
from survey import files
from survey.mosaics import stem

LABELS = f"{FOLDER}/voc"


def check(job: Job) -> None:
    """Refuses what `relabelling.check` does."""
    relabelling.check(job, LABELS)


def write(job: Job) -> list[str]:
    """Writes the images and LABELS."""
    written = relabelling.write_images(job)
    classes = [escape(name) for name in job.manifest.classes]
    for one in relabelling.labels(job):
        name = f"{LABELS}/{stem(one.image.name)}.xml"
        files.write(job.path(name), _text(one, classes))
        written.append(name)
    return written


def _text(one: Labels, classes: list[str]) -> bytes:
    window = one.image.window
    head = (
        f"<annotation>\n<filename>{escape(one.image.name)}</filename>\n"
        f"<size><width>{window.width}</width><height>{window.height}</height><depth>3</depth></size>\n<segmented>0</segmented>\n"
    )
    parts: list[lines.Column] = [
        "<object><name>",
        lines.chosen(classes, one.class_ids - 1),
        "</name><pose>Unspecified</pose><truncated>",
        lines.numbers(one.cut.astype(np.int8)),
        "</truncated><difficult>0</difficult><bndbox>",
    ]
    y0, x0, y1, x1 = one.boxes_px.T
    for tag, side in (("xmin", x0), ("ymin", y0), ("xmax", x1), ("ymax", y1)):
        parts += [f"<{tag}>", lines.numbers(side), f"</{tag}>"]
    return head.encode() + lines.encoded(lines.joined(*parts, "</bndbox></object>\n")) + b"</annotation>\n"
