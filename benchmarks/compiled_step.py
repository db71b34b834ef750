"""What the TPU's compiler says of a training step, asked of `rookery preflight`."""

import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import measure

GIB = 2**30
# Of the answers, what a step that compiles has.
WORK = ("flops", "hbm_traffic_bytes", "temporary_bytes", "argument_bytes", "bound_s", "limit")


def command(flags: Sequence[str], cache: str | None = None) -> list[str]:
    """The question, as `ask` takes it.

    Args:
      flags: of `rookery preflight`: the accelerator and the step.
      cache: folder of compiles already done; None for the command's own.
    """
    return ["rookery", "preflight", *flags, "--step=train", *([f"--cache={cache}"] if cache else [])]


def ask(command: Sequence[str]) -> dict[str, Any]:
    """The answer, for a file: a step that does not fit is one, too.

    Returns:
      generation, hbm_capacity_bytes; parameters, compiles, hbm_bytes, boxes (room for them in an image); message where it does
      not compile, else WORK and images_per_s_at_most; largest {batch, refused} of a replica, None if it was not asked for.
      Bytes and rates are a chip's. versions (of the compiler) and day say how and when it was found.

    Raises:
      RuntimeError: the command could not be carried out; it has said why on the terminal, where its progress is, too.
    """
    with tempfile.TemporaryDirectory(prefix="rookery_compiled_") as folder:
        path = Path(folder, "answers.json")
        line = [sys.executable, "-m", *command, f"--json={path}"]
        done = subprocess.run(line, cwd=measure.ROOT, stdout=subprocess.DEVNULL, check=False)
        if not path.exists():
            raise RuntimeError(f"{shlex.join(command)} ended with {done.returncode}")
        answers = json.loads(path.read_text())
    step, where, largest = answers["steps"]["train"], answers["accelerator"], answers["largest_batch_per_replica"]
    found = {
        "generation": where["generation"],
        "hbm_capacity_bytes": where["hbm_bytes"],
        "parameters": step["parameters"],
        "compiles": step["compiles"],
        "hbm_bytes": step["hbm_bytes"],
        "boxes": step["inputs"]["boxes"]["shape"][1],
    }
    if step["compiles"]:
        rate = step["images_per_s_per_replica_at_most"] * where["replicas"] / where["chips"]
        found |= {**{name: step[name] for name in WORK}, "images_per_s_at_most": rate}
    else:
        found["message"] = step["message"]
    found["largest"] = {name: largest[name] for name in ("batch", "refused")} if largest else None
    return {**found, "versions": step.get("versions", {}), "day": date.today().isoformat()}


def fits(found: dict[str, Any]) -> str:
    """Whether it does, for a table."""
    return "yes" if found["compiles"] else f"no: {found['message']}"


def hbm(found: dict[str, Any]) -> str:
    """What it takes of a chip, for a table."""
    return f"{found['hbm_bytes'] / GIB:.2f} GiB" if found["hbm_bytes"] else "?"


def bound(found: dict[str, Any]) -> list[str]:
    """The least time of a step, what limits it, and the most images a second, for a table; empty where it does not compile."""
    if not found["compiles"]:
        return ["", "", ""]
    return [f"{1e3 * found['bound_s']:.2f} ms", found["limit"], f"{found['images_per_s_at_most']:,.0f}"]


def made(answers: Sequence[dict[str, Any]]) -> str:
    """With what and when answers were found, in a line."""
    versions = dict.fromkeys(f"{name} {version}" for found in answers for name, version in found["versions"].items())
    days = sorted({found["day"] for found in answers})
    return f"{', '.join(versions)}; {' to '.join(dict.fromkeys((days[0], days[-1])))}"
