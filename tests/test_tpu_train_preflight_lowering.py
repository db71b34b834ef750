"""The step that preflight lowers is the one that is trained; its text is always the same, and operations name their lines."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from official.core import base_trainer, config_definitions, task_factory
from official.vision.ops import anchor, preprocess_ops
from tensorflow.python.framework import config as tf_config  # where determinism can be taken back

from survey.errors import InputError
from tpu_train import precision, registry, saved_model
from tpu_train.experiments import retinanet
from tpu_train.guard import Guard
from tpu_train.models import backbones
from tpu_train.preflight import lint, lowering

SIZE, BATCH, BOXES = 64, 2, 3
# Runs a module on the CPU, argument by argument; TensorFlow stays out of the process.
EXECUTE = """
import sys
import jax
import numpy as np
from tpu_train.preflight.libtpu import drop_copies
from jax._src import compiler, xla_bridge
from jax._src.interpreters import mlir
from jax._src.lib.mlir import ir
from jaxlib import _jax

module_file, given, results = sys.argv[1:]
jax.config.update("jax_enable_x64", True)
client = xla_bridge.get_backend("cpu")
device = client.local_devices()[0]
with mlir.make_ir_context():
    module = ir.Module.parse(open(module_file, "rb").read())
    drop_copies(module.body)
    options = compiler.get_compile_options(num_replicas=1, num_partitions=1)
    executable = client.compile_and_load(module, _jax.DeviceList((device,)), options)
with np.load(given) as arrays:
    values = [arrays[f"arr_{i}"] for i in range(len(arrays.files))]
