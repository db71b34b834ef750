"""CSV with points: a row an object, as in seal surveys: file, x, y, image size, layer name. Needs --box_size."""

from collections import Counter

from survey.annotations import csv_table, reading
from survey.annotations.annotation import Annotation, Length
from survey.annotations.reading import Reading, ReadOptions
from survey.errors import InputError

WHAT = "a CSV file with points"
POINT_COLUMNS = (("x", "y"), ("point_x", "point_y"), ("x_px", "y_px"), ("column", "row"), ("col", "row"))


def read(path: str, options: ReadOptions) -> Reading:
    """Annotations of one CSV file.

    A row with an image and no point says that the image has no object.

    Raises:
      InputError: a column is missing, a value is no number, a row has no class, or its class has no --box_size.
    """
    table = csv_table.table(path, WHAT)
    image_at = table.column(csv_table.IMAGE_COLUMNS, "the image")
    points_at = table.columns(POINT_COLUMNS, "the point")
    class_at = table.class_column(options.class_column)
    sizes_at = table.size_columns()
    x_at, y_at = points_at
    seen: dict[str, str] = {}  # as in csv_boxes
    images: dict[str, None] = {}
    size_of: dict[tuple[str, ...], tuple[int, int] | None] = {}
    sides: dict[str, Length] = {}
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
        if not (row[x_at] or row[y_at]):
            skipped[csv_table.SKIPPED] += 1
            continue
        x, y = reading.numbers((row[x_at], row[y_at]), f"{path}: line {line}", [table.header[i] for i in points_at])
        name = row[class_at].strip()
        if not name:
            raise InputError(f"{path}: line {line} has no class in column {table.header[class_at]!r}")
        name = seen.setdefault(name, name)
        if name not in sides:
            sides[name] = options.side(name, path)
        annotations.append(Annotation(image, size_of[cells], name, (y, x, y, x), path, options.frame, sides[name]))
    return Reading(annotations, tuple(images), skipped)
