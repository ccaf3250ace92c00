"""How a run can end: finished, failed or interrupted; each leaves a result and an exit code."""

from __future__ import annotations

import signal
import traceback
from types import FrameType
from typing import NoReturn

import torch
from rich.console import Console

from lezo import story
from lezo.compose import Composed
from lezo.encode import EncodeError
from lezo.job import Job
from lezo.model import ModelError
from lezo.record import FolderError, RunFolder
from lezo.train import DivergedError
from tasks.source import DataError

# What a run may meet that is nobody's bug: one message, no traceback.
EXPECTED = (DataError, ModelError, EncodeError, DivergedError, FolderError, torch.OutOfMemoryError)


def carried_out(composed: Composed, command: str) -> int:
    """Run or, with dry_run, plan. Returns the exit code: 0, 1 for a failure, 130 for an interruption."""
    signal.signal(signal.SIGTERM, _terminated)
    out, job = story.console(), Job(composed, command, story.console())
    try:
        if composed.config.dry_run:
            job.prepare()
            return 0
        folder = RunFolder(composed.run_dir)
    except EXPECTED as error:
        return _failed(out, error)
    except KeyboardInterrupt:
        return 130
    return _recorded(job, folder)


def _recorded(job: Job, folder: RunFolder) -> int:
    """Execute the job; whatever happens, its result is written."""
    code, status, error = 0, "finished", None
    try:
        job.execute(folder)
    except KeyboardInterrupt:
        code, status, error = 130, "interrupted", f"stopped at step {job.progress.step}"
    except Exception as caught:
        status, error = "failed", str(caught) if isinstance(caught, EXPECTED) else repr(caught)
        folder.text("traceback.txt", traceback.format_exc())
        code = _failed(job.out, caught)
    job.finish(status, error, folder)
    folder.close()
    return code


def _failed(out: Console, error: Exception) -> int:
    """Say what went wrong; a traceback only where it may be a bug."""
    if isinstance(error, EXPECTED):
        out.print(f"error: {error}")
    else:
        out.print(traceback.format_exc())
    return 1


def _terminated(signum: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM, as a scheduler sends it, ends a run like Ctrl-C."""
    raise KeyboardInterrupt
