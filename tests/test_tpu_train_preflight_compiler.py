"""The TPU compiler's answers for modules small enough to know them by hand, and what happens when there is no answer."""

import errno
import gzip
import json
import os
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from survey import accelerators
from survey.errors import InputError
from tpu_train.preflight import compiler, libtpu
from tpu_train.preflight.compiler import Compiled, Placed, Refused

GIB = 2**30
TOPOLOGY = "v5e:2x2"
# Without the time, or the names of the tests would differ between processes.
NO_JSON, NO_ENTRY = (gzip.compress(text, mtime=0) for text in (b"{", b"[1]"))

try:
    compiler.versions()
    installed = True
except InputError:
    installed = False
needs_compiler = pytest.mark.skipif(not installed, reason=f"the TPU compiler is not installed: {compiler.INSTALL}")

# A donated state and a product, as a training step has them; mhlo.copy is what TensorFlow puts at a function's results.
STEP = """
module @a_inference_step_20__.31 attributes {mhlo.input_output_alias = [{alias = {kind = "may_alias",
    parameter_index = array<i64>, parameter_number = 0 : i64}, output_index = array<i64>}]} {
  func.func public @main(%arg0: tensor<512x512xf32>, %arg1: tensor<512x512xf32>) -> tensor<512x512xf32> {
    %0 = stablehlo.dot_general %arg0, %arg1, contracting_dims = [1] x [0]
      : (tensor<512x512xf32>, tensor<512x512xf32>) -> tensor<512x512xf32> loc(#loc3)
    %1 = "mhlo.copy"(%0) : (tensor<512x512xf32>) -> tensor<512x512xf32>
    return %1 : tensor<512x512xf32>
  }
}
#loc1 = loc("model/dense/MatMul")
#loc2 = loc("/a/machine/ops.py":1221:0)
#loc3 = loc(fused[#loc1, #loc2])
"""


def chain(side: int) -> str:
    """Three products of bfloat16 [side, side] after one another, from thin arguments: two of the squares exist at any time."""
    square = f"tensor<{side}x{side}xbf16>"
    return f"""
module @chain {{
  func.func public @main(%arg0: tensor<{side}x128xbf16>, %arg1: tensor<128x{side}xbf16>) -> {square} {{
    %0 = stablehlo.dot_general %arg0, %arg1, contracting_dims = [1] x [0]
      : (tensor<{side}x128xbf16>, tensor<128x{side}xbf16>) -> {square} loc("head/first/MatMul")
    %1 = stablehlo.dot_general %0, %0, contracting_dims = [1] x [0] : ({square}, {square}) -> {square} loc("head/second/MatMul")
    %2 = stablehlo.dot_general %1, %1, contracting_dims = [1] x [0] : ({square}, {square}) -> {square} loc("head/third/MatMul")
    return %2 : {square}
  }}
}}
"""


def call(target: str) -> str:
    return f"""
module @call {{
  func.func public @main(%arg0: tensor<8x128xf32>) -> tensor<8x128xf32> {{
    %0 = stablehlo.custom_call @{target}(%arg0) : (tensor<8x128xf32>) -> tensor<8x128xf32> loc("model/block_2/Special")
    return %0 : tensor<8x128xf32>
  }}
}}
"""


DYNAMIC = """
module @dynamic {
  func.func public @main(%arg0: tensor<?x128xf32>) -> tensor<?x128xf32> {
    %0 = stablehlo.add %arg0, %arg0 : tensor<?x128xf32> loc("model/add")
    return %0 : tensor<?x128xf32>
  }
}
"""


