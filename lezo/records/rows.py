"""The rows that a run writes as it goes: made once, by the loop, and heard by everything that keeps or shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class TrainRow:
    """Update number ``step``, made ``seconds`` into training.

    ``loss`` is the mean of what the step measured; ``measures`` are its other numbers, such as g and lr. ``phases``:
    seconds that it waited for its batch, and that its forwards and the rest took. ``memory``: the peak so far, in
    bytes. ``coefficient``: what a zeroth-order update multiplied z with; it is the journal's, not the metrics'.
    """

    step: int
    seconds: float
    loss: float
    measures: Mapping[str, float] = field(default_factory=dict)
    skipped: bool = False
    phases: Mapping[str, float] = field(default_factory=dict)
    memory: int = 0
    coefficient: float = math.nan

    def values(self) -> dict[str, Any]:
        """As in metrics.jsonl; g None for first-order steps."""
        row = {"step": self.step, "seconds": round(self.seconds, 4), "loss": self.loss, "g": None}
        phases = {phase: round(spent, 6) for phase, spent in self.phases.items()}
        return {**row, **self.measures, "skipped": self.skipped, "phases": phases, "memory": self.memory}


@dataclass(frozen=True)
class DevRow:
    """The dev set by the weights of ``step``: loss, None where there is none, and score, a fraction 0..1."""

    step: int
    seconds: float = field(compare=False)
    loss: float | None
    score: float
    eval_seconds: float = field(default=0.0, compare=False)

    def values(self) -> dict[str, Any]:
        """As in metrics.jsonl."""
        scores = {"dev_loss": self.loss, "dev_score": self.score}
        row = {"step": self.step, "seconds": round(self.seconds, 4), **scores}
        return {**row, "eval_seconds": round(self.eval_seconds, 4)}


@dataclass(frozen=True)
class TestRow:
    """The test set by the weights of ``step``, which ``weights`` says in words: "before training", "at step 40".

    ``last``: they are those that the run ends with. ``predictions``: one an example, as in predictions.jsonl.
    """

    __test__ = False  # pytest takes what is called Test for one of its own

    step: int
    seconds: float
    loss: float | None
    score: float
    predictions: Sequence[Mapping[str, Any]] = ()
    weights: str = ""
    last: bool = True
    eval_seconds: float = 0.0

    def values(self) -> dict[str, Any]:
        """As in metrics.jsonl."""
        scores = {"test_loss": self.loss, "test_score": self.score}
        return {"step": self.step, "seconds": round(self.seconds, 4), **scores}


class StepSink(Protocol):
    """What keeps or shows what training does."""

    def trained(self, row: TrainRow) -> None:
        """After an update."""

    def evaluated(self, row: DevRow) -> None:
        """After a dev evaluation."""


class Sink(StepSink, Protocol):
    """What keeps or shows all rows of a run."""

    def tested(self, row: TestRow) -> None:
        """Before training, and with the run's last weights."""
