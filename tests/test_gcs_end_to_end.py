"""From mosaics to the report with every path on gs://, while things go wrong on the way: to the last digit the same as on a disk.

Each verb is a process of its own, as users start them, through the real clients: Google's for our files, GDAL's for the headers
of mosaics, TensorFlow's for records, checkpoints and models. Every one of them meets every kind of fault of `gcs_faults`, and
training is killed in the middle. A run on a disk goes on beside it, without either.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yolo_survey
from gcs_emulator import Emulator
from gcs_faults import CLIENTS, KINDS, Plan, tally
from gcs_tls_proxy import Proxy
from test_tpu_train_loop import same, weights

from survey import detections, files
from tpu_train.history import History

BUCKET = "gs://bkt/end to end"
CUT = f"--patch_size {yolo_survey.SIZE} --overlap 16 --split train=0.5,val=0.5 --records_per_shard 7"
MODEL = "--model yolo --backbone tiny --head yolo3_dense_1 --init scratch --batch_size 4 --learning_rate 0.003"
# A sixteenth of the backbone's weights: a checkpoint of the whole has 185 MB, and each is written, read back and read again.
SMALL = "--params_override task.model.backbone.darknet.width_scale=0.25"
LENGTH = "--steps 12 --validate_every 6 --steps_per_loop 2"


@dataclass(frozen=True, slots=True)
class Chain:
    """A survey from its mosaics to its report, below one folder.

    Attributes:
      folder: local or gs://.
      environment: for the processes.
    """

    folder: str
    environment: dict[str, str]

    def at(self, name: str) -> str:
        """A path below the folder."""
        return f"{self.folder}/{name}"

    def start(self, verb: str, *argv: str) -> subprocess.Popen[str]:
        """Begins a verb."""
        command = [sys.executable, "-m", "rookery", verb, *argv]
        return subprocess.Popen(
            command, env={**os.environ, **self.environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, verb: str, *argv: str) -> str:
        """Runs a verb to its end; returns what it said."""
        process = self.start(verb, *argv)
        try:
            out, err = process.communicate(timeout=600)
        finally:
            process.kill()
        assert process.returncode == 0, f"{verb}: {err[-3000:]}"
        return out

    def train(self) -> list[str]:
        """The command line of the training run."""
        return ["--dataset", self.at("dataset"), "--model_dir", self.at("run"), *f"{MODEL} {SMALL} {LENGTH}".split()]

    def shard(self) -> str:
        """Cuts the mosaics."""
        where = ["--mosaics", self.at("*.tif"), "--annotations", self.at("*.xml"), "--output", self.at("dataset")]
        return self.run("shard", *where, *CUT.split())

    def export(self) -> str:
        """Exports; so low a floor that a model of twelve steps finds something."""
        return self.run(
            "export", "--model_dir", self.at("run"), "--output", self.at("model"), "--score_floor=1e-4", "--score_threshold=2e-4"
        )

    def use(self) -> str:
        """Predicts, evaluates, counts and reports; returns what the last two say."""
        found = self.at("found")
        self.run(
            "predict", "--model", self.at("model"), "--mosaics", self.at("*.tif"), "--output", found, "--formats=csv,geojson"
        )
        self.run("evaluate", "--detections", found, "--annotations", self.at("*.xml"))
        counted = self.run("count", "--detections", found, "--annotations", self.at("*.xml"))
        reported = self.run("report", "--detections", found, "--output", self.at("report.html"))
        # The page holds paths, and so has not quite the same size.
        return re.sub(r"\([\d.]+ MB", "(MB", f"{counted}{reported}".replace(self.folder, "HERE"))

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file."""
        return files.read_json(self.at(name), name)


def kill_after(process: subprocess.Popen[str], folder: str, name: str) -> None:
    """Kills a process, as a power cut would, as soon as there is a file."""
    end = time.monotonic() + 600
    try:
        while name not in files.names(folder):
            assert process.poll() is None, process.communicate()[1][-3000:]
            assert time.monotonic() < end, f"{folder} has {files.names(folder)}"
            time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL


