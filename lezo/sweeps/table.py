"""What does the user see of a sweep? On a terminal a live table, elsewhere lines, and a table at its end."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from lezo.records.folder import CONSOLE, METRICS
from lezo.records.format import clock, score, size
from lezo.records.rows import DevRow, row_of
from lezo.sweeps.jobs import FINISHED, NOT_STARTED, RUNNING, STOPPING, JobState
from lezo.sweeps.left import TimeLeft

_REFRESH_SECONDS = 0.5
_SCORES = ("dev_loss", "dev", "test")
_OTHER_LINES = 8  # of a terminal's, beside the jobs: the table's frame and some earlier output


class Metrics:
    """How far a run is by its metrics.jsonl: step, seconds of training, last dev score."""

    def __init__(self, path: Path) -> None:
        self.step, self.seconds = 0, 0.0
        self.dev: float | None = None
        self._path, self._offset = path, 0

    def read(self) -> None:
        """Take in the rows written since; all of them where a resumed run cut the file."""
        try:
            with self._path.open("rb") as file:
                self._offset = min(self._offset, file.seek(0, 2))
                file.seek(self._offset)
                new = file.read()
        except OSError:  # not there yet
            return
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            try:
                row = row_of(line)
            except ValueError:  # cut while we read
                continue
            self.step, self.seconds = row.step, row.seconds
            self.dev = row.score if isinstance(row, DevRow) else self.dev

    def seconds_left(self, steps: int, max_seconds: float | None) -> float | None:
        """Seconds until training ends, if it goes on as so far; None where nothing tells."""
        if not (0 < self.step <= steps and self.seconds > 0):
            return None
        seconds = (steps - self.step) * self.seconds / self.step
        return seconds if max_seconds is None else max(min(seconds, max_seconds - self.seconds), 0.0)


class SweepProgress:
    """Prints each job's start and end; on a terminal also how far those are that run."""

    def __init__(
        self, out: Console, states: Sequence[JobState], todo: Sequence[JobState] = (), slots: int = 1
    ) -> None:
        """``todo``: those that are to run, in their order, ``slots`` at a time."""
        self._out, self._states, self._shown = out, states, 0.0
        self._waiting, self._left = list(todo), TimeLeft(slots)
        self._metrics: dict[int, Metrics] = {}
        self._started: dict[int, float] = {}  # the clock (monotonic) when each job that runs was started
        for state in states:
            if state.status == FINISHED and (seconds := state.row()["seconds"]) is not None:
                self._left.took(state.job.setting, seconds)
        self._live = Live(console=out, auto_refresh=False, transient=True) if out.is_terminal else None

    def __enter__(self) -> SweepProgress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def started(self, state: JobState, *, before: str) -> None:
        """A job starts, or goes on with what it left ``before``."""
        self._metrics[state.job.number] = Metrics(state.job.folder / METRICS)
        self._started[state.job.number] = time.monotonic()
        self._waiting = [other for other in self._waiting if other is not state]
        if self._live is None:
            verb = "started" if before == NOT_STARTED else f"goes on ({before} before)"
            self._out.print(f"{self._number(state)} {verb}: {state.job.label}")
        self.refresh(now=True)

    def ended(self, state: JobState, tail: Sequence[str]) -> None:
        """A job has ended; ``tail`` are the lines of its log to show."""
        row, begun = state.row(), self._started.pop(state.job.number, None)
        if state.status == FINISHED:
            if begun is not None:
                self._left.took(state.job.setting, time.monotonic() - begun)
            scores = f"{row['metric']} dev {score(row['dev'])} test {score(row['test'])}"
            outcome = f"{scores} in {clock(row['seconds'] or 0)}{self._whole(';')}"
        else:
            outcome = state.job.label + (f"; the end of {state.job.folder / CONSOLE}:" if tail else "")
        if self._live is None or tail:
            lines = [f"{self._number(state)} {state.status}: {outcome}", *(f"    | {line}" for line in tail)]
            self._out.print("\n".join(lines))
        self.refresh(now=True)

    def say(self, text: str) -> None:
        """Anything else, a line of its own."""
        self._out.print(text)

    def refresh(self, *, now: bool = False) -> None:
        """On a terminal show the live table again, if it is time or ``now``."""
        if self._live is None or not (now or time.monotonic() - self._shown > _REFRESH_SECONDS):
            return
        self._shown = time.monotonic()
        self._live.update(self._table(), refresh=True)

    def _number(self, state: JobState) -> str:
        return f"[{state.job.number + 1}/{len(self._states)}]"

    def _table(self) -> Table:
        done = sum(state.status == FINISHED for state in self._states)
        caption = f"{done} of {len(self._states)} finished{self._whole(',')}; Ctrl-C stops"
        table = Table(caption=caption)
        for heading in ("job", "status", "step", "dev", "left"):
            table.add_column(heading, no_wrap=True, overflow="ellipsis")
        for state in window(self._states, max(self._out.height - _OTHER_LINES, 3)):
            table.add_row(state.job.label, state.status, *self._progress(state))
        return table

    def _whole(self, before: str) -> str:
        """The time left for all jobs that run or wait, behind a sign; nothing where nothing tells, or it is stopping."""
        running = [state for state in self._states if state.status in (RUNNING, STOPPING)]
        if not (running or self._waiting) or any(state.status == STOPPING for state in running):
            return ""
        now, known = time.monotonic(), [(state, self._started.get(state.job.number)) for state in running]
        far = [
            (state.job.setting, now - begun, self._job_left(state))
            for state, begun in known
            if begun is not None
        ]
        left = self._left.seconds(far, [state.job.setting for state in self._waiting])
        return "" if left is None else f"{before} about {clock(left)} left for the sweep"

    def _job_left(self, state: JobState) -> float | None:
        """Seconds until a job's training ends, by its rows."""
        train, metrics = state.job.composed.config.train, self._metrics[state.job.number]
        metrics.read()
        return metrics.seconds_left(train.steps, train.max_seconds)

    def _progress(self, state: JobState) -> tuple[str, str, str]:
        """Step, dev score and time left of a job."""
        train = state.job.composed.config.train
        steps = train.steps if state.job.composed.config.trains else 0
        if state.status not in (RUNNING, STOPPING):
            step, dev = state.result.get("steps"), state.result.get("dev")
            return "-" if step is None else f"{step}/{steps}", score(dev), "-"
        metrics, left = self._metrics[state.job.number], self._job_left(state)
        return f"{metrics.step}/{steps}", score(metrics.dev), "-" if left is None else clock(left)


