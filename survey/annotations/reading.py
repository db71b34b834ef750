"""What every format's reader takes and gives: options, a `Reading`, and the checks that all formats share."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from survey import files, flags
from survey.annotations.annotation import Annotation, Box, Frame, Length
from survey.errors import InputError

ORIGINS: dict[str, Frame] = {"top_left": "pixels", "bottom_left": "pixels_from_bottom"}


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to understand annotation files, where the format leaves it open.

    Attributes:
      class_column: column or field that holds the class, None for the first of the usual names.
      class_names: file with the names of the classes by number (YOLO), None to look for it beside the annotations.
      box_sizes: side of the square that stands for a point, by class; the key None is for all other classes.
      frame: of CSV coordinates, which may count rows from the bottom.
    """

    class_column: str | None = None
    class_names: str | None = None
    box_sizes: dict[str | None, Length] = field(default_factory=dict)
    frame: Frame = "pixels"

    @classmethod
    def parse(
        cls,
        *,
        class_column: str | None = None,
        class_names: str | None = None,
        box_size: str | None = None,
        origin: str = "top_left",
    ) -> "ReadOptions":
        """Options as the command line gives them (`flag_*` below).

        Raises:
          InputError: a --box_size that cannot be understood, or no file of class names.
        """
        if class_names is not None and not files.exists(class_names):
            raise InputError(f"--class_names={class_names} does not exist: name a file with one class a line, or a data.yaml")
        return cls(class_column, class_names, parse_box_size(box_size) if box_size is not None else {}, ORIGINS[origin])

    def side(self, class_name: str, path: str) -> Length:
        """The square that stands for a point of this class.

        Raises:
          InputError: no size was given for it.
        """
        size = self.box_sizes.get(class_name) or self.box_sizes.get(None)
        if size is None:
            given = ", ".join(str(name) for name in self.box_sizes)
            raise InputError(
                f"{path} marks {class_name!r} by points, and --box_size gives no size for it"
                f"{f' (only for {given})' if given else ''}: a detector learns boxes, so say how large the objects are, in "
                f"pixels or metres: --box_size=40, or --box_size={class_name}=40, or --box_size={class_name}=1.5m"
            )
        return size


def parse_box_size(text: str) -> dict[str | None, Length]:
    """Sizes by class.

    >>> parse_box_size("40")
    {None: Length(value=40.0, unit='px')}
    >>> parse_box_size("adult=1.6m,pup=24px")
    {'adult': Length(value=1.6, unit='m'), 'pup': Length(value=24.0, unit='px')}

    Raises:
      InputError: not of this form, not above 0, or a class twice.
    """
    sizes: dict[str | None, Length] = {}
    for part in text.split(","):
        name, equals, size = part.rpartition("=")  # a class name may hold an equals sign, a size cannot
        key = name.strip() if equals else None
        size = size.strip()
        try:
            if size.endswith("m"):
                length = Length(float(size.removesuffix("m")), "m")
            else:
                length = Length(float(size.removesuffix("px")), "px")
        except ValueError:
            length = Length(0)
        if not 0 < length.value < math.inf or key in sizes or key == "":
            raise InputError(
                f"--box_size={text}: {part!r} is no size above 0 for one class; write 40 (pixels, all classes), 1.5m (metres), "
                "or adult=40,pup=24"
            )
        sizes[key] = length
    return sizes


@dataclass(frozen=True, slots=True)
class Reading:
    """What one annotation file, or several, say.

    Attributes:
      annotations: the objects, in the order of the files.
      images: every image named, with objects or without; an image without objects is one in which nobody found any.
      skipped: what was left out, by reason, with its number. No reason appears with 0.
    """

    annotations: list[Annotation]
    images: tuple[str, ...] = ()
    skipped: Counter[str] = field(default_factory=Counter)


# The flags of the verbs that read annotations. Each call makes a new field, because a dataclass field belongs to one class.
def flag_class_column() -> Any:
    """`--class_column`."""
    names = ", ".join(CLASS_COLUMNS)
    return flags.flag(f"CSV and map layers: column that holds the class (default: the first of {names})", default=None)


def flag_class_names() -> Any:
    """`--class_names`."""
    return flags.flag(
        "YOLO: file with the class names by number, one a line or a data.yaml (default: looked for beside the annotations)",
        default=None,
    )


def flag_box_size() -> Any:
    """`--box_size`."""
    return flags.flag("points: side of an object's box in pixels (40), metres (1.5m) or by class (adult=40,pup=24)", default=None)


def flag_origin() -> Any:
    """`--origin`."""
    return flags.flag("CSV: corner of the image from which y is counted", default="top_left", choices=sorted(ORIGINS))


CLASS_COLUMNS = ("label", "class", "class_name", "category", "species", "layer_name", "layer", "label_code")


def content(path: str, what: str) -> bytes:
    """All bytes of an annotation file.

    Args:
      path: the file.
      what: the format, for the error.

    Raises:
      InputError: it holds no byte.
    """
    held = files.read(path)
    if not held:
        raise empty_file(path, what)
    return held


def empty_file(path: str, what: str) -> InputError:
    """The error of a file of 0 bytes, which an interrupted copy leaves behind: it does not say that there are no objects."""
    return InputError(f"{path} is empty (0 bytes), {what} is expected: copy it again, or leave it out of --annotations")


def xml(path: str, what: str, tag: str) -> Element:
    """The root of an XML file, parsed without expanding entities.

    Raises:
      InputError: empty, not XML, XML with entities or external references, or another root than `tag`.
    """
    held = content(path, what)
    try:
        root: Element = fromstring(held)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise InputError(f"{path} is not {what}: {error}") from error
    if root.tag != tag:
        raise InputError(f"{path} is not {what}: <{tag}> expected, found <{root.tag}>")
    return root


def numbers(values: Iterable[Any], where: str, names: Sequence[str]) -> tuple[float, ...]:
    """Finite numbers from text or JSON.

    Args:
      values: one for each name.
      where: file and row or object, for the error.
      names: of the fields.

    Raises:
      InputError: names the field and its value.
    """
    given = tuple(values)
    try:
        read = tuple(map(float, given))
        if math.isfinite(sum(read)) and len(read) == len(names):
            return read
    except (TypeError, ValueError):
        pass
    for name, value in zip(names, given, strict=False):
        try:
            if math.isfinite(float(value)):
                continue
        except (TypeError, ValueError):
            pass
        raise InputError(f"{where}: {name}={value!r} must be a number")
    raise InputError(f"{where}: {len(given)} values, must be {len(names)} ({', '.join(names)})")


def image_size(height: Any, width: Any, where: str) -> tuple[int, int] | None:
    """(height, width) in whole pixels; None where the file leaves them out or gives 0, as some tools do.

    Raises:
      InputError: not whole numbers of pixels.
    """
    if height in (None, "", 0, "0") or width in (None, "", 0, "0"):
        return None
    size = numbers((height, width), where, ("image height", "image width"))
    if any(side != int(side) or side < 0 for side in size):
        raise InputError(f"{where}: image height {height}, width {width} must be whole numbers of pixels")
    return (int(size[0]), int(size[1])) if all(size) else None


def around(points: Iterable[tuple[float, float]]) -> Box:
    """The box around (x, y) corners, yxyx."""
    x, y = zip(*points, strict=True)
    return (min(y), min(x), max(y), max(x))
