"""The loop: evaluate when it is time, step, report. Every part decides for itself what to do with a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from lezo.model.evaluate import Evaluation
from lezo.zo.step import Optimizer, StepReport


class DivergedError(RuntimeError):
    """Too many non-finite losses in a row."""


class Listener(Protocol):
    """What hears of every step and every dev evaluation."""

    def trained(self, step: int, seconds: float, report: StepReport) -> None:
        """After update number ``step``, ``seconds`` into training."""

    def evaluated(self, step: int, seconds: float, dev: Evaluation) -> None:
        """After a dev evaluation of the weights that ``step`` updates made."""


@dataclass
class Progress:
    """What training has come to so far; complete also after an interruption, and taken up again after a resume.

    ``bad``: non-finite losses in a row until now. ``evaluated``: the last step with a dev evaluation.
    ``elapsed``: seconds of earlier sessions.
    """

    step: int = 0
    skipped: int = 0
    bad: int = 0
    evaluated: int | None = None
    best_step: int | None = None
    best: Evaluation | None = None
    elapsed: float = 0.0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)  # seconds of data, forward, perturb, update
    measured: Mapping[str, float] = field(default_factory=dict)  # by the last step

    def count(
        self, step: int, applied: bool, phases: Mapping[str, float], measured: Mapping[str, float]
    ) -> None:
        """Step number ``step`` was made; its phases are all of its time."""
        self.step, self.measured = step, measured
        self.skipped += not applied
        self.bad = 0 if applied else self.bad + 1
        self.step_seconds.append(sum(phases.values()))
        self.train_seconds += sum(phases.values())
        for phase, seconds in phases.items():
            self.phases[phase] = self.phases.get(phase, 0.0) + seconds

    def judge(self, step: int, dev: Evaluation) -> None:
        """``step`` was evaluated. The best step is the one of the lowest dev loss, never step 0."""
        self.evaluated = step
        self.eval_seconds += dev.seconds
        if step > 0 and _better(dev, self.best):
            self.best_step, self.best = step, dev


def train(
    optimizer: Optimizer,
    batch_at: Callable[[int], Any],
    evaluate: Callable[[], Evaluation],
    listener: Listener,
    progress: Progress,
    *,
    steps: int,
    eval_every: int,
    max_seconds: float | None,
    max_bad_steps: int,
    held: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """Train until ``steps`` updates or ``max_seconds``; the weights before the first and after the last are evaluated.

    Goes on from ``progress``. Each step with all that hears of it happens within ``held``. Raises
    DivergedError after ``max_bad_steps`` steps in a row whose losses were not finite.
    """
    start = time.perf_counter() - progress.elapsed
    while True:
        if progress.bad >= max_bad_steps:
            row = f"{progress.bad} non-finite losses in a row ({_shown(progress.measured)})"
            raise DivergedError(f"step {progress.step}: {row}")
        seconds = time.perf_counter() - start
        over = max_seconds is not None and seconds >= max_seconds and progress.step > 0  # one step at least
        last = progress.step >= steps or over
        if (last or progress.step % eval_every == 0) and progress.evaluated != progress.step:
            dev = _timed(evaluate)
            with held():
                progress.judge(progress.step, dev)
                listener.evaluated(progress.step, time.perf_counter() - start, dev)
        if last:
            return
        with held():
            report = _stepped(optimizer, batch_at, progress.step)
            measured = {"loss": report.loss, **report.measures}
            progress.count(progress.step + 1, report.applied, report.phases, measured)
            listener.trained(progress.step, time.perf_counter() - start, report)


def _timed(evaluate: Callable[[], Evaluation]) -> Evaluation:
    start = time.perf_counter()
    dev = evaluate()
    return replace(dev, seconds=time.perf_counter() - start)


def _stepped(optimizer: Optimizer, batch_at: Callable[[int], Any], step: int) -> StepReport:
    """Make a step; its report says where all of its time went: data is waiting for the batch."""
    start = time.perf_counter()
    batch = batch_at(step)
    ready = time.perf_counter()
    report = optimizer.step(step, batch)
    forward = time.perf_counter() - ready - sum(report.phases.values())
    return replace(report, phases={"data": ready - start, "forward": forward, **report.phases})


def _better(dev: Evaluation, best: Evaluation | None) -> bool:
    """Strictly lower, so that the earliest of equals wins; a NaN is never better."""
    return dev.loss is not None and dev.loss < (
        float("inf") if best is None or best.loss is None else best.loss
    )


def _shown(measured: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.6g}" for name, value in measured.items())
