"""Every `rookery` command that the README and the scripts show is one that today's command line takes."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

import rookery
from survey import flags

ROOT = Path(__file__).parent.parent
PASSES_FLAGS_ON = {"shard", "predict", "preflight", "show-batch"}


def commands() -> list[str]:
    def text(path: Path) -> str:
        joined = re.sub(r"\\\n\s*", " ", path.read_text())
        return joined.replace("gs://BUCKET", "gs://bucket")  # a name that readers replace, but not one that a bucket could have

    pages = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
    blocks = [block for page in pages for block in re.findall(r"```bash\n(.*?)```", text(page), re.DOTALL)]
    blocks += [text(script) for script in sorted(ROOT.glob("scripts/*.sh"))]
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip().startswith("rookery ")]


@pytest.mark.parametrize("command", commands())
def test_parses(command: str) -> None:
    _, verb, *argv = shlex.split(command, comments=True)
    module = importlib.import_module(rookery.VERBS[verb])
    flags.parse(module.Options, argv, prog=f"rookery {verb}", passthrough=verb in PASSES_FLAGS_ON)


def test_there_are_commands_and_each_verb_is_shown() -> None:
    """Guards the test above against a README whose blocks it no longer finds."""
    assert {shlex.split(command)[1] for command in commands()} >= set(rookery.VERBS)


def test_paths_exist() -> None:
    """Folders and files that the README names in backticks, as far as they are in the repository."""
    named = re.findall(r"`(?:\./)?((?:survey|pipeline|tpu_train|inference|beam_jobs|scripts|tests|requirements)/[\w./]*)`",
                       (ROOT / "README.md").read_text())  # fmt: skip
    assert len(named) > 5
    assert [path for path in named if not (ROOT / path).exists()] == []
