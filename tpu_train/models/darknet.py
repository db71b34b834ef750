"""Model Garden's YOLO as we train it: the seal study's dense darknet, Lite0 as a backbone, images of any size.

Which numbers a combination has is in `tpu_train.models.yolo_networks`.
"""

import copy
import dataclasses
from typing import Any

import tensorflow as tf
import tf_keras
from official.modeling import hyperparams
from official.projects.yolo.configs import backbones as garden_backbones
from official.projects.yolo.configs import yolo as garden
from official.projects.yolo.modeling import factory, yolo_model
from official.projects.yolo.modeling.backbones import darknet
from official.projects.yolo.modeling.decoders import yolo_decoder
from official.vision.modeling.backbones import factory as backbone_factory
from official.vision.modeling.decoders import factory as decoder_factory

from tpu_train.models import efficientnet_lite
from tpu_train.models.yolo_networks import DENSE

# Importing them registers their builders, "yolo_decoder" and "efficientnet_lite0".
REGISTERED = (yolo_decoder.build_yolo_decoder, efficientnet_lite.build)
_FINEST = 1  # Model Garden's darknets number their stages from 0, the first convolution

# The seal study's: a convolution of 32, then stages of 64 filters and 1 block, 128 and 2, 256 and 8, 512 and 8, at strides 2 to
# 16. That is Darknet-53 without its last and widest stage.
darknet.BACKBONES[DENSE] = {
    "list_names": darknet.LISTNAMES,
    "splits": {"backbone_split": 0},  # where darknet's own weight files would be cut; there are none of it
    "backbone": [list(row) for row in darknet.DARKNET53["backbone"][:5]],
}


@dataclasses.dataclass
class Backbone(garden_backbones.Backbone):
    """Model Garden's choice of backbones under a YOLO decoder, and EfficientNet-Lite0."""

    @dataclasses.dataclass
    class EfficientNetLite0(hyperparams.Config):
        """The levels that the decoder sees."""

        min_level: int = 3
        max_level: int = 5

    efficientnet_lite0: EfficientNetLite0 = dataclasses.field(default_factory=EfficientNetLite0)


@dataclasses.dataclass
class Model(garden.Yolo):
    """Model Garden's YOLO with our backbones; `num_classes` counts no background."""

    backbone: Backbone = dataclasses.field(default_factory=lambda: Backbone(type="darknet"))


class Yolo(yolo_model.Yolo):
    """Model Garden's YOLO over a backbone that computes more levels than its decoder looks at, without decoding.

    `networks.train_only` needs the finer ones, to keep the weights below one of them. The layers are the same, so are the
    checkpoints. Detections are `model.detection_generator(raw)`: whoever wants only the raw heads shall not pay for them, and
    for images of unknown size, with which Keras saves a model, they cannot be made.
    """

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: Any = None) -> dict[str, Any]:
        """Raw heads.

        Args:
          inputs: [B, H, W, 3], normalised, sides multiples of the coarsest stride.
          training: batch statistics are the batch's.
          mask: Keras's, without use here.

        Returns:
          raw_output {level: [B, h, w, A * (5 + C)]}.
        """
        del training, mask  # Keras hands the first on to the layers by itself
        features = self.backbone(inputs)
        return {"raw_output": self.head(self.decoder({level: features[level] for level in self.decoder.input}))}


def build(config: garden.Yolo, l2: float = 0.0) -> Yolo:
    """The model of a configuration, for square or oblong images of any size, with all its variables made.

    Args:
      config: with the anchors of all levels. `input_size` has no say.
      l2: weight of the squares of all kernels in the model's losses.
    """
    regularizer = tf_keras.regularizers.l2(l2) if l2 else None
    span = config.backbone.get()
    wanted = [str(level) for level in range(span.min_level, span.max_level + 1)]
    whole = copy.deepcopy(config.backbone)
    whole.get().min_level = _FINEST
    images = tf_keras.layers.InputSpec(shape=[None, None, None, 3])
    backbone = backbone_factory.build_backbone(images, whole, config.norm_activation, regularizer)
    decoder = decoder_factory.build_decoder({level: backbone.output_specs[level] for level in wanted}, config, regularizer)
    anchors, _ = config.anchor_boxes.get(span.min_level, span.max_level)
    model = Yolo(
        backbone=backbone,
        decoder=decoder,
        head=factory.build_yolo_head(decoder.output_specs, config, regularizer),
        detection_generator=factory.build_yolo_detection_generator(config, anchors),
    )
    # The head makes its variables when it is first called. An optimizer that averages weights and a checkpoint need them before.
    model(tf_keras.Input([None, None, 3]), training=True)
    return model
