"""The parts of running a model on a TPU that can be proven without one: the choice, the copies, XLA, and the TPU's compiler."""

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import stub_model
import tensorflow as tf

from inference import model_runner
from inference.model_runner import ModelRunner
from survey.anchors import AnchorSpec
from survey.errors import InputError
from survey.heads import LEVELS, RetinaNetHeads

COMPILER = all(importlib.util.find_spec(name) for name in ("jax", "libtpu"))


@pytest.fixture
def fresh():
    model_runner.tpu_strategy.cache_clear()
    yield
    model_runner.tpu_strategy.cache_clear()


def images(count: int) -> np.ndarray:
    return np.stack([stub_model.paint(64, 64, [(12, 12 + i, 16, 0.8, 1)]) for i in range(count)])


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["CPU"], "CPU"),
        (["CPU", "GPU"], "GPU"),
        (["CPU", "TPU_SYSTEM", "TPU", "TPU"], "TPU"),
        (["CPU", "GPU", "TPU"], "TPU"),
        (["CPU", "TPU_SYSTEM", "XLA_CPU"], "CPU"),  # the TPU's host without its cores
        ([], "CPU"),
    ],
)
def test_the_best_device(kinds, expected):
    assert model_runner.best_device(kinds) == expected


def with_a_tpu(monkeypatch, calls: list[str], error: Exception | None = None) -> None:
    """A worker that shows a TPU of two cores; the strategy stands in for it on this CPU."""
    known = [SimpleNamespace(device_type=kind, name=kind) for kind in ("CPU", "TPU_SYSTEM", "TPU", "TPU")]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [d for d in known if kind in (None, d.device_type)])

    def resolver(tpu: str) -> str:
        calls.append(tpu)
        if error:
            raise error
        return "resolver"

    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", resolver)
    monkeypatch.setattr(tf.tpu.experimental, "initialize_tpu_system", lambda given: calls.append(f"start {given}"))
    monkeypatch.setattr(tf.distribute, "TPUStrategy", lambda given: tf.distribute.OneDeviceStrategy("/cpu:0"))


def test_a_tpu_is_started_once_for_all_models(tmp_path, monkeypatch, fresh):
    calls = []
    folder = stub_model.export(str(tmp_path))
    expected = ModelRunner(folder, stub_model.SPEC, 2)(images(3))
    with_a_tpu(monkeypatch, calls)
    runners = [ModelRunner(folder, stub_model.SPEC, 2) for _ in range(2)]
    assert calls == ["local", "start resolver"]
    for runner in runners:
        for name, raw in runner(images(3)).items():
            np.testing.assert_array_equal(raw, expected[name])


def test_a_tpu_that_does_not_answer(tmp_path, monkeypatch, fresh):
    folder = stub_model.export(str(tmp_path))
    with_a_tpu(monkeypatch, [], tf.errors.UnavailableError(None, None, "The TPU is already in use by pid 7\nstack"))
    with pytest.raises(InputError, match=r"TPU does not answer \(The TPU is already in use by pid 7\): one process"):
        ModelRunner(folder, stub_model.SPEC, 1)


TWO_CORES = """
import sys
import numpy as np
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
sys.path.insert(0, sys.argv[1])
import stub_model
from inference.model_runner import ModelRunner

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
images = np.stack([stub_model.paint(64, 64, [(12, 12 + i, 16, 0.8, 1)]) for i in range(7)])
for folder, together in ((sys.argv[2], 6), (sys.argv[3], 4)):  # the second is made for batches of 2
    plain = ModelRunner(folder, stub_model.SPEC, 3)(images)
    runner = ModelRunner(folder, stub_model.SPEC, 3, strategy=strategy)
    assert runner.batch_size == together, runner.batch_size
    found = runner(images)
    for name in plain:
        assert found[name].shape == plain[name].shape
        np.testing.assert_array_equal(found[name], plain[name])
    assert runner._step.experimental_get_tracing_count() == 1  # one shape for all batches, also the last
print("the same")
"""


