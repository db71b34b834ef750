"""`rookery show-batch`: a picture of what the network sees at a step, with every box that it is taught, and what was lost."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from survey import dataset, files, flags
from survey.errors import InputError
from survey.flags import flag
from tpu_train import hparams, plan, sources
from tpu_train.options import Options as TrainOptions

if TYPE_CHECKING:
    from official.core import config_definitions

    from tpu_train.batch_view import BatchView

PROG = "rookery show-batch"


@dataclass(frozen=True, slots=True)
class Options:
    """Draws the batch that `rookery train` trains on at a step, as the network gets it: cropped, turned, coloured.

    Takes the flags of `rookery train`, too: give those of the run. Exactly its batch on one CPU or GPU; a TPU sees the same crops
    of the same patches, but turns and colours them otherwise.

    rookery show-batch --dataset survey/ --image_size 256 --step 100 --output batch.png
    """

    dataset: str = flag("folder written by `rookery shard`")
    output: str = flag("the PNG file to write", default="batch.png")
    split: str = flag("split to learn from", default="train")
    step: int = flag("steps trained before; 0 is the first batch", default=0)
    patch_ids: tuple[int, ...] | None = flag(
        "show only these patches: as they are in the step's batch, or else in one of their own", default=None
    )
    augment: bool = flag("off: whole patches, as validation sees them", default=True)
    anchors: bool = flag(
        "also draw the anchors that learn: the centre of each as a dot, and the best one of each object", default=False
    )

    def __post_init__(self) -> None:
        if not self.output.lower().endswith(".png"):
            raise InputError(f"--output={self.output!r}: must be a file name ending in .png")
        if self.step < 0:
            raise InputError(f"--step={self.step}: must be 0 for the first batch, or the number of steps trained before")


def run(argv: Sequence[str]) -> int:
    """Draws a batch; returns 0."""
    options, rest = flags.parse(Options, argv, prog=PROG, passthrough=True)
    data = dataset.read(options.dataset)
    if not data.splits.get(options.split):
        raise InputError(f"--split={options.split}: the dataset has patches in {', '.join(data.splits)}")
    training = plan.sized(_of_training(options, rest), data)
    settled = plan.make(training, data)
    read = sources.Sources(training, settled)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no lines about absent GPUs between ours
    # TensorFlow takes seconds to import: only now, when the command line is known to be right.
    from tpu_train import batch_picture, configure, pictures

    config = configure.experiment(training, settled)
    view, note = look(options, config, read)
    picture = batch_picture.BatchPicture(options.dataset, config, view)
    where = f"{os.path.basename(os.path.abspath(options.dataset))}, {options.split}, step {options.step}, seed {training.seed}"
    sheet = picture.sheet(where, augmented=options.augment, anchors=options.anchors)
    files.write(options.output, pictures.png(sheet))
    for line in (f"show-batch: {where}", *note, *picture.summary()):
        print(line)
    print(f"open {options.output} ({sheet.shape[1]:,} x {sheet.shape[0]:,} px)")
    return 0


def _of_training(options: Options, rest: Sequence[str]) -> TrainOptions:
    """The options of the run whose batch is shown.

    Raises:
      InputError: a flag that neither verb has, or a value that training refuses.
    """
    # Those of the run win, so that its whole command line may be given; its weights and its folder are not looked at.
    ours = [f"--dataset={options.dataset}", "--model_dir=", "--init=scratch"]
    splits = [f"--train_split={options.split}", f"--val_split={options.split}"]
    known = flags.names(TrainOptions)
    training, unknown = flags.parse(TrainOptions, [*ours, *splits, *hparams.expanded(rest, known)], prog=PROG, passthrough=True)
    flags.refuse_unknown(unknown, [*flags.names(Options), *known], prog=PROG)
    if training.train_split != options.split:
        raise InputError(f"--train_split={training.train_split}: give --split={training.train_split} to look at that one")
    return training


def look(options: Options, config: "config_definitions.ExperimentConfig", read: sources.Sources) -> "tuple[BatchView, list[str]]":
    """What to draw, and a line for people where it is not what the step trains on."""
    import numpy as np

    from tpu_train import batch_view, patches

    if options.patch_ids is None:
        return batch_view.at_step(config, read, options.step, augmented=options.augment), []
    wanted = patches.wanted(options.dataset, options.patch_ids, options.split)
    batch = batch_view.at_step(config, read, options.step, augmented=options.augment)
    rows = [int(i) for patch_id in options.patch_ids for i in np.flatnonzero(batch.patch_ids == patch_id)]
    absent = sorted(set(options.patch_ids) - set(batch.patch_ids.tolist()))
    if not absent:
        return batch.rows(np.array(rows)), []
    # The random numbers of an image follow from its place in the batch, which these have not.
    note = f"note: not in the batch of step {options.step}, so with other random numbers: {', '.join(map(str, absent))}"
    own = batch_view.of_patches(config, wanted, options.step, augmented=options.augment)
    return own, [note] if options.augment else []


if __name__ == "__main__":
    flags.exit_with(run)
