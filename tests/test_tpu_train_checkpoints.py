"""Checkpoints that can be relied on: damage of any kind is found, and a good one is always there."""

import json
import os
from pathlib import Path

import pytest
import tensorflow as tf

from survey.errors import InputError
from tpu_train import checkpoints

DATA, INDEX = ".data-00000-of-00001", ".index"


def state(value: float = 0.0) -> tf.train.Checkpoint:
    return tf.train.Checkpoint(
        weights=tf.Variable(tf.fill([64], value)),
        counts=tf.Variable([1, 2, 3], dtype=tf.int64),
        global_step=tf.Variable(7, dtype=tf.int64),
    )


def steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints in a folder."""
    return sorted(int(path.stem.split("-")[1]) for path in folder.glob(f"ckpt-*{INDEX}"))


def test_a_flipped_byte_is_found_wherever_it_is(tmp_path: Path) -> None:
    """Every 5th byte of the tensors: 64 floats, 3 and 1 and 1 int64, and the table of objects."""
    path = checkpoints.Keeper(state(), str(tmp_path)).save(7)
    file = tmp_path / f"ckpt-7{DATA}"
    good = file.read_bytes()
    assert len(good) > 64 * 4 + 5 * 8
    checkpoints.verify(path)
    for position in range(0, len(good), 5):
        file.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        with pytest.raises(checkpoints.DamagedError):
            checkpoints.verify(path)
    file.write_bytes(good)
    checkpoints.verify(path)


@pytest.mark.parametrize("damage", ["truncated data", "no data", "truncated index", "no index", "flipped index", "flipped data"])
def test_the_last_good_one_is_taken(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of checkpoints at 20 and 40 the second is damaged: 20 is restored, and 40 goes when the next one is saved."""
    keeper = checkpoints.Keeper(saved := state(1.0), str(tmp_path))
    keeper.save(20)
    saved.weights.assign(tf.fill([64], 2.0))
    keeper.save(40)
    assert steps(tmp_path) == [20, 40]

    what, part = damage.split()
    file = tmp_path / f"ckpt-40{DATA if part == 'data' else INDEX}"
    content = file.read_bytes()
    if what == "no":
        file.unlink()
    else:
        middle = len(content) // 2
        file.write_bytes(
            content[:middle] + (b"" if what == "truncated" else bytes([content[middle] ^ 255]) + content[middle + 1 :])
        )

    found = checkpoints.latest(str(tmp_path))
    assert found == str(tmp_path / "ckpt-20")
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"checkpoint {tmp_path}/ckpt-40 is damaged or unfinished, passed over" in said

    restored = state()
    keeper = checkpoints.Keeper(restored, str(tmp_path))
    keeper.restore(found)
    assert float(restored.weights[0]) == 1.0
    keeper.save(60)
    assert steps(tmp_path) == [20, 60]
    assert not list(tmp_path.glob("ckpt-40*"))


def test_one_good_checkpoint_is_there_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older ones are removed only after the new one was read back; one that cannot be read back removes nothing."""
    keeper = checkpoints.Keeper(state(), str(tmp_path), kept=1)
    keeper.save(20)
    seen: list[list[int]] = []
    real = checkpoints.verify

    def watched(path: str) -> None:
        seen.append(steps(tmp_path))
        real(path)

    monkeypatch.setattr(checkpoints, "verify", watched)
    keeper.save(40)
    assert seen == [[20, 40]]
    assert steps(tmp_path) == [40]
    assert tf.train.latest_checkpoint(str(tmp_path)) == str(tmp_path / "ckpt-40")

    def spoiled(path: str) -> None:
        os.truncate(f"{path}{DATA}", 10)
        real(path)

    monkeypatch.setattr(checkpoints, "verify", spoiled)
    with pytest.raises(InputError, match=r"ckpt-60 was written but cannot be read back .*ckpt-40 is still good: check the disk"):
        keeper.save(60)
    monkeypatch.undo()
    assert checkpoints.latest(str(tmp_path)) == str(tmp_path / "ckpt-40")
    assert tf.train.latest_checkpoint(str(tmp_path)) == str(tmp_path / "ckpt-40")


def test_leftovers_of_a_killed_write_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Killed early in a write, TensorFlow leaves a folder of parts; other files of the run stay."""
    keeper = checkpoints.Keeper(state(), str(tmp_path))
    keeper.save(20)
    (tmp_path / "ckpt-40_temp").mkdir()
    (tmp_path / "ckpt-40_temp/part-00000-of-00001.data-00000-of-00001").write_bytes(b"half")
    (tmp_path / "ckpt-notes.txt").write_text("mine")
    assert checkpoints.latest(str(tmp_path)) == str(tmp_path / "ckpt-20")
    assert "ckpt-40 is damaged or unfinished" in capsys.readouterr().err
    keeper.save(60)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["checkpoint", "ckpt-notes.txt", *(f"ckpt-{step}{end}" for step in (20, 60) for end in (DATA, INDEX))]
    )


def test_an_empty_folder_has_none(tmp_path: Path) -> None:
    assert checkpoints.latest(str(tmp_path)) is None
    assert checkpoints.latest(str(tmp_path / "nowhere")) is None
    assert checkpoints.step_of(None) == 0


def test_a_folder_that_cannot_be_read_is_not_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken connection must not make a good checkpoint look bad: the run would fall back, and then remove it."""
    path = checkpoints.Keeper(state(), str(tmp_path)).save(20)

    def unreachable(*args: object) -> None:
        raise tf.errors.UnavailableError(None, None, "try again")

    monkeypatch.setattr(tf.train, "load_checkpoint", unreachable)
    monkeypatch.setattr(tf.io.gfile, "GFile", unreachable)
    with pytest.raises(tf.errors.UnavailableError):
        checkpoints.verify(path)


def test_the_record_of_the_best_comes_after_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the two, the next validation of equal value must write both."""
    exporter = checkpoints.BestExporter(str(tmp_path), "f1", "higher")
    saved = state(1.0)
    assert exporter.maybe_export_checkpoint(saved, {"f1": 0.5}, 20)

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(exporter, "export_best_eval_metric", killed)
    with pytest.raises(KeyboardInterrupt):
        exporter.maybe_export_checkpoint(saved, {"f1": 0.7}, 40)
    monkeypatch.undo()

    again = checkpoints.BestExporter(str(tmp_path), "f1", "higher")
    assert again.best_ckpt_logs["f1"] == 0.5
    assert again.maybe_export_checkpoint(saved, {"f1": tf.constant(0.75), "loss": 1.0}, 40)
    assert not again.maybe_export_checkpoint(saved, {"f1": 0.6}, 60)
    assert json.loads((tmp_path / "info.json").read_text()) == {"f1": 0.75, "loss": 1.0, "best_ckpt_global_step": 40.0}
    assert tf.train.latest_checkpoint(str(tmp_path)) == str(tmp_path / "best_ckpt-40")
    assert [path.name for path in tmp_path.glob("*.index")] == ["best_ckpt-40.index"]
