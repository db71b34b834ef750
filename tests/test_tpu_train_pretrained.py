"""The weights of a PyTorch file reach the right layers, and a file that says more than weights is refused."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from matplotlib.cbook import get_sample_data

from survey.errors import InputError
from tpu_train import pretrained
from tpu_train.models.efficientnet_lite import EfficientNetLite0


def test_imagenet_weights_fill_the_backbone() -> None:
    """Every variable of the backbone, in TensorFlow's layout."""
    backbone = EfficientNetLite0(tf_keras.layers.InputSpec(shape=[None, None, None, 3]), norm_momentum=0.97)
    # 1 stem + 15 expand + 16 depthwise + 16 project kernels = 48; each is followed by a batch norm of 4: 48 + 192 = 240.
    assert pretrained.load_lite0(backbone, pretrained.lite0_weights_path()) == 240 == len(backbone.weights)
    tensors = pretrained.read_legacy_pth(pretrained.lite0_weights_path())
    stem = backbone.get_layer("conv_stem").get_weights()[0]
    np.testing.assert_array_equal(stem[1, 2, 0, 5], tensors["_conv_stem.weight"][5, 0, 1, 2])
    depthwise = backbone.get_layer("blocks_3_depthwise_conv").get_weights()[0]
    np.testing.assert_array_equal(depthwise[4, 0, 7, 0], tensors["_blocks.3._depthwise_conv.weight"][7, 0, 4, 0])


def test_the_features_are_imagenets() -> None:
    """Rear Admiral Hopper in uniform: under the published head, our features say ImageNet class 652, military uniform."""
    backbone = EfficientNetLite0(tf_keras.layers.InputSpec(shape=[None, None, None, 3]), norm_momentum=0.97)
    pretrained.load_lite0(backbone, pretrained.lite0_weights_path())
    tensors = pretrained.read_legacy_pth(pretrained.lite0_weights_path())
    with get_sample_data("grace_hopper.jpg") as file:
        image = tf.image.resize(tf.io.decode_jpeg(file.read()), (224, 224), antialias=True)
    features = backbone((image[None] - 127) / 128, training=False)["5"]
    features = tf.nn.conv2d(features, tensors["_conv_head.weight"].transpose(2, 3, 1, 0), 1, "SAME")
    norm = [tensors[f"_bn1.{name}"] for name in ("running_mean", "running_var", "bias", "weight")]
    features = tf.reduce_mean(tf.nn.relu6(tf.nn.batch_normalization(features, *norm, 1e-3)), (1, 2)).numpy()
    logits = features @ tensors["_fc.weight"].T + tensors["_fc.bias"]
    assert np.argmax(logits) == 652


class _Trap:
    def __reduce__(self) -> tuple:
        return (print, ("run by the unpickler",))


def test_code_in_the_file_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "weights.pth"
    parts = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {}, {"w": _Trap()})]
    path.write_bytes(b"".join(parts))
    with pytest.raises(InputError, match="print has no place in a table of weights"):
        pretrained.read_legacy_pth(str(path))
    assert "run by" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", pickle.dumps(7, 2)])
def test_another_format_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match="old format"):
        pretrained.read_legacy_pth(str(path))


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    whole = Path(pretrained.lite0_weights_path()).read_bytes()
    path = tmp_path / "weights.pth"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="ends within a tensor"):
        pretrained.read_legacy_pth(str(path))


class _Detector:
    """What `load_checkpoint` needs of a model: named parts."""

    def __init__(self, width: int) -> None:
        def dense(units: int) -> tf_keras.Model:
            return tf_keras.Sequential([tf_keras.Input([2]), tf_keras.layers.Dense(units)])

        self.checkpoint_items = {"backbone": dense(width), "decoder": dense(3), "head": dense(4)}


def test_a_checkpoint_fills_backbone_and_decoder_but_not_the_head(tmp_path: Path) -> None:
    source, target = _Detector(5), _Detector(5)
    path = tf.train.Checkpoint(**source.checkpoint_items).save(str(tmp_path / "ckpt"))
    assert pretrained.load_checkpoint(target, path) == ["backbone", "decoder"]
    for name, same in (("backbone", True), ("decoder", True), ("head", False)):
        kernels = [model.checkpoint_items[name].weights[0].numpy() for model in (source, target)]
        assert np.array_equal(*kernels) == same
    assert pretrained.load_checkpoint(_Detector(5), str(tmp_path)) == ["backbone", "decoder"]  # the folder's latest


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    path = tf.train.Checkpoint(**_Detector(6).checkpoint_items).save(str(tmp_path / "ckpt"))
    with pytest.raises(InputError, match="another architecture"):
        pretrained.load_checkpoint(_Detector(5), path)
    only_head = tf.train.Checkpoint(head=_Detector(5).checkpoint_items["head"]).save(str(tmp_path / "head"))
    with pytest.raises(InputError, match="a backbone is needed"):
        pretrained.load_checkpoint(_Detector(5), only_head)
    with pytest.raises(InputError, match="not a checkpoint"):
        pretrained.load_checkpoint(_Detector(5), str(tmp_path / "nowhere"))
