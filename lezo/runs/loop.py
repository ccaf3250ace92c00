"""The loop: evaluate when it is time, step, make the row. Every sink decides what to do with a row."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from lezo.model.evaluate import Evaluation
from lezo.records.environment import peak_memory
from lezo.records.rows import DevRow, StepSink, TestRow, TrainRow
from lezo.zo.step import Optimizer, StepReport


class DivergedError(RuntimeError):
    """Too many non-finite losses in a row."""


class AlikeError(DivergedError):
    """Too many steps in a row whose losses have no deviation to divide by."""


@dataclass
class Progress:
    """How far the run is; complete also after an interruption, and continued after a resume.

    ``bad``: non-finite losses in a row until now. ``evaluated_at``: the last step with a dev evaluation.
    ``elapsed``: seconds of earlier sessions. ``dev``: the last evaluation. ``weights``: the hash of the last.
    """

    step: int = 0
    skipped: int = 0
    bad: int = 0
    evaluated_at: int | None = None
    best_step: int | None = None
    best: DevRow | None = None
    dev: DevRow | None = None
    zero_shot: TestRow | None = None
    test: TestRow | None = None
    weights: str | None = None
    elapsed: float = 0.0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)  # seconds of data, forward, perturb, update
    measured: Mapping[str, float] = field(default_factory=dict)  # by the last step

    def trained(self, row: TrainRow) -> None:
        """A step was made; its phases are all of its time."""
        self.step, self.measured = row.step, {"loss": row.loss, **row.measures}
        self.skipped += row.skipped
        self.bad = self.bad + 1 if row.skipped else 0
        self.step_seconds.append(sum(row.phases.values()))
        self.train_seconds += sum(row.phases.values())
        for phase, seconds in row.phases.items():
            self.phases[phase] = self.phases.get(phase, 0.0) + seconds

    def evaluated(self, row: DevRow) -> None:
        """The dev set was evaluated. The best step is the one of the lowest dev loss, never step 0."""
        self.evaluated_at, self.dev = row.step, row
        self.eval_seconds += row.eval_seconds
        if row.step > 0 and _better(row, self.best):
            self.best_step, self.best = row.step, row

    def tested(self, row: TestRow) -> None:
        """The test set was scored, zero-shot or by the run's last weights."""
        self.zero_shot = self.zero_shot or row
        self.test = row if row.last else None
        self.eval_seconds += row.eval_seconds


def train(
    optimizer: Optimizer,
    batch_at: Callable[[int], Any],
    evaluate: Callable[[], Evaluation],
    sinks: Sequence[StepSink],
    progress: Progress,
    *,
    steps: int,
    eval_every: int,
    max_seconds: float | None,
    max_bad_steps: int,
    held: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """Train until ``steps`` updates or ``max_seconds``; evaluate before the first and after the last.

    Goes on from ``progress``. Each step, and what the sinks do with it, happens within ``held``. Raises
    DivergedError after ``max_bad_steps`` steps in a row that changed nothing: losses were not finite, or all alike (AlikeError).
    """
    start = time.perf_counter() - progress.elapsed
    while True:
        if progress.bad >= max_bad_steps:
            measured = ", ".join(f"{name} {value:.6g}" for name, value in progress.measured.items())
            if math.isfinite(progress.measured.get("loss", math.nan)) and math.isinf(
                progress.measured.get("lr", 0.0)
            ):
                alike = f"{progress.bad} steps in a row whose losses were all alike"
                raise AlikeError(f"step {progress.step}: {alike} ({measured})")
            losses = f"{progress.bad} non-finite losses in a row ({measured})"
            raise DivergedError(f"step {progress.step}: {losses}")
        seconds = time.perf_counter() - start
        over = max_seconds is not None and seconds >= max_seconds and progress.step > 0  # one step at least
        last = progress.step >= steps or over
        if (last or progress.step % eval_every == 0) and progress.evaluated_at != progress.step:
            evaluated = dev_row(progress.step, start, evaluate)
            with held():
                for sink in (progress, *sinks):
                    sink.evaluated(evaluated)
        if last:
            return
        with held():
            report = _timed_step(optimizer, batch_at, progress.step)
            row = train_row(progress.step + 1, time.perf_counter() - start, report)
            for sink in (progress, *sinks):
                sink.trained(row)


def train_row(step: int, seconds: float, report: StepReport) -> TrainRow:
    """The row of a step, with the memory that the process has taken until now."""
    used = peak_memory()
    return TrainRow(
        step,
        seconds,
        report.loss,
        report.measures,
        skipped=not report.applied,
        phases=report.phases,
        memory=used["device"] or used["host"],
        coefficient=report.coefficient,
        more=report.more,
    )


def dev_row(step: int, start: float, evaluate: Callable[[], Evaluation]) -> DevRow:
    """Evaluate after ``step``; ``start``: the clock (perf_counter) when training began."""
    before = time.perf_counter()
    dev = evaluate()
    now = time.perf_counter()
    return DevRow(step, now - start, dev.loss, dev.score, now - before)


def _timed_step(optimizer: Optimizer, batch_at: Callable[[int], Any], step: int) -> StepReport:
    """Make a step; its report says where all of its time went: data is waiting for the batch."""
    start = time.perf_counter()
    batch = batch_at(step)
    ready = time.perf_counter()
    report = optimizer.step(step, batch)
    forward = max(0.0, time.perf_counter() - ready - sum(report.phases.values()))  # lanes overlap
    return replace(report, phases={"data": ready - start, "forward": forward, **report.phases})


def _better(dev: DevRow, best: DevRow | None) -> bool:
    """Strictly lower, so that the earliest of equals wins; a NaN is never better."""
    lowest = math.inf if best is None or best.loss is None else best.loss
    return dev.loss is not None and dev.loss < lowest
