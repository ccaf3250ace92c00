"""How does a job learn that its sweep is gone? It holds the read end of a pipe that nobody ever writes to.

However the sweep ends, kill -9 included, the system closes the write end, and readers see the end of file.
"""

from __future__ import annotations

import os
import signal
import threading

_VARIABLE = "LEZO_SWEEP_PIPE"


class Lifeline:
    """The sweep's side: give ``environment`` and ``inherited`` to each job, and stay alive."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()  # no child inherits either by itself
        self.environment = {_VARIABLE: str(self._read)}
        self.inherited = (self._read,)  # for Popen's pass_fds

    def __enter__(self) -> Lifeline:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._read)
        os.close(self._write)


def end_with_the_sweep() -> None:
    """In a job: SIGTERM to itself once the sweep is gone; to be called before anything slow."""
    try:
        end = int(os.environ.pop(_VARIABLE, ""))  # the job's own children have no part in it
        os.set_inheritable(end, False)
    except (ValueError, OSError):  # not from a sweep
        return
    threading.Thread(target=_watch, args=(end,), daemon=True, name="lifeline").start()


def _watch(end: int) -> None:
    try:
        os.read(end, 1)
    except OSError:
        return
    os.kill(os.getpid(), signal.SIGTERM)
