"""The child process that compiles, and what is remembered of it: killed, too slow, outlived, a full disk, a damaged entry."""

import errno
import gzip
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stablehlo_step import STEP, TOPOLOGY

from survey.errors import InputError
from tpu_train.preflight import compiler, libtpu
from tpu_train.preflight.compiler import Compiled, Placed, Refused

# Without the time, or the names of the tests would differ between processes.
NO_JSON, NO_ENTRY = (gzip.compress(text, mtime=0) for text in (b"{", b"[1]"))


def no_child(*arguments: object, **named: object) -> None:
    raise AssertionError("a child was started")


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A child that is a few lines of Python: `stub.write_text(code)`; its arguments are those of `libtpu`."""
    script = tmp_path / "stub.py"
    real = subprocess.Popen

    def popen(command: list[str], **named: Any) -> subprocess.Popen[bytes]:
        return real([sys.executable, str(script), *command[3:]], **named)

    monkeypatch.setattr(compiler.subprocess, "Popen", popen)
    monkeypatch.setattr(compiler, "versions", lambda: {"jax": "0", "jaxlib": "0", "libtpu": "0"})
    return script


ANSWER = {
    "seconds": 3.5,
    "placed_bytes": 10 + 6 - 5 + 100,
    "argument_bytes": 10,
    "output_bytes": 6,
    "alias_bytes": 5,
    "code_bytes": 1000,
    "flops": 8.0,
}


def child(answer: dict[str, Any], hlo: str = "HloModule m\n") -> str:
    return f"""
import pathlib, sys
folder = pathlib.Path(sys.argv[3])
(folder / {libtpu.MODULE!r}).write_text({hlo!r})
(folder / {libtpu.RESULT!r}).write_text({json.dumps(answer)!r})
"""


def test_an_answer_is_remembered(stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub.write_text(child(ANSWER))
    first = compiler.compile(STEP, TOPOLOGY, cache=tmp_path / "cache", timeout_s=60)
    assert isinstance(first, Compiled)
    assert first.hbm_bytes == 10 + 6 - 5 + 100 + 1000
    assert first.temporary_bytes == 100
    assert first.hlo == "HloModule m\n"
    monkeypatch.setattr(compiler.subprocess, "Popen", no_child)
    again = compiler.compile(STEP, TOPOLOGY, cache=tmp_path / "cache", timeout_s=60)
    assert isinstance(again, Compiled)
    assert again.cached
    assert not first.cached
    assert (again.hlo, again.seconds, again.hbm_bytes, again.flops) == (first.hlo, 3.5, first.hbm_bytes, 8.0)
    # TensorFlow counts its functions, and a checkout lies somewhere else: the same step
    moved = STEP.replace("step_20__.31", "step_907__.412").replace("/a/machine/", "/elsewhere/").replace(":1221:", ":7:")
    assert compiler.compile(moved, TOPOLOGY, cache=tmp_path / "cache", timeout_s=60) == again
    for other, topology in (
        (STEP.replace("512", "256"), TOPOLOGY),
        (STEP.replace("MatMul", "MatMul_1"), TOPOLOGY),
        (STEP, "v4:2x2x1"),
    ):
        with pytest.raises(AssertionError, match="a child was started"):
            compiler.compile(other, topology, cache=tmp_path / "cache", timeout_s=60)
    monkeypatch.setattr(compiler, "versions", lambda: {"jax": "0", "jaxlib": "0", "libtpu": "1"})
    with pytest.raises(AssertionError, match="a child was started"):
        compiler.compile(STEP, TOPOLOGY, cache=tmp_path / "cache", timeout_s=60)


def test_a_layout_is_remembered_and_a_whole_compile_answers_it(
    stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.write_text(child({"seconds": 0.5, "placed_bytes": 111}, ""))
    assert compiler.place(STEP, TOPOLOGY, cache=tmp_path / "cache", timeout_s=60) == Placed(111, cached=False)
    stub.write_text(child(ANSWER))
    assert isinstance(compiler.compile(STEP, TOPOLOGY, cache=tmp_path / "cache", timeout_s=60), Compiled)  # no layout will do
    (tmp_path / "other").mkdir()
    assert isinstance(compiler.compile(STEP, TOPOLOGY, cache=tmp_path / "other", timeout_s=60), Compiled)
    monkeypatch.setattr(compiler.subprocess, "Popen", no_child)
    for cache in ("cache", "other"):
        assert compiler.place(STEP, TOPOLOGY, cache=tmp_path / cache, timeout_s=60) == Placed(111, cached=True)


def test_a_cache_that_cannot_be_written_is_refused_before_the_compile(
    stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(compiler.subprocess, "Popen", no_child)
    with pytest.raises(InputError, match=r"--cache=.*/file/cache: .*/file is not a folder that can be written"):
        compiler.compile(STEP, TOPOLOGY, cache=tmp_path / "file/cache", timeout_s=60)


def test_a_full_disk_takes_nothing_from_the_answer(
    stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: str, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    stub.write_text(child(ANSWER))
    monkeypatch.setattr(compiler.files, "write", full)
    found = compiler.compile(STEP, TOPOLOGY, cache=tmp_path / "cache", timeout_s=60)
    assert isinstance(found, Compiled)
    assert found.flops == 8.0
    assert "this compile is not remembered (No space left on device)" in capsys.readouterr().err


def test_no_room_for_the_compilers_reports_is_said_before_the_compile(
    stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler.shutil, "disk_usage", lambda path: SimpleNamespace(free=4 * 2**20))
    monkeypatch.setattr(compiler.subprocess, "Popen", no_child)
    with pytest.raises(InputError, match=r"TMPDIR=.*: 4 MiB are free there, .* may take 256: make room, or set TMPDIR"):
        compiler.compile(STEP, TOPOLOGY, cache=tmp_path / "cache", timeout_s=60)


def test_a_disk_that_fills_up_meanwhile(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"report of HBM is missing, .*TMPDIR"):
        libtpu.placed_bytes(tmp_path)
    (tmp_path / "module_0010.step.after_optimizations-memory-usage-report.txt").write_text("Memory Space: def")
    with pytest.raises(RuntimeError, match=r"report of HBM is missing, .*TMPDIR"):
        libtpu.placed_bytes(tmp_path)


def test_a_refusal_is_remembered_and_explained_anew(stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub.write_text(child({"seconds": 0.1, "error": "UNIMPLEMENTED: sorry", "op": "model/top_k", "largest": None}, ""))
    first = compiler.compile(STEP, TOPOLOGY, cache=tmp_path / "cache", timeout_s=60)
    monkeypatch.setattr(compiler.subprocess, "Popen", no_child)
    again = compiler.compile(STEP, TOPOLOGY, cache=tmp_path / "cache", timeout_s=60, sources={"model": "heads.py:9"})
    assert isinstance(first, Refused)
    assert isinstance(again, Refused)
    assert (first.source, again.source) == ("", "heads.py:9")
    assert (
        first.message
        == again.message
        == "The compiler for v5e cannot do something in the step (model/top_k): UNIMPLEMENTED: sorry"
    )


@pytest.mark.parametrize("damage", [b"", b"not gzip", NO_JSON, NO_ENTRY, "cut", "flipped"])
def test_a_damaged_entry_is_compiled_again(stub: Path, tmp_path: Path, damage: bytes | str) -> None:
    stub.write_text(child(ANSWER))
    cache = tmp_path / "cache"
    first = compiler.compile(STEP, TOPOLOGY, cache=cache, timeout_s=60)
    (entry,) = cache.iterdir()
    whole = entry.read_bytes()
    middle = len(whole) // 2
    spoilt = {"cut": whole[:middle], "flipped": whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]}
    entry.write_bytes(damage if isinstance(damage, bytes) else spoilt[damage])
    assert compiler.compile(STEP, TOPOLOGY, cache=cache, timeout_s=60) == first
    again = compiler.compile(STEP, TOPOLOGY, cache=cache, timeout_s=60)
    assert isinstance(again, Compiled)
    assert again.cached
    assert [file.name for file in cache.iterdir()] == [entry.name]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_time_over_ends_the_child_and_what_it_started(stub: Path, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    stub.write_text(f"""
