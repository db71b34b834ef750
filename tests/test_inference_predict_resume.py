"""A prediction that is cut short: killed, stopped by a damaged mosaic, begun with other input; what is finished is kept."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import stub_model
from test_inference_predict import save

from inference import parts, predict
from survey import detections
from survey.errors import InputError

# 600 px: patches of 64 px start at 0, 48, ..., 528, 536: 13 a side, 169 of them in 6 parts; four rows are 52 patches.
PATCHES, PARTS = 169, 6


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return stub_model.export(str(tmp_path_factory.mktemp("model")))


@pytest.fixture
def survey(tmp_path):
    folder = tmp_path / "mosaics"
    folder.mkdir()
    rng = np.random.default_rng(0)
    tiled = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    for name in ("north", "south"):
        objects = [(y, x, 12, 0.8, 1) for y, x in rng.integers(10, 590, (60, 2)).tolist()]
        save(folder / f"{name}.tif", stub_model.paint(600, 600, objects), **tiled)
    return folder


def argv(model_folder: str, survey: Path, output: Path, *more: str) -> list[str]:
    return [f"--model={model_folder}", f"--mosaics={survey}/*.tif", f"--output={output}", *more]


def there(output: Path) -> list[str]:
    return sorted(name for name in os.listdir(output / parts.FOLDER) if name.endswith(".parquet"))


def contents(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


# The stub is done in no time: a pause before each part makes sure that there is somebody to kill.
SLOWLY = """
import sys, time
from inference import parts, predict
write = parts.write
parts.write = lambda *arguments: (time.sleep(0.25), write(*arguments))
predict.run(sys.argv[1:])
"""


def killed_after(number: int, arguments: list[str], output: Path) -> list[str]:
    """Runs predict in a process of its own until so many parts are there, then kill -9; returns their names."""
    process = subprocess.Popen([sys.executable, "-c", SLOWLY, *arguments], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 600
    while not (output / parts.FOLDER).exists() or len(there(output)) < number:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return there(output)


def test_killed_and_gone_on_with_is_the_same_to_the_byte(model_folder, survey, tmp_path, capsys):
    whole, output = tmp_path / "whole", tmp_path / "out"
    assert predict.run(argv(model_folder, survey, whole)) == 0
    kept = killed_after(3, argv(model_folder, survey, output), output)
    assert 3 <= len(kept) < 2 * PARTS
    assert not (output / detections.MANIFEST).exists()
    before = {name: (output / parts.FOLDER / name).stat().st_mtime_ns for name in kept}

    again = killed_after(len(kept) + 2, argv(model_folder, survey, output), output)  # and once more
    assert set(kept) < set(again)
    assert before == {name: (output / parts.FOLDER / name).stat().st_mtime_ns for name in kept}  # not searched again
    capsys.readouterr()
    # With other workers and batches, which decide nothing.
    assert predict.run(argv(model_folder, survey, output, "--batch_size=8")) == 0
    # All parts but the last of a mosaic (9 patches) have 32.
    done = sum(9 if name.endswith(f"{PATCHES:08d}.parquet") else 32 for name in again)
    assert f"going on: {done} of {2 * PATCHES} patches were finished" in capsys.readouterr().out
    assert contents(output) == contents(whole)


def test_parts_of_other_input_are_refused(model_folder, survey, tmp_path):
    output = tmp_path / "out"
    killed_after(1, argv(model_folder, survey, output), output)
    before = contents(output)
    with pytest.raises(
        InputError, match=r"unfinished parts of another prediction \(overlap_px 16 there, 20 now\): run the command"
    ):
        predict.run(argv(model_folder, survey, output, "--overlap=20"))
    with pytest.raises(InputError, match=r"flips none there, both now"):
        predict.run(argv(model_folder, survey, output, "--flips=both"))
    other = stub_model.export(str(tmp_path / "other"), score_floor=0.2)
    with pytest.raises(InputError, match=r"another prediction \(model [0-9a-f]{64} there, [0-9a-f]{64} now\)"):
        predict.run(argv(other, survey, output))
    save(survey / "west.tif", np.zeros((100, 100, 3), np.uint8))
    with pytest.raises(InputError, match=r"\(mosaics it did not have: west\)"):
        predict.run(argv(model_folder, survey, output))
    assert contents(output) == before


def test_parts_that_do_not_say_whose_they_are(model_folder, survey, tmp_path):
    folder = tmp_path / "out" / parts.FOLDER
    folder.mkdir(parents=True)
    (folder / "0000000000-0000000099.parquet").write_text("of an older version")
    with pytest.raises(InputError, match=r"it does not say which.*or remove .*parts"):
        predict.run(argv(model_folder, survey, tmp_path / "out"))
    assert os.listdir(folder) == ["0000000000-0000000099.parquet"]


def damage(path: Path) -> bytes:
    """Overwrites the last tiles of a file, as a bad disk does; returns what it was."""
    good = path.read_bytes()
    path.write_bytes(good[: len(good) * 3 // 4] + b"\xff" * (len(good) - len(good) * 3 // 4))
    return good


def torn(survey: Path) -> bytes:
    """South, not readable in its last rows: noise, so that each tile takes the same room in the file."""
    noise = np.random.default_rng(1).integers(0, 30, (600, 600, 3)).astype(np.uint8)
    save(survey / "south.tif", noise, tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    return damage(survey / "south.tif")


def test_a_mosaic_that_is_not_readable_half_way(model_folder, survey, tmp_path, capsys):
    good = torn(survey)
    output = tmp_path / "out"
    with pytest.raises(InputError, match=r"south\.tif is damaged: rows .* cannot be read.* of 338 patches are finished and kept"):
        predict.run(argv(model_folder, survey, output))
    kept = there(output)
    assert PARTS < len(kept) < 2 * PARTS  # all of north, and what came before the damage

    # Replaced by a good copy: the parts of the other mosaic count, those of the damaged file do not.
    (survey / "south.tif").write_bytes(good)
    capsys.readouterr()
    assert predict.run(argv(model_folder, survey, output)) == 0
    printed = capsys.readouterr().out
    assert "changed since the run that was cut short, searched anew: south" in printed
    assert f"going on: {PATCHES} of {2 * PATCHES} patches" in printed
    assert predict.run(argv(model_folder, survey, tmp_path / "whole")) == 0
    assert contents(output) == contents(tmp_path / "whole")


def test_a_damaged_mosaic_can_be_left_out(model_folder, survey, tmp_path, capsys):
    torn(survey)
    output = tmp_path / "out"
    with pytest.raises(InputError, match=r"leave the file out of --mosaics, and run the same command again"):
        predict.run(argv(model_folder, survey, output))
    os.remove(survey / "south.tif")
    capsys.readouterr()
    assert predict.run(argv(model_folder, survey, output)) == 0
    assert f"going on: {PATCHES} of {PATCHES} patches" in capsys.readouterr().out
    manifest, _ = detections.read(str(output))
    assert [mosaic.name for mosaic in manifest.mosaics] == ["north"]


def test_a_damage_at_the_very_beginning_leaves_nothing_behind(model_folder, tmp_path):
    path = tmp_path / "torn.tif"
    save(path, np.random.default_rng(1).integers(0, 30, (100, 100, 3)).astype(np.uint8), compress="deflate")
    damage(path)
    with pytest.raises(InputError, match=r"torn\.tif is damaged"):
        predict.run([f"--model={model_folder}", f"--mosaics={path}", f"--output={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_to(model_folder, survey):
    with pytest.raises(InputError, match=r"--output=/proc/nowhere cannot be written to"):
        predict.run(argv(model_folder, survey, Path("/proc/nowhere")))


def test_a_full_disk_keeps_what_is_finished(tmp_path, write_raster, monkeypatch):
    model_folder = stub_model.export(str(tmp_path / "model"))
    write_raster(tmp_path / "m.png", stub_model.paint(400, 400, [(30, 30, 16, 0.9, 1)]))
    argv = [f"--model={model_folder}", f"--mosaics={tmp_path}/m.png", f"--output={tmp_path}/found"]
    publish, calls = parts.write, []

    def fills_up(*arguments):
        calls.append(arguments)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        publish(*arguments)

    monkeypatch.setattr(parts, "write", fills_up)
    # 8 x 8 patches of 64 px every 48 px: two parts of 32.
    said = r"cannot take the parts any more \(.*No space left on device\): free some space\. 32 of 64 patches are finished"
    with pytest.raises(InputError, match=said):
        predict.run(argv)
    monkeypatch.undo()
    assert predict.run(argv) == 0
    assert not (tmp_path / "found/parts").exists()
