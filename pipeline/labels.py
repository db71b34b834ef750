"""`rookery labels`: annotations to a label map, so that the ids of classes are settled once, for all datasets of a survey."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from survey import files, flags, labels
from survey.annotations import FORMATS, every, reading
from survey.annotations.annotation import Length
from survey.annotations.reading import ReadOptions
from survey.errors import InputError

PROG = "rookery labels"


@dataclass(frozen=True, slots=True)
class Options:
    """Writes the classes of annotation files as a label map, in alphabetical order, and prints how many objects each has."""

    annotations: str = flags.flag("annotation files, as a quoted glob pattern")
    output: str = flags.flag("label map to write; an existing one with other classes stays", default="labels.pbtxt")
    annotation_format: str = flags.flag("format of the annotation files", default="voc", choices=sorted(FORMATS))
    class_column: str | None = reading.flag_class_column()
    class_names: str | None = reading.flag_class_names()

    def __post_init__(self) -> None:
        if not self.output.endswith(".pbtxt"):
            raise InputError(f"--output={self.output}: is written as a StringIntLabelMap, its name must end with .pbtxt")
        ReadOptions.parse(class_column=self.class_column, class_names=self.class_names)


def run(argv: Sequence[str]) -> int:
    """Writes the label map and prints the classes."""
    options, _ = flags.parse(Options, argv, prog=PROG)
    paths = files.match(options.annotations, "annotations")
    # Which classes there are does not depend on how large a point's box is.
    found = every.read(
        paths, options.annotation_format, ReadOptions(options.class_column, options.class_names, {None: Length(1)})
    )
    counts = Counter(one.class_name for one in found.annotations)
    if not counts:
        raise InputError(f"--annotations={options.annotations!r}: the {len(paths)} files label no object, so there is no class")
    classes = labels.from_names(counts)
    kept = files.exists(options.output)
    if kept and (before := labels.read(options.output)) != classes:
        raise InputError(
            f"--output={options.output} exists with the classes {', '.join(before)}; the annotations have {', '.join(classes)}: "
            "models and datasets made with it would mean other classes: give another --output, or remove it first"
        )
    if not kept:
        labels.write(options.output, classes)
    width = max(map(len, classes))
    for i, name in enumerate(classes, start=1):
        print(f"{i:>4}  {name:<{width}}  {counts[name]:>9,}")
    for reason, number in found.skipped.items():
        print(f"left out: {number:,} {reason.replace('_', ' ')}")
    print(f"{options.output} {'has these classes already' if kept else 'written'}, from {counts.total():,} objects")
    return 0


if __name__ == "__main__":
    flags.exit_with(run)