def window(states: Sequence[JobState], lines: int) -> Sequence[JobState]:
    """At most ``lines`` jobs in their order: from a little before the first that runs, where not all fit."""
    running = [i for i, state in enumerate(states) if state.status in (RUNNING, STOPPING)]
    first = max(min(min(running, default=0) - lines // 4, len(states) - lines), 0)
    return states[first : first + lines]


def final_table(states: Sequence[JobState], before: int) -> Table:
    """A row a job: losses, scores, seconds, memory and status; ``before`` of them were finished already."""
    caption = f"{before} of {len(states)} were finished before" if before else None
    table = Table("job", "metric", "dev loss", "dev", "test", "seconds", "memory", "status", caption=caption)
    for row in (state.row() for state in states):
        seconds = "-" if row["seconds"] is None else f"{row['seconds']:.1f}"
        memory = "-" if row["memory"] is None else size(row["memory"])
        scores = str(row["metric"] or "-"), *(score(row[key]) for key in _SCORES)
        table.add_row(row["job"], *scores, seconds, memory, row["status"])
    return table


def settings_table(states: Sequence[JobState]) -> Table | None:
    """A row a setting: mean and deviation (n - 1) of its finished jobs, which differ in seeds; None where no two do, or none has finished."""
    settings: dict[str, list[JobState]] = {}
    for state in states:
        settings.setdefault(state.job.setting, []).append(state)
    done = any(state.status == FINISHED for state in states)
    if not done or all(len(alike) == 1 for alike in settings.values()):
        return None
    caption = "mean \u00b1 standard deviation over seeds (n - 1)"
    table = Table("setting", "seeds", "metric", "dev loss", "dev", "test", "seconds", caption=caption)
    for setting, alike in settings.items():
        rows = [state.row() for state in alike if state.status == FINISHED]
        count = str(len(rows)) if len(rows) == len(alike) else f"{len(rows)} of {len(alike)}"
        metric = str(next((row["metric"] for row in rows), None) or "-")
        seconds = [row["seconds"] for row in rows if row["seconds"] is not None]
        mean = f"{statistics.fmean(seconds):.1f}" if seconds else "-"
        table.add_row(setting, count, metric, *(_spread([row[key] for row in rows]) for key in _SCORES), mean)
    return table


def _spread(values: Sequence[float | None]) -> str:
    """Mean and deviation of the values that are there; of a single one no deviation."""
    there = [value for value in values if value is not None]
    if len(there) < 2:
        return score(there[0] if there else None)
    return f"{score(statistics.fmean(there))} \u00b1 {score(statistics.stdev(there))}"
