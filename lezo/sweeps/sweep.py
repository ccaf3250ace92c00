"""lezo-run -m: every combination of the swept values as a lezo-run process of its own, in slots.

Jobs that are complete are left alone, others go on where they stopped: the same command is the way on.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from rich.console import Console

from lezo.config.compose import quoted
from lezo.config.schema import ConfigError
from lezo.records.files import replace_file
from lezo.records.folder import CONSOLE
from lezo.records.reader import DIVERGED
from lezo.records.shared import ZERO_SHOT
from lezo.runs.console import console
from lezo.sweeps.best import Ended, best_text
from lezo.sweeps.jobs import (
    FAILED,
    FINISHED,
    PLANNED,
    RUNNING,
    STOPPING,
    JobState,
    SweepJob,
    jobs,
    state_of,
    todo_of,
)
from lezo.sweeps.lifeline import Lifeline
from lezo.sweeps.slots import environments
from lezo.sweeps.table import SweepProgress, final_table, settings_table

_TAIL = 12  # lines of a failed job that are shown
_TICK_SECONDS = 0.1
GRACE_SECONDS = 5.0  # between "stop at once" and SIGKILL


def sweep(overrides: Sequence[str], *, config_dir: str | None = None) -> int:
    """Check every job, run those that are not complete, print the table.

    Returns 0 if all finished, 1 if not, 130 interrupted. Raises ConfigError, before anything runs, with the
    first job that cannot be configured, or where the folder cannot take the sweep.
    """
    out, planned = console(), jobs(overrides, config_dir)
    slots, each = _one_for_all(planned, "slots"), _one_for_all(planned, "gpus_per_job") or 1
    _refuse_hidden(planned, each)
    states = [state_of(job) for job in planned]
    before, todo = sum(state.status == FINISHED for state in states), todo_of(states)
    record = SweepFile(states)
    share_scores(states)
    places = environments(slots, [state.job.composed.config.model.device for state in todo], each)
    at_a_time = f", {len(places)} at a time" if len(places) > 1 else ""
    out.print(f"sweep of {len(states)} jobs in {record.path.parent}{done_before(states, before)}{at_a_time}")
    shown = SweepProgress(out, states, todo, len(places))
    with stop_requests() as requests, Lifeline() as lifeline, shown as progress:
        Driver(todo, places, config_dir, lifeline, progress, record).drive(requests)
    return ending(states, before, out, stopped=requests.count > 0)


def done_before(states: Sequence[JobState], finished: int) -> str:
    """Of a sweep's first line: how many jobs need not run, and how many are not tried again."""
    left = left_words(states)
    return (f", {finished} of them finished before" if finished else "") + (f", {left}" if left else "")


def left_words(states: Sequence[JobState]) -> str:
    """How many jobs are not tried again, and the setting that tries such jobs; nothing where there are none."""
    counts = Counter(state.status for state in states if state.is_left)
    said = " and ".join(f"{count} {status}" for status, count in counts.items())
    rule = f"a {' or '.join(counts)} job is not tried again unless sweep.retry_failed=true"
    return f"{said} ({rule})" if said else ""


def share_scores(states: Sequence[JobState]) -> None:
    """Make the folders beside the jobs' own where their runs look for zero-shot scores. Raises ConfigError."""
    wanted = [state.job for state in states if state.job.composed.config.sweep.share_zero_shot]
    folders = {job.folder.parent / ZERO_SHOT for job in wanted if not job.composed.config.dry_run}
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        ways = "remove it, or say sweep.share_zero_shot=false"
        raise ConfigError([f"{error.filename}: cannot be made ({error.strerror}); {ways}"]) from None


def _one_for_all(planned: Sequence[SweepJob], name: str) -> int | None:
    """A setting of sweep.* that is a number. Raises ConfigError where the jobs' differ."""
    numbers: set[int | None] = {getattr(job.composed.config.sweep, name) for job in planned}
    if len(numbers) > 1:
        raise ConfigError(
            [f"sweep.{name}: expected one number for all jobs, not {sorted(map(str, numbers))}"]
        )
    return numbers.pop()


