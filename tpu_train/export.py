"""`rookery export`: checkpoints -> model (SavedModel + model.json)."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from survey import files, flags, model, storage
from survey.errors import InputError
from survey.flags import flag
from tpu_train.run_folder import BEST_RECORD, RECORD


@dataclass(frozen=True, slots=True)
class Options:
    """Exports the best checkpoint of a training run, with averaged weights, as a SavedModel and its spec.

    rookery export --model_dir run/ --output model/
    """

    model_dir: str = flag("folder of the training run")
    output: str = flag("folder for the model; must be new or empty")
    score_threshold: float | None = flag("a detection counts from this score on (default: chosen on validation)", default=None)
    score_floor: float = flag("detections below are never kept", default=0.05)
    nms_iou: float = flag("boxes of one class that overlap more are one object", default=0.5)

    def __post_init__(self) -> None:
        for name in ("score_threshold", "score_floor", "nms_iou"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise InputError(f"--{name}={value}: must be from 0 to 1")


def run(argv: Sequence[str]) -> int:
    """Exports; returns 0."""
    options, _ = flags.parse(Options, argv, prog="rookery export")
    made = files.read_json(os.path.join(options.model_dir, RECORD), "the record of a run of `rookery train`")
    best = files.read_json(
        os.path.join(options.model_dir, BEST_RECORD), "the best validation, which `rookery train` writes at its end"
    )
    if already_exported(options, best, made["dataset"]):
        print(f"export: {options.output} already holds this model, nothing to do")
        return 0
    from tpu_train import saved_model  # TensorFlow takes seconds to import

    with _partial(options.output) as partial:
        spec = saved_model.write(
            os.path.join(partial, model.SAVED_MODEL),
            options.model_dir,
            best,
            made,
            score_threshold=_threshold(options, best),
            score_floor=options.score_floor,
            nms_iou=options.nms_iou,
        )
        model.write(partial, spec)
        # The spec comes last: a folder without it is not a model, and the next try may overwrite what is there.
        files.publish_folder(partial, options.output, last=model.SPEC)
    print(
        f"export: {options.output} finds {', '.join(spec.classes)} on patches of {spec.image_size} px; "
        f"step {best['best_ckpt_global_step']:.0f}, validation F1 {best['f1']:.3f} at score {spec.score_threshold:.2f}\n"
        f"export: next: rookery predict --model {options.output} --mosaics 'GLOB' --output DIR"
    )
    return 0


@contextmanager
def _partial(output: str) -> Iterator[str]:
    """A local folder to write the model into: beside its place, or for one in a bucket in this machine's TMPDIR."""
    if storage.is_remote(output):
        with tempfile.TemporaryDirectory(prefix="rookery-export-") as folder:
            yield folder
        return
    partial = f"{output.rstrip('/')}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    yield partial


def _threshold(options: Options, best: dict[str, float]) -> float:
    return best["score_threshold"] if options.score_threshold is None else options.score_threshold


def already_exported(options: Options, best: dict[str, float], trained_on: str) -> bool:
    """Whether the output is this very export.

    Raises:
      InputError: it holds something else.
    """
    names = files.names(options.output)
    # What an upload that was cut short has left.
    begun = names == [model.SAVED_MODEL] and storage.is_remote(options.output) and storage.all_ours(options.output)
    if not names or begun:
        return False
    if model.SPEC in names:
        there = model.read(options.output)
        found = (there.validation, there.dataset_digest, there.score_threshold, there.score_floor, there.nms_iou)
        if found == (best, trained_on, _threshold(options, best), options.score_floor, options.nms_iou):
            return True
    raise InputError(f"--output={options.output} holds something else: name a new folder, or remove it")


if __name__ == "__main__":
    flags.exit_with(run)
