"""`rookery train`: dataset -> checkpoints."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from survey import anchors, dataset, files, flags
from survey.anchors import AnchorSpec
from survey.errors import InputError
from survey.flags import flag

MODELS = ("retinanet",)
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
    validate_every: int | None = flag("steps between validations (default: a fifth of the run)", default=None)
    train_split: str = flag("split to learn from", default="train")
    val_split: str = flag("split that chooses checkpoint and threshold", default="val")
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


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will do, every default filled in from the dataset.

    Attributes:
      image_size: side of the training crops in pixels.
      patch_size: side of whole patches, which validation and inference see.
      num_classes: without background.
      anchors: the pyramid.
      max_boxes: rows of the padded boxes.
      max_detections: per patch, in validation and in the exported decoded signature.
      validate_every: steps.
    """

    image_size: int
    patch_size: int
    num_classes: int
    anchors: AnchorSpec
    max_boxes: int
    max_detections: int
    validate_every: int


def plan(options: Options, data: dataset.Dataset) -> Plan:
    """Fills in what was not given and refuses what contradicts the dataset.

    Raises:
      InputError: a split is missing or empty, or a given number cannot be right for this dataset.
    """
    for name in ("train_split", "val_split"):
        split = getattr(options, name)
        if not data.splits.get(split) or not data.records(split):
            raise InputError(
                f"--{name}={split}: the dataset has patches in {', '.join(data.splits)}; shard it with --split {split}=..."
            )
    if not data.statistics.objects.get(options.train_split):
        raise InputError(f"split {options.train_split} of {options.dataset} holds no object: there is nothing to learn from")
    classes = len(data.classes)
    if options.num_classes not in (None, classes):
        raise InputError(
            f"--num_classes={options.num_classes} but {dataset.LABELS} has {classes} ({', '.join(data.classes)}): "
            f"the background is not counted; drop the flag to take {classes}"
        )
    largest = data.statistics.max_objects_per_patch
    if options.max_boxes is not None and options.max_boxes < largest:
        raise InputError(
            f"--max_boxes={options.max_boxes} would cut objects off: a patch holds {largest}; drop the flag to take that"
        )
    spec = anchors.fit(data.statistics.box_sides_px)
    if options.anchor_size is not None:
        spec = AnchorSpec(spec.min_level, spec.max_level, spec.num_scales, spec.aspect_ratios, options.anchor_size)
    image_size = options.image_size or data.patch_size
    stride = 2**spec.max_level
    for what, size in (
        (f"--image_size={image_size}", image_size),
        (f"the dataset's patch_size={data.patch_size}", data.patch_size),
    ):
        if size % stride:
            below = size // stride * stride
            near = f"{below} or {below + stride}" if below else str(stride)
            raise InputError(f"{what}: must be a multiple of the coarsest stride, {stride} px; use {near}")
    if image_size > data.patch_size:
        raise InputError(
            f"--image_size={image_size} is larger than the dataset's patches of {data.patch_size} px: "
            f"shard again with --patch_size {image_size}, or drop the flag"
        )
    return Plan(
        image_size=image_size,
        patch_size=data.patch_size,
        num_classes=classes,
        anchors=spec,
        max_boxes=options.max_boxes or max(1, largest),
        # A detector finds some things twice and some that are not there: room for twice the fullest patch, at least a hundred.
        max_detections=max(100, math.ceil(2 * largest / 100) * 100),
        validate_every=options.validate_every or math.ceil(options.steps / 5),
    )


def run(argv: Sequence[str]) -> int:
    """Trains; returns 0."""
    options, _ = flags.parse(Options, argv, prog="rookery train")
    settled = plan(options, dataset.read(options.dataset))
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
