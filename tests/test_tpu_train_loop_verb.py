"""The outer loop in the real verb on a real dataset: killed and started again, and at a rate at which it explodes."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from test_tpu_train_loop import curve, same, weights

from pipeline import shard
from survey.errors import InputError
from tpu_train import train
from tpu_train.history import History


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset of two small mosaics with bright squares on dark ground, 4 patches each."""
    import rasterio

    folder = tmp_path_factory.mktemp("survey")
    rng = np.random.default_rng(0)
    for number, name in enumerate(("one", "two")):
        image = rng.integers(20, 60, (3, 112, 112)).astype(np.uint8)
        boxes = ""
        for y, x in ((10, 10), (10, 70), (70, 10), (70, 70)):
            image[:, y : y + 24, x : x + 24] = 220
            corners = f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + 24}</xmax><ymax>{y + 24}</ymax>"
            boxes += f"<object><name>square</name><bndbox>{corners}</bndbox></object>"
        placed = rasterio.Affine(0.1, 0, 5e5 + 100 * number, 0, -0.1, 4e6)  # two places: one ground has to be in one split
        profile = {"driver": "GTiff", "height": 112, "width": 112, "count": 3, "dtype": "uint8"}
        with rasterio.open(folder / f"{name}.tif", "w", crs="EPSG:32617", transform=placed, **profile) as out:
            out.write(image)
        (folder / f"{name}.xml").write_text(f"<annotation><filename>{name}.tif</filename>{boxes}</annotation>")
    argv = f"--mosaics {folder}/*.tif --annotations {folder}/*.xml --patch_size 64 --overlap 16 --split train=0.5,val=0.5"
    assert shard.run([*argv.split(), "--output", str(folder / "dataset")]) == 0
    return str(folder / "dataset")


def test_kill_9_changes_nothing(survey: str, tmp_path: Path) -> None:
    """The real verb in a process of its own, killed after a checkpoint between two validations, and started again."""
    flags = "--steps 14 --validate_every 8 --steps_per_loop 2 --batch_size 2 --checkpoint_minutes 0.00001"

    def start(folder: str) -> subprocess.Popen:
        argv = [
            sys.executable,
            "-m",
            "tpu_train.train",
            "--dataset",
            survey,
            "--model_dir",
            str(tmp_path / folder),
            *flags.split(),
        ]
        with open(tmp_path / f"{folder}.log", "a") as log:
            return subprocess.Popen(argv, stdout=log, stderr=log)

    def finish(process: subprocess.Popen, folder: str) -> None:
        assert process.wait(600) == 0, (tmp_path / f"{folder}.log").read_text()[-3000:]

    killed, straight = start("killed"), start("straight")
    try:
        end = time.monotonic() + 600
        # The state file is written when a checkpoint has been verified: 10 or 12, after the validation at 8 and before the end.
        while (at := last_verified(tmp_path / "killed")) < 10:
            assert killed.poll() is None, (tmp_path / "killed.log").read_text()[-3000:]
            assert time.monotonic() < end
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
        killed.wait(10)
        assert at < 14
        killed = start("killed")
        finish(killed, "killed")
        finish(straight, "straight")
    finally:
        for process in (killed, straight):
            process.kill()
            process.wait(10)
    log = (tmp_path / "killed.log").read_text()
    went_on = [int(line.split()[-1]) for line in log.splitlines() if line.startswith("train: goes on from step")]
    assert len(went_on) == 1
    assert at <= went_on[0] < 14
    for name in ("training_loss", "cls_loss", "box_loss", "learning_rate"):
        expected, found = curve(tmp_path / "straight", name), curve(tmp_path / "killed", name)
        assert [step for step, _ in expected] == [2, 4, 6, 8, 10, 12, 14]
        assert {step for step, _ in found} == {2, 4, 6, 8, 10, 12, 14}
        assert all(value == dict(expected)[step] for step, value in found)  # to the last bit, steps that were trained twice too
    assert same(weights(tmp_path / "straight"), weights(tmp_path / "killed"))
    histories = [History(str(tmp_path / folder)).validations for folder in ("straight", "killed")]
    assert histories[0] == histories[1]
    assert [each["step"] for each in histories[0]] == [8, 14]


def last_verified(folder: Path) -> int:
    """Steps of the last checkpoint that a run has declared good; 0 before the first."""
    latest = tf.train.latest_checkpoint(str(folder))
    return int(latest.rsplit("-", 1)[1]) if latest else 0


def test_a_run_that_explodes(survey: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real verb at an absurd rate: goes back once, then ends; and so it does when it is started again."""
    argv = ["--dataset", survey, "--model_dir", str(tmp_path), "--init=scratch", "--batch_size=2", "--steps=40"]
    argv += ["--steps_per_loop=2", "--learning_rate=1e9", "--schedule=constant"]
    with pytest.raises(InputError, match=r"step \d+: the loss.* on patches \d.*it is the second time.*--patch_ids \d"):
        train.run(argv)
    said = capsys.readouterr()
    assert said.err.count("goes back to the last checkpoint and leaves this batch out") == 1
    assert said.out.count("train: goes on from step") == 1
    with pytest.raises(InputError, match="it is the second time"):
        train.run(argv)
