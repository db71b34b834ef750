"""Watches a training on a TPU until it is done: asks for the TPU, follows the log, asks again when it is taken away, deletes it.

A machine of few states over three things that are handed in: the TPU, the job's folder, and the clock.
"""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

from cloud import attempts, gcloud
from cloud.attempts import Attempt
from cloud.gcloud import GcloudError
from cloud.job import Job
from cloud.resource import ACTIVE, BILLED, DELETING, FAILED, LOST, LOST_NODES, Resource, Tpu
from survey.errors import InputError
from survey.progress import clock

T = TypeVar("T")

TRAINED, FAILURE, BAD_INPUT, NOT_FIT, INTERRUPTED = 0, 1, 2, 3, 130  # exit codes
FINAL = (BAD_INPUT, NOT_FIT)  # of the training: the same command would say the same again


@dataclass(frozen=True, slots=True)
class Pace:
    """How often things are looked at, in seconds.

    Attributes:
      poll: between two looks at a TPU that trains; also the shortest wait for one.
      longest_poll: between two looks at the queue.
      tell: between two lines that say that nothing has changed.
      silence: without a sign of life, after which a TPU is given up; pulling the image takes minutes.
      gone: in which a deleted TPU must be gone.
    """

    poll: float = 20.0
    longest_poll: float = 120.0
    tell: float = 300.0
    silence: float = 900.0
    gone: float = 1800.0


