"""scripts/2_train_tpu.sh whole: the real gcloud against a stand-in of Cloud TPU, objects in the storage emulator."""

import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fake_tpu_api
import pytest
from fake_tpu_api import BUSY, NO_RIGHT, QUOTA, FakeTpu
from gcs_emulator import Emulator
from test_survey_contracts import DATASET

from cloud import attempts
from survey import dataset, files

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed here")
# In place of the real command: says what its folder's files tell it to, and counts its steps in a file, as a checkpoint would.
ROOKERY = """#!/usr/bin/env bash
echo "rookery $*" >>"$FAKE_FOLDER/rookery.log"
case "$1 ${2:-}" in
  "train --help") echo "usage: --dataset --model_dir --steps --batch_size" ;;
  train*)
    done=$(cat "$FAKE_FOLDER/checkpoint" 2>/dev/null || echo 0)
    echo "TPU_NAME=${TPU_NAME:-} resumed from step $done"
    while [ "$done" -lt 6 ]; do
      sleep "$(cat "$FAKE_FOLDER/pause" 2>/dev/null || echo 0.1)"
      done=$((done + 1))
      echo "$done" >"$FAKE_FOLDER/checkpoint"
      echo "step $done of 6"
    done
    if [ -s "$FAKE_FOLDER/train_exit" ]; then
      echo "error: --batch_size=7: must be a multiple of the 8 replicas" >&2
      exit "$(cat "$FAKE_FOLDER/train_exit")"
    fi ;;
  *) exit "$(cat "$FAKE_FOLDER/$1_exit" 2>/dev/null || echo 0)" ;;
esac
"""


@dataclass(frozen=True, slots=True)
class Bench:
    """All that a launch needs: the stand-in, and the environment of the script."""

    tpu: FakeTpu
    folder: Path
    environment: dict[str, str]
    run_dir: str

    def command(self, *argv: str, **environment: str) -> dict[str, object]:
        flags = [
            "--name=seals",
            "--accelerator=v5litepod-8",
            "--spot",
            "--dataset=gs://bkt/cloud-dataset",
            f"--model_dir={self.run_dir}",
        ]
        return {
            "args": [str(ROOT / "scripts/2_train_tpu.sh"), *flags, *argv],
            "env": {**self.environment, **environment},
            "text": True,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
            "stdin": subprocess.DEVNULL,
            "cwd": self.folder,
        }

    def launch(self, *argv: str, **environment: str) -> tuple[int, str]:
        """Runs the script to its end; its exit code and what it said."""
        done = subprocess.run(**self.command(*argv, **environment), check=False, timeout=600)
        return done.returncode, done.stdout

    def start(self, *argv: str) -> subprocess.Popen:
        return subprocess.Popen(**self.command(*argv), start_new_session=True)

    def tell(self, name: str, value: object) -> None:
        (self.folder / name).write_text(f"{value}\n")

    def steps(self) -> int:
        try:
            return int((self.folder / "checkpoint").read_text() or 0)
        except FileNotFoundError:
            return 0

    def wait_for_step(self, step: int, process: subprocess.Popen) -> None:
        end = time.monotonic() + 600
        while self.steps() < step:
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < end, (self.folder / "console.log").read_text()
            time.sleep(0.05)


@pytest.fixture
def bench(gcs: Emulator, tmp_path: Path) -> Iterator[Bench]:
    dataset.write("gs://bkt/cloud-dataset", DATASET)
    shims = tmp_path / "shims"
    shims.mkdir()
    (shims / "rookery").write_text(ROOKERY)
    (shims / "rookery").chmod(0o755)
    # No variable of the person at this machine: neither a project nor a zone, nor a login.
    base = {key: os.environ[key] for key in ("HOME", "LANG", "TMPDIR") if key in os.environ}
    base |= {
        **gcs.environment,
        "PATH": f"{shims}:{ROOT / '.venv/bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "FAKE_FOLDER": str(tmp_path / "vm"),
        "ROOKERY_POLL_SECONDS": "0.3",
        "ROOKERY_BEAT_SECONDS": "0.3",
    }
    with fake_tpu_api.running(tmp_path / "vm", base) as tpu:
        environment = {
            **base,
            "PROJECT": "p",
            "ZONE": "us-west4-a",
            "IMAGE": "us-west4-docker.pkg.dev/p/rookery/tpu:1",
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU": tpu.url,
            "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
            "CLOUDSDK_CONFIG": str(tmp_path / "gcloud"),
            "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
        }
        yield Bench(tpu, tmp_path / "vm", environment, f"gs://bkt/{uuid.uuid4().hex}/run")


