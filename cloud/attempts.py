"""What a job leaves in its folder: one attempt a TPU, each with a state that is rewritten as a sign of life, and its log.

    attempt-0001.json       state, exit code, last lines
    attempt-0001.000.log    the log, in pieces: one is rewritten until it is full, never the whole log

The worker writes, the supervisor reads. `gcloud storage cat gs://BUCKET/run.job/attempt-0001.*.log` shows a log.
"""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from survey import files

RUNNING, STOPPED, ENDED = "running", "stopped", "ended"
PIECE_BYTES = 1 << 18  # written twice a minute at most: 8 kB/s, and an hour of a chatty run is a handful of pieces
LAST_LINES = 20


@dataclass(frozen=True, slots=True)
class Attempt:
    """One TPU's try at the job.

    Attributes:
      number: from 1; also that of the TPU's creation.
      name: of the TPU.
      command: as a shell would take it.
      state: "running"; "stopped" by a signal, and to be gone on with; "ended" by itself.
      exit_code: where it has ended.
      beat: grows with every sign of life.
      time: of the last one, seconds since 1970 on the TPU VM's clock.
      last_lines: of the log.
    """

    number: int
    name: str
    command: str
    state: str = RUNNING
    exit_code: int | None = None
    beat: int = 0
    time: float = 0.0
    last_lines: tuple[str, ...] = ()


def write(folder: str, attempt: Attempt) -> None:
    """Publishes the state of an attempt."""
    files.write_json(_state(folder, attempt.number), dataclasses.asdict(attempt))


def read(folder: str, number: int) -> Attempt | None:
    """The state of an attempt; None where it has not begun."""
    if not files.exists(_state(folder, number)):
        return None
    found: dict[str, Any] = files.read_json(_state(folder, number), "the state of an attempt")
    return Attempt(**{**found, "last_lines": tuple(found["last_lines"])})


def numbers(folder: str) -> list[int]:
    """Attempts that have begun, in order."""
    found = (re.fullmatch(r"attempt-(\d+)\.json", name) for name in files.names(folder))
    return sorted(int(match[1]) for match in found if match)


class LogWriter:
    """The log of an attempt; goes on behind the pieces that are there.

    Args:
      folder: of the job.
      number: of the attempt.
    """

    def __init__(self, folder: str, number: int) -> None:
        files.make_folder(folder)
        self._folder, self._number = folder, number
        self._piece, self._content, self._written = 0, b"", 0
        while files.exists(_piece(folder, number, self._piece)):
            self._piece += 1

    def append(self, content: bytes) -> None:
        """Takes more of the log; `flush` writes it."""
        self._content += content

    def flush(self) -> None:
        """Writes what is new. What cannot be written now stays, and is written the next time."""
        while self._written < len(self._content):
            part = self._content[:PIECE_BYTES]
            files.write(_piece(self._folder, self._number, self._piece), part)
            self._written = len(part)
            if len(part) == PIECE_BYTES:
                self._piece += 1
                self._content, self._written = self._content[PIECE_BYTES:], 0


class LogReader:
    """Reads the log of an attempt while it grows.

    Args:
      folder: of the job.
      number: of the attempt.
    """

    def __init__(self, folder: str, number: int) -> None:
        self._folder, self._number = folder, number
        self._piece, self._offset, self._rest = 0, 0, b""

    def lines(self) -> list[str]:
        """Whole lines that are new."""
        self._rest += self._new()
        *whole, self._rest = self._rest.split(b"\n")
        return [_shown(line) for line in whole]

    def rest(self) -> list[str]:
        """What is left when the log has ended: at most one line, without its end."""
        rest, self._rest = self._rest, b""
        return [_shown(rest)] if rest else []

    def _new(self) -> bytes:
        found = b""
        while True:
            # A piece is full when there is a next one; asked first, as this one may grow until then.
            full = files.exists(_piece(self._folder, self._number, self._piece + 1))
            try:
                content = files.read(_piece(self._folder, self._number, self._piece))
            except FileNotFoundError:
                return found
            found += content[self._offset :]
            self._offset = len(content)
            if not full:
                return found
            self._piece, self._offset = self._piece + 1, 0


def _shown(line: bytes) -> str:
    # A progress line is rewritten in place: what a terminal shows in the end is what stands behind the last return.
    return line.decode(errors="replace").rstrip("\r").rpartition("\r")[2]


def _state(folder: str, number: int) -> str:
    return f"{folder}/attempt-{number:04d}.json"


def _piece(folder: str, number: int, piece: int) -> str:
    return f"{folder}/attempt-{number:04d}.{piece:03d}.log"
