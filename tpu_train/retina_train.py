"""Flags of the TPU RetinaNet's training script as ours: what `scripts/retina_train.sh` of the seafloor project was called with.

The flags are those of tensorflow/tpu's models/official/retinanet/retinanet_main.py, and of its successor in Model Garden,
official/legacy/detection/main.py. Each becomes flags of `rookery train`, or of scripts/2_train_tpu.sh where --tpu names a TPU.
"""

import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from survey import flags
from survey.errors import InputError
from survey.flags import flag

PROG = "retina_train.sh"
TRAIN_TPU = "./scripts/2_train_tpu.sh"
# Defaults of retinanet_main.py, where only a part of what makes the number of steps is given.
NUM_EPOCHS, TRAIN_BATCH_SIZE = 15.0, 64
SAME = ("model_dir", "num_classes", "hparams", "params_override", "accelerator")
RENAMED = {
    "train_batch_size": "batch_size",
    "iterations_per_loop": "steps_per_loop",
    "config_file": "config",
    "total_steps": "steps",
}
# Why nothing has to be said in their place.
DROPPED = {
    "resnet_checkpoint": "is not in Model Garden's format; weights come by --init, from ImageNet by default",
    "val_json_file": "the validation split has its boxes in its records",
    "eval_batch_size": "validation uses the batch size of training",
    "eval_samples": "the whole validation split is used",
    "eval_steps": "the whole validation split is used",
    "eval_after_training": "training validates as it goes, --validate_every says how often",
    "min_eval_interval": "training validates as it goes, --validate_every says how often",
    "eval_timeout": "training validates as it goes, nothing waits for checkpoints",
    "num_shards": "all cores that are there are used",
    "num_cores": "all cores that are there are used",
    "use_tpu": "a TPU is used where there is one",
    "strategy_type": "a TPU is used where there is one",
    "use_xla": "the step is always compiled",
}


def _dropped(name: str) -> str:
    return flag(f"dropped: {DROPPED[name]}", default=None)


@dataclass(frozen=True, slots=True)
class Options:
    """Trains with the flags of the TPU RetinaNet (retinanet_main.py); prints what they become, and runs it.

    Without --tpu that is `rookery train` on this machine; with it ./scripts/2_train_tpu.sh, which makes the TPU and deletes it.
    What stands behind a lone -- goes there as it is:

      ./scripts/retina_train.sh --training_file_pattern 'dataset/train-*' --model_dir run -- --backbone resnet50
    """

    training_file_pattern: str = flag("DATASET/SPLIT-*: becomes --dataset and --train_split; with --dataset, stays as it is")
    model_dir: str = flag("stays --model_dir")
    dataset: str | None = flag("of `rookery shard`, where the pattern names other files than a split of it", default=None)
    validation_file_pattern: str | None = flag("DATASET/SPLIT-*, of the same dataset: becomes --val_split", default=None)
    tpu: str | None = flag("name of the TPU: becomes --name of 2_train_tpu.sh (also --tpu_name)", default=None)
    tpu_name: str | None = flag("the same as --tpu", default=None)
    accelerator: str | None = flag("with --tpu: its type, such as v5litepod-8; there the TPU existed already", default=None)
    tpu_zone: str | None = flag("becomes ZONE in the environment of 2_train_tpu.sh", default=None)
    gcp_project: str | None = flag("becomes PROJECT in the environment of 2_train_tpu.sh", default=None)
    master: str | None = flag("refused: a TPU is named by --tpu", default=None)
    mode: str = flag("only train; `rookery evaluate` judges a model", default="train")
    num_classes: int | None = flag("stays --num_classes", default=None)
    train_batch_size: int | None = flag("becomes --batch_size", default=None)
    total_steps: int | None = flag("becomes --steps", default=None)
    num_epochs: float | None = flag("becomes --epochs; with --num_examples_per_epoch, --steps", default=None)
    num_examples_per_epoch: int | None = flag("becomes --steps: epochs x examples / batch size, as there", default=None)
    iterations_per_loop: int | None = flag("becomes --steps_per_loop", default=None)
    hparams: str | None = flag("stays --hparams", default=None)
    params_override: str | None = flag("stays --params_override; its keys are those of Model Garden's experiment", default=None)
    config_file: str | None = flag("becomes --config", default=None)
    resnet_checkpoint: str | None = _dropped("resnet_checkpoint")
    val_json_file: str | None = _dropped("val_json_file")
    eval_batch_size: str | None = _dropped("eval_batch_size")
    eval_samples: str | None = _dropped("eval_samples")
    eval_steps: str | None = _dropped("eval_steps")
    eval_after_training: str | None = _dropped("eval_after_training")
    min_eval_interval: str | None = _dropped("min_eval_interval")
    eval_timeout: str | None = _dropped("eval_timeout")
    num_shards: str | None = _dropped("num_shards")
    num_cores: str | None = _dropped("num_cores")
    use_tpu: str | None = _dropped("use_tpu")
    strategy_type: str | None = _dropped("strategy_type")
    use_xla: str | None = _dropped("use_xla")
    dry_run: bool = flag("print the command and do not run it", default=False)

    def __post_init__(self) -> None:
        if self.mode not in ("train", "train_and_eval"):
            raise InputError(f"--mode={self.mode}: only train; `rookery evaluate` judges a model on annotated mosaics")
        if self.tpu and self.tpu_name and self.tpu != self.tpu_name:
            raise InputError(f"--tpu={self.tpu} and --tpu_name={self.tpu_name} name two TPUs: leave one out")
        if self.master or "://" in self.name:
            raise InputError(
                f"--{'master' if self.master else 'tpu'}={self.master or self.name}: a TPU is not reached by its address any "
                "more; --tpu NAME makes one of that name"
            )
        if self.name and not self.accelerator:
            raise InputError(f"--tpu={self.name}: the TPU is made for the job; say which, such as --accelerator v5litepod-8")
        if self.accelerator and not self.name:
            raise InputError(f"--accelerator={self.accelerator}: goes with --tpu NAME, give both or neither")
        if self.total_steps is not None and (self.num_epochs is not None or self.num_examples_per_epoch is not None):
            raise InputError(f"--total_steps={self.total_steps}: epochs are given too, and both say how long to train: drop one")

    @property
    def name(self) -> str:
        """Of the TPU; empty for this machine."""
        return self.tpu or self.tpu_name or ""


