"""Where rows come from: files in release or hub form, the Hugging Face hub, or the synthetic sample."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from lezo.data.roles import Found, Own, Table, hub_tables, local_tables
from lezo.data.sampling import subset
from lezo.data.tables import KNOWN, LINES, Placed, read
from lezo.data.tables import DataError as DataError
from lezo.tasks.row import MissingColumn, Row, RowError
from lezo.tasks.sample import MAKERS as SAMPLED
from lezo.tasks.sample import rows as sample_rows
from lezo.tasks.task import Example, Hub, Task


@dataclass(frozen=True)
class Pools:
    """A task's train and test rows, rendered, with a name that says where they are from.

    ``val``: the test set, published as validation rows. ``dev`` None: dev rows are drawn from ``train``. ``rows``: which
    of them are what, in words.
    """

    train: Sequence[Example]
    val: Sequence[Example]
    origin: str
    dev: Sequence[Example] | None = None
    rows: str = "train and dev from the train set, test from the validation set"


def load(
    task: Task,
    source: str,
    *,
    path: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    own: Own | None = None,
) -> Pools:
    """Read the task's pools from ``source``: sample, hub or, with a ``path``, rows of one's own. Raises DataError.

    Of data=local ``path`` is a file, a pattern, or a folder, where ``path/<task>/{train,val}.jsonl`` come first; of hub it
    is a data set's id.
    """
    own = own or Own()
    if source == "sample":
        return _sample(task)
    if source == "hub" and path is None:
        return _hub(task, revision)
    assert path is not None  # checked by config.checks
    if source == "hub":
        return _own(task, hub_tables(path, config, revision, own.splits), path, own)
    try:
        return _local(task, path, own)
    except OSError as error:  # a folder that is closed to us
        raise DataError(
            f"{path}: {error.strerror or error}; expected a file or folder that can be read"
        ) from None


def _local(task: Task, path: str, own: Own) -> Pools:
    folder = Path(path).expanduser()
    files = [folder / task.name / f"{part}.jsonl" for part in ("train", "val")]
    if own.splits or not any(map(os.path.lexists, files)):
        return _own(task, local_tables(path, own.splits, task.name), str(folder), own)
    _refuse_share(own, str(folder), f"{task.name}/val.jsonl")
    train, val = (_published(task, file, own) for file in files)
    return Pools(train, val, str(folder), rows="train and dev from train.jsonl, test from val.jsonl")


def _sample(task: Task) -> Pools:
    if task.name not in SAMPLED:
        known = f"there are no made-up rows for task={task.name}, only for {', '.join(SAMPLED)}"
        own = "add data=local data.path=FILE, a file or folder of your own rows"
        raise DataError(f"data=sample: {known}; {own}")
    train, val = ([_one(task, row) for row in part] for part in sample_rows(task.name))
    return Pools(train, val, "sample")


def _one(task: Task, columns: Any) -> Example:
    return next(iter(task.examples(Row(columns))))


def _published(task: Task, file: Path, own: Own) -> list[Example]:
    """The file's examples; every row is checked, also those that the sampling leaves out."""
    layout = f"{LINES.expected} in <data.path>/<task>/{{train,val}}.jsonl, or tables in <data.path>: {KNOWN}"
    rows = _rendered(task, read(file, LINES, layout), Row, own)
    if not (examples := [example for row in rows for example in row]):
        raise DataError(f"{file}: no rows, {LINES.expected}")
    return examples


def _own(task: Task, found: Found, origin: str, own: Own) -> Pools:
    """Test rows are those called so, else the validation rows, as the papers have it, else a share of the train rows.

    Validation rows that data.splits calls dev stay dev rows.
    """
    rows = {role: _checked(task, table, own) for role, table in found.tables.items()}
    shown = {role: f"{table.shown} ({_counted(rows[role])})" for role, table in found.tables.items()}
    named = "test" if "test" in rows else "dev" if "dev" in rows and own.splits.get("dev") is None else None
    if named is None:
        rows["train"], rows["test"] = _shared(rows["train"], found.tables["train"], own)
        test = f"{len(rows['test'])} of them, drawn (data.test_share={own.test_share:g})"
    else:
        _refuse_share(own, origin, shown[named])
        rows["test"], test = rows.pop(named), shown.pop(named)
        test += ", as in the papers where none is called test" if named == "dev" else ""
    train = f"train and dev from {shown['train']}"
    if "dev" in rows:
        train = f"train from {shown['train']}, dev from {shown['dev']}"
    unread = f"; not read: {', '.join(found.unread)}" if found.unread else ""
    flat = {role: [example for row in part for example in row] for role, part in rows.items()}
    return Pools(flat["train"], flat["test"], origin, flat.get("dev"), f"{train}, test from {test}{unread}")


def _refuse_share(own: Own, origin: str, where: str) -> None:
    """Raise DataError for a share that is asked for where test rows are named: in ``where``."""
    if own.test_share != Own.test_share:
        problem = f"data.test_share={own.test_share:g}: is of a single table, and test rows are in {where}"
        raise DataError(f"{origin}: {problem}; leave it out")


_Rows = list[list[Example]]
"""Examples by the row that they are of."""


def _counted(rows: _Rows) -> str:
    return f"{len(rows)} row{'' if len(rows) == 1 else 's'}"


def _shared(rows: _Rows, table: Table, own: Own) -> tuple[_Rows, _Rows]:
    """Train and test rows of one table, in its order."""
    size = round(own.test_share * len(rows))
    if not 0 < size < len(rows):
        left = "test on" if size == 0 else "train on"
        problem = f"data.test_share={own.test_share:g} of {_counted(rows)} leaves none to {left}"
        raise DataError(
            f"{table.where}: {problem}; expected another share, more rows, or a file for train and one for test"
        )
    drawn = {*subset(len(rows), size, own.seed)}
    train, test = (
        [row for at, row in enumerate(rows) if (at in drawn) is wanted] for wanted in (False, True)
    )
    return train, test


def _checked(task: Task, table: Table, own: Own) -> _Rows:
    """A table's examples by row, at least one."""
    rows = [*_rendered(task, table.rows(), table.row, own)]
    if not any(rows):
        raise DataError(f"{table.where}: no rows, {table.expected}")
    return rows


def _rendered(task: Task, rows: Iterable[Placed], kind: type[Row], own: Own) -> Iterable[list[Example]]:
    """Each row's examples; the error of a row says where it stands."""
    for where, columns in rows:
        try:
            yield [*task.examples(kind(_renamed(columns, own.columns)))]
        except MissingColumn as error:
            name = next(
                (name for name, column in own.columns.items() if column == error.column), error.column
            )
            way_out = f"data.columns={{{name}: {error.nearest or 'COLUMN'}}} says which it is"
            raise DataError(f"{where}: {error}; {way_out}") from None
        except ValueError as error:
            raise DataError(f"{where}: {error}") from None


def _renamed(columns: Any, names: Mapping[str, str]) -> Any:
    """The row with the task's own names for some of its columns, which keep theirs beside."""
    if not isinstance(columns, Mapping) or not names:
        return columns
    if (missing := next((column for column in names.values() if column not in columns), None)) is not None:
        raise MissingColumn(missing, [*columns])
    return {**columns, **{name: columns[column] for name, column in names.items()}}


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
