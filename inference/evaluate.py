"""`rookery evaluate`: detections beside annotations -> average precision, precision, recall, F1, kinds of error, count error.

Precision, recall, F1 and counts are taken at the score threshold of the detections, which the model brings from its own
validation split. The best F1 on the evaluated set is printed too, but as what it is: a bound that peeked at the answers.
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from inference import evaluate_table, evaluation, judging
from inference.evaluation import Evaluation
from survey import detections as detections_contract
from survey import files, flags, matching, provenance, truth
from survey.annotations import FORMATS, every, reading
from survey.annotations.reading import ReadOptions
from survey.detections import Detections, Manifest
from survey.errors import InputError
from survey.matching import Frame
from survey.truth import Truth


@dataclass(frozen=True)
class Options:
    """Compares detections with annotations: AP, precision, recall, F1 and count error, per class and over all."""

    detections: str = flags.flag("folder that `rookery predict` wrote")
    annotations: str = flags.flag("annotation files of the predicted mosaics; a glob pattern, quoted")
    annotation_format: str = flags.flag("format of the annotations", default="voc", choices=sorted(FORMATS))
    class_column: str | None = reading.flag_class_column()
    class_names: str | None = reading.flag_class_names()
    box_size: str | None = reading.flag_box_size()
    origin: str = reading.flag_origin()
    iou: tuple[float, ...] = flags.flag(
        "IoU thresholds: how much a detection and an object must overlap to match; the report draws the first", default=(0.4, 0.5)
    )
    sizes_px: tuple[float, ...] = flags.flag(
        "objects are small up to the area of a square of the first side, large from that of the second; COCO's unless given",
        default=(32.0, 96.0),
    )
    cell_px: int = flags.flag("side of the cells whose counts are compared, in pixels", default=512)
    output: str = flags.flag("folder for evaluation.json and matches.parquet (default: the detections folder)", default="")

    def __post_init__(self) -> None:
        for iou in self.iou:
            if not 0 < iou <= 1:
                raise InputError(
                    f"--iou={iou:g}: must be above 0 and at most 1; 0.5 is usual, 0.4 for fuzzy outlines as of trees"
                )
        if len(set(self.iou)) < len(self.iou):
            raise InputError(f"--iou={','.join(f'{iou:g}' for iou in self.iou)}: gives a threshold twice")
        if len(self.sizes_px) != 2 or not 0 < self.sizes_px[0] < self.sizes_px[1] < math.inf:
            raise InputError(
                f"--sizes_px={','.join(f'{side:g}' for side in self.sizes_px)}: must be two sides in pixels, the smaller first, "
                "such as 32,96; divide metres on the ground by the pixel size"
            )
        if self.cell_px < 1:
            raise InputError(f"--cell_px={self.cell_px}: must be at least 1 px; 512 is usual")
        self.read_options()

    def read_options(self) -> ReadOptions:
        """How to understand the annotation files."""
        return ReadOptions.parse(
            class_column=self.class_column, class_names=self.class_names, box_size=self.box_size, origin=self.origin
        )


def run(argv: Sequence[str]) -> int:
    """Evaluates, prints a summary and writes evaluation.json and matches.parquet."""
    options, _ = flags.parse(Options, argv, prog="rookery evaluate")
    manifest, found = detections_contract.read(options.detections)
    paths = files.match(options.annotations, "annotations")
    marked = read_truth(paths, options.annotation_format, manifest, options.read_options())
    result, matches = evaluate(manifest, found, marked, paths, options)
    output = options.output or options.detections
    evaluation.write(output, result, matches)
    print(evaluate_table.summary(result))
    print(f"\nwritten: {os.path.join(output, evaluation.FILE)}, {os.path.join(output, evaluation.MATCHES)}")
    return 0


def read_truth(paths: Sequence[str], annotation_format: str, manifest: Manifest, options: ReadOptions | None = None) -> Truth:
    """Reads annotations of the predicted mosaics.

    An image that a file names without objects is an empty mosaic, so that every detection there is false.

    Args:
      paths: annotation files.
      annotation_format: key of FORMATS.
      manifest: of the detections.
      options: how to understand the files.

    Raises:
      InputError: an image that was not predicted, one of another size, a class that the model lacks, or no annotated mosaic.
    """
    found = every.read(paths, annotation_format, options or ReadOptions())
    _check_classes({one.class_name for one in found.annotations}, manifest)
    marked = truth.by_mosaic(found.annotations, manifest.mosaics, manifest.classes, named_in="the model", images=found.images)
    if not marked.objects:
        names = ", ".join(sorted(mosaic.name for mosaic in manifest.mosaics))
        raise InputError(f"the {len(paths)} annotation files label no object: predicted were {names}")
    return Truth(marked.objects, {**marked.counts, **found.skipped}, marked.offenders)


def _check_classes(named: set[str], manifest: Manifest) -> None:
    if not named <= set(manifest.classes):
        raise InputError(
            f"the annotations have the classes {', '.join(sorted(named))}, the model was exported for "
            f"{', '.join(manifest.classes)}: {', '.join(sorted(named - set(manifest.classes)))} cannot be evaluated. "
            "Predict with a model trained on these classes, or rename the classes in the annotations"
        )


def evaluate(
    manifest: Manifest, found: dict[str, Detections], marked: Truth, paths: Sequence[str], options: Options
) -> tuple[Evaluation, pa.Table]:
    """Computes everything; nothing is printed or written.

    Args:
      manifest: of the detections.
      found: detections by mosaic.
      marked: what `read_truth` gave.
      paths: the annotation files, for provenance.
      options: of the run.

    Returns:
      (what evaluation.json holds, the table of matches).
    """
    mosaics = tuple(mosaic for mosaic in manifest.mosaics if mosaic.name in marked.objects)
    pool = matching.pool(
        Frame(
            found[mosaic.name].boxes_mosaic_px,
            found[mosaic.name].scores,
            found[mosaic.name].class_ids,
            marked.objects[mosaic.name].boxes_mosaic_px,
            marked.objects[mosaic.name].class_ids,
        )
        for mosaic in mosaics
    )
    judged = judging.judge(
        pool, mosaics, manifest.classes, manifest.score_threshold, options.iou, options.sizes_px, options.cell_px
    )
    known = [mosaic.gsd_m for mosaic in mosaics if mosaic.gsd_m is not None]
    result = Evaluation(
        created_utc=provenance.now_utc(),
        score_threshold=manifest.score_threshold,
        gsd_m=(min(known), max(known)) if len(known) == len(mosaics) else None,
        cell_px=options.cell_px,
        overall=judging.scores(judged),
        classes={name: judging.scores(judged, row) for row, name in enumerate(manifest.classes)},
        counts=tuple(judging.counts(judged)),
        unannotated=tuple(mosaic.name for mosaic in manifest.mosaics if mosaic.name not in marked.objects),
        truth=marked.counts,
        annotations={path: files.sha256(path) for path in paths},
        detections=digests(options.detections),
        model_digest=manifest.model_digest,
        options=dataclasses.asdict(options),
        versions=provenance.versions("numpy", "pyarrow"),
    )
    return result, judging.matches(judged)


def digests(folder: str) -> dict[str, str]:
    """sha256 of the contract files of a folder of detections, by file name: names the detections that an evaluation is of."""
    return {name: files.sha256(os.path.join(folder, name)) for name in (detections_contract.MANIFEST, detections_contract.TABLE)}


if __name__ == "__main__":
    flags.exit_with(run)
