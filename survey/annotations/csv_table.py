"""What both CSV formats share: a header whose columns are found by their usual names, and rows with their line numbers."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from survey.annotations import reading
from survey.annotations.reading import CLASS_COLUMNS
from survey.errors import InputError

IMAGE_COLUMNS = ("image_path", "file", "filename", "file_name", "image", "image_name", "img", "path", "mosaic", "name")
HEIGHT_COLUMNS = ("height", "image_height", "img_height")
WIDTH_COLUMNS = ("width", "image_width", "img_width")
SIZE_COLUMNS = ("image_size", "size", "img_size", "dimensions")  # one cell, "5184x3456": width first, as cameras say it
SKIPPED = "rows_without_object"


@dataclass(frozen=True, slots=True)
class Table:
    """A CSV file with a header.

    Attributes:
      path: the file, for errors.
      header: the column names as they stand in the file.
      rows: (line number from 1, cells) of the rows that are not blank, each as long as the header.
    """

    path: str
    header: list[str]
    rows: Iterator[tuple[int, list[str]]]

    def column(self, names: Sequence[str], what: str) -> int:
        """Position of the first of these columns.

        Raises:
          InputError: the header has none of them.
        """
        found = self.find(names)
        if found is None:
            raise InputError(
                f"{self.path} has no column for {what}: it has {', '.join(self.header)}; one of {', '.join(names)} is expected"
            )
        return found

    def columns(self, sets: Sequence[Sequence[str]], what: str) -> list[int]:
        """Positions of the first of these sets of columns of which the header has every one.

        Raises:
          InputError: the header has no set as a whole.
        """
        for names in sets:
            found = [self.find([name]) for name in names]
            if None not in found:
                return [i for i in found if i is not None]
        known = " or ".join(",".join(names) for names in sets)
        raise InputError(f"{self.path} has no columns for {what}: it has {', '.join(self.header)}; {known} are expected")

    def class_column(self, asked: str | None) -> int:
        """Position of the class, in the column asked for or in the first of the usual ones.

        Raises:
          InputError: there is no such column.
        """
        if asked is None:
            return self.column(CLASS_COLUMNS, "the class (--class_column)")
        if asked in self.header:
            return self.header.index(asked)
        return self.column([asked], f"--class_column={asked}")

    def find(self, names: Sequence[str]) -> int | None:
        """Position of the first of these columns, None where the header has none; case and spaces do not matter."""
        plain = [_plain(name) for name in self.header]
        return next((plain.index(_plain(name)) for name in names if _plain(name) in plain), None)

    def size_columns(self) -> tuple[int, ...]:
        """Positions of height and width, or of the one column with both; empty where the file does not say."""
        height, width, both = (self.find(names) for names in (HEIGHT_COLUMNS, WIDTH_COLUMNS, SIZE_COLUMNS))
        if height is not None and width is not None:
            return (height, width)
        return () if both is None else (both,)


def table(path: str, what: str) -> Table:
    """Opens a CSV file; commas, semicolons or tabs, whichever its header has most of.

    Raises:
      InputError: empty, not UTF-8 text, or a row that is longer or shorter than the header.
    """
    try:
        text = reading.content(path, what).decode("utf-8-sig")  # spreadsheets write a byte order mark
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not {what}: it is not UTF-8 text ({error}); export it as CSV UTF-8") from error
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        header = [name.strip() for name in next(rows, [])]
        while header and not header[-1]:
            header.pop()
    except csv.Error as error:
        raise InputError(f"{path} is not {what}: {error}") from error
    return Table(path, header, _rows(path, what, rows, len(header)))


def _rows(path: str, what: str, rows: Any, width: int) -> Iterator[tuple[int, list[str]]]:
    try:
        for row in rows:
            if len(row) != width:
                if not any(cell.strip() for cell in row):
                    continue
                if any(cell.strip() for cell in row[width:]) or len(row) < width:
                    raise InputError(f"{path}: line {rows.line_num} has {len(row)} cells, the header {width}")
            yield rows.line_num, row
    except csv.Error as error:
        raise InputError(f"{path} is not {what}: line {rows.line_num}: {error}") from error


def size_of(cells: Sequence[str], where: str) -> tuple[int, int] | None:
    """(height, width) of an image from the cells of `Table.size_columns`.

    Raises:
      InputError: not numbers, or one cell that is not like 5184x3456.
    """
    if len(cells) == 2:
        return reading.image_size(cells[0].strip(), cells[1].strip(), where)
    if not cells or not cells[0].strip():
        return None
    width, _, height = cells[0].lower().replace("×", "x").replace("*", "x").strip(" ()[]").partition("x")
    if not (width.strip().isdigit() and height.strip().isdigit()):
        raise InputError(f"{where}: image size {cells[0]!r} must be width x height in pixels, like 5184x3456")
    return reading.image_size(height.strip(), width.strip(), where)


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")
