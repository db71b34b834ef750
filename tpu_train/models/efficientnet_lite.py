"""EfficientNet-Lite0, a backbone that is fast on a CPU and loses nothing on a TPU: no squeeze-and-excitation, ReLU6, fixed stem.

Tan and Le 2019 (https://arxiv.org/abs/1905.11946), the Lite variant of tensorflow/tpu. Layers carry the names of the published
checkpoint, so that its weights can be assigned by name.
"""

import dataclasses
from typing import Any

import tf_keras
from official.vision.configs import backbones
from official.vision.modeling.backbones import factory

BATCH_NORM_EPSILON = 1e-3  # of the published weights
STEM_FILTERS = 32
# repeats, kernel, stride, expansion, filters
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# The last stage at each stride: stage index -> pyramid level (stride 2^level).
LEVEL_OF_STAGE = {0: "1", 1: "2", 2: "3", 4: "4", 6: "5"}


@dataclasses.dataclass
class Backbone(backbones.Backbone):
    """Model Garden's choice of backbones, and those that we register."""

    @dataclasses.dataclass
    class EfficientNetLite0(backbones.hyperparams.Config):
        """EfficientNet-Lite0 has nothing to configure."""

    @dataclasses.dataclass
    class MobileNetV2(backbones.hyperparams.Config):
        """The MobileNetV2 of models/networks.py has nothing to configure."""

    efficientnet_lite0: EfficientNetLite0 = dataclasses.field(default_factory=EfficientNetLite0)
    mobilenet_v2: MobileNetV2 = dataclasses.field(default_factory=MobileNetV2)


class EfficientNetLite0(tf_keras.Model):
    """The convolutional part: images float [B, H, W, 3] -> {"1".."5": features [B, H / 2^l, W / 2^l, C]}."""

    def __init__(
        self,
        input_specs: tf_keras.layers.InputSpec,
        norm_momentum: float,
        kernel_regularizer: tf_keras.regularizers.Regularizer | None = None,
    ) -> None:
        def conv(x: Any, filters: int, kernel: int, stride: int, name: str) -> Any:
            layer = tf_keras.layers.Conv2D(
                filters, kernel, stride, "same", use_bias=False, kernel_regularizer=kernel_regularizer, name=name
            )
            return layer(x)

        def norm(x: Any, name: str) -> Any:
            return tf_keras.layers.BatchNormalization(momentum=norm_momentum, epsilon=BATCH_NORM_EPSILON, name=name)(x)

        def relu6(x: Any) -> Any:
            return tf_keras.layers.ReLU(6.0)(x)

        image = tf_keras.Input(input_specs.shape[1:])
        x = relu6(norm(conv(image, STEM_FILTERS, 3, 2, "conv_stem"), "bn0"))
        endpoints = {}
        block, channels = 0, STEM_FILTERS
        for stage, (repeats, kernel, stride, expansion, filters) in enumerate(STAGES):
            for repeat in range(repeats):
                name, strides, shortcut = f"blocks_{block}", stride if repeat == 0 else 1, x
                if expansion != 1:
                    x = relu6(norm(conv(x, channels * expansion, 1, 1, f"{name}_expand_conv"), f"{name}_bn0"))
                x = tf_keras.layers.DepthwiseConv2D(
                    kernel, strides, "same", use_bias=False, depthwise_regularizer=None, name=f"{name}_depthwise_conv"
                )(x)
                x = relu6(norm(x, f"{name}_bn1"))
                x = norm(conv(x, filters, 1, 1, f"{name}_project_conv"), f"{name}_bn2")
                if strides == 1 and channels == filters:
                    x = tf_keras.layers.Add(name=f"{name}_add")([x, shortcut])
                block, channels = block + 1, filters
            if stage in LEVEL_OF_STAGE:
                endpoints[LEVEL_OF_STAGE[stage]] = x
        super().__init__(inputs=image, outputs=endpoints, name="efficientnet_lite0")
        self._output_specs = {level: feature.shape for level, feature in endpoints.items()}

    @property
    def output_specs(self) -> dict:
        """Shape of each level's features."""
        return self._output_specs


@factory.register_backbone_builder("efficientnet_lite0")
def build(input_specs, backbone_config, norm_activation_config, l2_regularizer=None) -> EfficientNetLite0:  # type: ignore[no-untyped-def]
    """Model Garden's builder signature; the activation is fixed by the weights."""
    del backbone_config
    return EfficientNetLite0(input_specs, norm_activation_config.norm_momentum, l2_regularizer)
