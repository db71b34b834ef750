"""Every command that the README, the pages and the scripts show is one that today's command line takes."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import rookery
from survey import flags

ROOT = Path(__file__).parent.parent
PASSES_FLAGS_ON = {"shard", "predict", "preflight", "show-batch"}
# The first two have no dry run; that of the third reads the dataset, see test_size_sweep.py.
NOT_TRIED = {"quickstart.sh", "test.sh", "size_sweep.sh"}


def text(path: Path) -> str:
    joined = re.sub(r"\\\n\s*", " ", path.read_text())
    return joined.replace("gs://BUCKET", "gs://bucket")  # a name that readers replace, but not one that a bucket could have


def blocks() -> list[tuple[str, str]]:
    """(page, block of commands) of all pages."""
    pages = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
    return [(page.name, block) for page in pages for block in re.findall(r"```bash\n(.*?)```", text(page), re.DOTALL)]


def commands() -> list[str]:
    shown = [block for _, block in blocks()] + [text(script) for script in sorted(ROOT.glob("scripts/*.sh"))]
    return [line.strip() for block in shown for line in block.splitlines() if re.match(r"\s*rookery [a-z]", line)]


def script_lines() -> list[tuple[str, str]]:
    """(variables exported before it on its page, line that calls a script)."""
    found, exports = [], {page: "" for page, _ in blocks()}
    for page, block in blocks():
        for line in block.splitlines():
            if line.startswith("export "):
                exports[page] += line + "\n"
            elif (called := re.search(r"\./scripts/(\w+\.sh)", line)) and called[1] not in NOT_TRIED:
                found.append((exports[page], line))
    return found


@pytest.mark.parametrize("command", commands())
def test_parses(command: str) -> None:
    _, verb, *argv = shlex.split(command, comments=True)
    module = importlib.import_module(rookery.VERBS[verb])
    flags.parse(module.Options, argv, prog=f"rookery {verb}", passthrough=verb in PASSES_FLAGS_ON)


@pytest.mark.parametrize(("exports", "line"), script_lines(), ids=[line for _, line in script_lines()])
def test_scripts_take_what_is_shown(exports: str, line: str, tmp_path: Path) -> None:
    """By a dry run in a shell, with the variables of the page: flags that a script or `rookery` does not know end it."""
    for folder in re.findall(r"~/(\w+)", line):
        (tmp_path / folder).mkdir(exist_ok=True)
    dry = re.sub(r"(\./scripts/\w+\.sh)", r"\1 --dry_run", line, count=1)
    environment = {**os.environ, "HOME": str(tmp_path), "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-euc", exports + dry], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = [shlex.split(one) for one in done.stdout.splitlines() if one.startswith("rookery ")]
    for _, verb, *argv in printed:
        module = importlib.import_module(rookery.VERBS[verb])
        flags.parse(module.Options, argv, prog=f"rookery {verb}", passthrough=verb in PASSES_FLAGS_ON)


def test_there_are_commands_and_each_verb_is_shown() -> None:
    """Guards the test above against a README whose blocks it no longer finds."""
    assert {shlex.split(command)[1] for command in commands()} >= set(rookery.VERBS)
    called = {re.search(r"scripts/(\w+)", line)[1] for _, line in script_lines()}
    assert called >= {"1_make_records", "2_train_tpu", "3_export", "4_survey", "generate_labels", "retina_train"}


def test_paths_exist() -> None:
    """Folders and files that the README names in backticks, as far as they are in the repository."""
    named = re.findall(r"`(?:\./)?((?:survey|pipeline|tpu_train|inference|beam_jobs|scripts|tests|requirements)/[\w./]*)`",
                       (ROOT / "README.md").read_text())  # fmt: skip
    assert len(named) > 5
    assert [path for path in named if not (ROOT / path).exists()] == []