class Stop(Exception):  # noqa: N818 it may be good news
    """The job is over. Attributes: code, the exit code; reason, for people."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class StillThere(Stop):
    """The TPU cannot be got rid of."""


class Supervisor:
    """Sees a job through.

    Args:
      job: the job.
      tpu: its TPU.
      now: seconds of a clock that only goes forward.
      sleep: waits so many seconds.
      say: prints a line.
      hold: a context in which no signal interrupts; it comes through when the context ends.
      max_failures: identical ones in a row, after which it stops; five times as many of any kind.
      pace: of looking.
    """

    def __init__(
        self,
        job: Job,
        tpu: Tpu,
        *,
        now: Callable[[], float],
        sleep: Callable[[float], None],
        say: Callable[[str], None],
        hold: Callable[[], AbstractContextManager[None]] = nullcontext,
        max_failures: int = 3,
        pace: Pace | None = None,
    ) -> None:
        self._job, self._tpu, self._now, self._sleep, self._say, self._hold = job, tpu, now, sleep, say, hold
        self._max_failures, self._pace = max_failures, pace or Pace()
        self._last_failure, self._same, self._all = "", 0, 0
        self._attempt = 0  # number of the creation that is watched
        self._silent_until = 0.0
        self._blind = False  # whether the job's folder could not be read just now
        self.may_bill = False  # whether there may be a TPU; what is printed last depends on it

    def run(self, resource: Resource | None = None) -> int:
        """Trains to the end, whatever it takes.

        Args:
          resource: the TPU, where it has been asked for before.

        Returns:
          The exit code.

        Raises:
          InputError: the TPU cannot be had: quota, permission, a name that is taken. Nothing is left of it.
        """
        try:
            self._attempt = max([0, *self._stored(lambda: attempts.numbers(self._job.folder), list[int]())])
            if resource is not None:
                self.may_bill, self._attempt = True, resource.attempt
                self._say(f"going on with the TPU {self._job.name!r}, {resource.state}")
            while True:
                if resource is None:
                    self._create()
                lost = self._watch()
                self._say(lost)
                self.end()
                resource = None
        except Stop as stop:
            if not isinstance(stop, StillThere):
                self.end()
            self._say(stop.reason)
            return stop.code

    def end(self) -> None:
        """Deletes the TPU and waits until it is gone; nothing to do where there is none."""
        if not self.may_bill:
            return
        self._say(f"deleting the TPU {self._job.name!r}")
        deadline, asked = self._now() + self._pace.gone, False
        while True:
            try:
                if not asked:
                    self._tpu.delete()
                    asked = True
                resource = self._look()
                if resource is None:
                    break
                asked = resource.state == DELETING or resource.state in LOST
            except GcloudError as error:
                self._tell_now_and_then(f"it cannot be deleted now: {error.text}")
            if self._now() > deadline:
                raise StillThere(FAILURE, f"the TPU {self._job.name!r} is still there after {clock(self._pace.gone)}")
            self._sleep(self._pace.poll)
        self.may_bill = False
        self._say(f"the TPU {self._job.name!r} is gone, nothing of it bills")

    def _create(self) -> None:
        self._attempt += 1
        kind = "spot " if self._job.spot else ""
        self._say(f"asking for a {kind}{self._job.slice.accelerator_type} in {self._job.place.zone}, attempt {self._attempt}")
        # Before the request: it may be heard although no answer comes.
        self.may_bill = True
        while True:
            try:
                # A request that is broken off in the middle may be granted after we have looked for it in vain.
                with self._hold():
                    self._tpu.create(self._attempt)
                return
            except InputError:
                self._sweep()
                raise
            except GcloudError as error:
                if error.kind == gcloud.UNAVAILABLE:  # a service that is away is no failure of the job
                    self._say(f"the service does not answer: {error.text}; going on asking")
                else:
                    self._failed(error.text)
                self._sleep(self._pace.longest_poll)

    def _sweep(self) -> None:
        """After a refusal: makes sure that nothing has come of it, without a word where that is so."""
        try:
            if self._look() is None:
                self.may_bill = False
                return
        except GcloudError:
            pass
        self.end()

    def _look(self) -> Resource | None:
        """How our TPU stands; None also where its name is by now somebody else's."""
        try:
            return self._tpu.look()
        except InputError:
            return None

    def _watch(self) -> str:
        """Follows one TPU.

        Returns:
          Why it is to be replaced.

        Raises:
          Stop: the job is over.
        """
        pace = self._pace
        begun = alive = self._now()
        told, state, beat, wait_s = begun, "", -1, pace.poll
        log, seen = attempts.LogReader(self._job.folder, self._attempt), False
        while True:
            self._blind = False
            # First what the worker says: a TPU that is gone may have finished before.
            attempt = self._stored(lambda: attempts.read(self._job.folder, self._attempt), None)
            lines = self._stored(log.lines, list[str]())
            if not seen and len(lines) > attempts.LAST_LINES:
                self._say(f"| ... {len(lines) - attempts.LAST_LINES} lines before these are in {self._job.folder}")
                lines = lines[-attempts.LAST_LINES :]
            seen = True
            for line in lines:
                self._say(f"| {line}")
            if attempt is not None and attempt.state == attempts.ENDED:
                for line in self._stored(log.rest, list[str]()):
                    self._say(f"| {line}")
                return self._ended(attempt)
            if attempt is not None and attempt.beat != beat:
                beat, alive = attempt.beat, self._now()
            if self._blind:  # then it is us who are cut off
                alive = self._now()
            try:
                resource = self._look()
            except GcloudError as error:
                self._tell_now_and_then(f"the TPU cannot be looked at: {error.text}; going on asking")
            else:
                if resource is None:
                    self.may_bill = False
                    raise Stop(FAILURE, self._gone())
                if resource.state != state:
                    self._say(f"{resource.state} after {clock(self._now() - begun)}")
                    state, told, wait_s = resource.state, self._now(), pace.poll
                    alive = max(alive, self._now())
                if (reason := self._lost(resource)) is not None:
                    return reason
            if state == ACTIVE and self._now() - alive > pace.silence:
                return self._failed(f"no sign of life for {clock(pace.silence)}")
            if state != ACTIVE and self._now() - told >= pace.tell:
                self._say(
                    f"{state or 'waiting'} for {clock(self._now() - begun)}" + ("" if state in BILLED else ", nothing bills")
                )
                told = self._now()
            self._sleep(wait_s)
            wait_s = pace.poll if state == ACTIVE else min(1.5 * wait_s, pace.longest_poll)

    def _lost(self, resource: Resource) -> str | None:
        """Why a TPU in this state is to be replaced; None where it is not.

        Raises:
          Stop: replacing it would not help.
        """
        state = resource.state
        if state == DELETING:
            raise Stop(FAILURE, self._gone())
        if state in LOST or state in LOST_NODES:
            return f"{state}: the TPU was taken away; training goes on from its last checkpoint on the next one"
        if state != FAILED:
            return None
        reason = resource.reason or "the service gives no reason"
        kind = gcloud.kind_of(reason)
        if kind in (gcloud.QUOTA, gcloud.PERMISSION, gcloud.INVALID, gcloud.DISABLED):
            error = gcloud.explained(GcloudError(kind, reason), self._job.place, f"creating the TPU {self._job.name!r}")
            raise Stop(BAD_INPUT, f"error: {error}")
        return self._failed(reason)

    def _ended(self, attempt: Attempt) -> str:
        """What the end of the training means.

        Raises:
          Stop: unless it is to be tried again.
        """
        code, last = attempt.exit_code, (attempt.last_lines or ("it said nothing",))[-1]
        if code == 0:
            raise Stop(
                TRAINED,
                f"trained: {self._job.model_dir}\nnext: ./scripts/3_export.sh --model_dir {self._job.model_dir} --output ...",
            )
        if code in FINAL:
            raise Stop(code, f"training ended with {code}: {last}")
        return self._failed(f"training ended with {code}: {last}")

    def _failed(self, reason: str) -> str:
        """Counts a failure; two are identical where they differ in figures only, such as steps and addresses.

        Raises:
          Stop: it is one too many.
        """
        name = re.sub(r"0x[0-9a-f]+|\d+", "#", reason)
        self._same = self._same + 1 if name == self._last_failure else 1
        self._last_failure, self._all = name, self._all + 1
        if self._same >= self._max_failures:
            raise Stop(FAILURE, f"stopped after {self._same} identical failures in a row: {reason}")
        if self._all >= 5 * self._max_failures:
            raise Stop(FAILURE, f"stopped after {self._all} failures, the last: {reason}")
        return f"failure {self._same} of {self._max_failures}: {reason}"

    def _stored(self, read: Callable[[], T], otherwise: T) -> T:
        """Reads from the job's folder; a service that is away is no news of the job, and must not end the watch."""
        try:
            return read()
        except Exception as error:  # whatever a client may raise
            self._blind = True
            self._tell_now_and_then(f"{self._job.folder} cannot be read now: {error}; going on asking")
            return otherwise

    def _tell_now_and_then(self, line: str) -> None:
        if self._now() >= self._silent_until:
            self._say(line)
            self._silent_until = self._now() + self._pace.tell

    def _gone(self) -> str:
        return (
            f"the TPU {self._job.name!r} has been deleted by somebody else: not asking for another one. "
            f"The run is in {self._job.model_dir}; the same command goes on with it"
        )
