"""The published numbers that stand beside a run: those of published.json, each with its source. No torch.

No table of LeZO's (arXiv 2410.09823) is in public sources that we could read, so it has no rows there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lezo.config.methods import method_name
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
_PROMPTED = ("zero-shot", "ICL")
_FIVE_EPOCHS = {"cb": 95, "wsc": 35, "copa": 190}  # in steps, of tasks with fewer than 1,000 rows; else 625

Protocol = Mapping[str, Sequence[Any]]  # by setting, the values that are as published
_STEPS: Protocol = {"train.steps": (20000,), "train.batch_size": (16,), "optim.weight_decay": (0,)}
_LORA: Protocol = {"peft.rank": (8,), "peft.alpha": (16,), "peft.targets": (None, ["q_proj", "v_proj"])}
_PROTOCOLS: Mapping[str | None, Protocol] = {
    "MeZO": {**_STEPS, "optim.eps": (1e-3,)},
    "MeZO LoRA": {**_STEPS, "optim.eps": (1e-2,), **_LORA},
    "MeZO prefix": {**_STEPS, "optim.eps": (1e-1,), "peft.tokens": (5,)},
    "AdaLeZO": {
        **_STEPS,
        "optim.eps": (1e-3,),
        "optim.keep": (0.2,),
        "optim.tau": (0.6,),
        "optim.gamma": (0, 0.1),
        "optim.alpha": (0.1,),
        "optim.importance_clip": (4, 16),
    },
    "ICL": {"task.demo_sets": ("each",)},
}
_FT: Protocol = {"train.batch_size": (8,), "optim.schedule": ("linear",), "optim.weight_decay": (0,)}


@dataclass(frozen=True)
class Published:
    """A score in percent, as ``printed``: "66.1", or with its std over ``seeds`` "71.36 ± 2.80"."""

    task: str
    model: str
    method: str
    printed: str
    seeds: int | None
    source: str

    @property
    def mean(self) -> float:
        """The score without its std, in percent."""
        return float(self.printed.partition(" ± ")[0])


def comparable(run: Run) -> bool:
    """Whether published numbers may stand beside a run at all: never beside sample data, rows of one's own or random weights."""
    data, own = run.setting("data.name"), _own_rows(run)
    real_data = data == "hub" or (data == "local" and not own)
    return real_data and not run.result.get("synthetic") and not run.setting("model.random_weights")


def _own_rows(run: Run) -> bool:
    """Whether its rows are not in the published layout: a file or a pattern, or columns or splits of other names."""
    renamed = any(
        key.startswith(("data.columns", "data.splits")) and run.settings[key] for key in run.settings
    )
    path = str(run.setting("data.path") or "")
    return renamed or "*" in path or bool(Path(path).suffix)


def rows_of(run: Run) -> list[Published]:
    """All published scores of a run's task and model."""
    if not comparable(run):
        return []
    task, model = run.setting("task.name"), run.model.rpartition("/")[2].lower()
    return [row for row in _table() if (row.task, row.model) == (task, model)]


def is_lezo(run: Run) -> bool:
    """Whether LeZO's own numbers would stand beside a run, if there were any, as others' do."""
    return run.kind.published == "LeZO" and bool(rows_of(run))


def matching(run: Run) -> list[Published]:
    """The published scores of what the run did; none of LeZO's are public."""
    name = None if run.kind.published == "LeZO" else _published_name(run)
    return [row for row in rows_of(run) if row.method == name]


def beside(run: Run) -> str:
    """The published scores of what the run did, with their sources and with what it did differently."""
    if is_lezo(run):
        return "none public"
    name = _published_name(run)
    scores = [f"{row.printed} ({row.source})" for row in matching(run)]
    if not scores:
        return "-"
    other = ", ".join(_differences(run, name))
    return "; ".join([*scores, *([f"here {other}"] if other else [])])


def _published_name(run: Run) -> str | None:
    """What the papers call a run's method."""
    prompted = {"0": "zero-shot", "32": "ICL"}.get(str(run.setting("task.demos")))
    head_tuned = run.setting("task.name") in _HEAD_TUNED
    names = {
        "MeZO": "MeZO",
        "MeZO + lora": "MeZO LoRA",
        "MeZO + prefix": "MeZO prefix",
        "AdaLeZO": "AdaLeZO",
        "FT": "FT",
        "FT + head" if head_tuned else "LP": "LP",
        **dict.fromkeys(_PROMPTED, prompted),
    }
    return names.get(method_name(str(run.kind.published), run.peft))


def _differences(run: Run, name: str | None) -> Iterator[str]:
    """What the run did otherwise, such as "train.steps 100"."""
    if not run.settings:
        yield "settings unknown"
        return
    for key, values in _protocol(run, name).items():
        if key in run.settings and run.settings[key] not in values:
            yield f"{key} {run.settings[key]}"
    if name == "MeZO prefix":
        yield "the text's positions behind the prefix's"
    for key, value in unusual(run).items():
        if not (run.kind.published in _PROMPTED and key in ("task.demos", "task.demo_sets")):
            yield f"{key} {value}"


def _protocol(run: Run, name: str | None) -> Protocol:
    """What the papers did with a run's task and method."""
    task_name = str(run.setting("task.name"))
    task = TASKS.get(task_name, Task)
    examples: Protocol = {
        "task.num_train": (task.num_train,),
        "task.num_dev": (task.num_dev,),
        "task.num_test": (1000, None),
    }
    if run.kind.published == "FT":
        return {**examples, **_FT, "train.steps": (_FIVE_EPOCHS.get(task_name, 625),)}
    return {**examples, **_PROTOCOLS.get(name, {})}


@cache
def _table() -> list[Published]:
    rows = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
    return [
        Published(task, row["model"], row["method"], printed, row["seeds"], row["source"])
        for row in rows
        for task, printed in row["scores"].items()
    ]
