"""--precision: which numbers a network computes in, and that a CPU trains in bfloat16, too."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from test_tpu_train_loop import curve
from yolo_survey import survey as survey

from survey import model
from survey.errors import InputError
from tpu_train import configure, export, plan, precision, train

TINY = {"model": "yolo", "backbone": "tiny", "head": "yolo3_dense_1", "init": "scratch", "image_size": 64, "num_classes": 1}


def policy(**flags: object) -> str:
    """Of a run on a device whose own is `of the device`."""
    options = train.Options(dataset="", model_dir="", **TINY, **flags)
    return precision.policy(configure.experiment(options, plan.without_dataset(options)), "of the device")


def test_the_flag_goes_before_the_device() -> None:
    assert policy() == "of the device"
    assert policy(precision="float32") == "float32"
    assert policy(precision="bfloat16") == "mixed_bfloat16"
    assert policy(params_override="runtime.mixed_precision_dtype=bfloat16") == "mixed_bfloat16"
    with pytest.raises(InputError, match=r"runtime.mixed_precision_dtype=float16: must be one of float32, bfloat16; --precision"):
        policy(params_override="runtime.mixed_precision_dtype=float16")


def test_a_run_in_bfloat16(survey: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It learns about as much; its weights and the exported model are float32, and what comes after it in a process is, too.

    At three times this learning rate the losses of the first steps differ threefold, and the last by what CPU it is.
    """
    argv = ["--model=yolo", "--backbone=tiny", "--head=yolo3_dense_1", "--init=scratch", "--batch_size=4", "--steps=15"]
    argv += ["--validate_every=15", "--steps_per_loop=5", "--learning_rate=0.001"]
    losses = {}
    for name in precision.POLICIES:
        folder = tmp_path / name
        assert train.run(["--dataset", survey, "--model_dir", str(folder), *argv, f"--precision={name}"]) == 0
        assert f"{precision.POLICIES[name]}, 5 steps a loop" in capsys.readouterr().out
        losses[name] = [loss for _, loss in curve(folder, "total_loss")]
        assert losses[name][-1] < 0.75 * losses[name][0]
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.1)
    assert tf_keras.mixed_precision.global_policy().name == "float32"
    reader = tf.train.load_checkpoint(str(tmp_path / "bfloat16"))
    kernels = [name for name in reader.get_variable_to_dtype_map() if "kernel" in name]
    assert kernels
    assert {reader.get_variable_to_dtype_map()[name] for name in kernels} == {tf.float32}
    assert export.run(["--model_dir", str(tmp_path / "bfloat16"), "--output", str(tmp_path / "model")]) == 0
    loaded = tf.saved_model.load(str(tmp_path / "model" / model.SAVED_MODEL))
    raw = loaded.signatures["raw"](images=np.zeros((1, 64, 64, 3), np.uint8))
    assert {value.dtype for value in raw.values()} == {tf.float32}
