"""Signals that end the supervisor as an exception, and can be held back where nothing may be broken off."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):  # noqa: N818 it is no error
    """Somebody wants us to end. Attribute: signal, by its name."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number).name
        super().__init__(self.signal)


class Signals:
    """Turns Ctrl-C, a closed terminal and a plain kill into `Interrupted`. Made in the main thread.

    Under `nohup` a closed terminal stays without effect.
    """

    def __init__(self) -> None:
        self._held, self._pending = False, 0
        self._terminal = [stream for stream in range(3) if os.isatty(stream)]
        for number in CAUGHT:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._caught)

    @contextmanager
    def held(self) -> Iterator[None]:
        """A context that no signal interrupts; one that comes meanwhile does when it ends.

        Raises:
          Interrupted: one came.
        """
        self._held = True
        try:
            yield
        finally:
            self._held = False
            if self._pending:
                number, self._pending = self._pending, 0
                raise Interrupted(number)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._let_go_of_terminal()
        if self._held:
            self._pending = number
            return
        raise Interrupted(number)

    def _let_go_of_terminal(self) -> None:
        """Sends to nowhere what is said from now on: writing to a closed terminal fails, and that must not keep a TPU."""
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in self._terminal:
            os.dup2(nowhere, stream)
        os.close(nowhere)