import os, subprocess, time
other = subprocess.Popen(["sleep", "60"])
open({str(pids)!r} + "_", "w").write(f"{{os.getpid()}} {{other.pid}}")
os.rename({str(pids)!r} + "_", {str(pids)!r})
time.sleep(60)
""")
    seen: list[float] = []
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"--timeout=3.5: the compiler has not finished .* v5e:2x2"):
        compiler.compile(STEP, TOPOLOGY, cache=tmp_path / "cache", timeout_s=3.5, progress=seen.append)
    assert time.monotonic() - begun < 20
    assert 2 <= len(seen) <= 4  # every second and at the end, on a machine that has time for it
    assert seen[0] >= 1
    assert seen == sorted(seen)
    both = [int(pid) for pid in pids.read_text().split()]
    deadline = time.monotonic() + 10  # the grandchild is reaped by init, in its own time
    while any(alive(pid) and not zombie(pid) for pid in both) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) and not zombie(pid) for pid in both)
    assert not (tmp_path / "cache").exists()


def zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", r"crashed \(SIGSEGV\)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", r"killed, probably because this machine ran out of memory"),
        ("raise RuntimeError('no such topology')", r"ended with an error \(RuntimeError: no such topology\)"),
        ("pass", r"ended with an error \(it said nothing\)"),
    ],
)
def test_a_crash_is_said_to_be_one_and_not_remembered(stub: Path, tmp_path: Path, code: str, says: str) -> None:
    stub.write_text(code)
    found = compiler.compile(STEP, TOPOLOGY, cache=tmp_path / "cache", timeout_s=60)
    assert isinstance(found, Refused)
    assert found.reason == "other"
    assert re.search(says, found.message)
    stub.write_text(child(ANSWER))
    assert isinstance(compiler.compile(STEP, TOPOLOGY, cache=tmp_path / "cache", timeout_s=60), Compiled)


def test_a_child_does_not_outlive_the_process_that_started_it(tmp_path: Path) -> None:
    """Not even where that was killed, which leaves it no time to say so."""
    script, folder = tmp_path / "parent.py", tmp_path / "folder"
    folder.mkdir()
    (folder / "report").write_text("")
    script.write_text(f"""
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from tpu_train.preflight import libtpu

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=libtpu.end_with_parent, initargs=({str(folder)!r},)) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        time.sleep(60)
""")
    environment = {**os.environ, "PYTHONPATH": str(Path(libtpu.__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    child_pid = int(parent.stdout.readline())
    assert alive(child_pid)
    assert folder.exists()
    parent.kill()
    parent.wait()
    parent.stdout.close()  # not communicate(), which would wait for a child that has it, too
    deadline = time.monotonic() + 20
    while alive(child_pid) and not zombie(child_pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(child_pid) or zombie(child_pid)
    assert not folder.exists(), "what it had written is left behind"
