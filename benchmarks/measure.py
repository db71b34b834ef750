"""Commands on given cores, with their time, memory and reading; and tables of the results."""

import contextlib
import os
import platform
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
# How often a running command is asked what it has read so far.
POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Usage:
    """What a command took, with the processes that it started and waited for.

    Attributes:
      wall_s: from start to end.
      cpu_s: of all its processes; on a shared machine it varies less than wall_s.
      rss_mib: most memory of the first process.
      read_mb: what the first process asked the system to read, from disk or cache.
    """

    wall_s: float
    cpu_s: float
    rss_mib: float
    read_mb: float


def run(command: Sequence[str], *, cores: Sequence[int], environment: Mapping[str, str] | None = None) -> Usage:
    """Runs a command on some cores.

    Raises:
      RuntimeError: it failed; with what it said.
    """
    begun = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    seen = {"read": 0, "rss_kib": 0}
    watch = threading.Thread(target=_watch, args=(process.pid, seen))
    watch.start()
    said = process.stdout.read() if process.stdout else b""
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begun
    watch.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{said.decode(errors='replace')[-3000:]}")
    return Usage(wall, usage.ru_utime + usage.ru_stime, seen["rss_kib"] / 1024, seen["read"] / 1e6)


def middle(usages: Sequence[Usage]) -> Usage:
    """Medians of repeated runs; of the memory the most."""
    return Usage(
        median(u.wall_s for u in usages), median(u.cpu_s for u in usages), max(u.rss_mib for u in usages), usages[-1].read_mb
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table, numbers to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine(*packages: str) -> str:
    """One line: processor, cores, load, versions of Python and of packages."""
    processors = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in processors if line.startswith("model name")), platform.machine())
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    load = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end"
    return f"{model}, {load}; Python {platform.python_version()}, {versions}"


def _watch(pid: int, seen: dict[str, int]) -> None:
    """Notes what a process has read and the most memory that it had, until it is gone.

    Not from its resource usage: that begins with the memory of whoever started it.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        while True:
            reading = Path(f"/proc/{pid}/io").read_text().split()
            status = Path(f"/proc/{pid}/status").read_text()
            seen["read"] = int(reading[1])
            seen["rss_kib"] = int(status.split("VmHWM:")[1].split()[0])
            time.sleep(POLL_SECONDS)
