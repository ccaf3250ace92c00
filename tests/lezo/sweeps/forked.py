"""A sweep as a process of its own: a fork of this one, which has imported everything and patched what a test patches."""

import os
import select
import sys
import time
import traceback
import warnings
from collections.abc import Callable


class Forked:
    """A process in a session of its own that does ``work`` and exits with what that returns."""

    def __init__(self, work: Callable[[], int]) -> None:
        self.output, into = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this process has threads: the other one needs none of them
            self.pid = os.fork()
        if self.pid == 0:
            self._be(work, into)
        os.close(into)

    def _be(self, work: Callable[[], int], into: int) -> None:
        code = 70
        try:
            os.setsid()
            os.close(self.output)
            os.dup2(into, 1)
            os.dup2(into, 2)
            sys.stdout = sys.stderr = open(1, "w", closefd=False, buffering=1)  # noqa: SIM115
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def ended(self, seconds: float = 120) -> tuple[int, str]:
        """Its exit code, that of a signal below 0, and all that it has said."""
        said, end = b"", time.monotonic() + seconds
        while select.select([self.output], [], [], max(end - time.monotonic(), 0))[0]:
            if not (part := os.read(self.output, 1 << 16)):
                break
            said += part
        os.close(self.output)
        return self.waited(seconds), said.decode()

    def waited(self, seconds: float = 120) -> int:
        """Its exit code."""
        end = time.monotonic() + seconds
        while (found := os.waitpid(self.pid, os.WNOHANG))[0] == 0:
            assert time.monotonic() < end
            time.sleep(0.02)
        return os.waitstatus_to_exitcode(found[1])