def _refuse_hidden(planned: Sequence[SweepJob], each: int) -> None:
    """Raise ConfigError for a GPU by its number: a job sees its own only."""
    for device in (job.composed.config.model.device for job in planned):
        if device.startswith("cuda:") and (device != "cuda:0" or each > 1):
            sees = "one GPU only" if each == 1 else f"{each} GPUs, a rank each"
            way_out = f"say CUDA_VISIBLE_DEVICES={device[5:]} before the command instead"
            raise ConfigError([f"model.device={device}: a job of a sweep sees {sees}; {way_out}"])


def ending(states: Sequence[JobState], before: int, out: Console, *, stopped: bool) -> int:
    """Print the tables, and what to do next. Returns the exit code. ``before``: how many jobs had finished already."""
    settings = settings_table(states)
    for table in (final_table(states, before), settings):
        if table is not None:
            out.print(table)
    finished = [state for state in states if state.status == FINISHED]
    if any(state.job.composed.config.sweep.best for state in states):
        out.print(best_text([Ended(one.job.folder, one.result, one.job.label) for one in finished]))
        if finished and settings is not None:
            out.print("each best is one run; means over seeds are in the table above")
    if finished:
        out.print(f"next: {shlex.join(['lezo-report', str(finished[0].job.folder.parent)])}")
    return going_on(states, out, stopped=stopped)


def going_on(states: Sequence[JobState], out: Console, *, stopped: bool) -> int:
    """Say how to go on where something is left to do. Returns the exit code."""
    unfinished = [state for state in states if state.status not in (FINISHED, PLANNED)]
    if not unfinished:
        return 0
    again = [state for state in unfinished if not state.is_left]
    off = any(state.job.refuses_runs for state in unfinished)
    command = f"the same command{' with resume=auto' if off else ''}"
    words = [f"{len(unfinished)} of {len(states)} jobs did not finish", left_words(unfinished)]
    which = "them" if len(again) == len(unfinished) else f"{len(again)} of them"
    ways = f"{command} goes on where this stopped" if stopped else f"{command} tries {which} again"
    said = [*(["interrupted"] if stopped else []), *filter(None, words), *([ways] if again else [])]
    out.print("; ".join(said))
    return 130 if stopped else 1


@dataclass
class StopRequests:
    """How often the sweep was asked to stop: once is after each job's step, twice is at once."""

    count: int = 0

    def hear(self, number: int, frame: FrameType | None) -> None:
        """A second SIGTERM is the first one again: schedulers send it to everyone."""
        self.count = max(self.count, 1) if number == signal.SIGTERM else self.count + 1


@contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Ctrl-C and a scheduler's SIGTERM are counted meanwhile, and end nothing by themselves."""
    requests, numbers = StopRequests(), (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, requests.hear) for number in numbers]
    try:
        yield requests
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


class SweepFile:
    """The sweep's file, a row a job. It is named by its jobs' hash: the same command has the same."""

    def __init__(self, states: Sequence[JobState]) -> None:
        """Raises ConfigError where the folder cannot be written."""
        identities = sorted(state.job.identity for state in states)
        self.name = f"sweep-{hashlib.sha256(''.join(identities).encode()).hexdigest()[:8]}"
        self.path = states[0].job.folder.parent / f"{self.name}.json"
        self._states = states
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.save()
        except OSError as error:
            problem = f"{self.path.parent}: cannot write there ({error.strerror})"
            raise ConfigError([f"{problem}; choose another folder with hydra.sweep.dir=DIR"]) from None

    def save(self) -> None:
        """Write it anew: it is always complete. Raises OSError."""
        rows = [state.row() for state in self._states]
        replace_file(self.path, (json.dumps(rows, indent=2) + "\n").encode())


@dataclass
class _Running:
    """A job's process, the slot it fills, and where in its log this attempt begins (in bytes)."""

    state: JobState
    process: subprocess.Popen[bytes]
    place: dict[str, str]
    start: int