@needs_compiler
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2", "v6e:2x2"])
def test_a_step_compiles(tmp_path: Path, topology: str) -> None:
    found = compiler.compile(STEP, topology, cache=tmp_path, timeout_s=120)
    assert isinstance(found, Compiled)
    # float32 [512, 512] is 1 MiB: two arguments, one output, which takes the place of the first argument
    assert (found.argument_bytes, found.output_bytes, found.alias_bytes) == (2 * 2**20, 2**20, 2**20)
    # the layout is the arguments, and a few KiB that the compiler adds: the product waits on the chip
    assert 2 * 2**20 <= found.placed_bytes < 2 * 2**20 + 2**15
    assert found.hbm_bytes == found.placed_bytes + found.code_bytes
    assert found.temporary_bytes == found.placed_bytes - 2 * 2**20
    assert found.flops == 2 * 512**3
    assert "input_output_alias" in found.hlo
    assert 'op_name="model/dense/MatMul"' in found.hlo
    assert "copy(" not in found.hlo
    assert found.versions["libtpu"] == metadata.version("libtpu")
    assert (found.topology, found.cached) == (topology, False)
    assert 0 < found.seconds < 120


@needs_compiler
def test_what_does_not_fit_is_refused_with_sizes_and_what_fits_is_not(tmp_path: Path) -> None:
    # bfloat16 [65536, 65536] is 8 GiB: two of them are 16 GiB, the arguments 2 x 16 MiB more, 16.03 GiB of 15.75
    found = compiler.compile(
        chain(65536),
        TOPOLOGY,
        cache=tmp_path,
        timeout_s=120,
        sources={"head/second": "x.py:1", "head/first": "tpu_train/heads.py:12"},
    )
    assert isinstance(found, Refused)
    assert found.reason == "memory"
    assert found.needed_bytes == int(16.03 * GIB)
    assert found.capacity_bytes == accelerators.parse("v5e-1").chip.hbm_bytes == int(15.75 * GIB)
    assert "needs 16.03 GiB of HBM, and v5e has 15.75 GiB" in found.message
    assert (found.op, found.source) == ("head/first/MatMul", "tpu_train/heads.py:12")
    assert "bf16[65536, 65536], 8.00 GiB" in found.message
    assert found.details.startswith("RESOURCE_EXHAUSTED")
    assert isinstance(compiler.compile(chain(1024), TOPOLOGY, cache=tmp_path, timeout_s=120), Compiled)


@needs_compiler
@pytest.mark.parametrize(
    ("side", "mib"),
    [
        # bfloat16 [16384, 16384] is 512 MiB: two of them, and two arguments of 4 MiB
        (16_384, 2 * 512 + 2 * 4),
        # [64512, 64512] is 7938 MiB: two are 15.50 GiB, and two arguments of 15.75 MiB; 15.75 GiB are there
        (64_512, 2 * 7938 + 2 * 15.75),
    ],
)
def test_a_layout_is_that_of_the_whole_compile(tmp_path: Path, side: int, mib: float) -> None:
    placed = compiler.place(chain(side), TOPOLOGY, cache=tmp_path / "placed", timeout_s=120)
    whole = compiler.compile(chain(side), TOPOLOGY, cache=tmp_path / "whole", timeout_s=120)
    assert isinstance(placed, Placed)
    assert isinstance(whole, Compiled)
    assert placed.placed_bytes == whole.placed_bytes
    assert 0 <= placed.placed_bytes - mib * 2**20 < 2**20


@needs_compiler
def test_a_layout_that_does_not_fit_is_the_refusal_of_the_whole_compile(tmp_path: Path) -> None:
    placed = compiler.place(chain(65536), TOPOLOGY, cache=tmp_path, timeout_s=120)
    assert isinstance(placed, Refused)
    assert (placed.reason, placed.needed_bytes) == ("memory", int(16.03 * GIB))
    assert len(list(tmp_path.iterdir())) == 1
    assert compiler.compile(chain(65536), TOPOLOGY, cache=tmp_path, timeout_s=0.001) == placed  # remembered


