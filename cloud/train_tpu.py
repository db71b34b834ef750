"""`scripts/2_train_tpu.sh`: trains on a Cloud TPU, from asking for it to deleting it."""

import atexit
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from cloud import checks, gcloud, job
from cloud.gcloud import GcloudError, Place
from cloud.job import Job
from cloud.resource import QueuedResource, Resource
from cloud.signals import Interrupted, Signals
from cloud.supervisor import INTERRUPTED, TRAINED, Pace, Stop, Supervisor
from survey import accelerators, flags
from survey.errors import InputError
from survey.flags import flag

PROG = "2_train_tpu.sh"


@dataclass(frozen=True, slots=True)
class Options:
    r"""Trains on a Cloud TPU and deletes it afterwards. Flags that are not listed here are those of `rookery train`.

    Asks for the TPU as a queued resource, trains on it, shows the log, and asks for another one when it is taken away: training
    goes on from its last checkpoint. The same command again goes on watching. Exit code: 0 trained, 2 bad input, 3 the job does
    not fit, 130 interrupted, 1 anything else.

    PROJECT=p ZONE=us-west4-a IMAGE=us-west4-docker.pkg.dev/p/rookery/tpu:TAG ./scripts/2_train_tpu.sh \
      --name seals --accelerator v5litepod-8 --spot --dataset gs://B/dataset --model_dir gs://B/run --steps 20000
    """

    name: str = flag("of the TPU, and of its queued resource")
    accelerator: str = flag("what to rent, as gcloud names its type: v5litepod-8")
    dataset: str = flag("gs:// folder written by `rookery shard`")
    model_dir: str = flag("gs:// folder of the run; logs go to a folder beside it, MODEL_DIR.job")
    project: str = flag("that pays; the script takes it from PROJECT")
    zone: str = flag("of the TPU; the script takes it from ZONE")
    image: str = flag("that holds Rookery; the script takes it from IMAGE")
    spot: bool = flag("take a TPU that may be taken away, and costs less", default=False)
    runtime_version: str | None = flag("of the TPU VM (default: the generation's)", default=None)
    service_account: str | None = flag("that the TPU VM acts as (default: the project's Compute Engine one)", default=None)
    max_failures: int = flag("identical failures in a row after which it stops", default=3)
    yes: bool = flag("on Ctrl-C delete the TPU without asking", default=False)
    doctor: bool = flag("first read the dataset as `rookery doctor` does", default=True)
    preflight: bool = flag("first compile the step for the TPU, as `rookery preflight` does", default=True)
    dry_run: bool = flag("print every command, run none", default=False)

    def __post_init__(self) -> None:
        if self.max_failures < 1:
            raise InputError(f"--max_failures={self.max_failures}: must be 1 or more")


def run(argv: Sequence[str]) -> int:
    """Trains; returns the exit code."""
    argv = [{"--no_doctor": "--no-doctor", "--no_preflight": "--no-preflight"}.get(word, word) for word in argv]
    options, rest = flags.parse(Options, argv, prog=PROG, passthrough=True)
    todo = _job(options, rest)
    todo.check()
    if options.dry_run:
        print(dry_run(todo, options))
        return 0
    signals = Signals()
    supervisor: Supervisor | None = None
    try:
        tpu = QueuedResource(todo, say, time.sleep)
        checks.zone(todo, sleep=time.sleep, say=say)
        checks.storage(todo, say)
        found = _found(todo, tpu)
        if found is None:
            if checks.trained(todo):
                say(f"this command has already trained {todo.model_dir}: no TPU is asked for")
                return TRAINED
            checks.train_flags(todo)
            for wanted, command in _judges(todo, options):
                if wanted and (code := checks.passes(command, say)):
                    say(f"no TPU was asked for: {shlex.join(command)} ended with {code}")
                    return code
        supervisor = Supervisor(
            todo,
            tpu,
            now=time.monotonic,
            sleep=time.sleep,
            say=say,
            hold=signals.held,
            max_failures=options.max_failures,
            pace=_pace(),
        )
        atexit.register(_say_what_bills, todo, supervisor)
        return supervisor.run(found)
    except Stop as stop:
        say(str(stop))
        return stop.code
    except Interrupted as signal:
        return _interrupted(signal, todo, supervisor, yes=options.yes)


