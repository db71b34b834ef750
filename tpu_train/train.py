"""`rookery train`: dataset -> checkpoints."""

import os
from collections.abc import Sequence
from typing import Any

from survey import dataset, files, flags, tpu_environment
from survey.errors import InputError
from survey.heads import YoloHeads
from tpu_train import hparams, plan, sources
from tpu_train.options import YOLO, Options
from tpu_train.run_folder import RECORD

# These say how a run is carried out, not which run it is: it may go on with others.
NOT_THE_RUN = (
    "dataset",
    "model_dir",
    "checkpoint_minutes",
    "steps_per_loop",
    "max_bad_records",
    "mode",
    "stop_after",
    "disable_prefetch",
    "mem_eval",
    "classes",
)


def run(argv: Sequence[str]) -> int:
    """Trains; returns 0."""
    options, _ = flags.parse(Options, hparams.expanded(argv, flags.names(Options)), prog="rookery train")
    data = dataset.read(options.dataset)
    options = plan.sized(options, data)
    settled = plan.make(options, data, anchors_px=_begun_with(options))
    files_read = sources.Sources(options, settled)
    if options.validation and data.overlap_px:
        print(
            f"train: note: patches overlap by {data.overlap_px} px, so --validation={options.validation:g} judges by pixels that "
            "were learned from; `rookery shard --split` makes splits that share none"
        )
    record = _record(options, settled, files_read)
    _refuse_another_run(options.model_dir, record)
    tpu_environment.prepare(os.environ)
    # TensorFlow takes seconds to import: only now, when the command line is known to be right.
    from tpu_train import configure, loop, run_pictures

    config = configure.experiment(options, settled)
    files.write_json(os.path.join(options.model_dir, RECORD), record)
    pictures = run_pictures.RunPictures(config, files_read)

    def prepare(task: Any) -> None:
        task.shards, task.pictures = files_read.shards, pictures.validation

    def repair(task: Any, error: Exception) -> None:
        files_read.repair(error)
        task.shards = files_read.shards

    if options.mem_eval:
        from tpu_train import memory

        print(f"train: {memory.report(options, settled).line()}", flush=True)
    loop.train(config, options, settled, prepare=prepare, repair=repair, after_validation=[pictures.write])
    return 0


def _record(options: Options, settled: plan.Plan, files_read: sources.Sources) -> dict[str, Any]:
    """What makes a run this run: its dataset, by content, and its flags."""
    flags_given = {name: getattr(options, name) for name in flags.names(Options) if name not in NOT_THE_RUN}
    if options.training_file_pattern:
        flags_given["training_files"] = files_read.named
    if isinstance(settled.anchors, YoloHeads):
        flags_given |= {"yolo": plan.version(options), "head": plan.head(options)}
        flags_given["anchors"] = [list(anchor) for level in settled.anchors.anchors_px for anchor in level]
    return {"dataset": dataset.digest(options.dataset), **flags_given}


def _begun_with(options: Options) -> list[tuple[float, float]]:
    """Anchors of the YOLO that this run goes on with, none where it begins or is given them.

    They follow from the dataset, all of whose records would have to be read again, and one may have been damaged since.
    """
    path = os.path.join(options.model_dir, RECORD)
    if options.model != YOLO or options.anchors or not files.exists(path):
        return []
    found = files.read_json(path, "the record of a training run")
    same = {"dataset": dataset.digest(options.dataset), "head": plan.head(options), "train_split": options.train_split}
    return [tuple(anchor) for anchor in found["anchors"]] if same.items() <= found.items() else []


def _refuse_another_run(model_dir: str, mine: dict[str, Any]) -> None:
    """Lets a run start in a new folder or continue in its own.

    Raises:
      InputError: the folder holds another run, or anything else.
    """
    path = os.path.join(model_dir, RECORD)
    if files.exists(path):
        found = files.read_json(path, "the record of a training run")
        changed = sorted(name for name in mine | found if mine.get(name) != found.get(name))
        if changed:
            name = changed[0]
            raise InputError(
                f"--model_dir={model_dir} holds a run with {name}={found.get(name)}, this one has {mine.get(name)}: "
                "give the same flags to continue it, or another folder"
            )
    elif files.names(model_dir):
        raise InputError(f"--model_dir={model_dir} holds other files: name an empty or new folder")


if __name__ == "__main__":
    flags.exit_with(run)