outputs = executable.execute([jax.device_put(value, device) for value in values])
np.savez(results, *[np.asarray(output) for output in outputs])
"""


def configured(**task: Any) -> config_definitions.ExperimentConfig:
    """A small ResNet-18 with two classes; everything that a step can hold is on: averages, a slower backbone, a frozen stem."""
    config = registry.experiment("retinanet")
    config.override({"task": backbones.overrides("resnet18", min_level=3, max_level=4, fpn_filters=16)})
    small = {
        "num_classes": 3,
        "input_size": [SIZE, SIZE, 3],
        "anchor": {"num_scales": 1, "aspect_ratios": [1.0]},
        "head": {"num_convs": 1, "num_filters": 16},
    }
    data = {"train_data": {"global_batch_size": BATCH}, "validation_data": {"global_batch_size": BATCH}}
    config.override({"task": {"init": "somewhere", "train_size": SIZE, "max_boxes": BOXES, "model": small, **data, **task}})
    # Without adaptive rates, so that a weight moves as its gradient says.
    optimizer = {
        "optimizer": {"type": "sgd", "sgd": {"momentum": 0.9, "global_clipnorm": 10.0}},
        "learning_rate": {"type": "constant", "constant": {"learning_rate": 1.0}},  # far beyond what float32 rounds off
        "warmup": {"type": None},
    }
    config.override({"trainer": {"train_steps": 10, "validation_interval": 10, "optimizer_config": optimizer}})
    return config


def batch(task: retinanet.RetinaNetTask) -> dict[str, np.ndarray]:
    """Two images of noise with two objects each, as the host sends them."""
    rng = np.random.default_rng(0)
    spec = task.input_spec(BATCH, training=True)
    boxes = [[[8.0, 8.0, 30.0, 30.0], [30.0, 26.0, 50.0, 54.0], [0.0] * 4]] * 2
    values = {
        "image": rng.integers(0, 255, spec["image"].shape, np.uint8),
        "boxes": np.array(boxes, np.float32),
        "classes": np.array([[1, 2, 0]] * 2, np.int32),
        "objects": np.array([2, 2], np.int32),
        "patch_id": np.array([3, 4], np.int64),
        "view": np.array([[1.0, 0.0, 0.0], [0.9, -2.0, -1.0]], np.float32),
    }
    assert {name: (value.shape, value.dtype.name) for name, value in values.items()} == {
        name: (tuple(each.shape), each.dtype.name) for name, each in spec.items()
    }
    return values


def unlucky(shape: list[int], seed: tf.Tensor, minval: float = 0.0, maxval: float = 1.0) -> tf.Tensor:
    """Numbers that look random; real ones are drawn by another algorithm where XLA compiles than where TensorFlow interprets."""
    numbers = np.arange(1, 1 + np.prod(shape)) * 0.6180339887 % 1.0
    return tf.constant(minval + (maxval - minval) * numbers.reshape(shape), tf.float32)


def variables(trainer: base_trainer.Trainer) -> list[tf.Variable]:
    """Weights, batch statistics, moments, averages."""
    return [*trainer.model.weights, *trainer.optimizer.variables()]


def trained(config: config_definitions.ExperimentConfig) -> dict[str, Any]:
    """One step as `loop.Run` takes it, from weights of seed 0: the batch, the losses, and the variables after it."""
    tf_keras.utils.set_random_seed(0)
    with tf.distribute.OneDeviceStrategy("/cpu:0").scope():
        task = task_factory.get_task(config.task)
        task.guard = Guard(BATCH)
        inputs = batch(task)
        trainer = base_trainer.Trainer(
            config,
            task,
            model=task.build_model(),
            optimizer=task.create_optimizer(config.trainer.optimizer_config),
            evaluate=False,
            train_dataset=tf.data.Dataset.from_tensors(inputs).repeat(),
        )
        loss = float(trainer.train(tf.constant(1))["training_loss"])
    return {"inputs": inputs, "loss": loss, "after": [variable.numpy() for variable in variables(trainer)]}


def executed(text: str, arguments: list[np.ndarray], folder: Path) -> list[np.ndarray]:
    """What a module gives on the CPU."""
    (folder / "step.stablehlo").write_text(text)
    np.savez(folder / "given.npz", *arguments)
    files = [str(folder / name) for name in ("step.stablehlo", "given.npz", "results.npz")]
    command = [sys.executable, "-c", EXECUTE, *files]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "results.npz") as arrays:
        return [arrays[f"arr_{i}"] for i in range(len(arrays.files))]


def test_the_lowered_step_is_the_trained_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step by TensorFlow, and its StableHLO by jaxlib's CPU client: the same loss, and all variables move as far."""
    pytest.importorskip("jax")
    monkeypatch.setattr(tf.random, "stateless_uniform", unlucky)
    config = configured(backbone_rate=0.5)
    expected = trained(config)
    tf_keras.utils.set_random_seed(0)
    with precision.computing("float32"):
        traced = lowering.trace(config, replicas=1, step="train")
        text = traced.lower()
    state = traced.state()
    results = executed(text, [*(expected["inputs"][name] for name in traced.inputs), *state], tmp_path)

    concrete = traced.function.get_concrete_function(*traced.inputs.values())
    place = {id(handle): i for i, handle in enumerate(concrete.captured_inputs)}
    pairs = re.findall(r"parameter_number = (\d+) : i64}, output_index = array<i64: (\d+)>", text)
    replaced = {int(parameter) - len(traced.inputs): results[int(output)] for parameter, output in pairs}

    def after(variable: tf.Variable) -> np.ndarray:
        return replaced[place[id(variable.handle)]]

    trainer = traced.owner
    loss, count = (after(variable) for variable in trainer.train_loss.variables)
    assert (count, after(trainer.global_step)) == (1, 1)
    assert float(loss) == pytest.approx(expected["loss"], rel=1e-5)
    moved = 0
    for variable, right in zip(variables(trainer), expected["after"], strict=True):
        where = place.get(id(variable.handle))
        if where not in replaced:  # frozen, or read only
            np.testing.assert_array_equal(variable.numpy(), right)
            continue
        old, new = (np.asarray(values, np.float64) for values in (state[where], replaced[where]))
        wrong, step = np.linalg.norm(new - right), np.linalg.norm(right - old)
        # Rounding: of sums over thousands of pixels, of the sum with the old value, and of gradients that cancel out to 0.
        assert wrong <= 2e-3 * step + 1e-6 * np.linalg.norm(old) + 1e-6, variable.name
        moved += bool(step > 1e-4)
    assert moved > 80
    assert not trainer.model.backbone.layers[1].trainable  # freeze_level holds though nothing was loaded


