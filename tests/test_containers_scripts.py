"""The scripts that lock, build and use the images, and the style of every script."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = Path(sys.executable).parent
SCRIPTS = [str(path) for path in [*sorted(ROOT.glob("scripts/*.sh")), *sorted(ROOT.glob("cloud/**/*.sh")), ROOT / ".ci/run"]]


def ran(script: str, *arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "scripts" / script, *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def tool(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_shfmt() -> None:
    judged = subprocess.run([TOOLS / "shfmt", "-i", "2", "-ci", "-bn", "-d", *SCRIPTS], capture_output=True, text=True)
    assert (judged.stdout, judged.stderr) == ("", "")


def test_shellcheck() -> None:
    judged = subprocess.run(
        [TOOLS / "shellcheck", "--external-sources", *SCRIPTS], cwd=ROOT, capture_output=True, text=True
    )  # fmt: skip
    assert judged.stdout == ""


@pytest.mark.parametrize("script", ["local_docker.sh", "image_proof.sh", "lock.sh"])
def test_help(script: str) -> None:
    answer = ran(script, "--help")
    assert answer.returncode == 0
    assert f"./scripts/{script} [--dry_run] [--help]" in answer.stdout
    assert "#" not in answer.stdout


def test_local_docker_says_what_it_would_do(tmp_path: Path) -> None:
    """The folder is taken from where the user is; what follows it belongs to the command, --help too."""
    (tmp_path / "my survey").mkdir()
    answer = ran(
        "local_docker.sh", "--dry_run", "my survey", "rookery", "predict", "--help", cwd=tmp_path, ENGINE="docker", IMAGE="i:1"
    )
    assert (answer.returncode, answer.stderr) == (0, "")
    build, use = (shlex.split(line) for line in answer.stdout.splitlines())
    assert build[:4] == ["docker", "build", "--target", "cpu"]
    assert build[-3:] == ["--tag", "i:1", "."]
    user = f"{os.getuid()}:{os.getgid()}"
    assert use == ["docker", "run", "--rm", "--user", user, "--volume", f"{tmp_path}/my survey:/data", "i:1",
                   "rookery", "predict", "--help"]  # fmt: skip


def test_local_docker_keeps_the_users_number_under_podman(tmp_path: Path) -> None:
    answer = ran("local_docker.sh", "--dry_run", str(tmp_path), "rookery", ENGINE="podman")
    kept = "--userns=keep-id" in shlex.split(answer.stdout.splitlines()[1])
    assert kept == (os.getuid() != 0), "podman refuses it for root, whose numbers it does not shift"


def test_local_docker_runs_the_engine_and_ends_with_its_code(tmp_path: Path) -> None:
    """A stand-in for the engine: it writes down how it was called, and the command in the image fails with 3."""
    calls = tmp_path / "calls"
    tool(tmp_path, "docker", f'echo "$1" >>{calls}; [ "$1" != run ] || exit 3')
    answer = ran("local_docker.sh", str(tmp_path), "rookery", "doctor", PATH=f"{tmp_path}:{os.environ['PATH']}", ENGINE="docker")
    assert answer.returncode == 3
    assert calls.read_text().split() == ["info", "build", "run"]


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["--dry_run"], {}, "FOLDER or COMMAND is missing"),
        (["--dry_run", "."], {}, "FOLDER or COMMAND is missing"),
        (["--dry_run", "no/such/folder", "rookery"], {}, "no/such/folder is not a folder that can be opened"),
        (["--image=x", ".", "rookery"], {}, "--image=x is not a flag of local_docker.sh"),
        (["--dry_run", ".", "rookery"], {"ENGINE": "lxc"}, "ENGINE=lxc: must be docker or podman"),
        (["--dry_run", "a:b", "rookery"], {}, "whose name holds a colon"),
    ],
)
def test_local_docker_refuses(tmp_path: Path, arguments: list[str], environment: dict[str, str], words: str) -> None:
    (tmp_path / "a:b").mkdir()
    answer = ran("local_docker.sh", *arguments, cwd=tmp_path, **environment)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert words in answer.stderr


def test_local_docker_without_an_engine(tmp_path: Path) -> None:
    """A PATH with all that the script needs but an engine."""
    for name in ("bash", "dirname", "env"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    answer = ran("local_docker.sh", str(tmp_path), "rookery", PATH=str(tmp_path))
    assert answer.returncode == 2
    assert "neither docker nor podman was found: install one of them" in answer.stderr


def test_local_docker_with_an_engine_that_does_not_answer(tmp_path: Path) -> None:
    tool(tmp_path, "docker", "echo Cannot connect to the daemon >&2; exit 1")
    answer = ran("local_docker.sh", str(tmp_path), "rookery", PATH=f"{tmp_path}:{os.environ['PATH']}", ENGINE="docker")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert "docker does not answer (Cannot connect to the daemon): start its service" in answer.stderr


def test_image_proof_says_what_it_would_do(tmp_path: Path) -> None:
    """All three images built and used, each base under the name that the Dockerfile gives it, and nothing done."""
    answer = ran("image_proof.sh", "--dry_run", TMPDIR=str(tmp_path))
    assert (answer.returncode, answer.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []
    lines = [shlex.split(line) for line in answer.stdout.splitlines() if line.startswith("buildah ")]
    built = [line[line.index("--target") + 1] for line in lines if "--target" in line]
    assert built == ["cpu", "tpu", "beam"]
    assert {line[-1] for line in lines if "commit" in line} == {
        "docker.io/python:3.11-slim-bookworm",
        "docker.io/apache/beam_python3.11_sdk:2.77.0",
    }
    verbs = [line[line.index("rookery") + 1] for line in lines if "rookery" in line and "4321:4321" in line]
    assert verbs == ["shard", "train", "export", "predict", "report"]


def test_image_proof_refuses_an_image_that_there_is_not() -> None:
    answer = ran("image_proof.sh", "gpu")
    assert answer.returncode == 2
    assert "gpu is not an image: must be cpu, tpu or beam" in answer.stderr


def test_lock_says_what_it_would_do() -> None:
    """Each set from the project and under base's versions, with hashes and without the name of an index."""
    answer = ran("lock.sh", "--dry_run")
    assert (answer.returncode, answer.stderr) == (0, "")
    lines = [shlex.split(line) for line in answer.stdout.splitlines() if line.startswith("uv ")]
    assert [line[-1] for line in lines] == [
        f"requirements/{name}.txt" for name in ("base", "preflight", "dev", "tpu", "beam", "build")
    ]
    for line in lines:
        assert {"--generate-hashes", "--no-emit-index-url", "-c"} <= set(line)


def test_lock_refuses_a_set_that_there_is_not() -> None:
    answer = ran("lock.sh", "gpu")
    assert answer.returncode == 2
    assert "gpu is not a set: must be base" in answer.stderr
