import os
import subprocess
import sys

import pytest

from beam_jobs import quiet
from survey.errors import InputError

with quiet.importing():
    import apache_beam as beam
    from apache_beam.metrics.metric import Metrics
    from apache_beam.options.pipeline_options import DirectOptions, StandardOptions
    from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner

    from beam_jobs import launch


@pytest.fixture(autouse=True)
def _workers_can_import_this_module(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))


def options(*argv):
    return launch.options(argv, ["mosaics", "patch_size"], prog="rookery shard")


class Count(beam.DoFn):
    def process(self, element):
        Metrics.counter("rookery", "seen").inc()
        Metrics.counter("rookery", "total").inc(element)
        yield element


class Refuse(beam.DoFn):
    def process(self, element):
        raise InputError(f"north.tif is damaged: {element}")


class Crash(beam.DoFn):
    def process(self, element):
        raise KeyError("a defect of ours")


@pytest.mark.parametrize("argv", [[], ["--runner=DirectRunner"], ["--runner", "direct"], ["--runner=FnApiRunner"]])
def test_runs_in_process_and_never_on_prism(argv, monkeypatch):
    # Prism is a binary that Beam would download.
    from apache_beam.runners.portability import prism_runner

    monkeypatch.setattr(prism_runner.PrismRunner, "run_pipeline", lambda *_: pytest.fail("Prism was tried"))
    chosen = options(*argv)
    assert isinstance(launch._runner(chosen), FnApiRunner)
    counters = launch.run(chosen, lambda pipeline: pipeline | beam.Create([1, 2, 3]) | beam.ParDo(Count()))
    assert counters == {"seen": 3, "total": 6}  # 1 + 2 + 3


def test_workers_in_other_processes_count_too_and_say_nothing(capfd):
    chosen = options("--direct_num_workers=2")
    assert chosen.view_as(DirectOptions).direct_running_mode == "multi_processing"
    steps = lambda pipeline: pipeline | beam.Create(range(5)) | beam.Reshuffle() | beam.ParDo(Count())  # noqa: E731
    assert launch.run(chosen, steps) == {"seen": 5, "total": 10}  # 0 + 1 + 2 + 3 + 4
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_other_runners_are_left_to_beam():
    chosen = options("--runner=FlinkRunner", "--flink_master=localhost:8081", "--parallelism=3")
    assert chosen.view_as(StandardOptions).runner == "FlinkRunner"
    assert chosen.get_all_options()["parallelism"] == 3


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--direct_num_worker=2"], r"--direct_num_worker is not a flag of rookery shard: did you mean --direct_num_workers\?"),
        (["--mosaic=a"], r"did you mean --mosaics\?"),
        (["--runner=direkt"], "--runner=direkt is not a runner of Apache Beam: did you mean DirectRunner"),
        (["--direct_num_workers=x"], "--direct_num_workers: invalid int value: 'x'"),
        (["--direct_num_workers=-1"], "must be 0"),
        (["--save_main_session"], "leave the flag out"),
        (["stray"], "takes flags only, found 'stray'"),
    ],
)
def test_bad_flags_are_refused(argv, words):
    with pytest.raises(InputError, match=words):
        options(*argv)


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_input_found_by_a_worker_comes_back_as_such(workers):
    with pytest.raises(InputError) as caught:
        launch.run(options(f"--direct_num_workers={workers}"), lambda p: p | beam.Create(["row 7"]) | beam.ParDo(Refuse()))
    assert str(caught.value) == "north.tif is damaged: row 7"


def test_a_defect_stays_a_defect():
    with pytest.raises(Exception, match="a defect of ours") as caught:
        launch.run(options(), lambda p: p | beam.Create([1]) | beam.ParDo(Crash()))
    assert not isinstance(caught.value, InputError)


def test_importing_says_nothing():
    code = "from beam_jobs import quiet\nwith quiet.importing():\n    from beam_jobs import launch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
