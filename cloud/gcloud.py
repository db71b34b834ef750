"""The real gcloud as a function: its answers as JSON, its errors by what can be done about them."""

import json
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from survey.errors import InputError

# What went wrong, and the words by which gcloud and the services say so; the first that is found counts. gcloud has one exit code
# for all errors. The sentences on quota, queues and capacity are those of Cloud TPU.
UNAVAILABLE, MISSING, EXISTS, LOGIN, DISABLED = "unavailable", "missing", "exists", "login", "disabled"
CAPACITY, QUOTA, PERMISSION, INVALID, OTHER = "capacity", "quota", "permission", "invalid", "other"
_WORDS = (
    (LOGIN, r"gcloud auth login|UNAUTHENTICATED|refreshing your current auth tokens|Reauthentication"),
    (DISABLED, r"SERVICE_DISABLED|has not been used in project .* before or it is disabled|API \[.*\] not enabled"),
    (CAPACITY, r"no more capacity in the zone|stockout|STOCKOUT|resources? .*currently unavailable"),
    (
        QUOTA,
        r"Quota limit '|Quota '|quota metric|does not have permission to submit requests|RESOURCE_EXHAUSTED|"
        r"QUOTA_EXCEEDED|exceeded quota",
    ),
    (UNAVAILABLE, r"UNAVAILABLE|status': 5\d\d|\b50[0234]\b|INTERNAL:|DEADLINE_EXCEEDED|network connectivity issues|Connection"),
    (MISSING, r"NOT_FOUND|not found or access is unauthorized"),
    (EXISTS, r"ALREADY_EXISTS"),
    (PERMISSION, r"PERMISSION_DENIED|403"),
    (INVALID, r"INVALID_ARGUMENT|FAILED_PRECONDITION|Invalid value"),
)
# gcloud itself tries a request that fails with a server's error five times, which takes half a minute; these are on top of it.
TRIES = 5
_FIRST_WAIT_S, _LONGEST_WAIT_S = 5.0, 60.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job runs.

    Attributes:
      project: its id.
      zone: "us-west4-a".
    """

    project: str
    zone: str

    @property
    def region(self) -> str:
        """The region of the zone."""
        return self.zone.rpartition("-")[0]

    @property
    def flags(self) -> tuple[str, str]:
        """What every command about the zone ends with."""
        return f"--zone={self.zone}", f"--project={self.project}"


class GcloudError(Exception):
    """A command of gcloud that failed.

    Attributes:
      kind: one of the constants above.
      text: what gcloud said, without its prefix.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind, self.text = kind, text


def kind_of(text: str) -> str:
    """What an error is about, from the words of gcloud or of a service.

    >>> kind_of("Quota limit 'TPUV6EPerProjectPerZoneForTPUAPI' has been exceeded. Limit: 0 in zone us-east5-b.")
    'quota'
    """
    return next((kind for kind, words in _WORDS if re.search(words, text)), OTHER)


def run(
    argv: Sequence[str],
    *,
    tries: int = TRIES,
    sleep: Callable[[float], None] = time.sleep,
    say: Callable[[str], None] | None = None,
) -> Any:
    """Runs `gcloud ARGV --format=json --quiet`.

    Args:
      argv: after the word gcloud.
      tries: in all, where the service is not available.
      sleep: waits so many seconds.
      say: told about each wait.

    Returns:
      What it printed, as Python objects; None where it printed nothing.

    Raises:
      GcloudError: it failed.
      InputError: there is no gcloud.
    """
    wait_s = _FIRST_WAIT_S
    for i in range(tries):
        try:
            return _once(argv)
        except GcloudError as error:
            if error.kind != UNAVAILABLE or i == tries - 1:
                raise
            # Jitter: of many that were refused in the same moment, not all shall come back in the same moment.
            pause_s = wait_s * random.uniform(0.5, 1.5)
            if say:
                say(f"{error.text}: trying again in {pause_s:.0f} s")
            sleep(pause_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
    raise AssertionError("tries must be 1 or more")


def _once(argv: Sequence[str]) -> Any:
    if shutil.which("gcloud") is None:
        raise InputError(
            "gcloud is not installed, or not on the PATH: install the Google Cloud CLI (cloud.google.com/sdk/docs/install), then "
            "gcloud auth login and gcloud auth application-default login"
        )
    # In a session of its own: Ctrl-C is for us, who then decide about the TPU; a creation must not be broken off in the middle.
    done = subprocess.run(
        ["gcloud", *argv, "--format=json", "--quiet"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )
    if done.returncode:
        raise GcloudError(kind_of(done.stderr), _sentence(done.stderr))
    return json.loads(done.stdout) if done.stdout.strip() else None


def _sentence(stderr: str) -> str:
    r"""What gcloud had to say, in one line and without its name.

    >>> _sentence("WARNING: x\nERROR: (gcloud.compute.tpus) NOT_FOUND: no such\nthing. This command is authenticated as me@b.c")
    'NOT_FOUND: no such thing.'
    """
    text = stderr[stderr.rfind("ERROR: ") :] if "ERROR: " in stderr else stderr
    text = re.sub(r"^ERROR: (\([\w.-]+\) )?", "", text)
    # A server's error is printed with all headers; the service's own sentence is in it.
    if (message := re.search(r'"message": "([^"]*)"', text)) and "HttpError" in text:
        code = re.search(r"'status': '?(\d+)", text)
        text = f"{code[1] + ' ' if code else ''}{message[1]}"
    text = re.split(r"This command is (?:un)?authenticated", text)[0]
    return re.sub(r"\s+", " ", text).strip() or "gcloud failed without a word"


def explained(error: GcloudError, place: Place, what: str) -> InputError:
    """The same error as one that a person can mend.

    Args:
      error: of gcloud.
      place: where.
      what: was tried, "creating the TPU 'seals'".
    """
    project, zone = place.project, place.zone
    remedy = {
        LOGIN: "log in with gcloud auth login",
        DISABLED: f"gcloud services enable tpu.googleapis.com storage.googleapis.com --project={project}, then wait a minute",
        CAPACITY: "the zone is out of these TPUs: wait, take another zone, or --spot",
        QUOTA: (
            f"the project {project} may not have so many of these TPUs in {zone}: ask for the quota in the console (IAM & Admin, "
            "Quotas, service Cloud TPU API; --spot and on demand are quotas of their own), take a zone in which you have it, or "
            "delete what holds it, also queued resources that are SUSPENDED or FAILED: "
            f"gcloud compute tpus queued-resources list --zone={zone} --project={project}"
        ),
        PERMISSION: f"ask for the role TPU Admin (roles/tpu.admin) in {project}, and Service Account User on the service account",
        UNAVAILABLE: "the service does not answer: give the same command again later",
        MISSING: f"check PROJECT={project} and ZONE={zone}: gcloud compute tpus locations list --project={project}",
        INVALID: "see gcloud compute tpus queued-resources create --help",
    }
    advice = remedy.get(error.kind)
    return InputError(f"{what} in {zone}: {error.text}" + (f" - {advice}" if advice else ""))
