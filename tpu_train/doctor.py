"""`rookery doctor`: is a dataset fit to train? Says so before a TPU is paid for, in the terminal and as one HTML page."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from survey import dataset, files, flags
from survey.errors import InputError
from survey.flags import flag

if TYPE_CHECKING:
    from tpu_train import checks, doctor_page, fitness, inspection

FIT, DOUBTFUL, UNFIT = 0, 1, 3  # exit codes; 2 is a wrong command line
CASES = 5  # shown of each check in the terminal; the page shows more


@dataclass(frozen=True, slots=True)
class Options:
    """Reads a dataset with the decoder of training and says whether it is fit to train.

    Exit code: 0 fit (also with warnings), 1 warnings under --strict, 3 errors, 2 a wrong command line.

    rookery doctor --dataset survey/ --output doctor.html
    """

    dataset: str = flag("folder written by `rookery shard`")
    output: str = flag("the HTML file to write", default="doctor.html")
    sample: int = flag("patches of each split whose pixels are decoded, 0 for all; all else is always checked whole", default=0)
    strict: bool = flag("exit with 1 where there are warnings", default=False)
    seed: int = flag("of the choice of patches", default=0)

    def __post_init__(self) -> None:
        if not self.output.lower().endswith((".html", ".htm")):
            raise InputError(f"--output={self.output!r}: must be a file name ending in .html")
        if self.sample < 0:
            raise InputError(f"--sample={self.sample}: must be 0 for all patches, or a number of patches")


class Examination(NamedTuple):
    """What was found in a dataset.

    Attributes:
      seen: what its records hold.
      fit: of anchors to its objects.
      verdicts: on everything.
      image: pixels of the record of that number, None where they cannot be decoded.
    """

    seen: "inspection.Inspection"
    fit: "fitness.Anchors"
    verdicts: "list[checks.Check]"
    image: "Callable[[int], doctor_page.Pixels | None]"


def run(argv: Sequence[str]) -> int:
    """Examines a dataset; returns the exit code."""
    options, _ = flags.parse(Options, argv, prog="rookery doctor")
    data = dataset.read(options.dataset)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no lines about absent GPUs between ours
    # TensorFlow takes seconds to import: only now, when the command line is known to be right.
    from tpu_train import checks, doctor_page

    found = examine(options.dataset, data, sample=options.sample, seed=options.seed)
    verdicts, image = found.verdicts, found.image
    page = doctor_page.render(
        options.dataset, data, found.seen, verdicts, found.fit, image, sample=options.sample, seed=options.seed
    )
    files.write(options.output, page.encode())
    print(terminal(verdicts))
    print(checks.headline(verdicts))
    print(f"open {options.output} ({len(page) / 1e6:.2f} MB, one file, needs no network)")
    return exit_code(checks.worst(verdicts), strict=options.strict)


def examine(folder: str, data: dataset.Dataset, *, sample: int = 0, seed: int = 0) -> Examination:
    """Reads a dataset and judges it.

    Args:
      folder: of the dataset.
      data: its `dataset.json`.
      sample: patches of each split whose pixels are decoded, 0 for all.
      seed: of their choice.
    """
    from tpu_train import checks, duplicates, fitness, inspection

    seen = inspection.inspect(folder, data, sample=sample, seed=seed)
    reader = inspection.Reader(data.patch_size, max(1, data.statistics.max_objects_per_patch))

    def image(i: int) -> "doctor_page.Pixels | None":
        return reader.image(inspection.content(folder, seen, i))

    search = duplicates.search(seen.fingerprints, seen.split, seen.seen, seen.even, image)
    fit = fitness.fit_anchors(folder, data, seen)
    verdicts = [*checks.of_records(folder, data, seen), *fitness.of_content(folder, data, seen, search, fit)]
    return Examination(seen, fit, verdicts, image)


def exit_code(severity: str, *, strict: bool) -> int:
    """What the process ends with.

    >>> [exit_code(severity, strict=False) for severity in ("ok", "note", "warning", "error")]
    [0, 0, 0, 3]
    >>> exit_code("warning", strict=True)
    1
    """
    if severity == "error":
        return UNFIT
    return DOUBTFUL if severity == "warning" and strict else FIT


def terminal(verdicts: "Sequence[checks.Check]") -> str:
    """One aligned line a check; below one that found something, why it matters, what to do, and where."""
    width = max(len(check.name) for check in verdicts)
    lines = []
    for check in verdicts:
        lines.append(f"{check.severity:<7}  {check.name:<{width}}  {check.found}")
        if check.remedy:
            indent = " " * (9 + width + 2)
            lines += [f"{indent}at   {case}" for case in check.cases[:CASES]]
            if len(check.cases) > CASES:
                lines.append(f"{indent}     and {len(check.cases) - CASES} more, on the page")
            lines += [f"{indent}why  {check.why}", f"{indent}do   {check.remedy}"]
    return "\n".join(lines)


if __name__ == "__main__":
    flags.exit_with(run)
