"""A queued resource and its TPU: asked for, looked at, deleted, by gcloud."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from cloud import gcloud
from cloud.gcloud import GcloudError
from cloud.job import LABEL, Job
from survey.errors import InputError

# States of a queued resource (cloud.google.com/tpu/docs/queued-resources), and of its node.
ACTIVE = "ACTIVE"
WAITING = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING")
LOST = ("SUSPENDING", "SUSPENDED")
FAILED, DELETING = "FAILED", "DELETING"
LOST_NODES = ("PREEMPTED", "TERMINATED", "STOPPED", "STOPPING")
BILLED = (ACTIVE, "PROVISIONING", "SUSPENDING")


@dataclass(frozen=True, slots=True)
class Resource:
    """How a queued resource stands.

    Attributes:
      state: one of the above.
      reason: why it failed, as the service says; empty otherwise.
      attempt: number of the creation, from its metadata; 0 where it is not ours.
    """

    state: str
    reason: str = ""
    attempt: int = 0


class Tpu(Protocol):
    """What the supervisor needs of a TPU."""

    def create(self, attempt: int) -> None:
        """Asks for it."""

    def look(self) -> Resource | None:
        """How it stands; None where there is none."""

    def delete(self) -> None:
        """Ends it; no error where there is none."""


class QueuedResource:
    """The TPU of a job.

    Args:
      job: what it is for.
      say: told of waits.
      sleep: waits so many seconds.
    """

    def __init__(self, job: Job, say: Callable[[str], None], sleep: Callable[[float], None]) -> None:
        self._job, self._say, self._sleep = job, say, sleep

    def create(self, attempt: int) -> None:
        """Asks for the TPU.

        Raises:
          InputError: the service refuses: quota, permission, a name that is taken.
          GcloudError: anything else.
        """
        try:
            # Once only: our caller waits where Ctrl-C is heard.
            gcloud.run(self._job.create(attempt), tries=1)
        except GcloudError as error:
            # A request that was answered by 503 may have been heard: gcloud then tries again and finds its own.
            if error.kind == gcloud.EXISTS and self.look() is not None:
                return
            if error.kind in (gcloud.UNAVAILABLE, gcloud.CAPACITY, gcloud.OTHER):
                raise
            raise gcloud.explained(error, self._job.place, f"creating the TPU {self._job.name!r}") from error

    def look(self) -> Resource | None:
        """How it stands.

        Raises:
          InputError: the TPU of that name is somebody else's, or runs another command.
          GcloudError: it cannot be seen.
        """
        try:
            found = self._gcloud(self._job.describe())
        except GcloudError as error:
            if error.kind == gcloud.MISSING:
                return None
            raise
        resource = self._ours(found)
        if resource.state != ACTIVE:
            return resource
        return self._with_node(resource)

    def delete(self) -> None:
        """Ends it.

        Raises:
          GcloudError: it cannot be ended now.
        """
        try:
            self._gcloud(self._job.delete())
        except GcloudError as error:
            if error.kind != gcloud.MISSING:
                raise

    def _gcloud(self, argv: list[str]) -> Any:
        return gcloud.run(argv, sleep=self._sleep, say=self._say)

    def _ours(self, found: dict[str, Any]) -> Resource:
        spec = ((found.get("tpu") or {}).get("nodeSpec") or [{}])[0]
        node = spec.get("node") or {}
        job, metadata = self._job, node.get("metadata") or {}
        command = "gcloud " + " ".join(job.delete())
        if (node.get("labels") or {}).get(LABEL) != job.label:
            raise InputError(
                f"--name={job.name}: {job.place.zone} has a queued resource of this name that is not this run's: take another "
                f"name, or, if it is yours and done with, delete it: {command}"
            )
        attempt = int(metadata.get("rookery-attempt", 0))
        wanted = {**job.metadata(attempt), "accelerator-type": job.slice.accelerator_type}
        there = {**metadata, "accelerator-type": node.get("acceleratorType", "")}
        for key, value in wanted.items():
            if there.get(key) != value:
                raise InputError(
                    f"--name={job.name}: this TPU has {key.removeprefix('rookery-')} {there.get(key)!r}, not {value!r}: give "
                    f"the same command to go on watching it, or delete it first: {command}"
                )
        state = found.get("state") or {}
        failure = ((state.get("failedData") or {}).get("error") or {}).get("message", "")
        return Resource(str(state.get("state", "")), str(failure), attempt)

    def _with_node(self, resource: Resource) -> Resource:
        """The request may still be ACTIVE while its TPU has already been taken away."""
        try:
            node = self._gcloud(self._job.describe_node())
        except GcloudError as error:
            if error.kind != gcloud.MISSING:
                raise
            return Resource("SUSPENDING", "", resource.attempt)
        state = str((node or {}).get("state", ""))
        return Resource(state, "", resource.attempt) if state in LOST_NODES else resource
