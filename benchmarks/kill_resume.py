"""kill -9 at random moments of `rookery shard`, then the same command again: is the dataset the one of an undisturbed run?

    python benchmarks/kill_resume.py                       20 moments, a generated survey of 3 mosaics
    python benchmarks/kill_resume.py --side_px 6000        a larger one
    python benchmarks/kill_resume.py --moments 4 --workers 2    the launcher is killed, its worker processes are orphaned

Each moment gets a new folder and a real process (a fork, so that Beam is imported once only), killed at a time drawn uniformly
from the length of an undisturbed run. Exit code 1 if any file of any folder differs.
"""

import argparse
import contextlib
import hashlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio


def main() -> int:
    """Kills, resumes, compares, prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--side_px", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    wrong = killed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _survey(folder, options.side_px, rng)
        argv = [
            f"--mosaics={folder}/*.tif", f"--annotations={folder}/*.xml", "--patch_size=128", "--overlap=32",
            "--records_per_shard=16", f"--direct_num_workers={options.workers}",
        ]  # fmt: skip
        # Twice: the first pays for what is imported late.
        for output in ("first", "whole"):
            seconds, code = _forked(lambda output=output: _shard(argv, folder / output), None)
            if code:
                raise SystemExit("the undisturbed run failed")
        expected = _contents(folder / "whole")
        print(f"undisturbed: {len(expected)} files in {seconds:.2f} s")
        print(f"{'killed after':>12} {'shards finished':>16} {'resumed in':>11}  result")
        for moment in range(options.moments):
            output = folder / f"killed{moment}"
            after = float(rng.uniform(0, seconds))
            _, code = _forked(lambda output=output: _shard(argv, output), after)
            killed += code == -signal.SIGKILL
            done = len(list(output.glob("unfinished/*.tfrecord.json"))) if (output / "unfinished").exists() else 0
            state = f"{done:>16}" if not (output / "dataset.json").exists() else f"{'all':>16}"
            took, code = _forked(lambda output=output: _shard(argv, output), None)
            same = code == 0 and _contents(output) == expected
            wrong += not same
            print(f"{after:>10.2f} s {state} {took:>9.2f} s  {'equal' if same else 'DIFFERENT'}")
    print(f"{options.moments} moments, {killed} killed before the end, {wrong} different")
    return int(wrong > 0)


def _shard(argv: list[str], output: Path) -> int:
    from pipeline import shard

    return shard.run([*argv, f"--output={output}"])


def _forked(work: Callable[[], int], kill_after: float | None) -> tuple[float, int]:
    """Runs work in a process of its own: (seconds, exit code, negative for a signal)."""
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            code = work()
        os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return time.monotonic() - began, os.waitstatus_to_exitcode(status)


def _survey(folder: Path, side: int, rng: np.random.Generator) -> None:
    for i in range(3):
        noise = rng.integers(0, 256, (3, side // 8, side // 8)).repeat(8, axis=1).repeat(8, axis=2).astype(np.uint8)
        profile = {
            "height": noise.shape[1],
            "width": noise.shape[2],
            "count": 3,
            "dtype": "uint8",
            "tiled": True,
            "crs": "EPSG:32617",
        }
        affine = rasterio.Affine(0.1, 0, 1000 + i * side, 0, -0.1, 2000)
        with rasterio.open(folder / f"m{i}.tif", "w", compress="deflate", transform=affine, **profile) as out:
            out.write(noise)
        objects = ""
        for y, x in rng.integers(0, side - 60, (40, 2)).tolist():
            corners = f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + 30}</xmax><ymax>{y + 20}</ymax>"
            objects += f"<object><name>seal</name><bndbox>{corners}</bndbox></object>"
        (folder / f"m{i}.xml").write_text(f"<annotation><filename>m{i}.tif</filename>{objects}</annotation>")


def _contents(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()
    }


if __name__ == "__main__":
    # What forks must already hold when they start: Beam takes seconds to import.
    from beam_jobs import quiet

    with quiet.importing():
        import beam_jobs.launch  # noqa: F401
        import pipeline.transforms  # noqa: F401
    sys.exit(main())
