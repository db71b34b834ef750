"""`rookery train`: dataset -> checkpoints."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from survey import dataset, files, flags
from survey.errors import InputError
from survey.flags import flag
from tpu_train import plan

MODELS = ("retinanet",)
BACKBONES = (
    "efficientnet_lite0",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "spinenet49",
    "mobilenet_v2",
)
SCHEDULES = ("cosine", "onecycle", "step", "constant")
MODES = ("graph", "eager")
RECORD = "train.json"  # in the model folder: which run it belongs to
BEST = "best"  # in the model folder: the checkpoint that validated best
BEST_RECORD = os.path.join(BEST, "info.json")  # its metrics, as Model Garden writes them


@dataclass(frozen=True, slots=True)
class Options:
    """Trains a detector on a dataset, on a TPU or GPU when there is one, else on the CPU. After a stop, the same command goes on.

    rookery train --dataset survey/ --model_dir run/ --steps 1000
    """

    dataset: str = flag("folder written by `rookery shard`")
    model_dir: str = flag("where checkpoints go; a run found there is continued")
    model: str = flag("architecture", default="retinanet", choices=MODELS)
    backbone: str | None = flag("network under the detector (default: the experiment's)", default=None, choices=BACKBONES)
    steps: int = flag("training steps", default=1000)
    batch_size: int = flag("images per step, over all replicas", default=8)
    image_size: int | None = flag("side of the training crops in px (default: the dataset's patch size)", default=None)
    num_classes: int | None = flag("classes without background (default: the dataset's)", default=None)
    anchor_size: float | None = flag(
        "side of the smallest anchor in strides (default: fitted to the dataset's boxes)", default=None
    )
    max_boxes: int | None = flag("objects per patch, at most (default: the dataset's largest patch)", default=None)
    init: str = flag("imagenet, scratch, or the path of a Model Garden checkpoint", default="imagenet")
    learning_rate: float | None = flag("peak learning rate (default: the experiment's)", default=None)
    schedule: str = flag("of the learning rate, after a linear warm-up", default="cosine", choices=SCHEDULES)
    backbone_rate: float = flag("learning rate of the backbone, as a share of the others'", default=1.0)
    freeze_steps: int = flag("the backbone keeps its weights for so many first steps", default=0)
    validate_every: int | None = flag("steps between validations (default: a fifth of the run)", default=None)
    stop_after: int | None = flag("stop after so many validations without a better one (default: never)", default=None)
    checkpoint_minutes: float = flag("save at least so often; a kill loses no more", default=10.0)
    steps_per_loop: int | None = flag("steps between two looks of the host (default: fitted to the run)", default=None)
    max_bad_records: int = flag("go on without so many records whose checksum is wrong", default=0)
    mode: str = flag("graph compiles the step; eager runs it line by line, for debugging", default="graph", choices=MODES)
    train_split: str = flag("split to learn from", default="train")
    val_split: str = flag("split that chooses checkpoint and threshold", default="val")
    training_file_pattern: str | None = flag(
        "learn from these TFRecord files instead of the split's, as a quoted glob pattern", default=None
    )
    config: str | None = flag("YAML with overrides of the experiment, such as one of tpu_train/configs/", default=None)
    params_override: str = flag("further overrides, as a.b=1,a.c=2 or YAML; an unknown key is an error", default="")
    seed: int = flag("of initialisation, shuffling and augmentation", default=0)

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "image_size",
            "num_classes",
            "anchor_size",
            "max_boxes",
            "learning_rate",
            "validate_every",
        ):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f"--{name}={value}: must be above 0")
        found = any(os.path.exists(path) for path in (f"{self.init}.index", os.path.join(self.init, "checkpoint")))
        if self.init not in ("imagenet", "scratch") and "://" not in self.init and not found:
            raise InputError(
                f"--init={self.init}: is neither imagenet nor scratch, and there is no TensorFlow checkpoint of that name"
            )


def run(argv: Sequence[str]) -> int:
    """Trains; returns 0."""
    options, _ = flags.parse(Options, argv, prog="rookery train")
    settled = plan.make(options, dataset.read(options.dataset))
    record = _record(options)
    _refuse_another_run(options.model_dir, record)
    from tpu_train import loop  # TensorFlow takes seconds to import: only now, when the command line is known to be right

    config = loop.configure(options, settled)
    files.write_json(os.path.join(options.model_dir, RECORD), record)
    loop.train(config, options, settled)
    return 0


def _record(options: Options) -> dict[str, Any]:
    """What makes a run this run: its dataset, by content, and its flags."""
    flags_given = {name: getattr(options, name) for name in flags.names(Options) if name not in ("dataset", "model_dir")}
    return {"dataset": dataset.digest(options.dataset), **flags_given}


def _refuse_another_run(model_dir: str, mine: dict[str, Any]) -> None:
    """Lets a run start in a new folder or continue in its own.

    Raises:
      InputError: the folder holds another run, or anything else.
    """
    path = os.path.join(model_dir, RECORD)
    if os.path.exists(path):
        found = files.read_json(path, "the record of a training run")
        changed = sorted(name for name in mine | found if mine.get(name) != found.get(name))
        if changed:
            name = changed[0]
            raise InputError(
                f"--model_dir={model_dir} holds a run with {name}={found.get(name)}, this one has {mine.get(name)}: "
                "give the same flags to continue it, or another folder"
            )
    elif os.path.isdir(model_dir) and os.listdir(model_dir):
        raise InputError(f"--model_dir={model_dir} holds other files: name an empty or new folder")


if __name__ == "__main__":
    flags.exit_with(run)
