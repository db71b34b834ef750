"""Progress of long work: how much is done, how fast, how long it will take."""

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

SECONDS_BETWEEN_LINES = 10.0  # in a log file; a terminal's line is rewritten at every update


class Progress:
    """A progress line: rewritten in place on a terminal, a new line now and then in a log.

    >>> print(Progress("shard", 200, "patches", mpx=0.25).line(50, seconds=10.0))
    shard: 50 of 200 patches, 5.0 patches/s, 1.2 Mpx/s, 0:30 left

    Args:
      what: is being done.
      total: units in all.
      unit: its plural.
      mpx: megapixels in a unit, to show that rate too; 0 for none.
      start: units that were done before the start, which say nothing of the rate.
      stream: where to, stderr if None.
    """

    def __init__(
        self, what: str, total: int, unit: str, *, mpx: float = 0.0, start: int = 0, stream: TextIO | None = None
    ) -> None:
        self._what, self._total, self._unit, self._mpx = what, total, unit, mpx
        self._stream = sys.stderr if stream is None else stream
        self._start, self._begun = start, time.monotonic()
        self._shown = -SECONDS_BETWEEN_LINES
        self._ended = False

    def line(self, done: int, *, seconds: float, note: str = "") -> str:
        """The text for `done` units, of which those since the start took `seconds`."""
        rate = (done - self._start) / seconds if seconds > 0 else 0.0
        left = clock((self._total - done) / rate) + " left" if rate > 0 and done < self._total else ""
        if done >= self._total:
            left = clock(seconds) + " in all"
        speed = f"{rate:.1f} {self._unit}/s" if rate > 0 else ""
        pixels = f"{rate * self._mpx:.1f} Mpx/s" if speed and self._mpx else ""
        parts = [f"{done:,} of {self._total:,} {self._unit}", speed, pixels, left, note]
        return f"{self._what}: " + ", ".join(part for part in parts if part)

    def update(self, done: int, note: str = "") -> None:
        """Shows that `done` units are finished; `note` is appended."""
        if self._ended:
            return
        now = time.monotonic()
        self._ended = done >= self._total
        terminal = self._stream.isatty()
        if not terminal and done < self._total and now - self._shown < SECONDS_BETWEEN_LINES:
            return
        self._shown = now
        text = self.line(done, seconds=now - self._begun, note=note)
        self._stream.write(f"\r\033[K{text}" if terminal else f"{text}\n")
        if terminal and done >= self._total:
            self._stream.write("\n")
        self._stream.flush()


class Watch:
    """Shows progress of work done elsewhere (Beam workers) by asking now and then how much is finished. A context manager."""

    def __init__(self, progress: Progress, done: Callable[[], int], *, seconds: float = 1.0) -> None:
        self._progress, self._done, self._seconds = progress, done, seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        if error is None:
            self._progress.update(self._done())

    def _watch(self) -> None:
        while not self._stop.wait(self._seconds):
            self._progress.update(self._done())


def clock(seconds: float) -> str:
    """A duration as m:ss or h:mm:ss.

    >>> clock(75), clock(3675)
    ('1:15', '1:01:15')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
