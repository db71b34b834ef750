"""Every verb is a module of its own, too."""

import subprocess
import sys

import pytest

import rookery


@pytest.mark.parametrize("verb", rookery.VERBS)
def test_runs_as_a_module(verb: str) -> None:
    """Without its required flags a verb refuses with one line and exit code 2, also when called as `python -m`."""
    done = subprocess.run([sys.executable, "-m", rookery.VERBS[verb]], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(
        ("error: the following arguments are required", "error: --dataset or --record_csv: exactly one")
    )
    assert len(done.stderr.splitlines()) == 1