def test_the_lowered_inference_is_the_exported_one(tmp_path: Path) -> None:
    pytest.importorskip("jax")
    with precision.computing("float32"):
        traced = lowering.trace(configured(), replicas=1, step="predict")
        text = traced.lower()
    images = np.random.default_rng(0).integers(0, 255, (BATCH, SIZE, SIZE, 3), np.uint8)
    boxes, scores = executed(text, [images, *traced.state()], tmp_path)
    assert isinstance(traced.owner, saved_model.Exported)
    expected = traced.owner.raw(tf.constant(images))
    assert boxes.shape == (BATCH, 8 * 8 + 4 * 4, 4)  # one anchor in each cell of strides 8 and 16
    np.testing.assert_allclose(boxes, expected["raw_boxes"], atol=1e-4)
    np.testing.assert_allclose(scores, expected["raw_scores"], atol=1e-4)
    # Model Garden decodes boxes along, but no result needs that.
    assert not [operation.name for operation in traced.operations() if operation.kind in ("Exp", "Sigmoid", "TopKV2")]


@pytest.fixture(scope="module", autouse=True)
def as_in_a_new_process() -> Iterator[None]:
    """Training makes operations deterministic on the CPU, for the rest of its process; a step is lowered in one of its own."""
    deterministic = tf_config.is_op_determinism_enabled()
    tf_config.disable_op_determinism()
    yield
    if deterministic:
        tf_config.enable_op_determinism()


@pytest.fixture(scope="module")
def lowered() -> lowering.Lowered:
    """A batch of four, for two replicas."""
    config = configured(train_data={"global_batch_size": 4})
    before = tf_keras.mixed_precision.global_policy().name
    result = lowering.lower(config, replicas=2, step="train")
    assert tf_keras.mixed_precision.global_policy().name == before
    assert config.as_dict() == configured(train_data={"global_batch_size": 4}).as_dict()
    return result


def test_one_replica_is_lowered_as_a_tpu_trains(lowered: lowering.Lowered) -> None:
    assert lowered.batch == 2
    assert lowered.inputs["image"] == ((2, SIZE, SIZE, 3), "uint8")
    assert "module @rookery_train_step" in lowered.stablehlo
    assert "x64x3x3xbf16" in lowered.stablehlo or "3x3x64x64xbf16" in lowered.stablehlo  # a kernel in the policy's type


def test_sizes_are_the_models(lowered: lowering.Lowered) -> None:
    model = task_factory.get_task(configured().task).build_model()
    assert lowered.parameters == sum(weight.shape.num_elements() for weight in model.weights)
    frozen = sum(weight.shape.num_elements() for weight in model.non_trainable_weights)
    assert lowered.trainable_bytes == 4 * (lowered.parameters - frozen)
    assert frozen > 64 * 7 * 7 * 3  # the stem


def test_operations_name_their_lines(lowered: lowering.Lowered) -> None:
    """Lines of ours and of Model Garden's, without a machine's paths; a gradient has the line of what it is the gradient of."""
    sources = lowered.sources
    assert all(re.fullmatch(r"(tpu_train|official)/[\w/]+\.py:\d+", source) for source in sources.values())
    assert len(sources) > 0.99 * len(lowered.operations)
    resampling = [each for each in lowered.operations if each.kind == "Einsum"]
    assert {each.source.split(":")[0] for each in resampling} == {"tpu_train/augment.py"}
    backward = [each for each in lowered.operations if each.kind == "Conv2DBackpropFilter" and "residual" in each.name]
    assert backward
    assert {each.source.split(":")[0] for each in backward} == {"official/vision/modeling/layers/nn_blocks.py"}


def test_the_shipped_step_is_clean(lowered: lowering.Lowered) -> None:
    assert lint.check_step(lowered.operations) == []
    assert all(operation.compiles for operation in lowered.operations)


def test_two_processes_lower_to_the_same_text() -> None:
    apart = lowering.lower_apart(configured(), replicas=1, step="predict")
    tf_keras.backend.clear_session()  # the names of layers count them: here others were built before
    here = lowering.lower(configured(), replicas=1, step="predict")
    assert apart.stablehlo == here.stablehlo
    assert apart.operations == here.operations
    assert apart.batch == BATCH


def test_what_xla_lacks_is_refused_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    normalize = retinanet.RetinaNetTask.normalize

    def on_the_host(self: retinanet.RetinaNetTask, images: tf.Tensor) -> tf.Tensor:
        looked_at = tf.numpy_function(lambda values: values, [images], tf.float32)
        return normalize(self, tf.ensure_shape(looked_at, images.shape))

    monkeypatch.setattr(retinanet.RetinaNetTask, "normalize", on_the_host)
    where = r"tpu_train/experiments/retinanet.py:\d+ \(PyFunc\)"
    message = rf"\(predict\) cannot run on a TPU: {where}: XLA cannot compile PyFunc: .* in the input"
    with pytest.raises(InputError, match=message):
        lowering.lower(configured(), replicas=1, step="predict")


