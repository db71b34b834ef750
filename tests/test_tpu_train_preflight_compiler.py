"""The TPU compiler's answers for modules small enough to know them by hand, and what happens when there is no answer."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from stablehlo_step import STEP, TOPOLOGY

from survey import accelerators
from survey.errors import InputError
from tpu_train.preflight import compiler, libtpu
from tpu_train.preflight.compiler import Compiled, Placed, Refused

GIB = 2**30

try:
    compiler.versions()
    installed = True
except InputError:
    installed = False
needs_compiler = pytest.mark.skipif(not installed, reason=f"the TPU compiler is not installed: {compiler.INSTALL}")


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
    found = compiler.compile(STEP, topology, cache=tmp_path, timeout_s=600)
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
        timeout_s=600,
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
    assert isinstance(compiler.compile(chain(1024), TOPOLOGY, cache=tmp_path, timeout_s=600), Compiled)


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
    placed = compiler.place(chain(side), TOPOLOGY, cache=tmp_path / "placed", timeout_s=600)
    whole = compiler.compile(chain(side), TOPOLOGY, cache=tmp_path / "whole", timeout_s=600)
    assert isinstance(placed, Placed)
    assert isinstance(whole, Compiled)
    assert placed.placed_bytes == whole.placed_bytes
    assert 0 <= placed.placed_bytes - mib * 2**20 < 2**20


@needs_compiler
def test_a_layout_that_does_not_fit_is_the_refusal_of_the_whole_compile(tmp_path: Path) -> None:
    placed = compiler.place(chain(65536), TOPOLOGY, cache=tmp_path, timeout_s=600)
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
    found = compiler.compile(module, TOPOLOGY, cache=tmp_path, timeout_s=600)
    assert isinstance(found, Refused)
    assert (found.reason, found.op) == ("unsupported", op)
    assert message in found.message


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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=True)
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
