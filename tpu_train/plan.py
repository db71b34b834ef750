"""What a training run will do: every default filled in from the dataset, every contradiction refused. No TensorFlow here."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from survey import anchors, box_shapes, dataset, labels
from survey.anchors import AnchorSpec
from survey.errors import InputError
from survey.heads import YoloHeads
from tpu_train import box_sizes
from tpu_train.models import backbones, yolo_networks
from tpu_train.options import YOLO, Options

# What Model Garden's RetinaNet has where nothing is known of the objects (official/vision/configs/retinanet.py).
GARDEN_ANCHORS = AnchorSpec(min_level=3, max_level=7, num_scales=3, aspect_ratios=(0.5, 1.0, 2.0), anchor_size=4.0)
# Of its YOLOv4 for 512 px (official/projects/yolo/configs/yolo.py), for COCO: (width, height) in pixels.
GARDEN_YOLO_ANCHORS = ((12, 16), (19, 36), (40, 28), (36, 75), (76, 55), (72, 146), (142, 110), (192, 243), (459, 401))
COMMON_OBJECTS = 100
ANCHORS_PER_SCALE = 3  # of a YOLO, as in all of its papers and in the seal study


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will do, every default filled in from the dataset.

    Attributes:
      image_size: side of the training crops in pixels.
      patch_size: side of whole patches, which validation and inference see.
      num_classes: without background.
      anchors: of each level of the pyramid; those of a YOLO also say how its heads are decoded.
      max_boxes: rows of the padded boxes.
      max_detections: per patch, in validation and in the exported decoded signature.
      validate_every: steps.
    """

    image_size: int
    patch_size: int
    num_classes: int
    anchors: AnchorSpec | YoloHeads
    max_boxes: int
    max_detections: int
    validate_every: int


def sized(options: Options, data: dataset.Dataset) -> Options:
    """The options with --epochs as steps, and with --classes compared to the dataset.

    Raises:
      InputError: --classes has other names, or in another order; or --epochs of files that nobody has counted.
    """
    if options.classes:
        given = labels.read(options.classes)
        if given != data.classes:
            raise InputError(
                f"--classes={options.classes} says {', '.join(given) or 'nothing'}, the dataset has {', '.join(data.classes)}: "
                "both must be the same, in the same order; drop the flag to take the dataset's"
            )
    if options.epochs is None:
        return options
    if options.training_file_pattern:
        raise InputError(
            f"--epochs={options.epochs} counts the patches of --train_split, but --training_file_pattern names other files: "
            "give --steps instead"
        )
    records = data.records(options.train_split) if data.splits.get(options.train_split) else 0
    # As `sources` has it: what validates is held out first, and the sample is of what is left.
    if options.validation is not None:
        records = round(records * (1 - options.validation))
    records = min(options.sample_train or records, records)
    return dataclasses.replace(options, epochs=None, steps=max(1, math.ceil(options.epochs * records / options.batch_size)))


def make(options: Options, data: dataset.Dataset, *, anchors_px: Sequence[tuple[float, float]] = ()) -> Plan:
    """Fills in what was not given and refuses what contradicts the dataset.

    Args:
      options: of the run.
      data: its dataset.
      anchors_px: of a YOLO that goes on, (width, height) of each anchor as it began; empty to find them.

    Raises:
      InputError: a split is missing or empty, or a given number cannot be right for this dataset.
    """
    for name in ("train_split",) if options.validation else ("train_split", "val_split"):
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
    image_size = options.image_size or data.patch_size
    if image_size > data.patch_size:
        raise InputError(
            f"--image_size={image_size} is larger than the dataset's patches of {data.patch_size} px: "
            f"shard again with --patch_size {image_size}, or drop the flag"
        )
    sizes = {f"--image_size={image_size}": image_size, f"the dataset's patch_size={data.patch_size}": data.patch_size}
    spec: AnchorSpec | YoloHeads
    if options.model == YOLO:
        _check_yolo(options, sizes)  # before the boxes are read, which may take a while
        spec = _yolo_heads(options, anchors_px or _yolo_anchors(options))
    else:
        spec = _with_flags(anchors.fit(data.statistics.box_sides_px), options)
        _check_sizes(options, spec, sizes)
    return Plan(
        image_size=image_size,
        patch_size=data.patch_size,
        num_classes=classes,
        anchors=spec,
        max_boxes=options.max_boxes or _with_margin(largest),
        # A detector finds some things twice and some that are not there: room for twice the fullest patch, at least a hundred.
        max_detections=max(100, math.ceil(2 * largest / 100) * 100),
        validate_every=options.validate_every or math.ceil(options.steps / 5),
    )


