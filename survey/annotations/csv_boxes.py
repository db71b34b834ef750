"""CSV with boxes: a row an object, of one image or many. DeepForest's columns, and others by their usual names."""

from collections import Counter

from survey.annotations import csv_table, reading
from survey.annotations.annotation import Annotation
from survey.annotations.reading import Reading, ReadOptions
from survey.errors import InputError

WHAT = "a CSV file with boxes"
CORNERS = ("xmin", "ymin", "xmax", "ymax")
CORNER_COLUMNS = (
    CORNERS,
    ("x_min", "y_min", "x_max", "y_max"),
    ("left", "top", "right", "bottom"),
    ("x0", "y0", "x1", "y1"),
    ("x1", "y1", "x2", "y2"),
)


def read(path: str, options: ReadOptions) -> Reading:
    """Annotations of one CSV file.

    A row with an image and no corners, or with four zeros as DeepForest writes it, says that the image has no object.

    Raises:
      InputError: a column is missing, a value is no number, or a row has no class.
    """
    table = csv_table.table(path, WHAT)
    image_at = table.column(csv_table.IMAGE_COLUMNS, "the image")
    x0_at, y0_at, x1_at, y1_at = corners_at = table.columns(CORNER_COLUMNS, "the corners")
    class_at = table.class_column(options.class_column)
    sizes_at = table.size_columns()
    seen: dict[str, str] = {}  # one string object for each name: a survey has a million rows, and few images and classes
    images: dict[str, None] = {}
    size_of: dict[tuple[str, ...], tuple[int, int] | None] = {}
    annotations: list[Annotation] = []
    skipped: Counter[str] = Counter()
    for line, row in table.rows:
        image = row[image_at].strip()
        image = seen.setdefault(image, image)
        if not image:
            raise InputError(f"{path}: line {line} names no image")
        images[image] = None
        cells = tuple(row[i] for i in sizes_at)
        if cells not in size_of:
            size_of[cells] = csv_table.size_of(cells, f"{path}: line {line}")
        given = (row[y0_at], row[x0_at], row[y1_at], row[x1_at])
        if not any(given):
            skipped[csv_table.SKIPPED] += 1
            continue
        try:
            y0, x0, y1, x1 = map(float, given)
        except ValueError:
            y0 = x0 = y1 = x1 = float("nan")
        if not -1e12 < y0 + x0 + y1 + x1 < 1e12:  # one comparison for all four; the slow way says which it was
            reading.numbers((row[i] for i in corners_at), f"{path}: line {line}", [table.header[i] for i in corners_at])
        if y0 == x0 == y1 == x1 == 0:
            skipped[csv_table.SKIPPED] += 1
            continue
        name = row[class_at].strip()
        if not name:
            raise InputError(f"{path}: line {line} has no class in column {table.header[class_at]!r}")
        name = seen.setdefault(name, name)
        annotations.append(Annotation(image, size_of[cells], name, (y0, x0, y1, x1), path, options.frame))
    return Reading(annotations, tuple(images), skipped)