def test_a_preemption_half_way_costs_nothing_but_time(bench):
    bench.tpu.quick = False
    bench.tell("pause", 0.3)
    bench.tell("pulls_to_fail", "once")
    process = bench.start("--steps", "6")
    bench.wait_for_step(3, process)
    bench.tpu.preempt("seals")
    bench.tpu.quick = True
    kept = bench.steps()
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0, said
    assert bench.tpu.requests == {}  # nothing is left, nothing bills
    assert "taken away; training goes on from its last checkpoint" in said
    assert f"| TPU_NAME= resumed from step {kept}" in said
    assert "| step 6 of 6" in said
    assert f"trained: {bench.run_dir}" in said
    assert "STILL THERE" not in said
    # Both requests as they were meant, by the real gcloud's own hand.
    assert len(bench.tpu.created) == 2
    for number, body in enumerate(bench.tpu.created, start=1):
        node = body["tpu"]["nodeSpec"][0]["node"]
        assert body["spot"] == {}
        assert (node["acceleratorType"], node["runtimeVersion"]) == ("v5litepod-8", "v2-alpha-tpuv5-lite")
        assert node["metadata"]["rookery-attempt"] == str(number)
        assert node["metadata"]["startup-script"] == (ROOT / "cloud/startup.sh").read_text()
        assert node["metadata"]["rookery-command"].endswith("--steps 6")
        assert node["serviceAccount"]["scope"] == ["https://www.googleapis.com/auth/cloud-platform"]
    # What is left in the job's folder: the first attempt cut off, the second whole.
    first, second = (attempts.read(f"{bench.run_dir}.job", number) for number in (1, 2))
    assert (first.state, second.state, second.exit_code) == ("running", "ended", 0)
    assert files.read(f"{bench.run_dir}.job/attempt-0002.000.log").endswith(b"step 6 of 6\n")
    docker = (bench.folder / "docker.log").read_text()
    assert docker.count("docker pull") == 3  # one of them was to fail
    assert "login --username oauth2accesstoken --password-stdin https://us-west4-docker.pkg.dev\n" in docker
    assert set((bench.folder / "tokens").read_text().split()) == {"ya29.token"}
    # The same command again: no TPU for what is done.
    code, said = bench.launch("--steps", "6")
    assert (code, len(bench.tpu.created)) == (0, 2)
    assert "has already trained" in said


def test_a_failed_creation_is_tried_again_and_503_is_waited_for(bench):
    bench.tpu.failures.append("Internal error 7f3a of the zone's controller")
    bench.tpu.refuse("POST /v2/projects/p/locations/us-west4-a/queuedResources", 2, BUSY)
    code, said = bench.launch("--no_doctor", "--no-preflight")
    assert code == 0, said
    assert "failure 1 of 3: Internal error 7f3a" in said
    assert len(bench.tpu.created) == 2
    assert bench.tpu.requests == {}
    assert "rookery doctor" not in (bench.folder / "rookery.log").read_text()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (QUOTA, "Limit: 0 in zone us-west4-a.* - the project p may not have so many .* ask for the quota"),
        (NO_RIGHT, "Permission 'tpu.nodes.create' denied.* - ask for the role TPU Admin"),
    ],
)
def test_no_quota_and_no_right_are_one_message_and_nothing_bills(bench, answer, words):
    bench.tpu.refuse("POST", 99, answer)
    code, said = bench.launch("--no-doctor", "--no-preflight")
    (error,) = (line for line in said.splitlines() if line.startswith("error: "))
    assert code == 2
    assert re.search(words, error), said
    assert (bench.tpu.requests, bench.tpu.created) == ({}, [])
    assert "STILL THERE" not in said


