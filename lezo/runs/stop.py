"""Asking a run to stop: once, after the step at hand, with everything saved; twice, at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_NOTICE = b"\nstopping after this step; Ctrl-C again stops at once\n"


class Stop:
    """Ctrl-C and a scheduler's SIGTERM as KeyboardInterrupt: at once, but from within ``held`` at its end.

    A second Ctrl-C does not wait. A second SIGTERM does: schedulers send it to everyone, and so does a sweep.
    """

    def __init__(self) -> None:
        self.asked = False
        self.broken_off = False  # whether a held stretch was broken off
        self.terminated = (
            False  # whether it was a SIGTERM, which a launcher sends to all when one process dies
        )
        self._held = False

    def listen(self) -> None:
        """Take over both signals, also where a shell started the process with SIGINT ignored."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._signalled)

    @contextmanager
    def held(self) -> Iterator[None]:
        """A stretch that is worth finishing. Raises KeyboardInterrupt at its end where that was asked for."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self.asked:
            raise KeyboardInterrupt

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        again, self.asked = self.asked, True
        self.terminated |= number == signal.SIGTERM
        if again and number == signal.SIGTERM:
            return
        if self._held and not again:
            with suppress(OSError):  # nobody there, or no room
                os.write(2, _NOTICE)  # a print could be in the middle of another one
            return
        self.broken_off = self._held
        raise KeyboardInterrupt
