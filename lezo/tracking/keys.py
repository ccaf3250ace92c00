"""The names, units and axes under which wandb shows what metrics.jsonl and result.json hold. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

# Optimizer steps; training forwards, a first-order step's as three; wall-clock since training began, evaluations included.
AXES = ("step", "forwards", "seconds")
NAMESPACES = {"train": "step", "time": "step", "memory": "step", "dev": "seconds", "test": "step"}
RESULT = "result"  # result.json in the summary, its paths joined by "/"; no axis
PREDICTIONS = "predictions"  # the table of the last test
TABLE_ROWS = 1000  # and its size at most: the published number of test examples

Kind = Literal["every", "trained", "zeroth-order", "first-order", "perplexity"]


@dataclass(frozen=True)
class Key:
    """A name on wandb. ``of``: the runs that have it. ``best``: the value that the summary keeps beside the last."""

    name: str
    unit: str
    what: str
    of: Kind = "every"
    best: Literal["min", "max"] | None = None

    @property
    def axis(self) -> str | None:
        """The axis it is drawn against unless a panel names another; None where a run has only one value."""
        return NAMESPACES.get(self.name.partition("/")[0])


KEYS = (
    Key("train/loss", "nats", "what the step minimises (of a metric: one minus it), the mean", "trained"),
    Key("train/lr", "", "learning rate", "trained"),
    Key(
        "train/skipped",
        "0 or 1",
        "whether the step left the weights alone: a loss was not finite, or with fzoo all were alike",
        "trained",
    ),
    Key("train/g", "nats a unit of z", "projected gradient", "zeroth-order"),
    Key("train/loss_plus", "nats", "loss at theta + eps z", "zeroth-order"),
    Key("train/loss_minus", "nats", "loss at theta - eps z", "zeroth-order"),
    Key("train/gradient_norm", "nats a unit", "norm of the gradient before clipping", "first-order"),
    Key("time/data", "seconds a step", "waiting for the batch", "trained"),
    Key("time/forward", "seconds a step", "forward passes; backward too where there is one", "trained"),
    Key("time/perturb", "seconds a step", "writing the perturbed copies", "zeroth-order"),
    Key("time/update", "seconds a step", "the update", "trained"),
    Key("time/eval", "seconds", "a dev evaluation", "trained"),
    Key("memory/peak_gib", "GiB", "peak so far: of the GPU, without one of the process", "trained"),
    Key("dev/loss", "nats", "dev loss, which chooses the best step", best="min"),
    Key("dev/score", "0..1", "dev accuracy or F1", best="max"),
    Key("dev/perplexity", "", "in place of a score where texts are learnt", "perplexity", best="min"),
    Key("test/loss", "nats", "test loss, zero-shot and of the best step"),
    Key("test/score", "0..1", "test accuracy or F1, zero-shot and of the best step"),
    Key("test/perplexity", "", "in place of a score where texts are learnt", "perplexity"),
    Key(PREDICTIONS, "rows", f"the last test, example by example, {TABLE_ROWS} at most"),
    Key(f"{RESULT}/status", "", "finished, failed or interrupted"),
    Key(f"{RESULT}/test", "0..1, or perplexity", "test score of the best step"),
    Key(f"{RESULT}/zero_shot", "0..1, or perplexity", "zero-shot test score"),
    Key(f"{RESULT}/dev", "0..1, or perplexity", "dev score of the best step"),
    Key(f"{RESULT}/dev_loss", "nats", "dev loss of the best step"),
    Key(f"{RESULT}/best_step", "steps", "the step of the lowest dev loss"),
    Key(f"{RESULT}/seconds/total", "seconds", "the whole run"),
    Key(f"{RESULT}/seconds/step_median", "seconds a step", "all phases together"),
    Key(f"{RESULT}/peak_memory_bytes/device", "bytes", "allocated on the GPU"),
    Key(f"{RESULT}/peak_memory_bytes/host", "bytes", "resident on the host"),
)


def axes(row: Mapping[str, Any], cost: int | None) -> dict[str, Any]:
    """Where a row of metrics.jsonl stands on the axes; ``cost``: forwards of a step, None of a method that takes none."""
    return _present(
        {
            "step": row["step"],
            "forwards": None if cost is None else row["step"] * cost,
            "seconds": row["seconds"],
        }
    )


def train_keys(row: Mapping[str, Any], cost: int | None = None) -> dict[str, Any]:
    """A train row of metrics.jsonl, memory in GiB; what has no value is left out. ``cost`` as in `axes`."""
    phases = {f"time/{phase}": spent for phase, spent in row["phases"].items()}
    own = {f"train/{key}": value for key, value in row.items() if key not in (*AXES, "phases", "memory")}
    rest = {"memory/peak_gib": row["memory"] / 2**30, "train/skipped": int(row["skipped"])}
    return _present({**axes(row, cost), **own, **phases, **rest})


def dev_keys(row: Mapping[str, Any], cost: int | None = None, score: str = "score") -> dict[str, Any]:
    """A dev row of metrics.jsonl. ``cost`` as in `axes`; ``score``: what its score is called."""
    values = {
        "dev/loss": row["dev_loss"],
        f"dev/{score}": row["dev_score"],
        "time/eval": row["eval_seconds"],
    }
    return _present({**axes(row, cost), **values})


def test_keys(step: int, loss: float | None, value: float | None, score: str = "score") -> dict[str, Any]:
    """The test set, scored with the weights of ``step``; ``score``: what its score ``value`` is called."""
    return _present({"step": step, "test/loss": loss, f"test/{score}": value})


def result_keys(result: Mapping[str, Any]) -> dict[str, Any]:
    """Everything in a result, each value under its path: "result/seconds/total"."""
    return dict(_flat(result, RESULT))


def prediction_table(
    predictions: Sequence[Mapping[str, Any]], *, texts: bool = False
) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the first predictions: chosen candidates say whether they are right, lists are text.

    Without ``texts`` no words of a row of the data but those that the run was asked to show or was judged by.
    """
    first = [dict(record) if texts else _without_words(record) for record in predictions[:TABLE_ROWS]]
    records = [_with_correct(record) for record in first]
    columns = list(dict.fromkeys(key for record in records for key in record))
    # wandb's columns have one type: where one value is a list, all are text.
    listed = {key for record in records for key, value in record.items() if isinstance(value, list)}
    rows = [{**record, **{key: _text(record.get(key)) for key in listed}} for record in records]
    return columns, [[row.get(key) for key in columns] for row in rows]


_WORDS = ("prompt", "candidates", "prediction_text", "gold_text", "messages")


def _without_words(record: Mapping[str, Any]) -> dict[str, Any]:
    """A reply that was asked for keeps its prompt."""
    words = _WORDS[1:] if "reply" in record else _WORDS
    return {key: value for key, value in record.items() if key not in words}


def _with_correct(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """A candidate may be one of several right ones; a generated text has its score already."""
    if "scores" not in record:
        return record
    gold = record["gold"] if isinstance(record["gold"], list) else [record["gold"]]
    return {**record, "correct": record["prediction"] in gold}


def _text(value: Any) -> str:
    parts = value if isinstance(value, list) else [value]
    if parts and all(isinstance(part, Mapping) for part in parts):  # a conversation's turns
        return "\n".join(f"{part['role']}: {part['content']}" for part in parts)
    return "; ".join(f"{part:.4f}" if isinstance(part, float) else str(part) for part in parts)


def _present(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if value is not None}


def _flat(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _flat(value, f"{prefix}/{key}")
    else:
        yield prefix, node
