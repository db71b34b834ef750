"""What `--backbone`, `--head` and `--yolo` mean for `--model yolo`: Model Garden's configuration, and what it asks of images.

Facts only, and no TensorFlow: a command line is judged before TensorFlow is imported. Level l of a pyramid has stride 2^l. A head
looks at the coarsest levels that a backbone computes, one, two or three of them. Every backbone takes every head.

Numbers are Model Garden's, of official/projects/yolo: "experiments" below are those of its configs/yolo.py, and its recipes are
configs/experiments/yolov4/detection/yolov4_512_tpu.yaml (43.0 AP on COCO), configs/experiments/yolov4/yolov4_tiny_416_tpu.yaml
and configs/experiments/scaled-yolo/detection/yolo_csp_640_tpu.yaml (47.6 AP), which the wheel lacks.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from survey import heads as raw_heads
from survey.errors import InputError
from tpu_train.models import backbones

V3, V4, SCALED = "v3", "v4", "scaled"
LITE0 = "efficientnet_lite0"
DENSE = "rookery_dense"  # what tpu_train/models/darknet.py calls it among Model Garden's networks
# As in experiments/retinanet.py: averages over some 30 steps. Model Garden's 0.99 is for hundreds of epochs.
_NORM_MOMENTUM = 0.97
# As in experiments/retinanet.py. Model Garden's 0.001 is for the last point of COCO's AP, and makes slow validations.
_SCORE_FLOOR = 0.05


@dataclass(frozen=True, slots=True)
class Backbone:
    """A network under the decoder.

    Attributes:
      networks: what Model Garden calls it, for each version that it can be used with.
      variables: how many it has in each, statistics of batch normalisation included; tells networks apart in a checkpoint.
      default_version: of `VERSIONS`.
      coarsest: level that the network ends at, and every head with it.
      finest: level from which its layers can keep their weights.
      activation: between its layers; Lite0's is fixed.
      tiny: its decoder is Model Garden's "tiny".
      pixel_offset, pixel_scale: per channel; it learns from (pixel - offset) / scale.
      published: where Model Garden keeps weights that fit, "" where it publishes none.
    """

    networks: Mapping[str, str]
    variables: Mapping[str, int]
    default_version: str = V3
    coarsest: int = 5
    finest: int = 1
    activation: str = "leaky"
    tiny: bool = False
    # official/projects/yolo/dataloaders/classification_input.py and yolo_input.py: darknets learn from pixels / 255.
    pixel_offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    pixel_scale: tuple[float, float, float] = (255.0, 255.0, 255.0)
    published: str = ""


@dataclass(frozen=True, slots=True)
class Version:
    """A generation of YOLO: its decoder, how its numbers become boxes, and its loss.

    Attributes:
      decoder: version and type of Model Garden's decoder.
      activation: in the decoder.
      box_type, scale_xy, object_weights: see `survey.heads.YoloHeads`, and the weight of the objectness loss; the latter two for
        three levels, finest first. A head of fewer levels takes the last ones, so that strides 8, 16 and 32 have Model Garden's.
      scaled_loss: the loss is Model Garden's ScaledLoss, else its DarknetLoss; anchors are matched to suit it.
      loss: more of Model Garden's `YoloLoss`, each the same for all levels.
      match_threshold: anchors of an IoU from this on learn an object too, beside the best; with the scaled loss all anchors whose
        sides differ from the object's by a factor of less than this.
      best_match_only: Model Garden's `best_match_only`.
      nms_iou: from which the weaker of two boxes is dropped.
      norm_epsilon: of batch normalisation.
    """

    decoder: Mapping[str, str]
    activation: str
    box_type: str
    scale_xy: tuple[float, float, float]
    object_weights: tuple[float, float, float]
    scaled_loss: bool
    loss: Mapping[str, Any]
    match_threshold: float
    best_match_only: bool
    nms_iou: float
    norm_epsilon: float


def _every(value: Any) -> dict[str, Any]:
    return dict.fromkeys((V3, V4, SCALED), value)


# Darknet-53 without its classifier: 52 convolutions, each with a kernel and the four vectors of batch normalisation; dense: 43.
BACKBONES: Mapping[str, Backbone] = {
    "original": Backbone(_every("darknet53"), _every(260)),
    "dense": Backbone(_every(DENSE), _every(215), coarsest=4),
    "csp": Backbone(
        # Under --yolo scaled, too, so that one network has one set of weights. Model Garden's recipe for it has another first
        # stage ("altered_cspdarknet53"), of which it publishes no weights.
        _every("cspdarknet53"),
        _every(360),
        default_version=V4,
        activation="mish",
        published="gs://tf_model_garden/vision/yolo/ckpt-15000 (ImageNet)",  # yolov4_512_tpu.yaml
    ),
    "tiny": Backbone(
        {V3: "darknettiny", V4: "cspdarknettiny"},
        {V3: 35, V4: 75},
        finest=2,  # of cspdarknettiny: its levels 1 and 2 both have stride 4
        tiny=True,
    ),
    LITE0: Backbone(
        _every(LITE0),
        _every(backbones.BACKBONES[LITE0].variables),
        pixel_offset=backbones.BACKBONES[LITE0].pixel_offset,
        pixel_scale=backbones.BACKBONES[LITE0].pixel_scale,
    ),
}

# The seal study's names; how many levels each looks at.
HEADS: Mapping[str, int] = {"yolo3": 3, "yolo3_dense_2": 2, "yolo3_dense_1": 1}

VERSIONS: Mapping[str, Version] = {
    # Redmon and Farhadi 2018, https://arxiv.org/abs/1804.02767: centres stay in their cell; what overlaps an object by 0.5 is not
    # called background, by 0.7 in yolov3.cfg. Model Garden has no recipe of it: the rest is from experiment yolo_darknet ("YOLOv3
    # and v4") and the defaults of `YoloLoss`.
    V3: Version(
        decoder={"version": "v3", "type": "regular"},
        activation="leaky",
        box_type=raw_heads.ORIGINAL,
        scale_xy=(1.0, 1.0, 1.0),
        object_weights=(1.0, 1.0, 1.0),
        scaled_loss=False,
        loss={
            "box_loss_type": "ciou",
            "ignore_thresh": 0.7,
            "iou_normalizer": 1.0,
            "cls_normalizer": 1.0,
            "objectness_smooth": 0.0,
            "max_delta": math.inf,
        },
        match_threshold=0.4,  # yolo_darknet, parser.anchor_thresh
        best_match_only=False,
        nms_iou=0.6,
        norm_epsilon=1e-3,
    ),
    # Bochkovskiy et al. 2020, https://arxiv.org/abs/2004.10934: yolov4_512_tpu.yaml. Its neck is leaky over a mish backbone.
    V4: Version(
        decoder={"version": "v4", "type": "regular"},
        activation="leaky",
        box_type=raw_heads.ORIGINAL,
        scale_xy=(1.2, 1.1, 1.05),
        object_weights=(1.0, 1.0, 1.0),
        scaled_loss=False,
        loss={
            "box_loss_type": "ciou",
            "ignore_thresh": 0.7,
            "iou_normalizer": 0.07,
            "cls_normalizer": 1.0,
            "objectness_smooth": 0.0,
            "max_delta": 5.0,
        },
        match_threshold=0.4,
        best_match_only=False,
        nms_iou=0.6,
        norm_epsilon=1e-4,
    ),
    # Wang et al. 2021, https://arxiv.org/abs/2011.08036: yolo_csp_640_tpu.yaml on experiment scaled_yolo.
    SCALED: Version(
        decoder={"version": "v4", "type": "csp"},
        activation="mish",
        box_type=raw_heads.SCALED,
        scale_xy=(2.0, 2.0, 2.0),
        object_weights=(2.8, 0.7, 0.28),
        scaled_loss=True,
        loss={
            "box_loss_type": "ciou",
            "ignore_thresh": 0.0,
            "iou_normalizer": 0.05,
            "cls_normalizer": 0.3,
            "objectness_smooth": 1.0,
            "max_delta": math.inf,
        },
        match_threshold=4.0,  # scaled_yolo, parser.anchor_thresh
        best_match_only=True,
        nms_iou=0.65,
        norm_epsilon=1e-3,
    ),
}
# yolov4_tiny_416_tpu.yaml: its two levels are alike.
_TINY_V4_SCALE_XY = 1.05


def levels(backbone: str, head: str) -> range:
    """The levels that a head looks at, finest first: the coarsest that the backbone computes."""
    end = BACKBONES[backbone].coarsest + 1
    return range(end - HEADS[head], end)


def stride(backbone: str, head: str) -> int:
    """What the sides of images must be multiples of, in px: the stride of the head's coarsest level."""
    return 1 << levels(backbone, head)[-1]


