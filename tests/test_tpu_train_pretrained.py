"""Weights reach the right layers, from a PyTorch file and from checkpoints; what does not fit is named."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from matplotlib.cbook import get_sample_data
from official.core import exp_factory, task_factory
from official.modeling import optimization

from survey.errors import InputError
from tpu_train import pretrained, registry
from tpu_train.models import backbones, lite0_weights, networks
from tpu_train.models.efficientnet_lite import EfficientNetLite0


def test_imagenet_weights_fill_the_backbone() -> None:
    """Every variable of the backbone, in TensorFlow's layout."""
    backbone = EfficientNetLite0(tf_keras.layers.InputSpec(shape=[None, None, None, 3]), norm_momentum=0.97)
    # 1 stem + 15 expand + 16 depthwise + 16 project kernels = 48; each is followed by a batch norm of 4: 48 + 192 = 240.
    assert lite0_weights.load_lite0(backbone, lite0_weights.lite0_weights_path()) == 240 == len(backbone.weights)
    tensors = lite0_weights.read_legacy_pth(lite0_weights.lite0_weights_path())
    stem = backbone.get_layer("conv_stem").get_weights()[0]
    np.testing.assert_array_equal(stem[1, 2, 0, 5], tensors["_conv_stem.weight"][5, 0, 1, 2])
    depthwise = backbone.get_layer("blocks_3_depthwise_conv").get_weights()[0]
    np.testing.assert_array_equal(depthwise[4, 0, 7, 0], tensors["_blocks.3._depthwise_conv.weight"][7, 0, 4, 0])


def test_the_features_are_imagenets() -> None:
    """Rear Admiral Hopper in uniform: under the published head, our features say ImageNet class 652, military uniform."""
    backbone = EfficientNetLite0(tf_keras.layers.InputSpec(shape=[None, None, None, 3]), norm_momentum=0.97)
    lite0_weights.load_lite0(backbone, lite0_weights.lite0_weights_path())
    tensors = lite0_weights.read_legacy_pth(lite0_weights.lite0_weights_path())
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
        lite0_weights.read_legacy_pth(str(path))
    assert "run by" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", pickle.dumps(7, 2)])
def test_another_format_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match="old format"):
        lite0_weights.read_legacy_pth(str(path))


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    whole = Path(lite0_weights.lite0_weights_path()).read_bytes()
    path = tmp_path / "weights.pth"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="ends within a tensor"):
        lite0_weights.read_legacy_pth(str(path))


def detector(name: str = "resnet18", *, classes: int = 3, levels: tuple[int, int] = (3, 7), **head: int) -> tf_keras.Model:
    """A detector of our experiment, all of it narrow."""
    config = registry.experiment("retinanet")
    config.override({"task": backbones.overrides(name, min_level=levels[0], max_level=levels[1], fpn_filters=8)})
    model = {"num_classes": classes + 1, "input_size": [128, 128, 3], "head": {"num_convs": 1, "num_filters": 8, **head}}
    config.override({"task": {"init": "scratch", "model": model}})
    built = task_factory.get_task(config.task).build_model()
    networks.complete(built)
    return built


def scramble(model: tf_keras.Model, seed: int = 0) -> None:
    """Gives every variable values of its own, as training would."""
    rng = np.random.default_rng(seed)
    tf_keras.backend.batch_set_value([(weight, rng.random(weight.shape)) for weight in model.weights])


def weights(part: tf_keras.layers.Layer) -> dict[str, np.ndarray]:
    return {"/".join(weight.name.split(":")[0].split("/")[-2:]): weight.numpy() for weight in part.weights}


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, tf_keras.Model]:
    """Model Garden's own RetinaNet for COCO, saved as its trainer does, but ResNet-18 and narrow."""
    config = exp_factory.get_exp_config("retinanet_resnetfpn_coco")
    config.override(
        {
            "task": {
                "model": {
                    "input_size": [128, 128, 3],
                    "backbone": {"resnet": {"model_id": 18}},
                    "decoder": {"fpn": {"num_filters": 8}},
                    "head": {"num_convs": 1, "num_filters": 8},
                }
            }
        }
    )
    model = task_factory.get_task(config.task).build_model()
    scramble(model)
    folder = str(tmp_path_factory.mktemp("coco"))
    return tf.train.Checkpoint(model=model, **model.checkpoint_items).save(f"{folder}/ckpt"), model


