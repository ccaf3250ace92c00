"""The loop: evaluate when it is time, step, report. Every part decides for itself what to do with a report."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from lezo.evaluate import Evaluation
from lezo.optim import Optimizer, StepReport


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
    """What training has come to so far; complete also after an interruption."""

    step: int = 0
    skipped: int = 0
    best_step: int | None = None
    best: Evaluation | None = None
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)  # seconds of data, forward, perturb, update

    def count(self, report: StepReport, data: float, step: float) -> None:
        """One more step, which waited ``data`` seconds for its batch and then took ``step`` seconds."""
        self.step += 1
        self.skipped += not report.applied
        self.step_seconds.append(data + step)
        self.train_seconds += data + step
        forward = step - sum(report.phases.values())
        for phase, seconds in {"data": data, "forward": forward, **report.phases}.items():
            self.phases[phase] = self.phases.get(phase, 0.0) + seconds


def train(
    optimizer: Optimizer,
    batch_at: Callable[[int], Any],
    evaluate: Callable[[], Evaluation],
    keep_best: Callable[[], None],
    listener: Listener,
    progress: Progress,
    *,
    steps: int,
    eval_every: int,
    max_seconds: float | None,
    max_bad_steps: int,
) -> None:
    """Train for ``steps`` updates or ``max_seconds``; the weights before the first and after the last are evaluated.

    The best step is the one of the lowest dev loss, never step 0. Raises DivergedError after
    ``max_bad_steps`` steps in a row whose losses were not finite.
    """
    start, bad = time.perf_counter(), 0
    while True:
        now = time.perf_counter()
        last = progress.step >= steps or (max_seconds is not None and now - start >= max_seconds)
        if last or progress.step % eval_every == 0:
            dev = evaluate()
            progress.eval_seconds += time.perf_counter() - now
            if progress.step > 0 and _better(dev, progress.best):
                progress.best_step, progress.best = progress.step, dev
                keep_best()
            listener.evaluated(progress.step, time.perf_counter() - start, dev)
        if last:
            return
        now = time.perf_counter()
        batch = batch_at(progress.step)
        ready = time.perf_counter()
        report = optimizer.step(progress.step, batch)
        progress.count(report, ready - now, time.perf_counter() - ready)
        bad = 0 if report.applied else bad + 1
        listener.trained(progress.step, time.perf_counter() - start, report)
        if bad >= max_bad_steps:
            raise DivergedError(f"step {progress.step}: {bad} non-finite losses in a row ({_shown(report)})")


def _better(dev: Evaluation, best: Evaluation | None) -> bool:
    """Strictly lower, so that the earliest of equals wins; a NaN is never better."""
    return dev.loss is not None and dev.loss < (
        float("inf") if best is None or best.loss is None else best.loss
    )


def _shown(report: StepReport) -> str:
    losses = {"loss": report.loss, **report.measures}
    return ", ".join(f"{name} {value:.6g}" for name, value in losses.items())
