"""On the TPU VM, in the container: runs the command, and leaves its log and signs of life in the job's folder.

python -m cloud.worker --job gs://BUCKET/run.job --attempt 1 --name seals -- rookery train ...
"""

import argparse
import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

from cloud import attempts
from cloud.attempts import Attempt
from survey import flags
from survey.errors import InputError

BEAT_S = 30.0
LAST_TRIES = 10  # to publish the end, a beat apart: that is what the supervisor waits for
CHUNK = 1 << 16


class Worker:
    """One run of the command.

    Args:
      folder: of the job.
      attempt: its state so far.
      beat_s: seconds between signs of life.
    """

    def __init__(self, folder: str, attempt: Attempt, *, beat_s: float = BEAT_S) -> None:
        self._folder, self._attempt, self._beat_s = folder, attempt, beat_s
        self._log = attempts.LogWriter(folder, attempt.number)
        self._tail, self._signalled = b"", 0
        self._lock, self._over = threading.Lock(), threading.Event()
        self._child: subprocess.Popen[bytes] | None = None

    def run(self, command: Sequence[str]) -> int:
        """Runs the command to its end.

        Returns:
          Its exit code; 128 and the number of the signal where one ended it.
        """
        self._beat()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)
        try:
            self._child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        except OSError as error:
            self._take(f"{command[0]}: {error.strerror}\n".encode())
            return self._end(127)
        if self._signalled:  # it came before there was anybody to pass it on to
            self._child.send_signal(self._signalled)
        beats = threading.Thread(target=self._beats, daemon=True)
        beats.start()
        assert self._child.stdout is not None
        while content := os.read(self._child.stdout.fileno(), CHUNK):
            self._take(content)
        code = self._child.wait()
        self._over.set()
        beats.join()
        return self._end(code if code >= 0 else 128 - code)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._signalled = number
        if self._child is not None:
            self._child.send_signal(number)

    def _take(self, content: bytes) -> None:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        with self._lock:
            self._log.append(content)
            self._tail = (self._tail + content)[-8192:]

    def _beats(self) -> None:
        while not self._over.wait(self._beat_s):
            self._beat()

    def _beat(self, **changes: object) -> bool:
        """Publishes log and state; whether it could. A service that is away must not end a training."""
        try:
            with self._lock:
                self._log.flush()
                lines = [line.rpartition("\r")[2] for line in self._tail.decode(errors="replace").split("\n") if line.strip()]
            self._attempt = dataclasses.replace(
                self._attempt,
                beat=self._attempt.beat + 1,
                time=time.time(),
                last_lines=tuple(lines[-attempts.LAST_LINES :]),
                **changes,  # type: ignore[arg-type]
            )
            attempts.write(self._folder, self._attempt)
        except Exception as error:  # whatever a client may raise
            print(f"worker: {self._folder} cannot be written now ({error}); trying again", file=sys.stderr, flush=True)
            return False
        return True

    def _end(self, code: int) -> int:
        state = attempts.STOPPED if self._signalled else attempts.ENDED
        for _ in range(LAST_TRIES):
            if self._beat(state=state, exit_code=code):
                break
            time.sleep(self._beat_s)
        return code


def run(argv: Sequence[str]) -> int:
    """The command line; returns the exit code of the command."""
    parser = argparse.ArgumentParser(prog="python -m cloud.worker", description="Runs a command on the TPU VM and reports on it.")
    parser.add_argument("--job", required=True, help="folder of the job")
    parser.add_argument("--attempt", type=int, required=True, help="number of the attempt")
    parser.add_argument("--name", required=True, help="of the TPU")
    parser.add_argument("command", nargs="+", help="after --")
    options = parser.parse_args(argv)
    if options.attempt < 1:
        raise InputError(f"--attempt={options.attempt}: must be 1 or more")
    begun = attempts.read(options.job, options.attempt)
    if begun is not None and begun.state == attempts.ENDED:
        print(f"worker: attempt {begun.number} has ended with {begun.exit_code} before this machine restarted", flush=True)
        return begun.exit_code or 0
    beat = begun.beat if begun else 0
    attempt = Attempt(options.attempt, options.name, shlex.join(options.command), beat=beat)
    beat_s = float(os.environ.get("ROOKERY_BEAT_SECONDS", BEAT_S))  # shorter in tests
    return Worker(options.job, attempt, beat_s=beat_s).run(options.command)


if __name__ == "__main__":
    flags.exit_with(run)
