"""Compiles StableHLO for a TPU that is not there: starts the child that does it, waits, and remembers the answer. No jax here."""

import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from survey import files
from survey.errors import InputError
from tpu_train.preflight import libtpu, refusals
from tpu_train.preflight.refusals import Refused as Refused  # callers find both answers here

INSTALL = ".venv/bin/python -m pip install --require-hashes -r requirements/preflight.txt"
PACKAGES = ("jax", "jaxlib", "libtpu")
_FORMAT = 2  # of a cache entry: raised when what the child reports, or how it compiles, changes
_ROOM_BYTES = 2**28  # for temporary files: the compiler's reports of a ResNet-50 step take 60 MB, its module 10
_ROOT = Path(__file__).resolve().parents[2]

# TensorFlow counts the functions of a process into the module's name, and names files of this machine in locations: neither
# changes what is compiled. Two lowerings of a step, in two processes, are otherwise the same text.
_COUNTER = re.compile(rb"(@a_inference_\w*?)_\d+__(\.\d+)?(?=\W)")
_FILE = re.compile(rb'"[^"\n]*":\d+:\d+')


@dataclass(frozen=True, slots=True)
class Compiled:
    """A module that compiles, and what the compiler says of it. Bytes are of HBM, of one device.

    Attributes:
      topology: for which, "v5e:2x2".
      seconds: that the compile took, when it was done.
      placed_bytes: of the layout, as the compiler holds it against what there is: all but the code.
      argument_bytes: variables and inputs.
      output_bytes: variables' new values and outputs, with those that lie where arguments lay.
      alias_bytes: of outputs that lie where arguments lay.
      code_bytes: of the program.
      flops: of one run, the compiler's cost analysis; a multiplication and an addition are two.
      versions: of jax, jaxlib and libtpu.
      hlo: text of the optimised module.
      cached: whether the answer was remembered.
    """

    topology: str
    seconds: float
    placed_bytes: int
    argument_bytes: int
    output_bytes: int
    alias_bytes: int
    code_bytes: int
    flops: float
    versions: Mapping[str, str]
    hlo: str
    cached: bool

    @property
    def hbm_bytes(self) -> int:
        """What one device's memory must hold."""
        return self.placed_bytes + self.code_bytes

    @property
    def temporary_bytes(self) -> int:
        """What is neither argument nor result: temporaries, each where it lies as long as it lives, the gaps, and constants."""
        return self.placed_bytes - self.argument_bytes - (self.output_bytes - self.alias_bytes)


@dataclass(frozen=True, slots=True)
class Placed:
    """A module whose buffers have their places in HBM, and for which no code was generated. Bytes are of one device.

    Attributes:
      placed_bytes: as of `Compiled`.
      cached: whether the answer was remembered.
    """

    placed_bytes: int
    cached: bool


def versions() -> dict[str, str]:
    """Versions of the installed jax, jaxlib and libtpu, without importing them.

    Raises:
      InputError: one is not installed, or they are not the ones that belong together; with the line that installs them.
    """
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            raise InputError(
                f"preflight needs the TPU compiler, and {name} is not installed; install it with: {INSTALL}"
            ) from None
    for requirement in metadata.requires("jax") or []:
        name, wanted = _wanted(requirement)
        if name in found and not _satisfies(found[name], wanted):
            raise InputError(
                f"jax {found['jax']} and {name} {found[name]} do not belong together: this jax works with {name} {wanted}; "
                f"install the set that is tested together with: {INSTALL}"
            )
    return found


