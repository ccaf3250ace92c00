"""A run killed with SIGKILL in the middle and gone on with, beside one that nobody kills: the same end, bit for bit?"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lezo.config.compose import quoted
from lezo.records.folder import JOURNAL, RESULT
from lezo.records.journal import JournalError, read_journal

_POLL = 0.005  # seconds between two looks at the journal


@dataclass(frozen=True)
class Killed:
    """``at``: the last step in the killed run's journal. The rest: whether both ends have the same."""

    steps: int
    at: int
    journal: bool
    weights: bool

    @property
    def same(self) -> bool:
        """Whether it was killed in the middle, and nothing of it shows."""
        return 0 < self.at < self.steps and self.journal and self.weights


class ChildFailed(RuntimeError):
    """A run that ended otherwise than it should; the message is the end of what it said."""


def killed_and_resumed(words: Sequence[str], steps: int, folder: Path, seconds: float) -> Killed:
    """Start the run of ``words`` twice, kill one at a third of its steps, and let that one go on.

    ``seconds``: by when all must be over. Raises ChildFailed.
    """
    until = time.monotonic() + seconds
    whole, broken = folder / "whole", folder / "killed"
    runs = [start(words, path) for path in (whole, broken)]
    try:
        at = _kill(runs[1], broken, steps // 3, until)
        runs.append(start(words, broken))
        for run, path in ((runs[2], broken), (runs[0], whole)):
            _finish(run, path, until)
    finally:
        for run in runs:
            run.kill()
            run.wait()
    journals = [(path / JOURNAL).read_bytes() for path in (whole, broken)]
    weights = [json.loads((path / RESULT).read_text(encoding="utf-8"))["weights"] for path in (whole, broken)]
    last = read_journal(whole / JOURNAL).step
    return Killed(last, at, journals[0] == journals[1], weights[0] == weights[1])


def start(words: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    """Begin the run of ``words`` in ``folder``, or go on with it; what it says is in a file beside."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    there = ["resume=auto", f"hydra.run.dir={quoted(str(folder))}"]
    with _log(folder).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "lezo.cli.run", *words, *there],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _log(folder: Path) -> Path:
    return folder.with_suffix(".log")


def _kill(run: subprocess.Popen[bytes], folder: Path, step: int, until: float) -> int:
    """End the run as soon as its journal has ``step``. Returns the last step there."""
    while _reached(folder) < step:
        if run.poll() is not None:
            raise ChildFailed(f"the run to kill ended with {run.returncode} before:\n{_end_of(folder)}")
        if time.monotonic() > until:
            raise ChildFailed(f"step {_reached(folder)} when its time was up:\n{_end_of(folder)}")
        time.sleep(_POLL)
    run.send_signal(signal.SIGKILL)
    if (code := run.wait()) != -signal.SIGKILL:
        raise ChildFailed(f"the run to kill had ended with {code} already")
    return _reached(folder)


def _reached(folder: Path) -> int:
    with suppress(JournalError):
        return read_journal(folder / JOURNAL).step
    return 0


def _finish(run: subprocess.Popen[bytes], folder: Path, until: float) -> None:
    try:
        code = run.wait(max(until - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        raise ChildFailed(f"not over when its time was up:\n{_end_of(folder)}") from None
    if code != 0:
        raise ChildFailed(f"ended with {code}:\n{_end_of(folder)}")


def _end_of(folder: Path) -> str:
    return _log(folder).read_text(encoding="utf-8", errors="replace")[-600:].strip()
