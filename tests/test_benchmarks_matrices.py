"""The tables of compiled steps: what they ask, what they keep, what they say; the compiler's answers are made up."""

import json
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

GIB = 2**30
WORK = {"flops": 2e12, "hbm_traffic_bytes": 3, "temporary_bytes": 4, "argument_bytes": 5, "bound_s": 0.0125, "limit": "memory"}
FITS = {
    "generation": "v5e", "hbm_capacity_bytes": 16 * GIB, "parameters": 61_500_000, "compiles": True, "hbm_bytes": 3 * GIB,
    "boxes": 100, **WORK, "images_per_s_at_most": 1234.5, "largest": None, "versions": {"libtpu": "1.0"}, "day": "2026-01-02",
}  # fmt: skip


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))


def answered(monkeypatch: pytest.MonkeyPatch, matrix: ModuleType) -> list[list[str]]:
    """Has questions answered at once; returns them."""
    asked: list[list[str]] = []

    def ask(command: list[str]) -> dict[str, Any]:
        if "--accelerator=v6e-8" in command:
            raise RuntimeError("killed")
        asked.append(command)
        return {**FITS, "largest": {"batch": 24, "refused": 32} if "--max_batch" in command else None}

    monkeypatch.setattr(matrix.compiled_step, "ask", ask)
    return asked


def test_tpu_matrix_goes_on_where_it_was(benchmarks: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import tpu_matrix

    def run(*more: str) -> str:
        monkeypatch.setattr("sys.argv", ["tpu_matrix.py", f"--output={page}", *more])
        tpu_matrix.main()
        return page.read_text()

    page = tmp_path / "matrix.md"
    asked = answered(monkeypatch, tpu_matrix)
    some = ["--experiments=retinanet_r50_tpu", "--accelerators=v4-8,v5litepod-8"]
    assert "| retinanet_r50_tpu | v5e | yes | 3.00 GiB | 16.00 GiB | not searched | 12.50 ms | memory | 1,234 |" in run(
        *some, "--no-search"
    )
    assert [command[2] for command in asked] == ["--accelerator=v4-8", "--accelerator=v5litepod-8"]
    run(*some, "--no-search")
    assert len(asked) == 2, "known"
    with pytest.raises(RuntimeError, match="killed"):
        run("--experiments=retinanet_r50_tpu", "--accelerators=v5litepod-8,v6e-8")
    assert len(asked) == 3, "the largest batch was not known"
    assert "--max_batch" in asked[-1]
    text = run(*some, "--no-search")
    assert "| 3.00 GiB | 16.00 GiB | 24 (32 do not fit) | 12.50 ms |" in text, "and is not forgotten"
    assert "2 of 20 pairs, of 1 with the largest batch." in text
    assert "libtpu 1.0; 2026-01-02." in text
    run(*some, "--no-search", "--again")
    assert len(asked) == 5


def test_yolo_matrix_goes_on_where_it_was(benchmarks: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import yolo_matrix

    def run(*more: str) -> str:
        monkeypatch.setattr("sys.argv", ["yolo_matrix.py", f"--output={page}", "--backbones=original,dense", *more])
        yolo_matrix.main()
        return page.read_text()

    page = tmp_path / "matrix.md"
    asked = answered(monkeypatch, yolo_matrix)
    text = run("--heads=yolo3")
    assert "| original | yolo3 | v3 | 8, 16, 32 | 61.5 M | yes | 3.00 GiB | 2.00 | 12.50 ms | memory | 1,234 |" in text
    assert "v5e with 16.00 GiB of HBM: 8 images of 416 px, 3 classes, room for 100 objects an\nimage" in text
    assert "2 of 15 pairs." in text
    assert "4 of 15 pairs." in run("--heads=yolo3,yolo3_dense_2")
    assert len(asked) == 4
    assert "1 of 15 pairs." in run("--heads=yolo3", "--backbones=tiny", "--batch_size=16"), "others are of another batch"
    assert len(asked) == 5


def test_answers(benchmarks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates are a chip's; a step that does not fit is an answer, too."""
    import compiled_step

    where = {"generation": "v4", "hbm_bytes": 16 * GIB, "replicas": 8, "chips": 4}
    common = {"parameters": 5, "inputs": {"boxes": {"shape": [8, 100, 4]}}, "versions": {"libtpu": "1.0"}}
    fits = {**common, **WORK, "compiles": True, "hbm_bytes": 7, "images_per_s_per_replica_at_most": 9.0}
    large = {**common, "compiles": False, "hbm_bytes": 17 * GIB, "message": "too large"}
    largest = {"batch": 24, "refused": 32, "tried": []}

    def answer(step: dict[str, Any], largest: dict[str, Any] | None) -> dict[str, Any]:
        def run(line: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
            answers = {"steps": {"train": step}, "accelerator": where, "largest_batch_per_replica": largest}
            Path(line[-1].removeprefix("--json=")).write_text(json.dumps(answers))
            return subprocess.CompletedProcess(line, 0 if step["compiles"] else 3, "")

        monkeypatch.setattr(subprocess, "run", run)
        return compiled_step.ask(compiled_step.command(["--accelerator=v4-8"]))

    found = answer(fits, largest)
    assert (found["images_per_s_at_most"], found["boxes"], found["bound_s"]) == (18.0, 100, 0.0125)
    assert found["largest"] == {"batch": 24, "refused": 32}
    refused = answer(large, None)
    assert (compiled_step.fits(refused), compiled_step.hbm(refused), compiled_step.bound(refused)) == (
        "no: too large",
        "17.00 GiB",
        ["", "", ""],
    )
    assert refused["largest"] is None
    monkeypatch.undo()


def test_a_question_that_is_refused(benchmarks: None, capfd: pytest.CaptureFixture[str]) -> None:
    import compiled_step

    question = compiled_step.command(["--accelerator=v5litepod-1", "--no_such_flag=1"])
    with pytest.raises(RuntimeError, match=r"rookery preflight .* ended with 2"):
        compiled_step.ask(question)
    assert "no_such_flag is not a flag" in capfd.readouterr().err