def test_bad_input_of_the_training_stops_at_once_with_its_words(bench):
    bench.tell("train_exit", 2)
    code, said = bench.launch("--no-doctor", "--no-preflight")
    assert code == 2
    assert "training ended with 2: error: --batch_size=7: must be a multiple of the 8 replicas" in said
    assert len(bench.tpu.created) == 1
    assert bench.tpu.requests == {}


def test_what_is_wrong_is_said_before_anything_is_asked_for(bench, gcs):
    body = {"tpu": {"nodeSpec": [{"nodeId": "seals", "node": {"labels": {"team": "birds"}, "metadata": {}}}]}}
    bench.tpu.requests["terns"] = fake_tpu_api.Request(body, state="ACTIVE", node="READY")
    # The emulator makes every bucket in the US, and moves it when it is told.
    for method, address, value in (
        ("POST", "/storage/v1/b?project=p", {"name": "finland"}),
        ("PATCH", "/storage/v1/b/finland", {"location": "EUROPE-NORTH1", "locationType": "region"}),
    ):
        request = urllib.request.Request(f"{gcs.url}{address}", json.dumps(value).encode(), method=method)
        request.add_header("Content-Type", "application/json")
        urllib.request.urlopen(request).close()
    bench.tell("preflight_exit", 3)
    for argv, environment, code, words in (
        ((), {"ZONE": ""}, 2, "ZONE: say the zone of the TPU"),
        (("--accelerator=v6e-8",), {}, 2, "us-west4-a does not offer v6e-8; it has v2-8, v5litepod-16"),
        ((), {"ZONE": "us-west9-z"}, 2, "Location us-west9-z is not found or access is unauthorized. - check PROJECT=p and ZONE"),
        (("--model_dir=gs://nowhere-at-all/run",), {}, 2, "gs://nowhere-at-all: the bucket does not exist"),
        (("--model_dir=gs://finland/run",), {}, 2, "gs://finland lies in europe-north1, the job in us-west4"),
        (("--dataset=gs://bkt/none",), {}, 2, "gs://bkt/none/dataset.json does not exist"),
        (("--name=terns",), {}, 2, "--name=terns: us-west4-a has a queued resource of this name that is not this run's"),
        (("--steeps=3",), {}, 2, "--steeps is not a flag of 2_train_tpu.sh or rookery train: did you mean --steps?"),
        ((), {}, 3, "no TPU was asked for: rookery preflight --accelerator=v5litepod-8 --step=train"),
    ):
        done, said = bench.launch(*argv, **environment)
        assert done == code, (argv, said)
        assert words in said
    assert (bench.tpu.created, bench.tpu.billed) == ([], ["terns"])  # somebody else's, untouched


def test_ctrl_c_deletes_with_yes_and_says_what_bills_without(bench):
    bench.tell("pause", 5)
    process = bench.start("--no-doctor", "--no-preflight")
    for line in process.stdout:
        if "resumed from" in line:
            break
    process.send_signal(signal.SIGTERM)  # nobody can be asked: it stays, and that is said
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 130
    assert "STILL THERE: the TPU 'seals' (v5litepod-8, us-west4-a) bills" in said
    delete = "gcloud compute tpus queued-resources delete seals --zone=us-west4-a --project=p --force --async --quiet"
    assert delete in said
    assert bench.tpu.billed == ["seals"]
    # The same command goes on watching; Ctrl-C with --yes ends it.
    process = bench.start("--no-doctor", "--no-preflight", "--yes")
    for line in process.stdout:
        if "resumed from" in line:
            break
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 130
    assert "nothing of it bills" in said
    assert "STILL THERE" not in said
    assert len(bench.tpu.created) == 1
    assert bench.tpu.requests == {}


class Terminal:
    """A command with a terminal of its own, as a person has it."""

    def __init__(self, bench: Bench, *argv: str) -> None:
        self._master, slave = pty.openpty()
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), slave)
        self.process = subprocess.Popen(
            **{**bench.command("--no-doctor", "--no-preflight", *argv), **streams},
            start_new_session=True,
            preexec_fn=self._take_terminal,
        )
        os.close(slave)
        self.said = ""

    @staticmethod
    def _take_terminal() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup, whose ignoring is inherited
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def read_until(self, words: str) -> None:
        end = time.monotonic() + 600
        while words not in self.said:
            assert time.monotonic() < end, self.said
            self._read()

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def hang_up(self) -> None:
        os.close(self._master)

    def end(self) -> str:
        """What it said, once it has ended."""
        while self._read():
            pass
        self.process.wait(600)
        return self.said

    def _read(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], 600)
        assert ready, self.said
        try:
            self.said += os.read(self._master, 4096).decode()
        except OSError:  # how Linux says that nobody is at the other end
            return False
        return True