def command(options: Options, rest: Sequence[str] = ()) -> tuple[list[str], dict[str, str]]:
    """The command that the flags stand for.

    Args:
      options: the flags.
      rest: arguments to hand on as they are.

    Returns:
      (the command, what it needs in its environment).

    Raises:
      InputError: a file pattern that names no split of one dataset.
    """
    made = {name: getattr(options, name) for name in SAME} | {new: getattr(options, old) for old, new in RENAMED.items()}
    if options.dataset:
        made |= {"dataset": options.dataset, "training_file_pattern": options.training_file_pattern}
    else:
        made["dataset"], made["train_split"] = _split("training_file_pattern", options.training_file_pattern)
    if options.validation_file_pattern:
        folder, made["val_split"] = _split("validation_file_pattern", options.validation_file_pattern)
        if folder != made["dataset"].rstrip("/"):
            raise InputError(
                f"--validation_file_pattern={options.validation_file_pattern}: must be of the same dataset, {made['dataset']}; "
                "`rookery shard --split` makes both splits"
            )
    if options.num_examples_per_epoch is not None:
        epochs = NUM_EPOCHS if options.num_epochs is None else options.num_epochs
        made["steps"] = int(epochs * options.num_examples_per_epoch / (options.train_batch_size or TRAIN_BATCH_SIZE))
    else:
        made["epochs"] = options.num_epochs
    if options.name:
        made = {"name": options.name, **made}
    argv = [f"--{name}={value:g}" if isinstance(value, float) else f"--{name}={value}" for name, value in made.items() if value]
    environment = {"ZONE": options.tpu_zone, "PROJECT": options.gcp_project}
    start = [TRAIN_TPU] if options.name else ["rookery", "train"]
    return [*start, *argv, *rest], {name: value for name, value in environment.items() if value and options.name}


def _split(name: str, pattern: str) -> tuple[str, str]:
    """Folder of a dataset and name of its split, from a pattern of its files such as `survey/train-*`."""
    folder, file = os.path.split(pattern)
    found = re.fullmatch(r"([A-Za-z0-9_]+)-(?:\*|\d).*", file)
    if not folder or not found:
        raise InputError(
            f"--{name}={pattern}: must be DATASET/SPLIT-*, of a dataset that `rookery shard` made, such as dataset/train-*; to "
            "learn from other records of the same classes and patch size, name the dataset too, with --dataset"
        )
    return folder, found[1]


def run(argv: Sequence[str]) -> int:
    """Prints the command; runs it in place of this process unless this is a dry run."""
    own, rest = list(argv), []
    if "--" in own:
        at = own.index("--")
        own, rest = own[:at], own[at + 1 :]
    for argument in own:  # before flags that are missing are complained of: a mistyped one is among them
        if argument.startswith("--") and (name := argument[2:].split("=")[0]) not in (
            *flags.names(Options),
            "help",
            "no-dry_run",
        ):
            flags.refuse_unknown([f"--{name}"], flags.names(Options), prog=PROG)
    options, _ = flags.parse(Options, own, prog=PROG)
    made, environment = command(options, rest)
    for name, why in DROPPED.items():
        if getattr(options, name) is not None:
            print(f"note: --{name}={getattr(options, name)} is dropped: {why}", file=sys.stderr)
    print(" ".join([*(f"{name}={shlex.quote(value)}" for name, value in environment.items()), shlex.join(made)]), flush=True)
    if not options.dry_run:
        os.execvpe(made[0], made, {**os.environ, **environment})
    return 0


if __name__ == "__main__":
    flags.exit_with(run)
