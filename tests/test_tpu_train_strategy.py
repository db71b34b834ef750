"""What a run computes on, and what the environment must say before TensorFlow is imported."""

from pathlib import Path

import pytest

from survey import tpu_environment
from survey.errors import InputError
from tpu_train import strategy


def machine(folder: Path, *chips: str) -> str:
    """A /dev with some chips in it."""
    for chip in ("null", *chips):
        (folder / chip).parent.mkdir(parents=True, exist_ok=True)
        (folder / chip).touch()
    return str(folder)


@pytest.mark.parametrize("chip", ["accel0", "vfio/0"])
def test_local_chips_are_reached_through_pjrt(tmp_path: Path, chip: str) -> None:
    environ = {"HOME": "/home/me"}
    tpu_environment.prepare(environ, devices=machine(tmp_path, chip), library="/lib/libtpu.so")
    assert environ == {
        "HOME": "/home/me",
        "PJRT_DEVICE": "TPU",
        "NEXT_PLUGGABLE_DEVICE_USE_C_API": "true",
        "TF_PLUGGABLE_DEVICE_LIBRARY_PATH": "/lib/libtpu.so",
    }


def test_without_chips_or_library_nothing_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder vfio also stands on machines that have it for other devices: /dev/vfio/vfio alone is no chip."""
    environ: dict[str, str] = {}
    tpu_environment.prepare(environ, devices=machine(tmp_path / "dev", "vfio/vfio"), library="/lib/libtpu.so")
    monkeypatch.setattr(tpu_environment.importlib.util, "find_spec", lambda name: None)  # as where libtpu is not installed
    tpu_environment.prepare(environ, devices=machine(tmp_path / "tpu", "accel0"))
    assert environ == {}


def test_what_the_user_set_stays(tmp_path: Path) -> None:
    environ = {"PJRT_DEVICE": "CPU", "TF_PLUGGABLE_DEVICE_LIBRARY_PATH": "/mine.so"}
    tpu_environment.prepare(environ, devices=machine(tmp_path, "accel0"), library="/lib/libtpu.so")
    assert environ["PJRT_DEVICE"] == "CPU"
    assert environ["TF_PLUGGABLE_DEVICE_LIBRARY_PATH"] == "/mine.so"


def test_a_named_tpu_is_reached_over_the_network(tmp_path: Path) -> None:
    """Also on worker 0 of the pod itself, which has chips: they belong to the server there."""
    dev = machine(tmp_path, "accel0")
    pod = {"TPU_NAME": "pod"}
    tpu_environment.prepare(pod, devices=dev, library="/lib/libtpu.so")
    assert pod == {"TPU_NAME": "pod", "TPU_LOAD_LIBRARY": "0"}
    local = {"TPU_NAME": "local"}
    tpu_environment.prepare(local, devices=dev, library="/lib/libtpu.so")
    assert local["PJRT_DEVICE"] == "TPU"
    assert "TPU_LOAD_LIBRARY" not in local


def test_the_cpu_is_taken_where_there_is_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TPU_NAME", raising=False)
    device = strategy.pick()
    assert (device.kind, device.replicas, device.hosts, device.compute_type) == ("CPU", 1, 1, "float32")
    assert device.line(20).endswith("cores; 1 host, 1 replica, float32, 20 steps a loop")


def test_a_tpu_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TPU_NAME", "grpc://127.0.0.1:1")

    def refuse(*args: object, **kwargs: object) -> None:
        raise ValueError("no such node\nlong story")

    monkeypatch.setattr(strategy.tf.distribute.cluster_resolver, "TPUClusterResolver", refuse)
    with pytest.raises(InputError, match=r"TPU_NAME=grpc://127.0.0.1:1: this TPU does not answer \(no such node\); is it READY"):
        strategy.pick()


@pytest.mark.parametrize(("batch_size", "near"), [(10, "8 or 16"), (3, "8"), (63, "56 or 64")])
def test_a_batch_that_does_not_divide_names_its_neighbours(batch_size: int, near: str) -> None:
    with pytest.raises(InputError, match=rf"--batch_size={batch_size}: must be a multiple of the 8 replicas.*use {near}$"):
        strategy.check_batch("--batch_size", batch_size, 8)
    strategy.check_batch("--batch_size", 64, 8)
