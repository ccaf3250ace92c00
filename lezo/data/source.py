"""Where rows come from: files in release or hub form, the Hugging Face hub, or the synthetic sample."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from lezo.tasks.row import Row, RowError
from lezo.tasks.sample import MAKERS as SAMPLED
from lezo.tasks.sample import rows as sample_rows
from lezo.tasks.task import Example, Hub, Task


class DataError(ValueError):
    """Rows that cannot be read; the message names file and line, what was expected and the way out."""


@dataclass(frozen=True)
class Pools:
    """A task's train and test rows, rendered, with a name that says where they are from.

    ``val``: the test set, published as validation rows. ``dev`` None: dev rows are drawn from ``train``.
    """

    train: Sequence[Example]
    val: Sequence[Example]
    origin: str
    dev: Sequence[Example] | None = None


def load(task: Task, source: str, *, path: str | None = None, revision: str | None = None) -> Pools:
    """Read the task's pools from ``source``: sample, local (``path/<task>/{train,val}.jsonl``) or hub."""
    if source == "sample":
        return _sample(task)
    if source == "hub":
        return _hub(task, revision)
    assert path is not None  # checked by config.checks
    folder = Path(path).expanduser()
    train, val = (_read(task, folder / task.name / f"{part}.jsonl") for part in ("train", "val"))
    return Pools(train, val, str(folder))


def _sample(task: Task) -> Pools:
    if task.name not in SAMPLED:
        known = f"there are no made-up rows for task={task.name}, only for {', '.join(SAMPLED)}"
        own = f"add data=local data.path=DIR, with rows of your own in DIR/{task.name}"
        raise DataError(f"data=sample: {known}; {own}")
    train, val = ([_one(task, row) for row in part] for part in sample_rows(task.name))
    return Pools(train, val, "sample")


def _one(task: Task, columns: Any) -> Example:
    return next(iter(task.examples(Row(columns))))


def _read(task: Task, file: Path) -> list[Example]:
    """The file's examples; every row is checked, also those that the sampling leaves out."""
    examples: list[Example] = []
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    examples += _line_examples(task, line, f"{file}, line {number}")
    except OSError as error:
        expected = "expected one JSON object a line in <data.path>/<task>/{train,val}.jsonl"
        raise DataError(f"{file}: {error.strerror or error}; {expected}") from None
    if not examples:
        raise DataError(f"{file}: no rows, expected one JSON object a line")
    return examples


def _line_examples(task: Task, line: bytes, where: str) -> list[Example]:
    try:
        return list(task.examples(Row(json.loads(line.decode().rstrip(), object_pairs_hook=_once))))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text at byte {error.start + 1} of the line") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise DataError(f"{where}: JSON nested too deeply") from None
    except ValueError as error:  # a RowError, or a number with more digits than Python converts
        raise DataError(f"{where}: {error}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose columns have one value each: of two, nobody knows which is meant."""
    columns = dict(pairs)
    if len(columns) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RowError(f"column {twice!r} is there more than once")
    return columns


class HubSplit(Sequence[Example]):
    """Rows of a hub split, rendered when asked for: a run reads a thousand of a hundred thousand."""

    def __init__(self, task: Task, rows: Any, name: str) -> None:
        self._task, self._rows, self._name = task, rows, name

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        try:
            return _one(self._task, self._rows[index])
        except RowError as error:
            raise DataError(f"{self._name}, row {index}: {error}") from None


def _hub(task: Task, revision: str | None) -> Pools:
    if task.hub is None:
        raise DataError(f"data=hub: task={task.name} is on no hub; add data=local data.path=DIR")
    train = _hub_split(task, task.hub, "train", revision, task.hub.train_rows)
    val = _hub_split(task, task.hub, "validation", revision, task.hub.val_rows)
    return Pools(train, val, task.hub.id)


def _hub_split(task: Task, hub: Hub, part: str, revision: str | None, expected: int) -> HubSplit:
    from datasets import load_dataset  # seconds to import: only who asks for the hub pays

    try:
        rows = load_dataset(hub.id, hub.config, split=part, revision=revision or hub.revision)
    except (OSError, ValueError, RuntimeError) as error:  # datasets raises all three for "not reachable"
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        way_out = "connect, or fill the cache where there is a connection, or use data=local data.path=DIR"
        shown = hub.id if hub.config is None else f"{hub.id} ({hub.config})"
        raise DataError(f"cannot read {shown} from the Hugging Face hub ({reason}); {way_out}") from error
    if len(rows) != expected:
        reason = "the published sampling permutes row indices, so another length gives other examples"
        way_out = "ask for the original with data.revision=..., or use data=local for rows of your own"
        raise DataError(f"{hub.id} {part} has {len(rows)} rows, expected {expected}: {reason}; {way_out}")
    return HubSplit(task, rows, f"{hub.id} {part}")