def test_all_but_the_classifier_comes_from_a_detector_of_other_classes(coco: tuple[str, tf_keras.Model]) -> None:
    path, source = coco
    model = detector(classes=3)
    networks.set_prior(model, 0.02)
    filled = pretrained.initialize(model, path)
    # ResNet-18: 105. FPN: laterals and convolutions of 3 levels, 2 coarser convolutions, each kernel and bias, and 5 norms of 4:
    # 2 x (3 + 3 + 2) + 20 = 36. Heads: 2 towers of a convolution (2) and 5 norms (20), classifier and regressor of 2: 48.
    assert filled.parts == {"backbone": (105, 105), "decoder": (36, 36), "head": (46, 48)}
    # 91 classes and 4, of which one is the background; 3 scales x 3 ratios.
    assert filled.line() == (
        f"initialised from {path}: backbone 105 of 105, decoder 36 of 36, head 46 of 48 variables "
        "(scores/kernel is 3x3x8x819 there, 3x3x8x36 here)"
    )
    for part in ("backbone", "decoder", "head"):
        theirs, ours = (each.checkpoint_items[part].weights for each in (source, model))
        for one, other in zip(theirs, ours, strict=True):
            assert "scores" in other.name or np.array_equal(one, other), other.name
    # The prior that was set, not what COCO ended with: -ln(0.98 / 0.02) = -3.89182.
    np.testing.assert_allclose(weights(model.head)["scores/bias"], -3.89182, rtol=1e-5)


def test_a_pyramid_of_fewer_levels_takes_those_that_both_have(coco: tuple[str, tf_keras.Model]) -> None:
    """Keras numbers layers by depth: with other levels, the same number is another layer, often of the same shape."""
    path, source = coco
    model = detector(classes=90, levels=(3, 5))
    filled = pretrained.initialize(model, path)
    # FPN: 2 x (3 + 3) + 3 x 4 = 24. Heads: 2 x (2 + 3 x 4) + 4 = 32, the classifier too, for 90 classes are COCO's.
    assert filled.parts == {"backbone": (105, 105), "decoder": (24, 24), "head": (32, 32)}
    assert not filled.notes
    for part in ("decoder", "head"):
        theirs, ours = (weights(each.checkpoint_items[part]) for each in (source, model))
        for name, value in ours.items():
            np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def test_levels_that_the_checkpoint_lacks_start_anew(coco: tuple[str, tf_keras.Model]) -> None:
    path, source = coco
    model = detector(levels=(2, 7))
    filled = pretrained.initialize(model, path)
    # New at level 2: lateral and convolution of the FPN with kernel and bias, a norm there (4) and in each tower (8).
    assert filled.parts == {"backbone": (105, 105), "decoder": (36, 44), "head": (46, 56)}
    assert "lateral_2/kernel is absent there" in filled.line()
    np.testing.assert_array_equal(weights(model.decoder)["lateral_3/kernel"], weights(source.decoder)["lateral_3/kernel"])


@pytest.mark.parametrize(
    ("head", "why"),
    [({"num_filters": 4}, r"classnet-conv_0/kernel is 3x3x8x8 there, 3x3x8x4 here"),
     ({"num_convs": 2}, r"classnet-conv_1/kernel is absent there"),
     ({"num_convs": 0}, r"boxnet-conv_0/bias is only there")],
)  # fmt: skip
def test_towers_of_another_shape_start_anew(coco: tuple[str, tf_keras.Model], head: dict[str, int], why: str) -> None:
    filled = pretrained.initialize(detector(**head), coco[0])
    assert filled.parts["decoder"] == (36, 36)
    assert filled.parts["head"][0] == 0
    assert why in filled.line()