def same_but(one: dict[str, Any], other: dict[str, Any], *names: str) -> bool:
    """Whether two are equal, apart from what says where they lie or when they were made."""
    return {**one, **dict.fromkeys(names)} == {**other, **dict.fromkeys(names)}


def shown(page: bytes) -> list[str]:
    """Texts of a page, in their order, without paths, digests and times."""
    text = re.sub(r"<(script|style|svg)\b.*?</\1>", "", page.decode(), flags=re.DOTALL)
    words = [" ".join(part.split()) for part in re.sub(r"<[^>]*>", "\n", text).splitlines()]
    return [word for word in words if word and not re.search(r"/|[0-9a-f]{12}|\d\d:\d\d:\d\d|\bMB\b", word)]


def test_a_bucket_that_fails_gives_what_a_disk_gives(tmp_path: Path, gcs: Emulator, gcs_proxy: Proxy) -> None:
    yolo_survey.make(tmp_path, "--records_per_shard", "7")
    for path in tmp_path.glob("*.*"):
        gcs.upload(path, f"{BUCKET}/{path.name}")
    here = Chain(str(tmp_path), {})
    there = Chain(BUCKET, {**gcs_proxy.everybody, "GDAL_HTTP_RETRY_DELAY": "0.1"})
    gcs_proxy.plan(Plan(clients=("google",), each=2, share=0.3))
    gcs_proxy.plan(Plan(clients=("tensorflow",), share=0.3))
    begun = gcs_proxy.plan(Plan(clients=("gdal",)))
    onward = Plan(go_on=True)

    def on_disk() -> str:
        here.run("train", *here.train())
        here.export()
        return here.use()

    with ThreadPoolExecutor(1) as pool:
        disk = pool.submit(on_disk)
        there.shard()
        process = there.start("train", *there.train())
        kill_after(process, there.at("run"), "ckpt-6.index")
        gcs_proxy.plan(onward)
        assert "train: goes on from step" in there.run("train", *there.train())
        there.export()
        gcs_proxy.plan(onward)
        said = there.use()
        expected = disk.result()

    # Nothing was lost: the same shards, weights, model, detections, numbers.
    shards = [name for name in files.names(here.at("dataset")) if name.endswith(".tfrecord")]
    assert len(shards) > 4
    for name in [*shards, "labels.pbtxt"]:
        assert files.sha256(there.at(f"dataset/{name}")) == files.sha256(here.at(f"dataset/{name}"))
    assert len(History(here.at("run")).validations) == 2
    assert History(there.at("run")).validations == History(here.at("run")).validations
    for name in ("checkpoint", "ckpt-12.index", "ckpt-12.data-00000-of-00001"):
        (tmp_path / "fetched").mkdir(exist_ok=True)
        (tmp_path / "fetched" / name).write_bytes(files.read(there.at(f"run/{name}")))
    assert same(weights(tmp_path / "fetched"), weights(tmp_path / "run"))
    assert same_but(there.json("model/model.json"), here.json("model/model.json"), "dataset_digest")
    (one, found), (other, expected_found) = detections.read(there.at("found")), detections.read(here.at("found"))
    assert one.counts == other.counts
    assert one.counters == other.counters
    assert sum(map(len, found.values())) > 20
    for name in found:
        for field in ("boxes_mosaic_px", "scores", "class_ids", "patch_ids"):
            np.testing.assert_array_equal(getattr(found[name], field), getattr(expected_found[name], field))
    for name in ("evaluation.json", "estimates.json"):
        mine, theirs = there.json(f"found/{name}"), here.json(f"found/{name}")
        assert same_but(mine, theirs, "created_utc", "annotations", "detections", "model_digest", "options")
    assert said == expected
    assert shown(files.read(there.at("report.html"))) == shown(files.read(here.at("report.html")))
    for folder in ("dataset", "model", "found"):
        assert files.names(there.at(folder)) == files.names(here.at(folder))

    # And all of this did go wrong.
    met = tally(gcs_proxy.faults(begun))
    assert {client: sorted(set(KINDS) - set(met[client])) for client in CLIENTS} == {client: [] for client in CLIENTS}, (
        json.dumps(met)
    )