def without_dataset(options: Options, patch_size: int | None = None) -> Plan:
    """The plan of a run whose dataset does not exist yet, so that its step can be compiled.

    Args:
      options: must say what a dataset would: image_size and num_classes. Anchors are Model Garden's, and there is room for
        COMMON_OBJECTS objects a patch.
      patch_size: side of the patches in pixels, that of the crops by default.

    Raises:
      InputError: a number is missing or cannot be.
    """
    for name in ("image_size", "num_classes"):
        if getattr(options, name) is None:
            raise InputError(f"--{name} is missing: give it, or --dataset, which knows it")
    image_size = options.image_size or 0
    patch_size = patch_size or image_size
    if patch_size < image_size:
        raise InputError(f"--patch_size={patch_size}: must be at least --image_size={image_size}: crops are cut out of patches")
    sizes = {f"--image_size={image_size}": image_size, f"--patch_size={patch_size}": patch_size}
    spec: AnchorSpec | YoloHeads
    if options.model == YOLO:
        _check_yolo(options, sizes)
        spec = _yolo_heads(options, _given_anchors(options.anchors, options) if options.anchors else _garden_anchors(options))
    else:
        spec = _with_flags(GARDEN_ANCHORS, options)
        _check_sizes(options, spec, sizes)
    return Plan(
        image_size=image_size,
        patch_size=patch_size,
        num_classes=options.num_classes or 0,
        anchors=spec,
        max_boxes=options.max_boxes or _with_margin(COMMON_OBJECTS),
        max_detections=COMMON_OBJECTS,
        validate_every=options.validate_every or math.ceil(options.steps / 5),
    )


def _with_flags(spec: AnchorSpec, options: Options) -> AnchorSpec:
    given = {name: getattr(options, name) for name in ("min_level", "max_level", "anchor_size")}
    return dataclasses.replace(spec, **{name: value for name, value in given.items() if value is not None})


def _check_sizes(options: Options, spec: AnchorSpec, image_sizes: dict[str, int]) -> None:
    backbones.check(options.backbone, min_level=spec.min_level, max_level=spec.max_level, image_sizes=image_sizes)
    backbones.check_init(options.backbone, options.init)


def version(options: Options) -> str:
    """The version of YOLO that a run trains."""
    return options.yolo or yolo_networks.BACKBONES[options.backbone].default_version


def head(options: Options) -> str:
    """The head of a YOLO."""
    return options.head or "yolo3"


def _check_yolo(options: Options, image_sizes: dict[str, int]) -> None:
    yolo_networks.check(options.backbone, head(options), version(options), image_sizes=image_sizes)
    yolo_networks.check_init(options.backbone, options.init)


def _yolo_count(options: Options) -> int:
    """Anchors of all scales together."""
    return ANCHORS_PER_SCALE * yolo_networks.HEADS[head(options)]


def _yolo_anchors(options: Options) -> Sequence[tuple[float, float]]:
    """Those of --anchors, else those that `rookery anchors` would find with its defaults."""
    if options.anchors:
        return _given_anchors(options.anchors, options)
    sizes = box_sizes.of_dataset(options.dataset, options.train_split, max_bad_records=options.max_bad_records)
    return box_shapes.fit(sizes, _yolo_count(options), seed=0).anchors_px


def _given_anchors(path: str, options: Options) -> Sequence[tuple[float, float]]:
    given, wanted = box_shapes.read_anchors(path), _yolo_count(options)
    if len(given) != wanted:
        raise InputError(
            f"--anchors={path} holds {len(given)} anchors: --head {head(options)} takes {wanted}; write them with "
            f"`rookery anchors --k {wanted}`"
        )
    return given


def _garden_anchors(options: Options) -> Sequence[tuple[float, float]]:
    wanted = _yolo_count(options)
    return [GARDEN_YOLO_ANCHORS[i * len(GARDEN_YOLO_ANCHORS) // wanted] for i in range(wanted)]


def _yolo_heads(options: Options, anchors_px: Sequence[tuple[float, float]]) -> YoloHeads:
    return yolo_networks.heads(options.backbone, head(options), version(options), anchors_px)


def _with_margin(objects: int) -> int:
    """Room for a tenth more than the fullest patch, in eights, as a TPU lays them out."""
    return max(8, math.ceil(objects * 1.1 / 8) * 8)