def test_two_cores_share_a_batch_in_order(tmp_path):
    """Two devices, two copies of the model: in a process of its own, since TensorFlow divides a CPU only before it is used."""
    folders = [stub_model.export(str(tmp_path / str(fixed)), batch_size=fixed) for fixed in (None, 2)]
    here = Path(__file__).parent
    command = [sys.executable, "-c", TWO_CORES, str(here), *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=here.parent, timeout=600)
    assert done.stdout.endswith("the same\n"), done.stderr[-2000:]


def test_xla_gives_the_heads_of_the_stub(tmp_path):
    runner = ModelRunner(stub_model.export(str(tmp_path)), stub_model.SPEC, 3)
    compiled = tf.function(lambda pixels: runner._call(images=pixels), jit_compile=True)(tf.constant(images(3)))
    for name, plain in runner(images(3)).items():
        np.testing.assert_allclose(compiled[name], plain, rtol=1e-6, atol=1e-6)


class Pyramid(tf.Module):
    """What a RetinaNet is made of, in small: strided convolutions, normalisation, a level added from above, shared heads."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(3)
        shapes = {"one": (7, 3, 16), "two": (3, 16, 24), "three": (3, 24, 24), "boxes": (3, 24, 4), "classes": (3, 24, 3)}
        self.kernels = {
            name: tf.Variable(rng.normal(0, (2 / (side * side * given)) ** 0.5, (side, side, given, made)).astype(np.float32))
            for name, (side, given, made) in shapes.items()
        }

    @tf.function(input_signature=[tf.TensorSpec([None, 64, 64, 3], tf.uint8, name="images")])
    def raw(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        x = tf.nn.conv2d(tf.cast(images, tf.float32) / 64 - 2, self.kernels["one"], 4, "SAME")
        x = tf.nn.batch_normalization(x, tf.reduce_mean(x, [1, 2], keepdims=True), 1.0, None, None, 1e-3)
        fine = tf.nn.conv2d(tf.nn.swish(x), self.kernels["two"], 2, "SAME")
        coarse = tf.nn.conv2d(tf.nn.relu6(fine), self.kernels["three"], 2, "SAME")
        levels = {3: fine + tf.repeat(tf.repeat(coarse, 2, axis=1), 2, axis=2), 4: coarse}
        out = {f"box_outputs_{level}": tf.nn.conv2d(x, self.kernels["boxes"], 1, "SAME") for level, x in levels.items()}
        return out | {f"cls_outputs_{level}": tf.nn.conv2d(x, self.kernels["classes"], 1, "SAME") for level, x in levels.items()}


def test_xla_gives_the_heads_of_a_pyramid_of_convolutions(tmp_path):
    model = Pyramid()
    tf.saved_model.save(model, str(tmp_path / "saved_model"), signatures={"raw": model.raw})
    heads = RetinaNetHeads(AnchorSpec(3, 4, 1, (1.0,), 3.0), (1.0,) * 4, LEVELS, background=True)
    spec = replace(stub_model.SPEC, heads=heads)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)
    runner = ModelRunner(str(tmp_path), spec, 3)
    plain = runner(pixels)
    compiled = tf.function(lambda given: runner._call(images=given), jit_compile=True)(tf.constant(pixels))
    for name, values in plain.items():
        spread = np.std(values)
        assert spread > 1e-3  # there is something to compare
        np.testing.assert_allclose(compiled[name], values, atol=1e-3 * spread)  # XLA sums convolutions in another order


@pytest.mark.skipif(not COMPILER, reason="the TPU compiler is not installed: extra `preflight`")
def test_a_signature_compiles_for_v5e(tmp_path):
    from tpu_train.preflight import compiler
    from tpu_train.preflight.lowering import Traced

    model = tf.saved_model.load(f"{stub_model.export(str(tmp_path))}/saved_model")
    inputs = {"images": tf.TensorSpec((8, 64, 64, 3), tf.uint8)}
    function = tf.function(lambda pixels: model.signatures["raw"](images=pixels), jit_compile=True)
    traced = Traced("predict", function, inputs, None, model)
    found = compiler.compile(traced.lower(), "v5e:2x2", cache=tmp_path / "cache", timeout_s=600)
    assert isinstance(found, compiler.Compiled), found
