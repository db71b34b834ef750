"""`rookery convert`: detections -> the formats of other tools (inference.outputs)."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from inference import moved
from inference.outputs import writing
from inference.outputs.crops import OF
from inference.outputs.job import Settings
from inference.outputs.writing import DEFAULT_FORMATS, FORMATS
from survey import detections as detections_contract
from survey import flags
from survey.errors import InputError

PROG = "rookery convert"
FILES_LISTED = 12  # of each folder of many files only the number is said


@dataclass(frozen=True, slots=True)
class Options:
    """Writes detections for other tools: tables, maps, labels to be corrected, densities, and crops. docs/outputs.md has all."""

    detections: str = flags.flag("folder that `rookery predict` wrote")
    formats: tuple[str, ...] = flags.flag(f"any of {', '.join(FORMATS)}", default=DEFAULT_FORMATS)
    output: str = flags.flag("folder to write to (default: the detections folder)", default="")
    score_threshold: float | None = flags.flag(
        "a detection counts from this score on (default: what `rookery predict` took); another than that needs --output",
        default=None,
    )
    mosaics: str = flags.flag("where the mosaics lie now, if they moved since; a glob pattern, quoted", default="")
    tile_px: int = flags.flag(
        "yolo, voc, cvat: a mosaic with a longer side becomes tiles of at most this side, with images", default=Settings().tile_px
    )
    density_cell_m: float | None = flags.flag(
        "density: side of a cell in metres, for mosaics with a known pixel size", default=None
    )
    density_cell_px: float | None = flags.flag("density: side of a cell in pixels, for all other mosaics", default=None)
    crops: int = flags.flag("crops: how many of each class, at most", default=Settings().crops)
    crops_of: str = flags.flag("crops: best or worst scores of each class, or all", default="best", choices=OF)

    def __post_init__(self) -> None:
        writing.check_formats(self.formats)
        if self.score_threshold is not None and not 0 <= self.score_threshold <= 1:
            raise InputError(f"--score_threshold={self.score_threshold}: must be from 0 to 1")

    def settings(self) -> Settings:
        """Of the formats."""
        return Settings(self.tile_px, self.density_cell_m, self.density_cell_px, self.crops, self.crops_of)


def run(argv: Sequence[str]) -> int:
    """Runs the verb.

    Args:
      argv: the arguments after `convert`.

    Returns:
      The exit code.

    Raises:
      InputError: something given cannot be used, or nothing asked for can be written.
    """
    options, _ = flags.parse(Options, argv, prog=PROG)
    manifest, found = detections_contract.read(options.detections)
    output = options.output or options.detections
    threshold = manifest.score_threshold if options.score_threshold is None else options.score_threshold
    if threshold != manifest.score_threshold and output.rstrip("/") == options.detections.rstrip("/"):
        raise InputError(
            f"--score_threshold={threshold:g}: {options.detections} counts from {manifest.score_threshold:g} on, and files of "
            "two thresholds in one folder would be confused; give another --output"
        )
    manifest = dataclasses.replace(moved.find(manifest, options.mosaics), score_threshold=threshold)
    notes: list[str] = []
    written = writing.write(output, manifest, found, options.formats, settings=options.settings(), notes=notes)
    if not written:
        raise InputError(f"--formats={','.join(options.formats)}: nothing could be written: {'; '.join(notes)}")
    print("\n".join([f"{len(written)} files in {output}, detections with a score of {threshold:g} or more:", *_listed(written)]))
    print("\n".join(f"note: {note}" for note in notes), end="\n" if notes else "")
    return 0


def _listed(written: Sequence[str]) -> list[str]:
    """The files by name; of a folder with many only how many."""
    by_folder: dict[str, list[str]] = {}
    for name in written:
        by_folder.setdefault(name.rpartition("/")[0], []).append(name)
    lines = []
    for folder, names in by_folder.items():
        lines += [f"  {name}" for name in names] if len(names) <= FILES_LISTED else [f"  {folder}/: {len(names)} files"]
    return lines


if __name__ == "__main__":
    flags.exit_with(run)