def say(line: str) -> None:
    """Prints a line with the time; those of the training's log, which begin with a bar, as they are."""
    print(line if line.startswith("|") else f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def dry_run(todo: Job, options: Options) -> str:
    """Every command of the job, as a shell would take it, in the order in which they are run."""
    check = ["python", "-m", "cloud.buckets", todo.dataset, todo.model_dir, f"--region={todo.place.region}"]
    ours = [command for wanted, command in _judges(todo, options) if wanted]
    again = "ask for the TPU; again, with the next attempt's number, when it is taken away or fails"
    steps: list[tuple[str, list[list[str]]]] = [
        ("before anything is asked for", [["gcloud", *checks.accelerator_types(todo)], check, ["gcloud", *todo.describe()]]),
        ("is the job fit?", ours),
        (again, [["gcloud", *todo.create(1)]]),
        ("watch it", [["gcloud", *todo.describe()], ["gcloud", *todo.describe_node()]]),
        (f"what runs on it, by {job.STARTUP}, in the container", [list(todo.command)]),
        ("delete it: when it is taken away, fails, has trained, or on Ctrl-C", [["gcloud", *todo.delete(), "--quiet"]]),
    ]
    lines: list[str] = []
    for what, commands in steps:
        # What runs on the TPU is for reading, not for pasting here.
        mark = "#   " if what.startswith("what runs") else ""
        lines += [f"# {what}", *(mark + shlex.join(command) for command in commands)] if commands else []
    return "\n".join(lines)


def _judges(todo: Job, options: Options) -> list[tuple[bool, list[str]]]:
    """What says whether the job is fit: whether it is wanted, and the command."""
    return [(options.doctor, checks.doctor(todo)), (options.preflight, checks.preflight(todo))]


def _job(options: Options, rest: Sequence[str]) -> Job:
    where = accelerators.parse(options.accelerator)
    return Job(
        name=options.name,
        place=Place(options.project, options.zone),
        slice=where,
        runtime_version=options.runtime_version or job.runtime_version(where),
        image=options.image,
        dataset=options.dataset,
        model_dir=options.model_dir,
        train=tuple(rest),
        spot=options.spot,
        service_account=options.service_account,
    )


def _found(todo: Job, tpu: QueuedResource) -> Resource | None:
    """The TPU, where it has been asked for before."""
    try:
        return tpu.look()
    except GcloudError as error:
        raise gcloud.explained(error, todo.place, f"looking for the TPU {todo.name!r}") from error


def _pace() -> Pace:
    """How often to look; the tests cannot wait as long as people can."""
    poll = os.environ.get("ROOKERY_POLL_SECONDS")
    return Pace(poll=float(poll), longest_poll=float(poll)) if poll else Pace()


def _interrupted(signal: Interrupted, todo: Job, supervisor: Supervisor | None, *, yes: bool) -> int:
    """Deletes the TPU, or leaves it, as the person at the terminal wishes."""
    if supervisor is None or not supervisor.may_bill:
        say(f"{signal}: nothing was asked for, nothing bills")
        return INTERRUPTED
    try:
        if yes or (signal.signal == "SIGINT" and _asked(f"{signal}: delete the TPU {todo.name!r}? [y/n] ")):
            supervisor.end()
    except (Interrupted, Stop, EOFError) as error:
        say(f"not deleted: {error}")
    return INTERRUPTED


def _asked(question: str) -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty() and input(question).strip().lower() in ("y", "yes")


def _say_what_bills(todo: Job, supervisor: Supervisor) -> None:
    """The last word of every process that leaves a TPU behind, however it ends."""
    if supervisor.may_bill:
        command = shlex.join(["gcloud", *todo.delete(), "--quiet"])
        print(
            f"STILL THERE: the TPU {todo.name!r} ({todo.slice.accelerator_type}, {todo.place.zone}) bills, now or as soon as it "
            f"is given, until you run\n  {command}\nThe same command as before goes on watching it.",
            file=sys.stderr,
            flush=True,
        )


if __name__ == "__main__":
    flags.exit_with(run)
