"""The sweep over sizes: what it would do, what it keeps, its table and plots; a real one of a tiny network at 64 and 96 px."""

import csv
import dataclasses
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from test_survey_contracts import DATASET

from survey import dataset

ROOT = Path(__file__).parent.parent
GIB = 2**30


@pytest.fixture(scope="module")
def sweep() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))  # it imports its neighbours `measure` and `size_table`
        spec = importlib.util.spec_from_file_location("size_sweep", ROOT / "benchmarks/size_sweep.py")
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "size_sweep", module)  # dataclasses look there
        spec.loader.exec_module(module)
        yield module


def options(sweep: ModuleType, output: Path, *flags: str) -> Namespace:
    return sweep.arguments().parse_args([f"--output={output}", *flags])


def test_commands(sweep: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """2 sizes x 2 backbones x 3 heads compile; training takes 2 seeds of each."""
    shard = '--shard=--mosaics="a b/*.png"'
    argv = [f"--output={tmp_path}", "--sizes=608,416", "--num_classes=3", shard, "--seeds=0,1", "--flags=--learning_rate=0.01"]
    argv += ["--train_batch_size=2", "--train_flags=--precision=bfloat16"]
    assert sweep.main([*argv, "--dry_run"]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    compiles, trainings = [line for line in lines if "preflight" in line], [line for line in lines if "train" in line]
    assert (len(compiles), len(trainings), len(lines)) == (12, 24, 36)
    assert compiles[0][:3] == ["rookery", "preflight", "--accelerator=v5litepod-1"]
    wanted = {"--image_size=416", "--backbone=original", "--head=yolo3", "--batch_size=8", "--num_classes=3", "--init=scratch"}
    assert wanted | {"--learning_rate=0.01", "--step=train"} <= set(compiles[0])
    assert "--precision=bfloat16" not in compiles[0]
    cut = trainings[-1][: trainings[-1].index("&&")]
    folder = next(flag for flag in trainings[-1] if flag.startswith("--dataset=")).removeprefix("--dataset=")
    assert folder.startswith(f"{tmp_path}/datasets/608_")
    assert cut == ["rookery", "shard", "--mosaics=a b/*.png", "--patch_size=608", f"--output={folder}"]
    wanted = {"--image_size=608", "--backbone=dense", "--head=yolo3_dense_1", "--steps=1000", "--seed=1", "--learning_rate=0.01"}
    assert wanted | {"--batch_size=2", "--precision=bfloat16"} <= set(trainings[-1])
    folders = [next(flag for flag in line if flag.startswith("--model_dir=")) for line in trainings]
    assert sweep.main([*argv, "--train_batch_size=4", "--no-compile", "--dry_run"]) == 0
    assert len(set(folders)) == 24
    other = capsys.readouterr().out
    assert not any(folder in other for folder in folders)  # another batch is another run, not an error
    assert folder in other
    assert sweep.main([*argv, "--shard=--mosaics=c", "--no-compile", "--dry_run"]) == 0
    other = capsys.readouterr().out
    assert not any(each in other for each in (folder, *folders))  # nor are other images
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--dataset is missing: give it or --shard to train, or --no-train to compile only"),
        (["--no-train"], "--num_classes is missing: give it, or --dataset, which knows it, or --no-compile"),
        (["--train_batch_size=0"], "--train_batch_size=0: must be at least 1"),
        (["--dataset=a", "--shard=b"], "--dataset and --shard: one of them says where the images come from"),
        (
            ["--sizes=416,417"],
            "--sizes=417: must be a multiple of the coarsest stride of --backbone original, 32 px; use 416 or 448",
        ),
        (["--backbones=large"], "--backbone=large: --model yolo has original, dense"),
    ],
)
def test_refusals(sweep: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    assert sweep.main([f"--output={tmp_path / 'out'}", *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def answer(sweep: ModuleType, monkeypatch: pytest.MonkeyPatch, hbm: Callable[[list[str]], int]) -> list[list[str]]:
    """Has the compile half answered at once; returns the commands that were given."""
    given = []

    def compiled(command: list[str]) -> dict[str, Any]:
        given.append(command)
        found = {"parameters": 40_000_000, "compiles": True, "hbm_bytes": hbm(command), "hbm_capacity_bytes": 16 * GIB}
        return {**found, "images_per_s_at_most": 1234.5, "versions": {"jax": "0.10.2"}, "day": "2026-12-01"}

    monkeypatch.setattr(sweep.compiled_step, "ask", compiled)
    return given


def test_what_is_done_is_kept(sweep: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that fails does not stop the others, and is all that the same command does again; another batch does all again."""
    argv = [f"--output={tmp_path}", "--sizes=64,96", "--backbones=tiny", "--heads=yolo3", "--num_classes=1", "--no-train"]

    def no_memory(command: list[str]) -> int:
        if "--image_size=64" in command:
            raise RuntimeError("killed")
        return GIB

    given = answer(sweep, monkeypatch, no_memory)
    assert sweep.main(argv) == 1
    assert len(given) == 2
    assert "| 96 | tiny | yolo3 | 40.00 M | 1.00 GiB | 1,234 |" in (tmp_path / "sizes.md").read_text()
    assert "8 images; not a forecast (jax 0.10.2; 2026-12-01)." in (tmp_path / "sizes.md").read_text()
    given = answer(sweep, monkeypatch, lambda command: 2 * GIB)
    assert sweep.main(argv) == 0
    assert ["--image_size=64" in command for command in given] == [True]
    assert sweep.main(argv) == 0
    assert len(given) == 1
    assert sweep.main([*argv, "--batch_size=4"]) == 0
    assert len(given) == 3
    assert sweep.main([*argv[:-1], "--no-compile", "--no-train", "--batch_size=4"]) == 0  # the table has what is there
    assert len(given) == 3
    assert "| 64 | tiny | yolo3 | 40.00 M | 2.00 GiB |" in (tmp_path / "sizes.md").read_text()


def test_a_smaller_command_keeps_the_rows_of_larger_ones(
    sweep: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table has all that was made with the same settings, in the order of the sizes; nothing that was made with others."""
    given = answer(sweep, monkeypatch, lambda command: GIB)
    argv = [f"--output={tmp_path}", "--backbones=tiny", "--num_classes=1", "--no-train"]
    assert sweep.main([*argv, "--sizes=64,96", "--heads=yolo3"]) == 0
    assert sweep.main([*argv, "--sizes=128", "--heads=yolo3", "--batch_size=4"]) == 0
    assert sweep.main([*argv, "--sizes=64", "--heads=yolo3_dense_1"]) == 0
    assert len(given) == 4
    assert networks(tmp_path) == [("64", "yolo3"), ("64", "yolo3_dense_1"), ("96", "yolo3")]


def test_a_row_whose_dataset_is_gone_is_left_out(sweep: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it was made cannot be said any more: that must not cost the result that was just made."""
    monkeypatch.setattr(sweep, "trained", lambda cell, options, seed: {"ap50": 0.5, "ap": 0.2, "f1": 0.4, "parameters": 7})
    for size in (64, 96):
        dataset.write(str(tmp_path / str(size)), dataclasses.replace(DATASET, patch_size=size))
    argv = [f"--output={tmp_path / 'out'}", "--backbones=tiny", "--heads=yolo3", "--no-compile", f"--dataset={tmp_path}/{{size}}"]
    assert sweep.main([*argv, "--sizes=64"]) == 0
    assert sweep.main([*argv, "--sizes=96"]) == 0
    assert networks(tmp_path / "out") == [("64", "yolo3"), ("96", "yolo3")]
    shutil.rmtree(tmp_path / "64")
    assert sweep.main([*argv, "--sizes=96", "--seeds=1"]) == 0
    assert networks(tmp_path / "out") == [("96", "yolo3")]


def networks(output: Path) -> list[tuple[str, str]]:
    """Size and head of each row of the table."""
    with (output / "sizes.csv").open() as table:
        return [(row["size_px"], row["head"]) for row in csv.DictReader(table)]


ROWS = [
    {"size_px": 416, "backbone": "original", "head": "yolo3", "parameters": 61_500_000, "compiles": True, "hbm_bytes": GIB,
     "hbm_capacity_bytes": 16 * GIB, "images_per_s_at_most": 999.6, "ap50": 0.5, "ap": 0.25, "f1": 0.4},
    {"size_px": 800, "backbone": "original", "head": "yolo3", "parameters": 61_500_000, "compiles": False, "hbm_bytes": 20 * GIB,
     "hbm_capacity_bytes": 16 * GIB, "host_bytes": 3 * GIB, "ap50": 0.6, "ap50_sd": 0.1414, "ap": 0.3, "f1": 0.5},
    {"size_px": 416, "backbone": "dense", "head": "yolo3_dense_2"},
]  # fmt: skip


def test_table(sweep: ModuleType) -> None:
    lines = sweep.size_table.markdown(ROWS, "NOTE").splitlines()
    assert lines[2] == "| 416 | original | yolo3 | 61.50 M | 1.00 GiB | 1,000 |  | 0.500 | 0.250 | 0.400 |"
    assert lines[3] == "| 800 | original | yolo3 | 61.50 M | no: 20.00 GiB |  | 3.00 GiB | 0.600 ± 0.141 | 0.300 | 0.500 |"
    assert lines[4] == "| 416 | dense | yolo3_dense_2 |  |  |  |  |  |  |  |"
    assert lines[-1] == "NOTE"
    written = sweep.size_table.as_csv(ROWS).decode().splitlines()
    assert written[0].startswith("size_px,backbone,head,batch_size,parameters,compiles,hbm_bytes")
    assert written[1] == f"416,original,yolo3,,61500000,True,{GIB},{16 * GIB},999.6,,,,0.5,,0.25,,0.4,"


def test_plots(sweep: ModuleType) -> None:
    """Each of what is known, none of what is not; a second panel makes the picture wider by 4.6 of 7.0 inches."""

    def wide(png: bytes) -> int:
        assert png.startswith(b"\x89PNG")
        return int.from_bytes(png[16:20], "big")

    batches = {"memory.png": 8, "precision.png": 2}
    found = sweep.size_table.plots(ROWS, batches)
    assert sorted(found) == ["memory.png", "precision.png"]
    assert (wide(found["precision.png"]), wide(found["memory.png"])) == (840, 1392)  # 7.0 and 11.6 inches of 120 px
    assert sweep.size_table.plots(ROWS[2:], batches) == {}


def test_seeds_give_mean_and_spread(sweep: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AP50 0.5 and 0.7: mean 0.6, standard deviation sqrt(2 x 0.1^2 / (2 - 1)) = 0.1414."""
    found = {0: {"ap50": 0.5, "ap": 0.2, "f1": 0.4}, 1: {"ap50": 0.7, "ap": 0.2, "f1": 0.6}}
    monkeypatch.setattr(sweep, "trained", lambda cell, options, seed: {**found[seed], "parameters": 7, "step": 3})
    argv = [f"--output={tmp_path}", "--sizes=64", "--backbones=tiny", "--heads=yolo3", "--no-compile", "--steps=3", "--seeds=0,1"]
    argv += ["--train_batch_size=4", "--train_flags=--learning_rate=0.0005"]
    assert sweep.main([*argv, "--shard=--mosaics=a"]) == 0
    said = (tmp_path / "sizes.md").read_text()
    assert "| 0.600 ± 0.141 | 0.200 ± 0.000 | 0.500 ± 0.141 |" in said
    assert "AP and F1: 3 steps of 4 images, --init scratch, seeds 0, 1; `rookery shard --mosaics=a`." in said
    assert "In training with --learning_rate=0.0005." in said


def test_the_script(tmp_path: Path) -> None:
    """It launches, and installs nothing to look."""

    def script(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["bash", "scripts/size_sweep.sh", *argv], cwd=ROOT, capture_output=True, text=True, check=False)

    assert "--host_memory" in script("--help").stdout
    done = script(
        "--output", str(tmp_path), "--num_classes", "1", "--no-train", "--sizes", "416", "--heads", "yolo3", "--dry_run"
    )
    assert [re.findall(r"--backbone=(\w+)", line) for line in done.stdout.splitlines()] == [["original"], ["dense"]], done.stderr
    nothing = script()
    assert nothing.returncode
    assert "say what to do: --output FOLDER, or --help" in nothing.stderr


def test_a_small_sweep_for_real(
    sweep: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_raster: Callable[..., str],
    write_voc: Callable[..., str],
) -> None:
    """Two mosaics of 16 squares are cut at 64 and at 96 px and trained on for 3 steps: both sizes are judged by the same 16."""
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        image = rng.integers(20, 60, (200, 200, 3)).astype(np.uint8)
        boxes = [(y, x, y + 16 + x // 40, x + 20 + y // 40) for y in range(6, 166, 40) for x in range(6, 166, 40)]
        for y0, x0, y1, x1 in boxes:
            image[y0:y1, x0:x1] = rng.integers(180, 255, 3)
        write_raster(tmp_path / f"{name}.png", image, driver="PNG")
        write_voc(tmp_path / f"{name}.xml", f"{name}.png", (200, 200), [("square", box) for box in boxes])
    answer(sweep, monkeypatch, lambda command: GIB)
    out = tmp_path / "out"
    argv = [f"--output={out}", "--sizes=64,96", "--backbones=tiny", "--heads=yolo3_dense_1", "--batch_size=2", "--steps=3"]
    cut = f"--mosaics={tmp_path}/*.png --annotations={tmp_path}/*.xml --overlap=32 --split=train=0.5,val=0.5"
    assert sweep.main([*argv, "--num_classes=1", "--shard", cut]) == 0
    for size in (64, 96):
        kept = json.loads((out / "cells.json").read_text())[f"{size}_tiny_yolo3_dense_1"]
        [folder] = out.glob(f"datasets/{size}_*")
        assert kept["train 0"]["true_count"] == 16
        assert 0 <= kept["train 0"]["ap50"] <= 1
        assert kept["train 0"]["step"] == kept["train 0"]["settings"]["steps"] == 3
        assert json.loads((folder / "dataset.json").read_text())["patch_size"] == size
    # Of the network by its blocks: see test_tpu_train_models_yolo.py; here only that both sizes have the same one.
    assert kept["train 0"]["parameters"] > 1e6
    assert len((out / "sizes.csv").read_text().splitlines()) == 3
    assert (out / "precision.png").exists()
    assert (out / "memory.png").exists()
