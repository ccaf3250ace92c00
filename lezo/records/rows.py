"""The rows that a run writes as it goes: made once, by the loop, and heard by everything that keeps or shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from msgspec import convert

from lezo.records.schema import DevLine, TestLine, TrainLine, decoded, measures_of

PHASES = ("data", "forward", "perturb", "update")  # of a step, in the order in which they come


@dataclass(frozen=True)
class TrainRow:
    """Update number ``step``, made ``seconds`` into training.

    ``loss`` is the mean of what the step measured; ``measures`` are its other numbers, such as g and lr. ``phases``:
    seconds that it waited for its batch, and that its forwards and the rest took. ``memory``: the peak so far, in
    bytes. ``coefficient``: what a zeroth-order update multiplied z with, ``more``: of further directions; they are the
    journal's, not the metrics'.
    """

    kind: ClassVar[str] = "train"

    step: int
    seconds: float
    loss: float
    measures: Mapping[str, float] = field(default_factory=dict)
    skipped: bool = False
    phases: Mapping[str, float] = field(default_factory=dict)
    memory: int = 0
    coefficient: float = math.nan
    more: tuple[float, ...] = ()

    def values(self) -> dict[str, Any]:
        """As in metrics.jsonl; g None for first-order steps."""
        row = {"step": self.step, "seconds": round(self.seconds, 4), "loss": self.loss, "g": None}
        phases = {phase: round(spent, 6) for phase, spent in self.phases.items()}
        return {**row, **self.measures, "skipped": self.skipped, "phases": phases, "memory": self.memory}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> TrainRow:
        """Read back; what was not finite is NaN again. Raises ValueError with the field's path."""
        line = convert(values, TrainLine)
        measures = {key: _number(value) for key, value in measures_of(values).items()}
        seconds, loss, memory = line["seconds"], _number(line["loss"]), int(line.get("memory") or 0)
        return cls(line["step"], seconds, loss, measures, line["skipped"], line["phases"], memory)


@dataclass(frozen=True)
class DevRow:
    """The dev set by the weights of ``step``: loss, None where there is none, and score, a fraction 0..1."""

    kind: ClassVar[str] = "dev"

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

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> DevRow:
        """Read back. Raises ValueError with the field's path."""
        line = convert(values, DevLine)
        return cls(line["step"], line["seconds"], line["dev_loss"], line["dev_score"], line["eval_seconds"])


@dataclass(frozen=True)
class TestRow:
    """The test set by the weights of ``step``, which ``weights`` says in words: "before training", "at step 40".

    ``last``: they are those that the run ends with. ``predictions``: one an example, as in predictions.jsonl.
    """

    __test__ = False  # pytest takes what is called Test for one of its own
    kind: ClassVar[str] = "test"

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

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> TestRow:
        """Read back: metrics have that of before training. Raises ValueError with the field's path."""
        line = convert(values, TestLine)
        return cls(line["step"], line["seconds"], line["test_loss"], line["test_score"], last=False)


Row = TrainRow | DevRow | TestRow
_KINDS: Mapping[str, type[Row]] = {"loss": TrainRow, "dev_loss": DevRow, "test_loss": TestRow}


def row_of(line: bytes) -> Row:
    """The row that a line of metrics.jsonl holds. Raises ValueError with the path of the field that is not as written."""
    values = decoded(line)
    kind = next((kind for key, kind in _KINDS.items() if key in values), None)
    if kind is None:
        raise ValueError("neither a train nor a dev nor a test row")
    return kind.of(values)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


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