def check(backbone: str, head: str, version: str, *, image_sizes: Mapping[str, int] | None = None, freeze_level: int = 0) -> None:
    """Refuses what cannot be built, or cannot see such images.

    Args:
      backbone: one of `BACKBONES`.
      head: one of `HEADS`.
      version: one of `VERSIONS`.
      image_sizes: sides in px of every kind of image that the network will see, by what to call it in a message.
      freeze_level: the backbone keeps its weights up to this level, 0 for none.

    Raises:
      InputError: an unknown name, a pair that does not go together, a size, or a frozen part that is none.
    """
    names: tuple[tuple[str, str, Mapping[str, object]], ...] = (
        ("--backbone", backbone, BACKBONES),
        ("--head", head, HEADS),
        ("--yolo", version, VERSIONS),
    )
    for option, given, known in names:
        if given not in known:
            raise InputError(f"{option}={given}: --model yolo has {', '.join(known)}; use one of them")
    network = BACKBONES[backbone]
    if version not in network.networks:
        raise InputError(
            f"--yolo={version}: Model Garden has no small decoder of that kind for --backbone {backbone}; "
            f"use --yolo {' or '.join(network.networks)}, or --backbone csp"
        )
    step = stride(backbone, head)
    for what, size in (image_sizes or {}).items():
        if size <= 0 or size % step:
            below = size // step * step
            near = f"{below} or {below + step}" if below > 0 else str(step)
            raise InputError(f"{what}: must be a multiple of the coarsest stride of --backbone {backbone}, {step} px; use {near}")
    if freeze_level and not network.finest <= freeze_level <= network.coarsest:
        raise InputError(
            f"task.freeze_level={freeze_level}: --backbone {backbone} can keep its weights up to one of the levels "
            f"{network.finest} to {network.coarsest}; use one of them, or 0 to train all of it"
        )


