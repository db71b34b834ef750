"""What is made sure of before a TPU is asked for, cheapest first. Nothing here costs money."""

import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence

from cloud import attempts, buckets, gcloud
from cloud.gcloud import GcloudError
from cloud.job import Job
from survey import flags
from survey.errors import InputError

# A worker that has given no sign of life for so long is taken for dead.
SILENCE_S = 900.0


def accelerator_types(job: Job) -> list[str]:
    """The gcloud command that lists what a zone offers."""
    return ["compute", "tpus", "tpu-vm", "accelerator-types", "list", *job.place.flags]


def zone(job: Job, *, sleep: Callable[[float], None], say: Callable[[str], None]) -> None:
    """Refuses a zone that does not offer the accelerator. This is also the first time that gcloud asks the service.

    Raises:
      InputError: names what the zone has.
    """
    wanted = job.slice.accelerator_type
    try:
        found = gcloud.run(accelerator_types(job), sleep=sleep, say=say) or []
    except GcloudError as error:
        raise gcloud.explained(error, job.place, "listing the accelerator types") from error
    offered = [str(each.get("type") or each["name"].rpartition("/")[2]) for each in found]
    if wanted not in offered:
        zone, project = job.place.zone, job.place.project
        raise InputError(
            f"ZONE={zone} does not offer {wanted}; it has {', '.join(sorted(offered)) or 'no TPUs'}. All zones: gcloud compute "
            f"tpus locations list --project={project}; what one has: gcloud compute tpus tpu-vm accelerator-types list "
            f"--zone=ZONE --project={project}"
        )


def storage(job: Job, say: Callable[[str], None]) -> None:
    """Refuses buckets that are missing or far away, a dataset that is none, and a run that another TPU trains.

    Raises:
      InputError: names it.
    """
    for note in buckets.check([job.dataset, job.model_dir], job.place.region):
        say(note)
    from survey import dataset

    dataset.read(job.dataset)
    numbers = attempts.numbers(job.folder)
    last = attempts.read(job.folder, numbers[-1]) if numbers else None
    if last and last.state == attempts.RUNNING and last.name != job.name and time.time() - last.time < SILENCE_S:
        raise InputError(
            f"--model_dir={job.model_dir}: the TPU {last.name!r} is training this run: two would spoil each other's checkpoints; "
            f"watch that one with --name={last.name}, delete it, or take another folder"
        )


def trained(job: Job) -> bool:
    """Whether this very command has already been carried out to its end."""
    numbers = attempts.numbers(job.folder)
    last = attempts.read(job.folder, numbers[-1]) if numbers else None
    return last is not None and last.exit_code == 0 and last.command == shlex.join(job.command) and last.state == attempts.ENDED


def train_flags(job: Job) -> None:
    """Refuses flags that `rookery train` does not have; their values are judged by preflight.

    Raises:
      InputError: names the nearest flag.
    """
    shown = subprocess.run(["rookery", "train", "--help"], capture_output=True, text=True, check=False)
    known = re.findall(r"--(\w[\w-]*)", shown.stdout)
    for word in job.train:
        if word.startswith("--") and known and word[2:].split("=")[0] not in known:
            flags.refuse_unknown([word], known, prog="2_train_tpu.sh or rookery train")


def doctor(job: Job) -> list[str]:
    """The command that reads the dataset as training will."""
    return ["rookery", "doctor", f"--dataset={job.dataset}", f"--output=runs/{job.name}/doctor.html"]


def preflight(job: Job) -> list[str]:
    """The command that compiles the training step for the TPU; the dataset has had its own look."""
    accelerator = f"--accelerator={job.slice.accelerator_type}"
    return ["rookery", "preflight", accelerator, "--step=train", "--no-doctor", f"--dataset={job.dataset}", *job.train]


def passes(command: Sequence[str], say: Callable[[str], None]) -> int:
    """Runs a check whose words are for people.

    Returns:
      0 where it is passed; 2 and 3 as it says itself; 1 for any other end.
    """
    say(" ".join(command[:2]))
    if command[1] == "doctor":
        os.makedirs(os.path.dirname(command[-1].partition("=")[2]), exist_ok=True)
    code = subprocess.run(command, check=False).returncode
    return code if code in (0, 2, 3) else 1
