"""The rows of metrics.jsonl. The loop makes each once, and all that keep or show them get the same ones."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NotRequired, Protocol, TypedDict

from msgspec import Struct, convert, structs, to_builtins

from lezo.records.schema import Count, Measure, Number, decoded

PHASES = ("data", "forward", "perturb", "update")  # of a step, in the order in which they come


class TrainLine(TypedDict):
    """A train row as in metrics.jsonl; every other key of it is a measure of the step."""

    step: Count
    seconds: Number
    loss: Measure
    skipped: bool
    phases: dict[str, Number]
    memory: NotRequired[Measure]


@dataclass(frozen=True)
class TrainRow:
    """Update number ``step``, made ``seconds`` into training.

    ``loss`` is the mean of what the step measured, ``measures`` are its other numbers, such as g and lr; NaN where one
    was not finite. ``phases``: the seconds that it waited for its batch, and that its forwards and the rest took.
    ``memory``: the peak so far, in bytes. ``coefficient``: what a zeroth-order update multiplied z with, ``more``: of
    further directions; these two are in the journal, not in the metrics.
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
        """Read back. Raises ValueError with the field's path."""
        line = convert(values, TrainLine)
        others = values.keys() - TrainLine.__annotations__.keys()
        measures = {key: _measure(key, value) for key, value in values.items() if key in others}
        memory, loss = int(line.get("memory") or 0), _measure("loss", line["loss"])
        return cls(line["step"], line["seconds"], loss, measures, line["skipped"], line["phases"], memory)


def _measure(key: str, value: Any) -> float:
    try:
        number = convert(value, Measure)
    except ValueError as error:
        raise ValueError(f"{error} - at `$.{reprlib.repr(key)[1:-1]}`") from None
    return math.nan if number is None else number


class DevRow(Struct, frozen=True, rename={"loss": "dev_loss", "score": "dev_score"}):
    """The dev set by the weights of ``step``: loss, None where there is none, and score, a fraction 0..1 or a perplexity.

    A score is None where it was not finite.
    """

    kind: ClassVar[str] = "dev"

    step: Count
    seconds: Number
    loss: Measure
    score: Measure
    eval_seconds: Number = 0.0

    def values(self) -> dict[str, Any]:
        """As in metrics.jsonl."""
        seconds = {"seconds": round(self.seconds, 4), "eval_seconds": round(self.eval_seconds, 4)}
        return {**to_builtins(self), **seconds}


class TestRow(Struct, frozen=True, rename={"loss": "test_loss", "score": "test_score"}):
    """The test set by the weights of ``step``, which ``weights`` says in words: "zero-shot", "at step 40".

    ``last``: they are those that the run ends with; metrics only have the zero-shot row. ``predictions``: one an example,
    as in predictions.jsonl. ``zero_shot_from``: the folder's name of the run of a sweep that computed it, where that is
    another one.
    """

    __test__ = False  # pytest takes what is called Test for one of its own
    kind: ClassVar[str] = "test"

    step: Count
    seconds: Number
    loss: Measure
    score: Measure
    predictions: Sequence[Mapping[str, Any]] = ()
    weights: str = ""
    last: bool = False
    eval_seconds: Number = 0.0
    zero_shot_from: str | None = None

    def predicting(self, predictions: Sequence[Mapping[str, Any]]) -> TestRow:
        """The same with these predictions."""
        return structs.replace(self, predictions=predictions)

    def values(self) -> dict[str, Any]:
        """As in metrics.jsonl."""
        scores = {"test_loss": self.loss, "test_score": self.score}
        row = {"step": self.step, "seconds": round(self.seconds, 4), **scores}
        return row if self.zero_shot_from is None else {**row, "zero_shot_from": self.zero_shot_from}


Row = TrainRow | DevRow | TestRow


def row_of(line: bytes) -> Row:
    """The row that a line of metrics.jsonl holds. Raises ValueError with the path of the field that is not as written."""
    values = decoded(line)
    if "loss" in values:
        return TrainRow.of(values)
    if "dev_loss" in values:
        return convert(values, DevRow)
    if "test_loss" in values:
        return convert(values, TestRow)
    raise ValueError("neither a train nor a dev nor a test row")


class StepSink(Protocol):
    """What keeps or shows what training does."""

    def trained(self, row: TrainRow) -> None:
        """After an update."""

    def evaluated(self, row: DevRow) -> None:
        """After a dev evaluation."""


class Sink(StepSink, Protocol):
    """What keeps or shows all rows of a run."""

    def tested(self, row: TestRow) -> None:
        """Zero-shot, and with the run's last weights."""
