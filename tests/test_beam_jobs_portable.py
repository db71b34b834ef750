"""Both jobs on Beam's portable runner: job server, worker pool and workers are processes of their own, as on Dataflow.

The workers run what an image would hold: Rookery installed into a folder, away from the repository.
"""

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from gcs_emulator import Emulator, free_port, wait_until_open

from beam_jobs import quiet
from inference import plan
from pipeline import shard, work
from survey import detections, files, flags
from survey.errors import InputError
from survey.geometry import Mosaic

with quiet.importing():
    import apache_beam as beam
    from apache_beam.portability.api import beam_runner_api_pb2

    from beam_jobs import launch
    from inference import transforms as search
    from pipeline import transforms

ROOT = Path(__file__).parent.parent

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


OURS = ("beam_jobs", "inference", "pipeline", "survey")
# Python imports it on start: each process that has it lists the files whose code it runs.
WITNESS = """
import os, sys
with_log = os.environ["WITNESS"]
def saw(event, arguments):
    if event == "exec":
        with open(with_log, "a") as log:
            log.write(f"{os.getpid()} {getattr(arguments[0], 'co_filename', '')}\\n")
sys.addaudithook(saw)
"""


@dataclass(frozen=True, slots=True)
class Servers:
    """A job server and a worker pool, whose workers have Rookery from a folder.

    Attributes:
      flags: of Beam, that send a job there.
      log: of the pool, which tells what workers it started.
      tree: where Rookery is installed for the workers.
      ran: the files whose code they ran.
    """

    flags: list[str]
    log: Path
    tree: Path
    ran: Path

    def started(self) -> int:
        return self.log.read_text().count("Starting worker")

    def packages(self) -> dict[str, set[Path]]:
        """Folders from which the workers took each of our packages."""
        found: dict[str, set[Path]] = {}
        for line in self.ran.read_text().splitlines():
            path = Path(line.partition(" ")[2])
            if path.name == "__init__.py" and path.parent.name in OURS and "apache_beam" not in path.parts:
                found.setdefault(path.parent.name, set()).add(path.parent.parent)
        return found


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rookery as pip installs it into an image; from a copy, because the build leaves its own files beside the sources."""
    copy, tree = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("image")
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    for name in {package.partition(".")[0] for package in packages}:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "rookery.py"):
        shutil.copy(ROOT / name, copy)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([*install, "--no-build-isolation", "--no-compile", "--target", str(tree), str(copy)], check=True)
    return tree


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, _gcs_server: Emulator, tree: Path) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("beam")
    (folder / "witness").mkdir()
    (folder / "witness/sitecustomize.py").write_text(WITNESS)
    (folder / "ran.log").touch()
    # The pool starts its workers as `python`; it is started in a folder where no module of ours or of the tests lies.
    environment = {**os.environ, **_gcs_server.environment, "PYTHONPATH": ""}
    environment["PATH"] = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    in_image = {"PYTHONPATH": f"{tree}:{folder}/witness", "WITNESS": str(folder / "ran.log")}
    job, pool = free_port(), free_port()
    commands = {
        job: (["-c", JOB_SERVER, f"--port={job}", f"--staging_dir={folder}/staging"], environment),
        pool: (["-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={pool}"], {**environment, **in_image}),
    }
    started = {}
    try:
        for port, (command, variables) in commands.items():
            with open(folder / f"{port}.log", "w") as log:
                started[port] = subprocess.Popen([sys.executable, *command], cwd=folder, env=variables, stdout=log, stderr=log)
        for port, process in started.items():
            wait_until_open(port, process)
        flags_ = ["--runner=PortableRunner", f"--job_endpoint=localhost:{job}", "--environment_type=EXTERNAL"]
        yield Servers([*flags_, f"--environment_config=localhost:{pool}"], folder / f"{pool}.log", tree, folder / "ran.log")
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
    before = servers.started()
    command = [sys.executable, "-m", "pipeline.shard", *argv(str(tmp_path / "there"), *servers.flags)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert servers.started() - before == 1
    assert contents(tmp_path / "there") == here
    assert servers.packages() == {"pipeline": {servers.tree}, "survey": {servers.tree}}


def test_two_workers_from_bucket_to_bucket(servers, argv, tmp_path, gcs, here):
    for name in ("north.png", "north.xml"):
        gcs.upload(tmp_path / name, f"gs://bkt/portable/{name}")
    where = ["--mosaics=gs://bkt/portable/*.png", "--annotations=gs://bkt/portable/*.xml", "--output=gs://bkt/portable/ds"]
    before = servers.started()
    shard.run(argv("", *servers.flags, "--direct_num_workers=2", *where))
    assert servers.started() - before == 2
    shards = {name: content for name, content in here.items() if name.endswith(".tfrecord")}
    assert len(shards) == 5
    assert {name: files.read(f"gs://bkt/portable/ds/{name}") for name in shards} == shards


def test_bad_input_found_by_a_worker_comes_back_as_such(servers, tmp_path, argv):
    options = launch.options(servers.flags, [], prog="rookery shard")
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


def test_predict_finds_what_was_painted(servers: Servers, tmp_path: Path) -> None:
    """Patches of 64 px that share 16 start at 0, 48 and 86 (150 px): 3 x 3. The second bird is on a seam, and found once."""
    import stub_model
    from test_inference_predict import save

    model = stub_model.export(str(tmp_path / "model"))
    (tmp_path / "mosaics").mkdir()
    objects = [(20, 20, 10, 0.8, 1), (30, 55, 12, 0.6, 1), (120, 100, 12, 0.9, 2)]
    save(tmp_path / "mosaics/north.png", stub_model.paint(150, 150, objects))
    before = servers.started()
    where = [f"--model={model}", f"--mosaics={tmp_path}/mosaics/*", f"--output={tmp_path}/out", "--formats=csv"]
    command = [sys.executable, "-m", "inference.predict", *where, *servers.flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert servers.started() - before == 1
    manifest, _ = detections.read(str(tmp_path / "out"))
    assert manifest.counts == {"north": {"bird": 2, "tree": 1}}
    assert manifest.counters["patches"] == 9
    assert servers.packages()["inference"] == {servers.tree}


def _search(folder: Path) -> beam.PTransform:
    """What `predict` runs, over one mosaic of four patches."""
    import stub_model

    mosaic = Mosaic("north", str(folder / "north.png"), 100, 100)
    planned = plan.Planned(mosaic, mosaic, 64, 16, "0" * 16)
    items = list(plan.items([planned], list(planned.parts)))
    assert sum(len(part) for item in items for part in item.parts) == 4
    settings = search.SearchSettings((str(folder),), (stub_model.SPEC,), stub_model.SPEC, "none", 8, str(folder))
    return beam.Create(items) | "Search" >> search.Search(settings)


@pytest.mark.parametrize("verb", ["shard", "predict"])
def test_the_job_can_be_sent(verb, argv, tmp_path):
    pipeline = beam.Pipeline(options=launch.options([], [], prog=f"rookery {verb}"))
    pipeline | (_cut(argv(str(tmp_path / "ds")), folder=str(tmp_path / "ds")) if verb == "shard" else _search(tmp_path))
    sent = pipeline.to_runner_api().SerializeToString()
    received = beam.Pipeline.from_runner_api(beam_runner_api_pb2.Pipeline.FromString(sent), runner=None, options=pipeline.options)
    assert received.to_runner_api().SerializeToString(deterministic=True)
    assert b"__main__" not in sent