def check_init(backbone: str, init: str) -> None:
    """Refuses --init=imagenet for a backbone whose weights no Python package carries.

    Raises:
      InputError: with the weights to give instead.
    """
    if init != "imagenet" or backbone == LITE0:
        return
    published = BACKBONES[backbone].published
    give = f"Model Garden publishes {published}: give such a checkpoint's path" if published else (
        "Model Garden publishes none for it: give the path of a checkpoint of its darknet_classification or YOLO experiments, or "
        "of a run of yours"
    )  # fmt: skip
    raise InputError(f"--init=imagenet installs weights for {LITE0} only, not for {backbone}. {give}, or --init scratch")


def by_level(backbone: str, head: str, anchors_px: Sequence[Sequence[float]]) -> dict[int, tuple[tuple[float, float], ...]]:
    """Deals the anchors out to the levels of a head, in their order and as many to each.

    Args:
      backbone: one of `BACKBONES`.
      head: one of `HEADS`.
      anchors_px: (width, height) in pixels of all anchors, smallest first, as `rookery anchors` writes them.

    Raises:
      InputError: they cannot be dealt out evenly, or the finer of two levels would get the larger ones.
    """
    over = levels(backbone, head)
    each, rest = divmod(len(anchors_px), len(over))
    if rest or not each:
        raise InputError(
            f"{len(anchors_px)} anchors: --head {head} has {len(over)} scales and wants as many anchors for each; "
            f"use {max(1, each) * len(over)}, such as `rookery anchors --k {max(1, each) * len(over)}` gives"
        )
    pairs = [(float(width), float(height)) for width, height in anchors_px]
    dealt = {level: tuple(pairs[i * each : (i + 1) * each]) for i, level in enumerate(over)}
    areas = [sum(width * height for width, height in dealt[level]) for level in over]
    if areas != sorted(areas):
        raise InputError(
            f"anchors {pairs}: the first {each} are for the finest of the levels {over[0]} to {over[-1]} and must be the "
            "smallest; sort them by area"
        )
    return dealt