def test_a_person_at_a_terminal_is_asked(bench):
    """Ctrl-C reaches every process of the terminal, gcloud's too, should one be at work."""
    bench.tell("pause", 5)
    first = Terminal(bench)
    first.read_until("resumed from")
    first.type("\x03")
    first.read_until("SIGINT: delete the TPU 'seals'? [y/n] ")
    first.type("n\n")
    assert "STILL THERE: the TPU 'seals'" in first.end()
    assert (first.process.returncode, bench.tpu.billed) == (130, ["seals"])
    second = Terminal(bench)
    second.read_until("resumed from")
    second.type("\x03")
    second.read_until("[y/n] ")
    second.type("y\n")
    said = second.end()
    assert "nothing of it bills" in said
    assert "STILL THERE" not in said
    assert (second.process.returncode, bench.tpu.billed) == (130, [])


@pytest.mark.parametrize(("flags", "billed"), [([], ["seals"]), (["--yes"], [])])
def test_a_closed_terminal_leaves_it_or_deletes_with_yes(bench, flags, billed):
    bench.tell("pause", 5)
    terminal = Terminal(bench, *flags)
    terminal.read_until("resumed from")
    terminal.hang_up()
    assert terminal.process.wait(600) == 130
    assert bench.tpu.billed == billed


def test_nohup_keeps_a_closed_terminal_from_ending_it():
    """Coreutils' nohup starts a command that ignores the signal, and it has to go on doing so."""
    code = "import os, signal; from cloud.signals import Signals; Signals(); os.kill(os.getpid(), signal.SIGHUP); print('here')"
    done = subprocess.run(
        ["nohup", sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "here\n"), done.stderr


def test_on_a_slice_of_several_hosts_worker_0_alone_runs_it(bench):
    bench.tpu.hosts = 4
    code, said = bench.launch("--accelerator=v5litepod-16", "--no-doctor", "--no-preflight")
    assert code == 2
    assert "--runtime_version=tpu-vm-tf-2.18.0-pod-pjrt" in said
    runtime = "--runtime_version=tpu-vm-tf-2.18.0-pod-pjrt"
    code, said = bench.launch("--accelerator=v5litepod-16", "--no-doctor", "--no-preflight", runtime)
    assert code == 0, said
    assert "| TPU_NAME=seals resumed from step 0" in said
    docker = (bench.folder / "docker.log").read_text()
    assert docker.count("docker run") == 1
    assert "--env TPU_NAME=seals --env TPU_LOAD_LIBRARY=0" in docker
    assert (bench.folder / "console.log").read_text().count("is driven from worker 0") == 3


def test_a_dry_run_runs_nothing_and_the_real_parser_takes_every_line(bench, tmp_path):
    argv = ("--dry_run", "--service_account=trainer@p.iam.gserviceaccount.com", "--hparams=image_size=640,num_classes=9")
    code, said = bench.launch(*argv)
    assert code == 0, said
    assert bench.tpu.log == []
    lines = [line for line in said.splitlines() if line.startswith("gcloud ")]
    assert len(lines) == 6  # describe is among them twice
    commands = tmp_path / "commands.json"
    commands.write_text(json.dumps([{"command_string": line} for line in lines]))
    lint = ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={commands}"]
    judged = json.loads(subprocess.run(lint, capture_output=True, text=True, check=True, env=bench.environment).stdout)
    assert [(each["command_string"], each["error_message"]) for each in judged if not each["success"]] == []
    assert {each["command_string"] for each in judged} == set(lines)


def test_help_needs_nothing(bench):
    code, said = bench.launch("--help", PROJECT="")
    assert code == 0
    assert "--max_failures" in said