class Driver:
    """Keeps the slots filled with jobs until all have ended, or until those that run have stopped."""

    def __init__(
        self,
        todo: Sequence[JobState],
        places: Sequence[dict[str, str]],
        config_dir: str | None,
        lifeline: Lifeline,
        progress: SweepProgress,
        record: SweepFile,
    ) -> None:
        """``places``: each slot's environment variables."""
        self._waiting, self._free = deque(todo), list(places)
        self._running: list[_Running] = []
        self._config_dir, self._lifeline = config_dir, lifeline
        self._progress, self._record = progress, record
        self._signals, self._deadline = 0, float("inf")  # sent to the jobs, and when to kill them

    def drive(self, requests: StopRequests) -> None:
        """Run the jobs. On return none of them runs."""
        while self._running or (self._waiting and not requests.count):
            while self._waiting and self._free and not requests.count:
                self._start(self._waiting.popleft())
            self._pass_on(requests)
            self._collect()
            self._progress.refresh()
            time.sleep(_TICK_SECONDS)

    def _start(self, state: JobState) -> None:
        before, state.status, state.result = state.status, RUNNING, {}
        place = self._free.pop(0)
        self._progress.started(state, before=before)
        try:
            self._running.append(self._launched(state, place))
        except OSError as error:  # a full disk, no more processes
            self._free.append(place)
            state.status = f"failed ({error.strerror})"
            self._progress.ended(state, [])
        self._save()

    def _launched(self, state: JobState, place: dict[str, str]) -> _Running:
        state.job.folder.mkdir(parents=True, exist_ok=True)
        with (state.job.folder / CONSOLE).open("ab") as output:
            start = output.tell()
            # A session of its own: Ctrl-C reaches the job through us only, and it can write its result.
            process = subprocess.Popen(
                job_command(state.job, self._record.name, self._config_dir),
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=self._lifeline.inherited,
                env={**os.environ, **place, **self._lifeline.environment},
            )
        return _Running(state, process, place, start)

    def _pass_on(self, requests: StopRequests) -> None:
        """Tell the jobs to stop, one signal at a time, and end those that do not listen."""
        if self._signals < min(requests.count, 2):
            self._signals += 1
            at_once = self._signals == 2
            after = "after each job's step; Ctrl-C again stops at once"
            self._progress.say(f"stopping {'at once' if at_once else after}")
            self._deadline = time.monotonic() + GRACE_SECONDS if at_once else self._deadline
            for running in self._running:
                running.process.send_signal(signal.SIGINT if at_once else signal.SIGTERM)
                running.state.status = STOPPING
        if time.monotonic() > self._deadline:
            for running in self._running:
                with suppress(ProcessLookupError):  # with whatever it started
                    os.killpg(running.process.pid, signal.SIGKILL)

    def _collect(self) -> None:
        """Take in the jobs that have ended, and fill their slots again later."""
        for running in [running for running in self._running if running.process.poll() is not None]:
            self._running.remove(running)
            self._free.append(running.place)
            running.state.end(running.process.returncode, stopped=self._signals > 0)
            self._progress.ended(running.state, _shown(running))
            self._save()

    def _save(self) -> None:
        try:
            self._record.save()
        except OSError as error:
            problem = f"{self._record.path}: cannot write there ({error.strerror})"
            self._progress.say(f"{problem}; the jobs' results stay")


def _shown(running: _Running) -> list[str]:
    """The lines to show of what a job has said: the end of a failure, the whole plan of a dry run."""
    status = running.state.status
    if not status.startswith((FAILED, DIVERGED, PLANNED)):
        return []
    with (running.state.job.folder / CONSOLE).open("rb") as log:
        log.seek(running.start)
        lines = log.read().decode(errors="replace").splitlines()
    return lines if status == PLANNED else lines[-_TAIL:]


def job_command(job: SweepJob, group: str, config_dir: str | None) -> list[str]:
    """lezo-run on one job, by as many ranks as it has GPUs; it goes on with what its folder holds."""
    folder = ["--config-dir", config_dir] if config_dir else []
    own = [text for text in job.overrides if not text.startswith("hydra.sweep.")]
    where = f"hydra.run.dir={quoted(str(job.folder))}"
    ranks = job.composed.config.sweep.gpus_per_job
    program = ["lezo.sweeps.ranked", str(ranks)] if ranks > 1 else ["lezo.cli.run"]
    return [sys.executable, "-m", *program, *folder, *own, *job.resume_overrides(group), where]