def heads(backbone: str, head: str, version: str, anchors_px: Sequence[Sequence[float]]) -> raw_heads.YoloHeads:
    """The geometry of the raw heads.

    Args:
      backbone: one of `BACKBONES`.
      head: one of `HEADS`.
      version: one of `VERSIONS`.
      anchors_px: (width, height) in pixels of all anchors, smallest first.

    Raises:
      InputError: see `by_level`.
    """
    dealt, scale_xy = by_level(backbone, head, anchors_px), _scale_xy(backbone, head, version)
    return raw_heads.YoloHeads(tuple(dealt), tuple(dealt.values()), VERSIONS[version].box_type, scale_xy)


def _scale_xy(backbone: str, head: str, version: str) -> tuple[float, ...]:
    count = HEADS[head]
    if BACKBONES[backbone].tiny and version == V4:
        return (_TINY_V4_SCALE_XY,) * count
    return VERSIONS[version].scale_xy[-count:]


def _decoder(backbone: str, head: str, version: str) -> dict[str, Any]:
    kind = dict(VERSIONS[version].decoder)
    if BACKBONES[backbone].tiny:
        kind["type"] = "tiny"
    elif HEADS[head] == 1:
        # Over one level there is nothing to aggregate: Model Garden's v3 and v4 are the same there, and its CSP variant, which
        # counts on a pyramid to halve the features first, would be twice as wide as over three levels (43 million parameters).
        kind["type"] = "regular"
    return {"type": "yolo_decoder", "yolo_decoder": {**kind, "activation": VERSIONS[version].activation}}


def overrides(
    backbone: str, head: str, version: str, *, anchors_px: Sequence[Sequence[float]], num_classes: int
) -> dict[str, Any]:
    """What the `task` of a YOLO experiment says for a network.

    Strides of levels ("path_scales") are 2^l by Model Garden's default.

    Args:
      backbone: one of `BACKBONES`.
      head: one of `HEADS`.
      version: one of `VERSIONS`.
      anchors_px: (width, height) in pixels of all anchors, smallest first.
      num_classes: without a background.

    Returns:
      Overrides of `task`: pixel_offset, pixel_scale, and all of `model` (`tpu_train.models.darknet.Model`) that depends on these.

    Raises:
      InputError: see `by_level`.
    """
    network, kind = BACKBONES[backbone], VERSIONS[version]
    geometry = heads(backbone, head, version, anchors_px)
    over, name = geometry.levels, network.networks[version]
    garden_type = LITE0 if name == LITE0 else "darknet"
    parameters = {"min_level": over[0], "max_level": over[-1], **({} if name == LITE0 else {"model_id": name})}

    def each_level(values: Sequence[float]) -> dict[str, float]:
        return {str(level): value for level, value in zip(over, values, strict=True)}

    return {
        "pixel_offset": list(network.pixel_offset),
        "pixel_scale": list(network.pixel_scale),
        "model": {
            "num_classes": num_classes,
            "backbone": {"type": garden_type, garden_type: parameters},
            "decoder": _decoder(backbone, head, version),
            "head": {"smart_bias": True},
            "norm_activation": {
                "activation": network.activation,
                "use_sync_bn": False,
                "norm_momentum": _NORM_MOMENTUM,
                "norm_epsilon": kind.norm_epsilon,
            },
            # Model Garden's configuration says List[int], and its arithmetic takes fractions.
            "anchor_boxes": {
                "anchors_per_scale": len(geometry.anchors_px[0]),
                "boxes": [{"box": list(anchor)} for level in geometry.anchors_px for anchor in level],
            },
            "detection_generator": {
                "box_type": {"all": kind.box_type},
                "scale_xy": each_level(geometry.scale_xy),
                "nms_version": "v2",  # the default, "greedy", does not compile for a TPU
                "iou_thresh": _SCORE_FLOOR,  # Model Garden's name for the least score
                "nms_thresh": kind.nms_iou,
            },
            "loss": {
                **{name: {"all": value} for name, value in kind.loss.items()},
                "object_normalizer": each_level(kind.object_weights[-len(over) :]),
                "use_scaled_loss": kind.scaled_loss,
                "update_on_repeat": True,
            },
            "darknet_based_model": not kind.scaled_loss,
        },
    }


def named(variables: int) -> str | None:
    """The backbone that has so many variables in one of its versions, None where no known one has."""
    return next((name for name, known in BACKBONES.items() if variables in known.variables.values()), None)