def compile(  # noqa: A001
    stablehlo: str,
    topology: str,
    *,
    cache: Path,
    timeout_s: float,
    progress: Callable[[float], None] | None = None,
    sources: Mapping[str, str] | None = None,
) -> Compiled | Refused:
    """Compiles a module for one device of a TPU, in a child process, or finds the answer of an earlier time.

    Args:
      stablehlo: text of the module, with locations: they carry the names of TensorFlow's ops.
      topology: of a chip, `accelerators.Chip.topology`.
      cache: folder of remembered answers; made where there is none. Refusals are answers too.
      timeout_s: for the child, in seconds; a step of RetinaNet-R50 takes about 200 s on two cores.
      progress: called about once a second with the seconds since the start.
      sources: TensorFlow op to where it was made, to say where a refused op is.

    Raises:
      InputError: the compiler is not installed or does not pair with its jax, the cache cannot be written, there is no room
        for temporary files, or the time is over.
    """
    entry, cached = _entry(stablehlo, topology, libtpu.WHOLE, cache, timeout_s, progress)
    if isinstance(entry, Refused):
        return entry
    result = dict(entry["result"])
    if "error" in result:
        return refusals.explain(result, topology, sources or {})
    return Compiled(topology=topology, versions=versions(), hlo=entry["hlo"], cached=cached, **result)


def place(
    stablehlo: str, topology: str, *, cache: Path, timeout_s: float, progress: Callable[[float], None] | None = None
) -> Placed | Refused:
    """Asks whether a module fits into the HBM of one device: `compile` up to the layout of memory, in a fifth of its time.

    The compiler refuses here what does not fit, and nothing that comes later takes more of HBM but the code itself. An answer of
    `compile` answers this, too, and a refusal answers both. For the arguments and errors see there.
    """
    entry, cached = _entry(stablehlo, topology, libtpu.PLACED, cache, timeout_s, progress)
    if isinstance(entry, Refused):
        return entry
    if "error" in entry["result"]:
        return refusals.explain(entry["result"], topology, {})
    return Placed(entry["result"]["placed_bytes"], cached)


def _entry(
    stablehlo: str, topology: str, extent: str, cache: Path, timeout_s: float, progress: Callable[[float], None] | None
) -> tuple[dict[str, Any] | Refused, bool]:
    """What the child reports, and whether it was remembered; a `Refused` is a crash of it."""
    key = _key(stablehlo, topology, versions())
    whole, placed = cache / f"{key}.json.gz", cache / f"{key}.{libtpu.PLACED}.json.gz"
    for path in (whole,) if extent == libtpu.WHOLE else (whole, placed):
        if (known := _remembered(path)) is not None:
            return known, True
    _refuse_unwritable(cache)  # before minutes are spent on what could not be kept
    answer = _child(stablehlo, topology, extent, timeout_s, progress)
    if isinstance(answer, Refused):  # a crash says nothing of the module that could be relied on next time
        return answer, False
    path = placed if extent == libtpu.PLACED and "error" not in answer["result"] else whole
    try:
        files.make_folder(str(cache))
        files.write(str(path), gzip.compress(json.dumps(answer).encode(), compresslevel=6))
    except OSError as error:  # a full disk takes nothing from the answer
        print(f"preflight: --cache={cache}: this compile is not remembered ({error.strerror})", file=sys.stderr, flush=True)
    return answer, False