def test_contradictions_are_refused() -> None:
    with pytest.raises(InputError, match=r"task.train_data.global_batch_size=2: must be a multiple of the 4 replicas.*use 4"):
        lowering.lower(configured(), replicas=4, step="train")
    with pytest.raises(InputError, match=r"step=validate: must be one of train, predict"):
        lowering.lower(configured(), replicas=1, step="validate")


def neutral(config: config_definitions.ExperimentConfig) -> None:
    """Leaves images as they are."""
    still = {"flip": False, "quarter_turn": False, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "white_balance": 0.0}
    config.task.augmentation.override({"scale_min": 1.0, "scale_max": 1.0, **still})


def test_the_benchmarks_steps_have_the_same_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """benchmarks/tpu_step.py: our step and Model Garden's, with the same weights, on the same pixels and boxes."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import tpu_step

    size, rng = 128, np.random.default_rng(1)
    experiment = tpu_step.experiment

    def unvaried(*arguments: Any) -> config_definitions.ExperimentConfig:
        config = experiment(*arguments)
        neutral(config)
        return config

    monkeypatch.setattr(tpu_step, "experiment", unvaried)
    images = rng.integers(0, 255, (1, size, size, 3), np.uint8)
    boxes = np.array([[10, 12, 40, 50], [60, 20, 124, 80], [70, 70, 100, 101]], np.float32)
    classes = np.array([1, 8, 3], np.int32)
    padded = np.zeros((1, tpu_step.MAX_BOXES, 4), np.float32), np.zeros((1, tpu_step.MAX_BOXES), np.int32)
    padded[0][0, :3], padded[1][0, :3] = boxes, classes
    mine = {
        "image": images,
        "boxes": padded[0],
        "classes": padded[1],
        "objects": np.array([3], np.int32),
        "patch_id": np.array([0], np.int64),
        "view": np.array([[1.0, 0.0, 0.0]], np.float32),
    }
    anchors = anchor.Anchor(3, 7, 3, [0.5, 1.0, 2.0], 4.0, [size, size]).multilevel_boxes
    labelled = anchor.AnchorLabeler(0.5, 0.4).label_anchors(anchors, tf.constant(boxes), tf.constant(classes[:, None]))
    class_targets, box_targets, _, class_weights, box_weights = labelled
    pixels = (images - np.array(preprocess_ops.MEAN_RGB)) / np.array(preprocess_ops.STDDEV_RGB)
    theirs = {
        "images": pixels,
        **{f"cls_targets/{level}": value[None] for level, value in class_targets.items()},
        **{f"box_targets/{level}": value[None] for level, value in box_targets.items()},
        "cls_weights": class_weights[None],
        "box_weights": box_weights[None],
    }
    with precision.computing("float32"):
        ours, stock = (make(1, size, "sgd") for make in (tpu_step.ours, tpu_step.stock))
    assert ours.inputs.keys() == mine.keys()
    ours.network.backbone.set_weights(stock.network.backbone.get_weights())
    ours.network.decoder.set_weights(stock.network.decoder.get_weights())
    stock.network(tf.zeros([1, size, size, 3]))  # makes its heads
    ours.network.head.set_weights(stock.network.head.get_weights())

    def of(inputs: Mapping[str, tf.TensorSpec], values: dict[str, Any]) -> dict[str, tf.Tensor]:
        return {name: tf.cast(tf.ensure_shape(values[name], spec.shape), spec.dtype) for name, spec in inputs.items()}

    ours.owner.train_step(iter([of(ours.inputs, mine)]))
    stock.owner.train_step(iter([tpu_step.as_parsed(of(stock.inputs, theirs))]))
    losses = [
        {
            metric.name: float(metric.result())
            for metric in traced.owner.train_metrics
            if metric.name in retinanet.RetinaNetTask.LOSSES
        }
        for traced in (ours, stock)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0]["cls_loss"] > 0
    assert losses[0]["box_loss"] > 0
    trainable = [sum(weight.shape.num_elements() for weight in each.network.trainable_weights) for each in (ours, stock)]
    assert trainable[0] == trainable[1]
