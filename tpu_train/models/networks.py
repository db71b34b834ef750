"""Model Garden's networks as our detectors need them: MobileNetV2 for a pyramid, heads with their variables, frozen parts."""

import math
import re
from typing import Any

import tf_keras
from official.vision.modeling.backbones import factory, mobilenet, spinenet
from official.vision.modeling.layers import nn_blocks

_STEM_BLOCKS = 2  # official/vision/modeling/backbones/spinenet.py, _num_init_blocks
_CLASSIFIER = re.compile(r"scores(-\d+)?")  # official/vision/modeling/heads/dense_prediction_heads.py; with a level if not shared


class MobileNetV2(mobilenet.MobileNet):
    """Model Garden's MobileNetV2: images float [B, H, W, 3] -> {"2".."5": features [B, H / 2^l, W / 2^l, C]}.

    Model Garden's also returns its 1280 features for a classifier as if they were a level, and Keras warns at every call that the
    pyramid does not know it. The layers are the same, so are the checkpoints.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> dict[str, Any]:
        """Features of the levels."""
        features = super().call(inputs, training=training, mask=mask)
        return {level: features[level] for level in self.output_specs}


@factory.register_backbone_builder("mobilenet_v2")
def build_mobilenet_v2(input_specs, backbone_config, norm_activation_config, l2_regularizer=None) -> MobileNetV2:  # type: ignore[no-untyped-def]
    """Model Garden's builder signature; the activation is fixed, ReLU6."""
    del backbone_config
    return MobileNetV2(
        model_id="MobileNetV2",
        input_specs=input_specs,
        norm_momentum=norm_activation_config.norm_momentum,
        norm_epsilon=norm_activation_config.norm_epsilon,
        kernel_regularizer=l2_regularizer,
        use_sync_bn=norm_activation_config.use_sync_bn,
    )


def complete(model: tf_keras.Model) -> None:
    """Makes the variables of the heads, which Model Garden leaves to the first step where there is no decoder.

    An optimizer that averages weights, a checkpoint and `set_prior` need them before.
    """
    if not model.head.built:
        model.head(model.backbone(model.backbone.inputs[0]))


def train_only(backbone: tf_keras.Model, *, above: int, up_to: int) -> None:
    """Leaves trainable only what lies between two levels of the pyramid.

    Layers that lead to level `above` keep their weights, and Keras then also uses their stored batch statistics; layers that only
    lead to levels beyond `up_to` have no use: the pyramid does not look there. In SpineNet every block after the stem sees every
    level, so there only the stem (stride 4) can be kept, whatever level from 1 on is named.

    Args:
      backbone: with the features of its levels as outputs.
      above: a level that it computes, or 0 to train from the image on.
      up_to: the coarsest level that is looked at.
    """
    features = {int(level): backbone.output[level] for level in backbone.output_specs}
    wanted = _leading_to(backbone, [features[level] for level in features if level <= up_to])
    if above and isinstance(backbone, spinenet.SpineNet):
        blocks = [layer for layer in backbone.layers if isinstance(layer, nn_blocks.BottleneckBlock)]
        wanted -= _leading_to(backbone, [blocks[_STEM_BLOCKS - 1].output])
    elif above:
        wanted -= _leading_to(backbone, [features[above]])
    for layer in backbone.layers:
        layer.trainable = layer.name in wanted


def _leading_to(backbone: tf_keras.Model, outputs: list[Any]) -> set[str]:
    return {layer.name for layer in tf_keras.Model(backbone.inputs, outputs).layers}


def set_prior(model: tf_keras.Model, prior: float) -> None:
    """Makes every anchor start with the same foreground score, Lin et al. 2017 (https://arxiv.org/abs/1708.02002), section 4.1.

    Model Garden has 0.01 built in. With ten thousand anchors and a few objects a patch the true share is lower, and the first
    steps of a run are spent on saying so.

    Args:
      model: a RetinaNet with its heads built, see `complete`.
      prior: the score, between 0 and 1.
    """
    classifiers = [layer for layer in model.head.submodules if _CLASSIFIER.fullmatch(getattr(layer, "name", ""))]
    assert classifiers, "the heads are not built"
    for layer in classifiers:
        layer.bias.assign([-math.log((1 - prior) / prior)] * layer.bias.shape[0])
