"""Errors of gcloud, buckets and regions, logs in pieces, the worker, and what is refused before any service is asked."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_tpu_api import BUSY, NO_QUEUE, NO_RIGHT, QUOTA
from test_cloud_supervisor import job_in

from cloud import attempts, buckets, gcloud
from cloud.attempts import Attempt, LogReader, LogWriter
from cloud.buckets import Location
from cloud.gcloud import GcloudError, Place
from survey import accelerators, files
from survey.errors import InputError

# As gcloud 528 printed it for an answer of 503, five tries and 33 s later.
UNAVAILABLE = (
    "ERROR: (gcloud.compute.tpus.queued-resources.describe) HttpError accessing <http://127.0.0.1:9131/v2/projects/p?alt=json>: "
    "response: <{'server': 'x', 'content-length': '90', 'status': 503}>, content <{\"error\": {\"code\": 503, "
    '"message": "the message of the service", "status": "UNAVAILABLE"}}>\n'
    "This may be due to network connectivity issues. Please check your network settings."
)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (QUOTA[2], gcloud.QUOTA),
        (f"PERMISSION_DENIED: {NO_QUEUE[2]}", gcloud.QUOTA),
        (f"PERMISSION_DENIED: {NO_RIGHT[2]}", gcloud.PERMISSION),
        (UNAVAILABLE, gcloud.UNAVAILABLE),
        (f"UNAVAILABLE: {BUSY[2]}", gcloud.UNAVAILABLE),
        ('There is no more capacity in the zone "us-central2-b"; you can try in another zone', gcloud.CAPACITY),
        ("PERMISSION_DENIED: Cloud TPU API has not been used in project 7 before or it is disabled.", gcloud.DISABLED),
        ("PERMISSION_DENIED: Location us-west9-z is not found or access is unauthorized.", gcloud.MISSING),
        ("You do not currently have an active account selected. Please run:\n\n  $ gcloud auth login", gcloud.LOGIN),
        ("INVALID_ARGUMENT: Cloud TPU received a bad request.", gcloud.INVALID),
        ("something new", gcloud.OTHER),
    ],
)
def test_errors_by_what_can_be_done(text, kind):
    assert gcloud.kind_of(text) == kind
    assert text.splitlines()[0][:20] in str(gcloud.explained(GcloudError(kind, text), Place("p", "us-west4-a"), "creating"))


def fake_gcloud(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    path = folder / "gcloud"
    path.write_text(f'#!/bin/bash\ncd {folder}\necho "$*" >>calls\n{script}\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_an_absent_service_is_asked_again_with_growing_waits(tmp_path, monkeypatch):
    (tmp_path / "answer").write_text(UNAVAILABLE)
    fake_gcloud(tmp_path, monkeypatch, "cat answer >&2; [ $(wc -l <calls) -ge 4 ] && echo '[1]' && exit 0; exit 1")
    waits, said = [], []
    assert gcloud.run(["x"], sleep=waits.append, say=said.append) == [1]
    # 5, 10 and 20 s, each times 0.5 to 1.5
    assert [wait / base for wait, base in zip(waits, (5, 10, 20), strict=True)] == pytest.approx([1, 1, 1], abs=0.5)
    assert said[0].startswith("503 the message of the service: trying again in ")
    (tmp_path / "calls").unlink()
    with pytest.raises(GcloudError, match="503 the message"):
        gcloud.run(["x"], tries=3, sleep=waits.append)
    assert (tmp_path / "calls").read_text().splitlines() == ["x --format=json --quiet"] * 3


def test_without_gcloud(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match=r"gcloud is not installed.*gcloud auth login"):
        gcloud.run(["x"])


@pytest.mark.parametrize(
    ("location", "region", "near"),
    [
        (Location("US-WEST4"), "us-west4", True),
        (Location("US-WEST4"), "us-west1", False),
        (Location("US"), "us-east5", True),
        (Location("US"), "europe-west4", False),
        (Location("EU"), "europe-west4", True),
        (Location("EU"), "europe-west2", False),  # London is not in the EU
        (Location("ASIA"), "asia-northeast1", True),
        (Location("EUR4"), "europe-west4", True),
        (Location("EUR4"), "europe-west1", False),
        (Location("US", ("us-west1", "us-south1")), "us-west4", False),  # a pair that somebody chose
    ],
)
def test_near_and_far(location, region, near):
    assert location.holds(region) == near


def test_buckets_by_the_client(gcs):
    assert buckets.check(["gs://bkt/a", "gs://bkt/b"], "us-west4") == []  # the emulator's bucket is in the US
    with pytest.raises(InputError, match=r"gs://bkt lies in us, the job in europe-west4.*--location=europe-west4"):
        buckets.check(["gs://bkt/a"], "europe-west4")
    with pytest.raises(InputError, match="gs://no-such-bucket: the bucket does not exist"):
        buckets.run(["gs://no-such-bucket", "--region=us-west4"])
    with pytest.raises(InputError, match="s3://"):
        buckets.run(["s3://bkt", "--region=us-west4"])
    gcs.fail(403, 1, "GET /storage/v1/b/bkt?")
    assert "cannot be seen by you (role Storage Legacy Bucket Reader)" in buckets.check(["gs://bkt"], "us-west4")[0]


def test_a_log_in_pieces_is_read_as_it_grows(tmp_path, monkeypatch):
    monkeypatch.setattr(attempts, "PIECE_BYTES", 10)
    folder = str(tmp_path)
    writer, reader = LogWriter(folder, 1), LogReader(folder, 1)
    assert reader.lines() == []
    writer.append(b"one\ntw")
    writer.flush()
    assert reader.lines() == ["one"]
    writer.append(b"o\nthree\nfour\n10%\r20%\rfive")
    writer.flush()
    assert reader.lines() == ["two", "three", "four"]
    assert reader.rest() == ["five"]
    # 31 bytes are three full pieces and one more; what is there is not written again
    assert [files.size(f"{folder}/attempt-0001.{i:03d}.log") for i in range(4)] == [10, 10, 10, 1]
    again = LogWriter(folder, 1)
    again.append(b"!\n")
    again.flush()
    assert LogReader(folder, 1).lines()[-1] == "five!"


def start_worker(folder: Path, *command: str) -> subprocess.Popen:
    argv = [sys.executable, "-m", "cloud.worker", "--job", str(folder), "--attempt", "1", "--name", "seals", "--", *command]
    return subprocess.Popen(argv, env={**os.environ, "ROOKERY_BEAT_SECONDS": "0.1"}, stdout=subprocess.PIPE)


@pytest.mark.parametrize(("command", "code"), [("echo a; echo b >&2; exit 5", 5), ("kill -9 $$", 137), ("exit 0", 0)])
def test_the_worker_tells_how_it_ended(tmp_path, command, code):
    assert start_worker(tmp_path, "bash", "-c", command).communicate()[0].decode() == ("a\nb\n" if code == 5 else "")
    found = attempts.read(str(tmp_path), 1)
    assert (found.state, found.exit_code, found.name) == ("ended", code, "seals")
    assert found.last_lines == (("a", "b") if code == 5 else ())
    assert attempts.numbers(str(tmp_path)) == [1]
    # A machine that restarts afterwards does not do it again.
    process = start_worker(tmp_path, "touch", str(tmp_path / "again"))
    process.communicate()
    assert process.returncode == code
    assert not (tmp_path / "again").exists()


def test_a_signal_goes_to_the_command_and_its_end_is_waited_for(tmp_path):
    script = "trap 'echo saving; sleep 0.3; echo saved; exit 0' TERM; echo ready; while :; do sleep 0.05; done"
    process = start_worker(tmp_path, "bash", "-c", script)
    assert process.stdout.readline() == b"ready\n"
    end = time.monotonic() + 20
    while attempts.read(str(tmp_path), 1).beat < 3 and time.monotonic() < end:  # it gives signs of life meanwhile
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.communicate()[0] == b"saving\nsaved\n"
    found = attempts.read(str(tmp_path), 1)
    assert (found.state, found.last_lines) == ("stopped", ("ready", "saving", "saved"))
    # To be gone on with: a machine that restarts runs it again, and the log goes on.
    start_worker(tmp_path, "echo", "again").communicate()
    assert attempts.read(str(tmp_path), 1).state == "ended"
    assert LogReader(str(tmp_path), 1).lines() == ["ready", "saving", "saved", "again"]


def test_a_command_that_is_not_there(tmp_path):
    process = start_worker(tmp_path, "no-such-command")
    process.communicate()
    assert process.returncode == 127
    assert attempts.read(str(tmp_path), 1).last_lines == ("no-such-command: No such file or directory",)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "Seals"}, "--name=Seals: must be 1 to 63"),
        ({"place": Place("p", "us-west4")}, "ZONE=us-west4: must be a zone"),
        ({"model_dir": "runs/a"}, "--model_dir=runs/a: .* must be gs://BUCKET/FOLDER"),
        ({"model_dir": "gs://bucket/"}, "--model_dir=gs://bucket/: .* must be gs://BUCKET/FOLDER"),
        ({"image": "tpu"}, "IMAGE=tpu: must be"),
        ({"train": ("--hparams=a;;b",)}, "holds ';;' or a line break"),
        ({"slice": accelerators.parse("v5litepod-16")}, "has 4 hosts.*--runtime_version=tpu-vm-tf-2.18.0-pod-pjrt"),
    ],
)
def test_what_needs_no_service_to_be_refused(tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        job_in(tmp_path, **{"model_dir": "gs://b/run", **changes}).check()


def test_the_state_of_an_attempt_round_trip(tmp_path):
    attempt = Attempt(3, "seals", "rookery train", "ended", 1, 7, 1.5, ("a", "é"))
    attempts.write(str(tmp_path), attempt)
    assert attempts.read(str(tmp_path), 3) == attempt
    assert attempts.read(str(tmp_path), 4) is None
