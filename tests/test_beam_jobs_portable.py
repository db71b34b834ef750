"""The shard job on Beam's portable runner: job server, worker pool and workers are processes of their own, as on Dataflow."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gcs_emulator import Emulator, free_port, wait_until_open
from gcs_emulator import _gcs_server as _gcs_server
from gcs_emulator import gcs as gcs

from beam_jobs import quiet
from pipeline import shard, work
from survey import files, flags
from survey.errors import InputError

with quiet.importing():
    import apache_beam as beam
    from apache_beam.portability.api import beam_runner_api_pb2

    from beam_jobs import launch
    from pipeline import transforms

# The job server runs every job with one worker; here it takes the number from the job. On Dataflow there are many.
JOB_SERVER = """
import runpy
from apache_beam.options.pipeline_options import DirectOptions
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
run = FnApiRunner.run_via_runner_api
def run_with_workers(self, proto, options):
    self._num_workers = int(options.view_as(DirectOptions).direct_num_workers)
    return run(self, proto, options)
FnApiRunner.run_via_runner_api = run_with_workers
runpy.run_module("apache_beam.runners.portability.local_job_service_main", run_name="__main__", alter_sys=True)
"""
SIZE = (300, 500)
OBJECTS = [("tern", (10, 10, 30, 40)), ("goose", (90, 85, 110, 125)), ("tern", (250, 450, 270, 480))]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, _gcs_server: Emulator) -> Iterator[tuple[list[str], Path]]:
    """Beam's flags that send a job to the servers, and the log of the pool, which tells what workers it started."""
    folder = tmp_path_factory.mktemp("beam")
    # The pool starts its workers as `python`; it is started in a folder where no module of ours or of the tests lies.
    environment = {**os.environ, **_gcs_server.environment, "PYTHONPATH": ""}
    environment["PATH"] = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    job, pool = free_port(), free_port()
    commands = {
        job: ["-c", JOB_SERVER, f"--port={job}", f"--staging_dir={folder}/staging"],
        pool: ["-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={pool}"],
    }
    started = {}
    try:
        for port, command in commands.items():
            with open(folder / f"{port}.log", "w") as log:
                started[port] = subprocess.Popen([sys.executable, *command], cwd=folder, env=environment, stdout=log, stderr=log)
        for port, process in started.items():
            wait_until_open(port, process)
        flags_ = ["--runner=PortableRunner", f"--job_endpoint=localhost:{job}", "--environment_type=EXTERNAL"]
        yield [*flags_, f"--environment_config=localhost:{pool}"], folder / f"{pool}.log"
    finally:
        for process in started.values():
            process.terminate()
        for process in started.values():
            process.wait()


@pytest.fixture
def argv(tmp_path, pixels, write_raster, write_voc) -> Callable[..., list[str]]:
    write_raster(tmp_path / "north.png", pixels(*SIZE))
    write_voc(tmp_path / "north.xml", "north.png", SIZE, OBJECTS)

    def make(output: str, *more: str) -> list[str]:
        inputs = [f"--mosaics={tmp_path}/*.png", f"--annotations={tmp_path}/*.xml", f"--output={output}"]
        return [*inputs, "--patch_size=100", "--overlap=20", "--records_per_shard=4", *more]

    return make


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def here(argv, tmp_path) -> dict[str, bytes]:
    """The dataset as the in-process runner makes it."""
    shard.run(argv(str(tmp_path / "here")))
    return contents(tmp_path / "here")


def test_the_same_bytes_and_nothing_of_the_main_program(servers, argv, tmp_path, here):
    """The verb is `__main__` here, as for users: what workers unpickle must not name it."""
    beam_flags, log = servers
    before = log.read_text().count("Starting worker")
    command = [sys.executable, "-m", "pipeline.shard", *argv(str(tmp_path / "there"), *beam_flags)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert log.read_text().count("Starting worker") - before == 1
    assert contents(tmp_path / "there") == here


def test_two_workers_from_bucket_to_bucket(servers, argv, tmp_path, gcs, here):
    beam_flags, log = servers
    for name in ("north.png", "north.xml"):
        gcs.upload(tmp_path / name, f"gs://bkt/portable/{name}")
    where = ["--mosaics=gs://bkt/portable/*.png", "--annotations=gs://bkt/portable/*.xml", "--output=gs://bkt/portable/ds"]
    before = log.read_text().count("Starting worker")
    shard.run(argv("", *beam_flags, "--direct_num_workers=2", *where))
    assert log.read_text().count("Starting worker") - before == 2
    shards = {name: content for name, content in here.items() if name.endswith(".tfrecord")}
    assert len(shards) == 5
    assert {name: files.read(f"gs://bkt/portable/ds/{name}") for name in shards} == shards


def test_bad_input_found_by_a_worker_comes_back_as_such(servers, tmp_path, argv):
    options = launch.options(servers[0], [], prog="rookery shard")
    cut = _cut(argv(str(tmp_path / "ds")), folder="/proc/nowhere")
    with pytest.raises(InputError, match=r"^--output=/proc/nowhere cannot be written"):
        launch.run(options, lambda pipeline: pipeline | cut)


def _cut(argv: list[str], *, folder: str) -> transforms.CutShards:
    """What `shard` runs, but for the folder that workers write to."""
    options, _ = flags.parse(shard.Options, argv, prog="rookery shard", passthrough=True)
    planned = shard.make_plan(options)
    pieces = work.write(options.output, work.grouped(planned.shards, planned.mosaics))
    return transforms.CutShards(
        pieces, planned.mosaics, folder=folder, classes=planned.classes, jpeg_quality=options.jpeg_quality
    )


def test_the_job_can_be_sent(argv, tmp_path):
    pipeline = beam.Pipeline(options=launch.options([], [], prog="rookery shard"))
    pipeline | _cut(argv(str(tmp_path / "ds")), folder=str(tmp_path / "ds"))
    sent = pipeline.to_runner_api().SerializeToString()
    received = beam.Pipeline.from_runner_api(beam_runner_api_pb2.Pipeline.FromString(sent), runner=None, options=pipeline.options)
    assert received.to_runner_api().SerializeToString(deterministic=True)
    assert b"__main__" not in sent
