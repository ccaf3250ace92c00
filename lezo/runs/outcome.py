"""How a run can end: finished, failed or interrupted; each leaves a result and an exit code."""

from __future__ import annotations

import shlex
import sys
import traceback
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from lezo.config.compose import Composed, quoted, with_sizes
from lezo.config.schema import Resume
from lezo.data.encode import EncodeError
from lezo.data.source import DataError
from lezo.model.load import ModelError
from lezo.records.folder import MODEL, FolderError, RunFolder, read_result
from lezo.runs import banner, story
from lezo.runs.job import Job
from lezo.runs.loop import DivergedError
from lezo.runs.resume import begun_with, grows, is_same, made_no_step, moved, refuse_changes
from lezo.runs.stop import Stop

# What a run may meet that is nobody's bug: one message, no traceback.
EXPECTED = (DataError, ModelError, EncodeError, DivergedError, FolderError)


def carried_out(composed: Composed, command: str) -> int:
    """Run, go on with a run or, with dry_run, plan. Returns the exit code: 0, 1 for a failure, 130 for an interruption."""
    stop = Stop()
    stop.listen()
    job = Job(composed, command, story.console(), stop)
    try:
        auto = composed.config.resume is Resume.auto
        if composed.config.dry_run:
            if auto and (composed.run_dir / "config.yaml").exists() and not made_no_step(composed.run_dir):
                job.configure(with_sizes(composed, begun_with(composed.run_dir, composed.yaml)))
            job.prepare()
            return 0
        with closing(RunFolder(composed.run_dir, resume=auto, replaces=made_no_step)) as folder:
            _make_way(folder, job)
            return _shown(folder, job) if _is_finished(folder, job) else _recorded(job, folder)
    except Exception as error:
        return failed(error)
    except KeyboardInterrupt:
        return 130


def _make_way(folder: RunFolder, job: Job) -> None:
    """Clear the folder of a run that made no step, unless this one goes on with it, then with the sizes that it has."""
    auto = job.config.resume is Resume.auto
    if not folder.holds_run:
        return
    if not made_no_step(folder.path):
        job.configure(with_sizes(job.composed, begun_with(folder.path, job.composed.yaml)))
    elif not (auto and is_same(folder.path, job.composed.yaml)):
        folder.clear()


def _is_finished(folder: RunFolder, job: Job) -> bool:
    """Whether nothing is left to do. Raises FolderError where the folder's run is another one."""
    if not folder.holds_run:
        return False
    yaml = job.composed.yaml
    refuse_changes(folder.path, yaml)
    result = read_result(folder.path)
    if (
        result is None
        or result.get("status") != "finished"
        or (job.config.trains and grows(folder.path, yaml))
    ):
        return False
    job.refuse_other_content(folder.path, result.get("origin"), loads=moved(folder.path, yaml))
    return True


def _shown(folder: RunFolder, job: Job) -> int:
    """Say what a finished run came to, and write its model where that is wanted and not there. Returns the exit code."""
    result = read_result(folder.path) or {}
    told = _summary(result, folder.path)
    wanted = job.config.save_model and not (folder.path / MODEL).exists()
    if wanted:
        job.save(folder.path, result)
    story.tell(job.out, told)
    done = f"its model was written to {folder.path / MODEL}" if wanted else "nothing was left to do"
    job.out.print(f"this run was finished before; {done}")
    return 0


def _summary(result: Mapping[str, Any], folder: Path) -> str:
    """Of an earlier end. Raises FolderError where the result is not one that a run wrote."""
    try:
        return banner.summary(result, folder)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        reason = f"{folder / 'result.json'}: not a result ({type(error).__name__}: {error})"
        raise FolderError(f"{reason}; remove it, and with resume=auto the run's end is made again") from None


def _recorded(job: Job, folder: RunFolder) -> int:
    """Execute the job; whatever happens after it began, its result is written."""
    code, status, error = 0, "finished", None
    try:
        job.execute(folder)
    except KeyboardInterrupt:
        code, status, error = 130, "interrupted", f"stopped at step {job.progress.step}"
    except Exception as caught:
        code, status, error = failed(caught, job), "failed", _in_words(caught, job) or repr(caught)
        if _in_words(caught) is None and job.began:
            folder.text("traceback.txt", traceback.format_exc())
    if job.began:
        try:
            job.finish(status, error, folder)
        except FolderError as unwritten:
            code = failed(unwritten)
    return code


def failed(error: Exception, job: Job | None = None) -> int:
    """Say what went wrong, in ``job`` where there is one; a traceback only where it may be a bug."""
    words = _in_words(error, job)
    print(f"error: {words}" if words else traceback.format_exc(), file=sys.stderr)
    return 1


def out_of_memory(error: Exception) -> bool:
    """Whether device or host had no more; torch says it of the host in a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _in_words(error: Exception, job: Job | None = None) -> str | None:
    """The message of what is nobody's bug; None for what may be one."""
    if out_of_memory(error):
        sizes, ways = _sizes(job) if job is not None and job.plan is not None else ("", _LOWER)
        more = "or choose a narrower model.dtype or a smaller model (dry_run=true shows what is expected)"
        again = "" if job is None or not job.began else _nothing_lost(job)
        return f"out of memory ({_said(error)}){sizes}; {ways}, {more}{again}"
    return str(error) if isinstance(error, EXPECTED) else None


_LOWER = "lower train.micro_batch_size or eval.batch_size"


def _said(error: Exception) -> str:
    """What was asked for and what there was; torch goes on about its allocator."""
    sentences = str(error).strip().split("\n")[0].split(". ")
    return ". ".join(sentences[:3]).rstrip(".") or type(error).__name__


def _sizes(job: Job) -> tuple[str, str]:
    """How large the forwards of a job are, and which settings lower them."""
    plan, config = job.plan, job.config
    assert plan is not None
    batch, rows = min(config.train.batch_size, len(plan.train)), config.eval.batch_size
    part = min(config.train.micro_batch_size or batch, batch)
    steps = f"steps of {batch} examples in forwards of {part}, " if config.trains else ""
    median, longest = plan.lengths
    sizes = f" with {steps}evaluations of {rows} sequences a forward, {median} tokens at the median and {longest} at most"
    settings = [("train.micro_batch_size", part), ("eval.batch_size", rows)]
    lower = [f"{key} (now {size})" for key, size in settings if size > 1]
    return sizes, f"lower {' or '.join(lower)}" if lower else "take shorter rows"


def _nothing_lost(job: Job) -> str:
    where = shlex.join(["resume=auto", f"hydra.run.dir={quoted(str(job.composed.run_dir))}"])
    return f"; nothing is lost: the same command with the smaller size and {where} goes on where this one stopped"