def _refuse_unwritable(cache: Path) -> None:
    """Looks at the folder, or at the nearest above it that exists; makes nothing.

    Raises:
      InputError: nothing can be written there.
    """
    there = next(path for path in (cache, *cache.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"--cache={cache}: {there} is not a folder that can be written: name one that is")


def _key(stablehlo: str, topology: str, packages: Mapping[str, str]) -> str:
    """Name of an answer: the same for two lowerings of a step, another where anything changes that could change the answer."""
    text = _FILE.sub(b'""', _COUNTER.sub(rb"\1", stablehlo.encode()))
    digest = hashlib.sha256(text)
    digest.update(json.dumps([_FORMAT, topology, dict(packages)], sort_keys=True).encode())
    return digest.hexdigest()


def _remembered(path: Path) -> dict[str, Any] | None:
    """The answer in a file, None where there is none or where it is damaged: then it is made again."""
    try:
        entry = json.loads(gzip.decompress(path.read_bytes()))
        return entry if set(entry) == {"result", "hlo"} else None
    except (OSError, EOFError, ValueError, zlib.error, TypeError):
        return None


def _child(
    stablehlo: str, topology: str, extent: str, timeout_s: float, progress: Callable[[float], None] | None
) -> dict[str, Any] | Refused:
    """Runs the child; a `Refused` is a crash of it.

    Raises:
      InputError: the time is over, or there is no room for the compiler's files.
    """
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < _ROOM_BYTES:  # the compiler would work for minutes, and go on without a word where it cannot write
        raise InputError(
            f"TMPDIR={tempfile.gettempdir()}: {free / 2**20:.0f} MiB are free there, and the TPU compiler's reports may take "
            f"{_ROOM_BYTES / 2**20:.0f}: make room, or set TMPDIR to a folder that has it"
        )
    with tempfile.TemporaryDirectory(prefix="rookery_preflight_") as folder:
        module, log = Path(folder, "module.stablehlo"), Path(folder, "log")
        module.write_text(stablehlo)
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-m", libtpu.__name__, str(module), topology, folder, extent]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # a process group of its own, to be ended as one
            )
        try:
            _wait(process, topology, timeout_s, progress)
        finally:
            _end(process)
        said = Path(folder, libtpu.RESULT)
        if process.returncode or not said.exists():
            return _crash(process.returncode, topology, log.read_text(errors="replace"))
        return {"result": json.loads(said.read_text()), "hlo": Path(folder, libtpu.MODULE).read_text()}


def _wait(process: subprocess.Popen[bytes], topology: str, timeout_s: float, progress: Callable[[float], None] | None) -> None:
    begun = time.monotonic()
    while True:
        left = timeout_s - (time.monotonic() - begun)
        if left <= 0:
            raise InputError(
                f"--timeout={timeout_s:g}: the compiler has not finished this module for {topology} within that many seconds; "
                "RetinaNet-R50 at 640 px takes about 200 s on two idle cores: allow more"
            )
        try:
            process.wait(min(1.0, left))
            return
        except subprocess.TimeoutExpired:
            if progress is not None:
                progress(time.monotonic() - begun)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the child and whatever it started, if it still runs."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _crash(code: int, topology: str, log: str) -> Refused:
    """What to say of a child that ended without an answer."""
    last = next((line for line in reversed(log.splitlines()) if line.strip()), "it said nothing")
    if code == -signal.SIGKILL:
        how = "was killed, probably because this machine ran out of memory"
    elif code < 0:
        how = f"crashed ({signal.Signals(-code).name})"
    else:
        how = f"ended with an error ({last.strip()})"
    message = f"The TPU compiler {how} while it compiled for {topology}: that is its fault or this machine's, not an answer."
    return Refused("other", message, details=log[-20_000:])


def _wanted(requirement: str) -> tuple[str, str]:
    """Name and versions of a requirement that holds for TPUs; ("", "") of others.

    >>> _wanted('libtpu==0.0.42.*; extra == "tpu"')
    ('libtpu', '==0.0.42.*')
    """
    what, _, condition = requirement.partition(";")
    found = re.match(r"\s*([\w.\-]+)\s*(.*?)\s*$", what)
    if found is None or re.sub(r"\s|'|\"", "", condition) not in ("", "extra==tpu"):
        return "", ""
    return found[1], found[2].strip("() ")


def _satisfies(version: str, wanted: str) -> bool:
    """Whether a version is among those wanted. Knows what jax uses: ==, ==1.2.*, <=, >=, <, >.

    >>> _satisfies("0.0.42.1", "==0.0.42.*"), _satisfies("0.10.1", "<=0.10.2,>=0.10.2")
    (True, False)
    """
    have = _numbers(version)
    for clause in filter(None, wanted.replace(" ", "").split(",")):
        found = re.match(r"(==|<=|>=|<|>)([\d.]+?)(\.\*)?$", clause)
        if found is None:  # nothing that can be judged here
            continue
        operator, want = found[1], _numbers(found[2])
        if found[3]:
            ok = have[: len(want)] == want
        else:
            ok = {"==": have == want, "<=": have <= want, ">=": have >= want, "<": have < want, ">": have > want}[operator]
        if not ok:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"[\d.]*\d", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()