@needs_compiler
@pytest.mark.parametrize(
    ("module", "op", "message"),
    [
        (
            call("my_kernel"),
            "model/block_2/Special",
            "The step calls my_kernel (model/block_2/Special), which is for a CPU or GPU",
        ),
        (DYNAMIC, "", "an array whose size is known only when it runs"),
    ],
)
def test_what_a_tpu_cannot_do_is_named(tmp_path: Path, module: str, op: str, message: str) -> None:
    found = compiler.compile(module, TOPOLOGY, cache=tmp_path, timeout_s=120)
    assert isinstance(found, Refused)
    assert (found.reason, found.op) == ("unsupported", op)
    assert message in found.message


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


def fake_metadata(monkeypatch: pytest.MonkeyPatch, **installed: str) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    wants = [
        "jaxlib<=0.10.2,>=0.10.1",
        "numpy>=2.0",
        'libtpu==0.0.42.*; extra == "tpu"',
        "jaxlib<=0.10.2,>=0.10.2; extra == 'tpu'",
    ]
    wants += ['jaxlib==0.10.1; extra == "ci"', 'libtpu==9; extra == "cuda"']
    monkeypatch.setattr(compiler.metadata, "version", version)
    monkeypatch.setattr(compiler.metadata, "requires", lambda name: wants)


def test_versions_that_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"jax": "0.10.2", "jaxlib": "0.10.2", "libtpu": "0.0.42.1"}
    fake_metadata(monkeypatch, **versions)
    assert compiler.versions() == versions


@pytest.mark.parametrize("absent", ["jax", "jaxlib", "libtpu"])
def test_an_absent_compiler_says_the_pip_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, absent: str) -> None:
    versions = {"jax": "0.10.2", "jaxlib": "0.10.2", "libtpu": "0.0.42.1"}
    del versions[absent]
    fake_metadata(monkeypatch, **versions)
    with pytest.raises(
        InputError, match=f"{absent} is not installed; install it with: .*pip install --require-hashes -r requirem"
    ):
        compiler.compile(STEP, TOPOLOGY, cache=tmp_path, timeout_s=60)


@pytest.mark.parametrize(
    ("jaxlib", "libtpu_version", "both"),
    [
        ("0.10.2", "0.0.21", r"jax 0.10.2 and libtpu 0.0.21 .* libtpu ==0.0.42.\*"),
        ("0.10.1", "0.0.42.1", r"jax 0.10.2 and jaxlib 0.10.1 .* jaxlib <=0.10.2,>=0.10.2"),
    ],
)
def test_versions_that_do_not_pair_are_named(
    monkeypatch: pytest.MonkeyPatch, jaxlib: str, libtpu_version: str, both: str
) -> None:
    fake_metadata(monkeypatch, jax="0.10.2", jaxlib=jaxlib, libtpu=libtpu_version)
    with pytest.raises(InputError, match=both + ".*requirements/preflight.txt"):
        compiler.versions()


def test_the_parent_imports_neither_jax_nor_tensorflow() -> None:
    code = (
        "import sys, tpu_train.preflight.compiler, survey.accelerators\n"
        "print([name for name in ('jax', 'jaxlib', 'tensorflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_what_the_user_has_set_does_not_reach_the_compiler() -> None:
    environ = {
        "XLA_FLAGS": "--xla_dump_to=x",
        "LIBTPU_INIT_ARGS": "--y",
        "TPU_NAME": "pod",
        "JAX_PLATFORMS": "cpu",
        "HOME": "/home/me",
    }
    libtpu.prepare(environ)
    assert set(environ) == {"HOME", *libtpu._ENVIRONMENT}


def test_a_child_does_not_outlive_the_process_that_started_it(tmp_path: Path) -> None:
    """Not even where that was killed, which leaves it no time to say so."""
    script = tmp_path / "parent.py"
    script.write_text("""
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from tpu_train.preflight import libtpu

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=libtpu.end_with_parent) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        time.sleep(60)
""")
    environment = {**os.environ, "PYTHONPATH": str(Path(libtpu.__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    child_pid = int(parent.stdout.readline())
    assert alive(child_pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()  # not communicate(), which would wait for a child that has it, too
    deadline = time.monotonic() + 20
    while alive(child_pid) and not zombie(child_pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(child_pid) or zombie(child_pid)
