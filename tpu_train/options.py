"""What a training run is asked for: the flags of `rookery train`."""

import os
from dataclasses import dataclass

from survey.errors import InputError
from survey.flags import flag
from tpu_train import precision, schedules
from tpu_train.models import backbones, yolo_networks

RETINANET, YOLO = "retinanet", "yolo"
MODELS = (RETINANET, YOLO)
YOLO_BACKBONES = tuple(name for name in yolo_networks.BACKBONES if name not in backbones.BACKBONES)
# The seal study's names come second; its third mode has none of ours.
GRAPH, EAGER, TAPE = ("graph", "fit"), ("eager", "eager_fit"), ("eager_tf",)
MODES = (*GRAPH, *EAGER, *TAPE)
STEPS = 1000
ONLY = {RETINANET: ("anchor_size", "min_level", "max_level"), YOLO: ("yolo", "head", "anchors")}
POSITIVE = (
    "steps",
    "epochs",
    "batch_size",
    "image_size",
    "num_classes",
    "anchor_size",
    "min_level",
    "max_level",
    "max_boxes",
    "learning_rate",
    "validate_every",
    "stop_after",
    "checkpoint_minutes",
    "steps_per_loop",
    "sample_train",
)


@dataclass(frozen=True, slots=True)
class Options:
    """Trains a detector on a dataset, on a TPU or GPU when there is one, else on the CPU. After a stop, the same command goes on.

    rookery train --dataset survey/ --model_dir run/ --steps 1000
    """

    dataset: str = flag("folder written by `rookery shard`")
    model_dir: str = flag("where checkpoints go; a run found there is continued")
    model: str = flag("architecture", default=RETINANET, choices=MODELS)
    backbone: str = flag(
        "network under the detector",
        default="efficientnet_lite0",
        choices=tuple({**backbones.BACKBONES, **yolo_networks.BACKBONES}),
    )
    yolo: str | None = flag(
        "of --model yolo, its version (default: v4 for csp, else v3)", default=None, choices=tuple(yolo_networks.VERSIONS)
    )
    head: str | None = flag(
        "of --model yolo: at three, two or one scales (default: yolo3)", default=None, choices=tuple(yolo_networks.HEADS)
    )
    anchors: str | None = flag(
        "of --model yolo: what `rookery anchors` wrote (default: the same, made from the training split)", default=None
    )
    steps: int = flag("training steps", default=STEPS)
    epochs: float | None = flag("times through the training split, instead of --steps", default=None)
    batch_size: int = flag("images per step, over all replicas", default=8)
    image_size: int | None = flag("side of the training crops in px (default: the dataset's patch size)", default=None)
    num_classes: int | None = flag("classes without background (default: the dataset's)", default=None)
    anchor_size: float | None = flag(
        "side of the smallest anchor in strides (default: fitted to the dataset's boxes)", default=None
    )
    min_level: int | None = flag("finest level of the pyramid, of stride 2^level (default: 3)", default=None)
    max_level: int | None = flag("coarsest level (default: fitted to the dataset's boxes)", default=None)
    max_boxes: int | None = flag("objects per patch, at most (default: the dataset's fullest patch and a tenth)", default=None)
    init: str = flag("imagenet, scratch, or the path of a Model Garden checkpoint", default="imagenet")
    learning_rate: float | None = flag("peak learning rate (default: the experiment's)", default=None)
    schedule: str | None = flag(
        "of the learning rate, after a warm-up (default: the experiment's, cosine)", default=None, choices=schedules.NAMES
    )
    backbone_rate: float = flag("learning rate of the backbone, as a share of the others'", default=1.0)
    freeze_steps: int = flag("the backbone keeps its weights for so many first steps", default=0)
    validate_every: int | None = flag("steps between validations (default: a fifth of the run)", default=None)
    stop_after: int | None = flag("stop after so many validations without a better one (default: never)", default=None)
    checkpoint_minutes: float = flag("save at least so often; a kill loses no more", default=10.0)
    steps_per_loop: int | None = flag("steps between two looks of the host (default: fitted to the run)", default=None)
    max_bad_records: int = flag("go on without so many records that are damaged", default=0)
    mode: str = flag(
        "graph (or fit) compiles the step; eager (or eager_fit) runs it line by line, for debugging; eager_tf does so in a plain "
        "loop without Model Garden's trainer",
        default="graph",
        choices=MODES,
    )
    sample_train: int | None = flag("learn from so many patches of the training split only", default=None)
    validation: float | None = flag(
        "validate with this share of the training split, which is then not learned from, instead of --val_split", default=None
    )
    disable_prefetch: bool = flag("read in turn, two batches ahead at most, to see what reading costs", default=False)
    mem_eval: bool = flag("also measure a step's memory: of this machine, and of a TPU by `rookery preflight`", default=False)
    classes: str | None = flag("file with a class name a line, in their order: must be the dataset's", default=None)
    train_split: str = flag("split to learn from", default="train")
    val_split: str = flag("split that chooses checkpoint and threshold", default="val")
    training_file_pattern: str | None = flag(
        "learn from these TFRecord files instead of the split's, as a quoted glob pattern", default=None
    )
    hparams: str = flag("flags as the TPU RetinaNet takes them: image_size=640,num_classes=9", default="")
    precision: str | None = flag(
        "numbers that the network computes in (default: bfloat16 on a TPU, else float32); bfloat16 is faster on processors that "
        "have it",
        default=None,
        choices=tuple(precision.POLICIES),
    )
    config: str | None = flag("YAML with overrides of the experiment, such as one of tpu_train/configs/", default=None)
    params_override: str = flag("further overrides, as a.b=1,a.c=2 or YAML; an unknown key is an error", default="")
    seed: int = flag("of initialisation, shuffling and augmentation", default=0)

    def __post_init__(self) -> None:
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"--{name}={value}: must be above 0")
        for name in ("freeze_steps", "max_bad_records"):
            if getattr(self, name) < 0:
                raise InputError(f"--{name}={getattr(self, name)}: must be 0 or more")
        if not 0 < self.backbone_rate <= 1:
            raise InputError(
                f"--backbone_rate={self.backbone_rate}: is a share of the learning rate, above 0 and up to 1; to keep the "
                "backbone as it is, --freeze_steps"
            )
        if self.epochs is not None and self.steps != STEPS:
            raise InputError(f"--epochs={self.epochs} and --steps={self.steps}: both say how long to train: drop one")
        if self.validation is not None and not 0 < self.validation < 1:
            raise InputError(f"--validation={self.validation}: is a share of the training split, above 0 and below 1")
        for model, names in ONLY.items():
            for name in names:
                if model != self.model and getattr(self, name) is not None:
                    raise InputError(f"--{name}={getattr(self, name)}: only --model {model} has it; drop the flag")
        known = backbones.BACKBONES if self.model == RETINANET else yolo_networks.BACKBONES
        if self.backbone not in known:
            raise InputError(f"--backbone={self.backbone}: --model {self.model} has {', '.join(known)}")
        found = any(os.path.exists(path) for path in (f"{self.init}.index", os.path.join(self.init, "checkpoint")))
        if self.init not in ("imagenet", "scratch") and "://" not in self.init and not found:
            raise InputError(
                f"--init={self.init}: is neither imagenet nor scratch, and there is no TensorFlow checkpoint of that name"
            )
