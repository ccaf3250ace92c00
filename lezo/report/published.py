"""Which published numbers stand beside a run? Those of published.json, each with its source. No torch.

No table of LeZO's (arXiv 2410.09823) is in public sources that we could read, so it has no rows there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lezo.records.reader import Run
from lezo.report.groups import unusual
from lezo.tasks import TASKS, Task

NO_LEZO = (
    "LeZO's own tables (arXiv 2410.09823) are in no public source we could read: none of its numbers stand here. "
    "Its abstract claims over 3 times MeZO's speed on SST-2, BoolQ and COPA, its Figure 1 3.4 times in run-time for "
    "OPT-13B on SST-2."
)
PROTOCOL = (
    "Published protocol: 20,000 steps of 16 examples (FT: Adam, five epochs in batches of 8), 1,000 train, 500 dev (CB, COPA: 100) "
    "and 1,000 or all test examples; what a run does otherwise is named beside the number. ± is the spread over the "
    "seeds where the source prints one, as the MeZO paper does not."
)
_HEAD_TUNED = ("copa", "record", "squad", "drop")  # their "LP" is head tuning: an answer is no single word
_STEPS: Mapping[str, Sequence[Any]] = {
    "train.steps": (20000,),
    "train.batch_size": (16,),
    "optim.weight_decay": (0,),
}
_MEZO = {**_STEPS, "optim.eps": (1e-3,)}
_LORA = {**_STEPS, "optim.eps": (1e-2,), "peft.rank": (8,), "peft.alpha": (16,)}
_PREFIX = {**_STEPS, "optim.eps": (1e-1,), "peft.tokens": (5,)}
_FT = {"train.batch_size": (8,), "optim.schedule": ("linear",), "optim.weight_decay": (0,)}
_EPOCHS = {
    "cb": (95,),
    "wsc": (35,),
    "copa": (190,),
}  # steps of five epochs where there are fewer than 1,000 rows
_AS_PUBLISHED: Mapping[str, Mapping[str, Sequence[Any]]] = {
    **{"MeZO": _MEZO, "MeZO LoRA": _LORA, "MeZO prefix": _PREFIX},
    "ICL": {"task.demo_sets": ("each",)},
}


@dataclass(frozen=True)
class Published:
    """A score in percent, as ``printed``: with its std over ``seeds`` where the source has them."""

    task: str
    model: str
    method: str
    printed: str
    seeds: int | None
    source: str

    @property
    def mean(self) -> float:
        """The score as a number."""
        return float(self.printed.split(" ± ")[0])

    @property
    def std(self) -> float | None:
        """The standard deviation as a number."""
        *_, last = self.printed.split(" ± ")
        return float(last) if "±" in self.printed else None


def comparable(run: Run) -> bool:
    """Whether published numbers may stand beside a run at all: never beside sample data or random weights."""
    synthetic = run.result.get("synthetic", False) is not False
    return (
        run.said("data.name") in ("hub", "local") and not synthetic and not run.said("model.random_weights")
    )


def rows_of(run: Run) -> list[Published]:
    """All published scores of a run's task and model."""
    if not comparable(run):
        return []
    task, model = run.said("task.name"), run.model.rpartition("/")[2].lower()
    return [row for row in _table() if (row.task, row.model) == (task, model)]


def beside(run: Run) -> str:
    """The published scores of what the run did, with their sources and with what it did differently."""
    if not rows_of(run):
        return "-"
    if run.optim == "lezo":
        return "none public"
    method = _method(run)
    found = [f"{row.printed} ({row.source})" for row in rows_of(run) if row.method == method]
    other = list(_differences(run, method)) if found else []
    return "; ".join([*found, *([f"here {', '.join(other)}"] if other else [])]) or "-"


def _method(run: Run) -> str | None:
    """The published name of what the run did."""
    prompted = {"0": "zero-shot", "32": "ICL"}.get(str(run.said("task.demos")))
    tuned = "LP" if run.said("task.name") in _HEAD_TUNED else None
    names = {
        **{"mezo": "MeZO", "mezo + lora": "MeZO LoRA", "mezo + prefix": "MeZO prefix"},
        **{"fo-adamw": "FT", "fo-adamw + head": tuned, "lp": None if tuned else "LP"},
        **{"none": prompted, "icl": prompted},
    }
    return names.get(run.method)


def _differences(run: Run, method: str | None) -> Iterator[str]:
    if not run.settings:
        yield "settings unknown"
        return
    task = TASKS.get(str(run.said("task.name")), Task)
    drawn = {"task.num_train": (task.num_train,), "task.num_dev": (task.num_dev,)}
    tuned = run.optim == "fo-adamw"
    five = {**_FT, "train.steps": _EPOCHS.get(str(run.said("task.name")), (625,))} if tuned else {}
    expected = {**drawn, "task.num_test": (1000, None), **_AS_PUBLISHED.get(method or "", {}), **five}
    for key, values in expected.items():
        if key in run.settings and (value := run.settings[key]) not in values:
            yield f"{key} {value}"
    if method == "MeZO LoRA" and (targets := run.settings.get("peft.targets")) not in (
        None,
        ["q_proj", "v_proj"],
    ):
        yield f"peft.targets {targets}"
    if method == "MeZO prefix":
        yield "the text's positions behind the prefix's"
    matched = ("task.demos", "task.demo_sets") if run.optim in ("none", "icl") else ()
    yield from (f"{key} {value}" for key, value in unusual(run).items() if key not in matched)


@cache
def _table() -> list[Published]:
    rows = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
    return [
        Published(task, row["model"], row["method"], printed, row["seeds"], row["source"])
        for row in rows
        for task, printed in row["scores"].items()
    ]
