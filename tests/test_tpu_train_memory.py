"""`--mem_eval`: what a step takes on this machine's CPU, measured for real, and what is said of it and of the compiled step."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline import shard
from survey import accelerators, flags
from survey.errors import InputError
from tpu_train import loop, memory, plan, train
from tpu_train.memory import GIB, Host, Memory
from tpu_train.options import Options
from tpu_train.preflight import compiler
from tpu_train.preflight.refusals import Refused

SMALL = [
    *("--model=yolo", "--backbone=tiny", "--head=yolo3_dense_1", "--init=scratch"),
    *("--image_size=64", "--num_classes=1", "--batch_size=2"),
]
MEASURED = Host(3 * GIB, GIB // 2)


def small() -> tuple[Options, plan.Plan]:
    options, _ = flags.parse(Options, ["--dataset=", "--model_dir=", *SMALL], prog="rookery train")
    return options, plan.without_dataset(options)


def test_line() -> None:
    said = Memory(416, 8, MEASURED, GIB, 16 * GIB, True).line()
    assert (
        said == "memory: a step of 8 images of 416 px takes 3.00 GiB on a CPU (and TensorFlow 0.50), 1.00 of 16.00 GiB on a v5e"
    )
    said = Memory(800, 1, None, 17 * GIB, 16 * GIB, False, ("it was killed",)).line()
    assert said == "memory: a step of 1 image of 800 px takes 17.00 of 16.00 GiB on a v5e, so it does not fit; it was killed"
    said = Memory(800, 1, None, 0, 16 * GIB, False, ("a", "b")).line()
    assert said == "memory: a step of 1 image of 800 px takes an amount that could not be found out; a; b"


def test_a_real_step_without_the_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A tiny YOLO of one scale and one class has 11.57 million parameters: a weight, two moments of AdamW and an average each.

    At 4 bytes that is 185 MB (176 MiB) at the least. Its layers' results are small: 2 images of 64 x 64 x 16 numbers at first.
    """

    def absent() -> dict[str, str]:
        raise InputError("jax is not installed; install it with: THIS")

    monkeypatch.setattr(compiler, "versions", absent)
    found = memory.report(*small(), cache=tmp_path)
    assert found.host is not None
    assert 176 * 2**20 < found.host.step_bytes < 1.5 * GIB
    assert 0.2 * GIB < found.host.tensorflow_bytes < 2 * GIB  # the libraries alone
    assert (found.hbm_bytes, found.fits, found.notes) == (0, False, ("jax is not installed; install it with: THIS",))
    assert (found.image_size, found.batch_size) == (64, 2)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("outcome", "hbm_bytes", "fits", "notes"),
    [
        (None, 2 * GIB, True, ()),
        (Refused("memory", "too much", needed_bytes=17 * GIB), 17 * GIB, False, ()),
        (Refused("other", "The compiler crashed."), 0, False, ("The compiler crashed.",)),
    ],
)
def test_what_the_compiler_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, outcome: Refused | None, hbm_bytes: int, fits: bool, notes: tuple[str, ...]
) -> None:
    asked: list[Any] = []

    class Told:
        def __init__(self, where: accelerators.Slice, *, cache: Path, timeout_s: float) -> None:
            asked.append((where.accelerator_type, cache))

        def ask(self, training: Options, settled: plan.Plan, step: str) -> Any:
            asked.append((training.batch_size, settled.image_size, step))
            return SimpleNamespace(outcome=outcome, hbm_bytes=hbm_bytes, compiles=fits)

    monkeypatch.setattr(compiler, "versions", dict)
    monkeypatch.setattr(memory, "Inquiry", Told)
    monkeypatch.setattr(memory, "host", lambda config: MEASURED)
    found = memory.report(*small(), cache=tmp_path)
    assert asked == [("v5litepod-1", tmp_path), (2, 64, "train")]
    assert found == Memory(64, 2, MEASURED, hbm_bytes, accelerators.parse("v5litepod-1").chip.hbm_bytes, fits, notes)


def killed(model: str, config: dict[str, Any], steps: int) -> Host:
    """Stands for a step that the system ends for want of memory."""
    os._exit(9)


def test_a_killed_measurement_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> dict[str, str]:
        raise InputError("no compiler")

    monkeypatch.setattr(compiler, "versions", absent)
    monkeypatch.setattr(memory, "_measure", killed)
    found = memory.report(*small())
    assert found.host is None
    assert found.notes[0].startswith("--batch_size=2: so large a CPU step could not be measured")
    assert found.notes[1] == "no compiler"


def test_train_says_it_once_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    pixels: Callable[..., np.ndarray],
    write_raster: Callable[..., str],
    write_voc: Callable[..., str],
) -> None:
    boxes = [("seal", (2, 2, 20, 20)), ("seal", (30, 2, 40, 24)), ("seal", (30, 30, 62, 44))]  # three shapes for three anchors
    for seed in (0, 1):
        write_raster(tmp_path / f"{seed}.png", pixels(64, 64, seed), driver="PNG")
        write_voc(tmp_path / f"{seed}.xml", f"{seed}.png", (64, 64), boxes)
    data = str(tmp_path / "dataset")
    cut = [f"--mosaics={tmp_path}/*.png", f"--annotations={tmp_path}/*.xml", "--patch_size=64", "--overlap=0"]
    assert shard.run([*cut, "--split=train=0.5,val=0.5", f"--output={data}"]) == 0
    monkeypatch.setattr(memory, "report", lambda options, settled: Memory(64, options.batch_size, MEASURED, 0, GIB, False))
    monkeypatch.setattr(loop, "train", lambda *_, **__: print("the first step"))
    argv = [f"--dataset={data}", "--model=yolo", "--backbone=tiny", "--head=yolo3_dense_1", "--init=scratch", "--batch_size=2"]
    for flag, said in (("--mem_eval", "train: memory: a step of 2 images of 64 px takes 3.00 GiB"), ("--no-mem_eval", "")):
        capsys.readouterr()
        assert train.run([*argv, f"--model_dir={tmp_path}/{flag}", flag]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[-1] == "the first step"
        found = [line for line in lines if "memory:" in line]
        assert len(found) == bool(said)
        assert not found or (found[0].startswith(said) and lines[-2] == found[0])


def test_the_measurement_keeps_off_accelerators() -> None:
    environ = {"TPU_NAME": "pod", "PJRT_DEVICE": "TPU", "TF_PLUGGABLE_DEVICE_LIBRARY_PATH": "libtpu.so", "HOME": "/home/me"}
    memory._without_accelerators(environ)
    assert environ["HOME"] == "/home/me"
    assert not {"TPU_NAME", "PJRT_DEVICE", "TF_PLUGGABLE_DEVICE_LIBRARY_PATH"} & set(environ)
    assert (environ["TPU_LOAD_LIBRARY"], environ["CUDA_VISIBLE_DEVICES"]) == ("0", "-1")


def test_resident_memory_is_this_process_s() -> None:
    """50 MB that are written are resident; when they are gone the most so far still has them."""
    before = memory._resident("VmRSS")
    held = bytearray(b"\1" * 50_000_000)
    during = memory._resident("VmRSS")
    assert during - before > 45_000_000
    del held
    assert memory._resident("VmHWM") >= during
