"""The state machine on a clock of its own: hours of a TPU in milliseconds."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from cloud import attempts, gcloud, job
from cloud.attempts import Attempt
from cloud.gcloud import GcloudError, Place
from cloud.job import Job
from cloud.resource import Resource
from cloud.supervisor import Pace, Supervisor
from survey import accelerators
from survey.errors import InputError


def job_in(folder: Path, **changes: object) -> Job:
    where = accelerators.parse("v5litepod-8")
    values = {
        "name": "seals",
        "place": Place("p", "us-west4-a"),
        "slice": where,
        "runtime_version": job.runtime_version(where),
        "image": "us-west4-docker.pkg.dev/p/rookery/tpu:1",
        "dataset": "gs://b/dataset",
        "model_dir": str(folder / "run"),
    }
    return Job(**{**values, **changes})


class Scene:
    """A TPU, a clock and a worker that follow a script.

    Args:
      folder: of the job.
      script: for each creation what happens, one entry a look: a state, a call, or an error to be raised. The last entry stays.
    """

    def __init__(self, folder: Path, *script: list[object]) -> None:
        self.job = job_in(folder)
        self.script, self.creations, self.deletions = [list(each) for each in script], 0, 0
        self.there, self.time, self.lines = False, 0.0, []
        self.creation_errors: list[Exception] = []
        self.deletion_errors: list[Exception] = []
        Path(self.job.folder).mkdir(parents=True)

    def create(self, attempt: int) -> None:
        if self.creation_errors:
            raise self.creation_errors.pop(0)
        self.creations += 1
        assert attempt == self.creations
        self.there = True

    def look(self) -> Resource | None:
        if not self.there:
            return None
        acts = self.script[self.creations - 1]
        act = acts[0] if len(acts) == 1 else acts.pop(0)
        if isinstance(act, Exception):
            raise act
        if callable(act):
            return act(self.creations)
        state, _, reason = str(act).partition(":")
        return Resource(state, reason, self.creations)

    def delete(self) -> None:
        if self.deletion_errors:
            raise self.deletion_errors.pop(0)
        self.deletions += 1
        self.there = False

    def sleep(self, seconds: float) -> None:
        self.time += seconds

    def run(self, **changes: object) -> tuple[int, str]:
        supervisor = Supervisor(self.job, self, now=lambda: self.time, sleep=self.sleep, say=self.lines.append, **changes)
        code = supervisor.run()
        assert supervisor.may_bill == self.there
        return code, "\n".join(self.lines)

    def worker(self, state: str, exit_code: int | None, *lines: str) -> Callable[[int], Resource]:
        """The worker says something between two looks."""

        def act(number: int) -> Resource:
            log = attempts.LogWriter(self.job.folder, number)
            log.append("".join(f"{line}\n" for line in lines).encode())
            log.flush()
            command = shlex.join(self.job.command)
            attempts.write(self.job.folder, Attempt(number, "seals", command, state, exit_code, last_lines=lines))
            return Resource("ACTIVE", "", number)

        return act


def test_waits_trains_and_deletes(tmp_path):
    scene = Scene(tmp_path, ["CREATING", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
    scene.script[0][3:] = [scene.worker("running", None, "step 1"), scene.worker("ended", 0, "step 2")]
    code, said = scene.run()
    assert (code, scene.creations, scene.deletions) == (0, 1, 1)
    # 20, 30 and 20 s: the wait grows in a state that lasts, and is short again after a change
    assert "ACTIVE after 1:00" in said
    assert said.index("| step 1") < said.index("| step 2") < said.index("deleting") < said.index("trained: ")
    assert f"{tmp_path}/run" in said


@pytest.mark.parametrize("state", ["SUSPENDING", "SUSPENDED", "PREEMPTED", "TERMINATED"])
def test_what_is_taken_away_is_asked_for_again_without_end(tmp_path, state):
    scene = Scene(tmp_path, *[["ACTIVE", state] for _ in range(20)], [])
    scene.script[20] = [scene.worker("ended", 0, "done")]
    code, said = scene.run(max_failures=2)
    assert (code, scene.creations, scene.deletions) == (0, 21, 21)
    assert "failure" not in said


def test_a_training_that_finished_before_it_was_taken_away_is_done(tmp_path):
    scene = Scene(tmp_path, ["ACTIVE"])

    def last(number: int) -> Resource:
        scene.worker("ended", 0, "done")(number)
        return Resource("ACTIVE", "", number)

    scene.script[0] = [last, "SUSPENDED"]
    code, _ = scene.run()
    assert (code, scene.creations) == (0, 1)


@pytest.mark.parametrize("code", [2, 3])
def test_bad_input_stops_at_once(tmp_path, code):
    scene = Scene(tmp_path, [])
    scene.script[0] = [scene.worker("ended", code, "error: --steps=0: must be above 0")]
    done, said = scene.run()
    assert (done, scene.creations, scene.deletions) == (code, 1, 1)
    assert said.endswith(f"training ended with {code}: error: --steps=0: must be above 0")


def test_identical_failures_stop_figures_aside(tmp_path):
    scene = Scene(tmp_path, *[[] for _ in range(3)])
    scene.script = [[scene.worker("ended", 134, f"step {i}: core dumped at 0x{i}f")] for i in range(3)]
    code, said = scene.run(max_failures=3)
    assert (code, scene.creations, scene.deletions) == (1, 3, 3)
    assert "stopped after 3 identical failures in a row: training ended with 134: step 2" in said


def test_changing_failures_stop_too_some_day(tmp_path):
    words = ["one", "two"] * 5
    scene = Scene(tmp_path, *[[] for _ in words])
    scene.script = [[scene.worker("ended", 1, word)] for word in words]
    code, said = scene.run(max_failures=2)
    assert (code, scene.creations) == (1, 10)  # five times two
    assert "stopped after 10 failures" in said


def test_silence_is_a_failure_and_a_sign_of_life_is_none(tmp_path):
    beats = iter(range(1, 200))

    def alive(number: int) -> Resource:
        attempts.write(scene.job.folder, Attempt(number, "seals", "x", beat=next(beats)))
        return Resource("ACTIVE", "", number)

    # 100 looks of 20 s with a beat each are 2,000 s: more than the 900 s of silence that are allowed
    scene = Scene(tmp_path, ["ACTIVE"], [])
    scene.script[0] = [alive] * 100 + ["ACTIVE"]
    scene.script[1] = [scene.worker("ended", 0, "done")]
    code, said = scene.run()
    assert (code, scene.creations) == (0, 2)
    assert "failure 1 of 3: no sign of life for 15:00" in said
    assert scene.time > 2000 + 900


@pytest.mark.parametrize(
    ("message", "creations", "code"),
    [
        ("Quota limit 'TPUV5sLitepodPerProjectPerZoneForTPUAPI' has been exceeded. Limit: 0 in zone us-west4-a.", 1, 2),
        ('There is no more capacity in the zone "us-west4-a"', 3, 1),
        ("", 3, 1),
    ],
)
def test_a_request_that_fails(tmp_path, message, creations, code):
    scene = Scene(tmp_path, *[["ACCEPTED", f"FAILED:{message}"] for _ in range(3)])
    done, said = scene.run()
    assert (done, scene.creations, scene.deletions) == (code, creations, creations)
    assert ("ask for the quota" in said) == (code == 2)


def test_a_service_that_is_away_ends_nothing(tmp_path):
    away = GcloudError(gcloud.UNAVAILABLE, "503 The service is currently unavailable.")
    scene = Scene(tmp_path, [])
    scene.creation_errors, scene.deletion_errors = [away] * 7, [away] * 7
    scene.script[0] = [away, "ACTIVE", *[away] * 40, scene.worker("ended", 0, "done")]
    code, said = scene.run()
    assert (code, scene.creations, scene.deletions) == (0, 1, 1)
    # 40 looks of 20 s are 800 s, told every 300 s: at 0, 300 and 600 s
    assert said.count("the TPU cannot be looked at: 503") == 3
    assert said.count("the service does not answer: 503") == 7


def test_a_network_that_is_away_is_not_silence(tmp_path, monkeypatch):
    scene, real, left = Scene(tmp_path, ["ACTIVE"]), attempts.read, [0] * 60  # 60 looks of 20 s are more than 900 s

    def read(folder: str, number: int) -> Attempt | None:
        if left:
            left.pop()
            if not left:
                scene.worker("ended", 0, "done")(number)
            raise ConnectionError("no route to host")
        return real(folder, number)

    monkeypatch.setattr(attempts, "read", read)
    code, said = scene.run()
    assert (code, scene.creations) == (0, 1)
    assert "cannot be read now: no route to host" in said


def test_a_refusal_leaves_nothing(tmp_path):
    scene = Scene(tmp_path, [])
    scene.creation_errors = [InputError("creating: Quota - ask for it")]
    with pytest.raises(InputError, match="ask for it"):
        scene.run()
    assert (scene.there, scene.deletions, scene.lines[-1]) == (False, 0, "asking for a v5litepod-8 in us-west4-a, attempt 1")


@pytest.mark.parametrize("last", [None, "DELETING"])
def test_who_deletes_it_by_hand_wants_no_other(tmp_path, last):
    scene = Scene(tmp_path, ["ACTIVE"])

    def gone(number: int) -> Resource | None:
        return None if last is None else Resource(last, "", number)

    scene.script[0] = ["ACTIVE", gone]
    supervisor = Supervisor(scene.job, scene, now=lambda: scene.time, sleep=scene.sleep, say=scene.lines.append)
    assert supervisor.run() == 1
    assert scene.creations == 1
    assert not supervisor.may_bill
    assert "deleted by somebody else: not asking for another one" in "\n".join(scene.lines)


def test_what_cannot_be_deleted_is_said_to_bill(tmp_path):
    scene = Scene(tmp_path, [])
    scene.script[0] = [scene.worker("ended", 0, "done")]
    scene.deletion_errors = [GcloudError(gcloud.LOGIN, "please run gcloud auth login")] * 1000
    supervisor = Supervisor(
        scene.job, scene, now=lambda: scene.time, sleep=scene.sleep, say=scene.lines.append, pace=Pace(gone=100.0)
    )
    with pytest.raises(Exception, match="still there after 1:40"):
        supervisor.run()
    assert supervisor.may_bill  # what the last line of the process depends on


def test_one_that_is_there_is_gone_on_with(tmp_path):
    scene = Scene(tmp_path, [])
    scene.creations, scene.there = 1, True
    lines = [f"step {i}" for i in range(30)]
    scene.worker("running", None, *lines)(1)
    scene.script[0] = ["ACTIVE", scene.worker("ended", 0, "done")]
    supervisor = Supervisor(scene.job, scene, now=lambda: scene.time, sleep=scene.sleep, say=scene.lines.append)
    assert supervisor.run(Resource("ACTIVE", "", 1)) == 0
    said = "\n".join(scene.lines)
    assert scene.creations == 1
    assert "10 lines before these" in said
    assert "| step 9\n" not in said
    assert "| step 10\n" in said
