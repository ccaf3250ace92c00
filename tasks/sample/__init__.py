"""What does `data=sample` hold? Small made-up sets for the eleven tasks, in the format of each task's hub, and conversations."""

from __future__ import annotations

import json
from collections.abc import Callable

from lezo.tasks.sample.draw import Draw, Row
from lezo.tasks.sample.inference import cb, rte
from lezo.tasks.sample.passages import boolq, drop, multirc, record, squad
from lezo.tasks.sample.puzzles import copa, wic, wsc
from lezo.tasks.sample.reviews import sst2
from lezo.tasks.sample.talks import chat

MAKERS: dict[str, Callable[[Draw, int], Row]] = {
    "sst2": sst2, "rte": rte, "cb": cb, "boolq": boolq, "wsc": wsc, "wic": wic,
    "multirc": multirc, "copa": copa, "record": record, "squad": squad, "drop": drop,
    "chat": chat,
}  # fmt: skip
SIZES = {"sst2": (1500, 1000), "rte": (1500, 1000), "cb": (420, 120), "copa": (420, 120)}  # train, validation
OTHER_SIZES = (600, 200)


def rows(task: str) -> tuple[list[Row], list[Row]]:
    """Train and validation rows of the task, the same in every process; no two have the same content."""
    if task not in MAKERS:
        raise ValueError(f"no sample for task {task!r}: the samples are {', '.join(MAKERS)}")
    train, validation = SIZES.get(task, OTHER_SIZES)
    seen: set[str] = set()
    return _split(task, "train", train, seen), _split(task, "validation", validation, seen)


def _split(task: str, name: str, size: int, seen: set[str]) -> list[Row]:
    """`size` rows whose content is not yet in `seen`, which takes them in."""
    draw, made = Draw(task, name), list[Row]()
    while len(made) < size:
        row = MAKERS[task](draw, len(made))
        content = json.dumps({key: value for key, value in row.items() if key not in ("label", "idx", "id")})
        if content not in seen:
            seen.add(content)
            made.append(row)
    return made
