"""CVAT XML 1.1, "CVAT for images": one file for all images, to be uploaded to a task that has them."""

from html import escape  # XML's own module loads urllib

from inference.outputs import lines, relabelling
from inference.outputs.job import Job
from inference.outputs.publishing import stream
from inference.outputs.relabelling import FOLDER, Labels

LABELS = f"{FOLDER}/annotations.cvat.xml"


def check(job: Job) -> None:
    """Refuses what `relabelling.check` does."""
    relabelling.check(job, LABELS)


def write(job: Job) -> list[str]:
    """Writes the images and LABELS."""
    written = relabelling.write_images(job)
    names = "".join(f"<label><name>{escape(name)}</name></label>" for name in job.manifest.classes)
    classes = [escape(name) for name in job.manifest.classes]
    with stream(job.path(LABELS)) as out:
        head = '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
        out(f"{head}<meta><task><labels>{names}</labels></task></meta>\n".encode())
        for number, one in enumerate(relabelling.labels(job)):
            window = one.image.window
            name = escape(one.image.name)
            out(f'<image id="{number}" name="{name}" width="{window.width}" height="{window.height}">\n'.encode())
            out(_boxes(one, classes))
            out(b"</image>\n")
        out(b"</annotations>\n")
    return [*written, LABELS]


def _boxes(one: Labels, classes: list[str]) -> bytes:
    parts: list[lines.Column] = ['<box label="', lines.chosen(classes, one.class_ids - 1), '" source="auto" occluded="0"']
    y0, x0, y1, x1 = one.boxes_px.T
    for name, side in (("xtl", x0), ("ytl", y0), ("xbr", x1), ("ybr", y1)):
        parts += [f' {name}="', lines.numbers(side), '"']
    return lines.encoded(lines.joined(*parts, ' z_order="0"></box>\n'))
