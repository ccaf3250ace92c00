"""How a run can end: finished, failed or interrupted; each leaves a result and an exit code."""

from __future__ import annotations

import signal
import sys
import traceback

import torch

from lezo import story
from lezo.compose import Composed
from lezo.encode import EncodeError
from lezo.job import Job
from lezo.model import ModelError
from lezo.record import FolderError, RunFolder
from lezo.train import DivergedError
from tasks.source import DataError

# What a run may meet that is nobody's bug: one message, no traceback.
EXPECTED = (DataError, ModelError, EncodeError, DivergedError, FolderError)


def carried_out(composed: Composed, command: str) -> int:
    """Run or, with dry_run, plan. Returns the exit code: 0, 1 for a failure, 130 for an interruption."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's end is like Ctrl-C
    job = Job(composed, command, story.console())
    try:
        if composed.config.dry_run:
            job.prepare()
            return 0
        folder = RunFolder(composed.run_dir)
    except Exception as error:
        return failed(error)
    except KeyboardInterrupt:
        return 130
    return _recorded(job, folder)


def _recorded(job: Job, folder: RunFolder) -> int:
    """Execute the job; whatever happens, its result is written."""
    code, status, error = 0, "finished", None
    try:
        job.execute(folder)
    except (KeyboardInterrupt, SystemExit):  # rich exits where the reader of a pipe has gone
        code, status, error = 130, "interrupted", f"stopped at step {job.progress.step}"
    except Exception as caught:
        code, status, error = failed(caught), "failed", _in_words(caught) or repr(caught)
        if _in_words(caught) is None:
            folder.text("traceback.txt", traceback.format_exc())
    try:
        job.finish(status, error, folder)
    except FolderError as unwritten:
        code = failed(unwritten)
    folder.close()
    return code


def failed(error: Exception) -> int:
    """Say what went wrong; a traceback only where it may be a bug."""
    words = _in_words(error)
    print(f"error: {words}" if words else traceback.format_exc(), file=sys.stderr)
    return 1


def out_of_memory(error: Exception) -> bool:
    """Whether device or host had no more; torch says it of the host in a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _in_words(error: Exception) -> str | None:
    """The message of what is nobody's bug; None for what may be one."""
    if out_of_memory(error):
        way_out = "lower train.micro_batch_size or eval.batch_size, or choose a narrower model.dtype or a smaller model"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return f"out of memory ({reason}); {way_out} (dry_run=true shows what is expected)"
    return str(error) if isinstance(error, EXPECTED) else None
