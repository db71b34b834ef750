"""The arrows of the design: who may import whom, and that help needs nothing heavy."""

import ast
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rookery

ROOT = Path(__file__).parent.parent
STAGES = {"pipeline", "tpu_train", "inference"}
OURS = {"survey", "beam_jobs", "cloud", "rookery", *STAGES}
TENSORFLOW = {"tensorflow", "tf_keras", "keras", "official", "orbit", "tensorflow_models"}
THE_FILES_OF_INFERENCE = {"inference/model_runner.py", "inference/decode_xla.py"}

MAY_IMPORT = {
    "survey": {"survey"},
    "beam_jobs": {"beam_jobs", "survey"},
    "cloud": {"cloud", "survey"},
    "pipeline": {"pipeline", "beam_jobs", "survey"},
    "inference": {"inference", "beam_jobs", "survey"},
    "tpu_train": {"tpu_train", "survey"},
}


def imports() -> Iterator[tuple[str, str]]:
    """(file, top-level package) of every import in our packages, wherever in the file it stands."""
    for package in sorted(MAY_IMPORT):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    assert node.level == 0, f"{path} has a relative import: arrows must be readable"
                    names = [node.module or ""]
                else:
                    continue
                for name in names:
                    yield str(path.relative_to(ROOT)), name.split(".")[0]


def test_imports_point_one_way():
    found = set(imports())
    wrong = [(file, name) for file, name in found if name in OURS and name not in MAY_IMPORT[file.split("/")[0]]]
    assert wrong == []
    assert {file.split("/")[0] for file, _ in found} == set(MAY_IMPORT)  # the walk saw every package


def test_tensorflow_lives_in_training_and_in_two_files_of_inference():
    where = {file for file, name in imports() if name in TENSORFLOW and not file.startswith("tpu_train/")}
    assert where == THE_FILES_OF_INFERENCE


def test_beam_lives_where_jobs_run():
    where = {file.split("/")[0] for file, name in imports() if name == "apache_beam"}
    assert where == {"beam_jobs", "pipeline", "inference"}


def processor_seconds(*argv: str) -> tuple[float, str]:
    """Least of three runs of Python, and what it said. Of the processor: what else this machine does is not ours."""
    seconds = []
    for _ in range(3):
        begun = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, check=False)
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(ended.ru_utime - begun.ru_utime + ended.ru_stime - begun.ru_stime)
        assert done.returncode == 0, done.stderr
    return min(seconds), done.stdout


@pytest.fixture(scope="module")
def libraries() -> float:
    """Processor seconds that NumPy and rasterio take to import, 0.45 on an EPYC of 2026."""
    seconds, _ = processor_seconds("-c", "import numpy, rasterio")
    return seconds


@pytest.mark.parametrize("verb", [None, *rookery.VERBS])
def test_help_is_quick(verb, libraries):
    """Slow machines are slow at both: the limit is in units of what nearly every verb needs, a second on an EPYC."""
    seconds, said = processor_seconds("-m", "rookery", *([verb] if verb else []), "--help")
    assert said.startswith("usage: rookery")
    assert seconds < 2.2 * libraries


@pytest.mark.parametrize("verb", [None, *rookery.VERBS])
def test_help_imports_nothing_heavy(verb):
    code = (
        "import sys, rookery\n"
        f"sys.argv = ['rookery', *{[verb] if verb else []}, '--help']\n"
        "try:\n    rookery.main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print('HEAVY', *sorted({'tensorflow', 'apache_beam', 'tf_keras', 'official', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY"


@pytest.mark.parametrize(("verb", "module"), rookery.VERBS.items())
def test_verbs_also_run_as_modules(verb, module):
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"usage: rookery {verb}")