def test_a_classifier_gives_its_backbone(tmp_path: Path) -> None:
    """As Model Garden's image classification saves it."""
    config = exp_factory.get_exp_config("resnet_imagenet")
    config.override({"task": {"model": {"num_classes": 5, "input_size": [64, 64, 3], "backbone": {"resnet": {"model_id": 18}}}}})
    source = task_factory.get_task(config.task).build_model()
    scramble(source)
    tf.train.Checkpoint(model=source, **source.checkpoint_items).save(str(tmp_path / "ckpt"))
    model = detector()
    filled = pretrained.initialize(model, str(tmp_path))  # the folder's latest
    assert filled.parts == {"backbone": (105, 105), "decoder": (0, 36), "head": (0, 48)}
    assert filled.notes == ("it has no decoder", "it has no head")
    for one, other in zip(source.backbone.weights, model.backbone.weights, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, tf_keras.Model]:
    """A run folder of ours: trained weights are 1 and averages 2 in the last checkpoint, averages 3 in best/, statistics 5."""
    folder = str(tmp_path_factory.mktemp("run"))
    model = detector("mobilenet_v2", classes=2)
    optimizer = optimization.ExponentialMovingAverage(tf_keras.optimizers.legacy.SGD())
    optimizer.shadow_copy(model)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer, **model.checkpoint_items)
    for weight in model.non_trainable_weights:
        weight.assign(tf.fill(weight.shape, 5.0))
    for weight in model.trainable_weights:
        weight.assign(tf.fill(weight.shape, 1.0))
        optimizer.get_slot(weight, "average").assign(tf.fill(weight.shape, 2.0))
    tf.train.CheckpointManager(checkpoint, folder, 1).save()
    for weight in model.trainable_weights:  # what validation leaves: the averages in the model, and what was trained beside them
        optimizer.get_slot(weight, "average").assign(weight)
        weight.assign(tf.fill(weight.shape, 3.0))
    tf.train.CheckpointManager(checkpoint, f"{folder}/best", 1, checkpoint_name="best_ckpt").save()
    return folder, model


@pytest.mark.parametrize(("path", "value"), [("", 3.0), ("/best", 3.0), ("/ckpt-1", 2.0), ("/best/best_ckpt-2", 3.0)])
def test_a_run_of_ours_gives_its_averages(run: tuple[str, tf_keras.Model], path: str, value: float) -> None:
    """All of it, for the classes are as many. A run's folder means its best checkpoint."""
    folder, source = run
    model = detector("mobilenet_v2", classes=2)
    filled = pretrained.initialize(model, folder + path)
    assert filled.parts == {"backbone": (260, 260), "decoder": (36, 36), "head": (48, 48)}
    assert filled.source.endswith(" (averaged weights)") == (value == 2.0)
    learned = {weight.ref() for weight in source.trainable_weights}
    for weight, theirs in zip(model.weights, source.weights, strict=True):
        assert np.all(weight.numpy() == (value if theirs.ref() in learned else 5.0)), weight.name


def test_a_checkpoint_of_another_architecture_is_refused(
    coco: tuple[str, tf_keras.Model], run: tuple[str, tf_keras.Model]
) -> None:
    lite0 = detector("efficientnet_lite0")
    before = lite0.backbone.weights[0].numpy()
    with pytest.raises(
        InputError,
        match=r"architecture than --backbone efficientnet_lite0: 105 variables there, 240 here \(conv_stem/kernel is 7x7x3x64 "
        r"there, 3x3x3x32 here; .* more\); it looks like resnet18: give --backbone resnet18",
    ):
        pretrained.initialize(lite0, coco[0])
    np.testing.assert_array_equal(lite0.backbone.weights[0], before)
    with pytest.raises(InputError, match="it looks like mobilenet_v2: give --backbone mobilenet_v2"):
        pretrained.initialize(lite0, run[0])


def test_what_is_no_checkpoint_is_refused(coco: tuple[str, tf_keras.Model], tmp_path: Path) -> None:
    model = coco[1]
    head = tf.train.Checkpoint(head=model.head).write(str(tmp_path / "head"))
    with pytest.raises(InputError, match=r"head holds head: a backbone is needed"):
        pretrained.initialize(model, head)
    with pytest.raises(InputError, match="not a checkpoint that TensorFlow can read"):
        pretrained.initialize(model, str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty is a folder without a checkpoint: .*without \.index"):
        pretrained.initialize(model, str(tmp_path / "empty"))
    tf.raw_ops.SaveV2(prefix=str(tmp_path / "old"), tensor_names=["a"], shape_and_slices=[""], tensors=[tf.zeros(2)])
    with pytest.raises(InputError, match="of TensorFlow 1"):
        pretrained.initialize(model, str(tmp_path / "old"))


def test_imagenet_and_scratch() -> None:
    model = detector("efficientnet_lite0")
    assert pretrained.initialize(model, "scratch").line() == "initialised from scratch"
    assert "backbone 240 of 240 variables" in pretrained.initialize(model, "imagenet").line()
    with pytest.raises(InputError, match=r"efficientnet_lite0 only, not for resnet18. Model Garden publishes none"):
        pretrained.initialize(detector(), "imagenet")
