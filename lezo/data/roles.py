"""Which rows of one's own are what: tables for train, dev and test by the names of files, or of a data set's splits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from glob import glob, has_magic
from itertools import combinations
from pathlib import Path
from typing import Any

from lezo.data.tables import KNOWN, DataError, Form, Placed, dataset_rows, form_of, read, stem_of
from lezo.tasks.row import Row

ROLES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "dev": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
"""What a file or split is for, by the words in its name that say so."""
_SHARD = re.compile(r"[-_.]?\d+([-_]of[-_]\d+)?$")


@dataclass(frozen=True)
class Own:
    """What settings say of rows of one's own. ``columns``: the task's names for them -> the data's. ``splits``: "train",
    "dev", "test" -> a file or split, None for none. ``test_share``: of a single table, drawn under ``seed``.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    splits: Mapping[str, str | None] = field(default_factory=dict)
    test_share: float = 0.2
    seed: int = 0


@dataclass(frozen=True)
class Table:
    """Rows that belong together. ``shown`` names them in a sentence; ``expected``: what is said where there are none."""

    shown: str
    where: str
    rows: Callable[[], Iterator[Placed]]
    row: type[Row] = Row
    expected: str = "expected at least one"


@dataclass(frozen=True)
class Found:
    """Tables by their role, and the names of those that have none."""

    tables: Mapping[str, Table]
    unread: tuple[str, ...] = ()


def local_tables(path: str, splits: Mapping[str, str | None], task: str) -> Found:
    """Of a file, a folder, a folder that the `datasets` library saved, or a pattern. Raises DataError.

    ``task``: whose published layout a folder without tables might have had.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        if is_saved(place):
            return _of_saved(place, splits)
        files = tables_in(place)
        if not files and not any(splits.values()):
            layout = f"{task}/train.jsonl and val.jsonl, or tables"
            raise DataError(f"{place}: no rows in it; expected {layout}: {KNOWN}")
        return _of_files(place, files, splits)
    if not place.exists() and has_magic(path):
        return _of_files(place, _matching(place), splits)
    if splits:
        several = f"data.splits={dict(splits)} names several; expected data.path=FOLDER"
        raise DataError(f"{place}: is one file, and {several}")
    return Found({"train": _table([_checked(place)])})


def is_saved(folder: Path) -> bool:
    """Whether Dataset.save_to_disk or DatasetDict.save_to_disk wrote a folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def tables_in(folder: Path) -> list[Path]:
    """The tables that lie in a folder, or where there are none in its subfolder data/."""
    for place in (folder, folder / "data"):
        if place.is_dir() and (found := [file for file in sorted(place.iterdir()) if _is_table(file)]):
            return found
    return []


def _is_table(file: Path) -> bool:
    return form_of(file) is not None and not file.name.startswith(".") and file.is_file()


def _checked(file: Path) -> Path:
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    if form_of(file) is None:
        raise DataError(f"{file}: its name does not say what form it has; expected one that ends in {KNOWN}")
    return file


def _matching(pattern: Path) -> list[Path]:
    matched = [Path(name) for name in sorted(glob(str(pattern), recursive=True))]
    if files := [file for file in matched if _is_table(file)]:
        return files
    others = ", ".join(file.name for file in matched[:3])
    found = f"matches only {others}" if matched else "matches no file"
    raise DataError(f"data.path={pattern}: {found}; expected names that end in {KNOWN}")


def _table(files: Sequence[Path]) -> Table:
    forms = {form.name: file for file in files if (form := form_of(file)) is not None}
    if len(forms) > 1:
        both = " and ".join(f"{file.name} ({name})" for name, file in [*forms.items()][:2])
        way_out = "expected one form, or data.path=FILE, or data.splits={train: FILE, test: FILE}"
        raise DataError(f"{files[0].parent}: {both} would be one table; {way_out}")
    form = form_of(files[0])
    assert form is not None
    names = [file.name for file in files]
    shown = " and ".join(names) if len(names) < 3 else f"{len(names)} files, {names[0]} to {names[-1]}"
    rows = partial(_all_rows, files, form)
    return Table(shown, str(files[0].parent / shown), rows, form.row, form.expected)


def _all_rows(files: Sequence[Path], form: Form) -> Iterator[Placed]:
    for file in files:
        yield from read(file, form)


def _of_files(place: Path, files: Sequence[Path], splits: Mapping[str, str | None]) -> Found:
    """By the names of the files; shards of a split, as train-00000-of-00002.parquet, are one table."""
    given = {role: _named(place, files, role, name) for role, name in splits.items() if name is not None}
    groups: dict[str, list[Path]] = {}
    for file in files:
        if not any(file in used for used in given.values()):
            groups.setdefault(_whole_name(file), []).append(file)
    named = {role: groups[name] for role, name in _by_name(place, [*groups], splits).items()}
    if not given and not named:
        return Found({"train": _table(files)})
    found = {**given, **named}
    _check_roles(place, {role: [str(file.resolve()) for file in used] for role, used in found.items()}, files)
    unread = [file.name for file in files if not any(file in used for used in found.values())]
    return Found({role: _table(used) for role, used in found.items()}, tuple(unread))


def _whole_name(file: Path) -> str:
    """The name without form and number of a shard."""
    return _SHARD.sub("", stem_of(file))


def _named(place: Path, files: Sequence[Path], role: str, name: str) -> list[Path]:
    """The files that data.splits names: by name, with or without its ending, by pattern, or by a path from the folder."""
    found = [file for file in files if name in (file.name, stem_of(file), _whole_name(file))]
    found = found or [file for file in files if fnmatch(file.name, name)]
    folder = place if place.is_dir() else place.parent
    found = found or [
        Path(one) for one in sorted(glob(str(folder / Path(name).expanduser()), recursive=True))
    ]
    if not found:
        there = _clipped(", ".join(file.name for file in files))
        raise DataError(f"{place}: data.splits.{role}={name} is no file there; expected one of {there}")
    return [_checked(file) for file in found]


def _by_name(place: Path | str, names: Sequence[str], splits: Mapping[str, str | None]) -> dict[str, str]:
    """Role -> the one name that says it, of those roles that data.splits leaves open."""
    found = {}
    for role in ROLES:
        fitting = [name for name in names if _role(name) == role] if role not in splits else []
        plain = [name for name in fitting if name.lower() in ROLES[role]]
        if len(plain or fitting) > 1:
            both = " and ".join((plain or fitting)[:2])
            raise DataError(f"{place}: {both} may both be {role}; data.splits={{{role}: NAME}} says which")
        if fitting:
            found[role] = (plain or fitting)[0]
    return found


def _role(name: str) -> str | None:
    """What a name says that it is for; None where it says nothing, or more than one thing."""
    words = {*re.split(r"[\W_]+", name.lower())}
    roles = [role for role, known in ROLES.items() if words & {*known}]
    return roles[0] if len(roles) == 1 else None


def _check_roles(place: Path | str, found: Mapping[str, Sequence[str]], names: Sequence[Any]) -> None:
    """Raise DataError where nothing is to train on, or something in two roles."""
    if "train" not in found:
        there = _clipped(", ".join(getattr(name, "name", name) for name in names))
        raise DataError(
            f"{place}: none of {there} is called train; data.splits={{train: NAME}} says which is"
        )
    for one, two in combinations(found, 2):
        if both := {*found[one]} & {*found[two]}:
            raise DataError(
                f"{min(both)}: would be {one} and {two}; expected other rows for each (data.splits)"
            )


def _of_splits(place: str, splits: Mapping[str, Any], given: Mapping[str, str | None]) -> Found:
    """By the names of a data set's splits."""
    named = {role: name for role, name in given.items() if name is not None}
    for role, name in named.items():
        if name not in splits:
            known = f"expected one of {', '.join(splits)}"
            raise DataError(f"{place}: data.splits.{role}={name} is no split of it; {known}")
    found = {**named, **_by_name(place, [name for name in splits if name not in named.values()], given)}
    if not found and len(splits) == 1:
        found = {"train": next(iter(splits))}
    _check_roles(place, {role: [name] for role, name in found.items()}, [*splits])
    tables = {
        role: _rows_of(f"the split {name}", f"{place}, split {name}", splits[name])
        for role, name in found.items()
    }
    return Found(tables, tuple(name for name in splits if name not in found.values()))


def _rows_of(shown: str, where: str, rows: Any) -> Table:
    return Table(shown, where, partial(dataset_rows, where, rows))


def _of_saved(folder: Path, splits: Mapping[str, str | None]) -> Found:
    """What `datasets` saved, mapped into memory as it lies there."""
    from datasets import DatasetDict, load_from_disk

    try:
        loaded = load_from_disk(str(folder))
    except Exception as error:  # damaged files raise anything: KeyError, ArrowInvalid, JSONDecodeError
        reason = _reason(error)
        raise DataError(
            f"{folder}: cannot be read as a folder that the datasets library saved ({reason})"
        ) from None
    if isinstance(loaded, DatasetDict):
        return _of_splits(str(folder), loaded, splits)
    if splits:
        raise DataError(f"{folder}: is one table, and data.splits={dict(splits)} names several; leave it out")
    return Found({"train": _rows_of(f"the rows of {folder.name}", str(folder), loaded)})


def hub_tables(id: str, config: str | None, revision: str | None, splits: Mapping[str, str | None]) -> Found:
    """Of a data set on the Hugging Face hub, kept in the cache of the `datasets` library (HF_HOME). Raises DataError.

    The library, from its version 4 on, runs no loading script of a data set.
    """
    from datasets import load_dataset

    try:
        loaded = load_dataset(id, config, revision=revision)
    except Exception as error:  # what files hold that cannot be read raises anything
        way_out = (
            "check data.path=OWNER/NAME, data.config and the connection, or use data=local data.path=FILE"
        )
        raise DataError(f"cannot read {id} from the Hugging Face hub ({_reason(error)}); {way_out}") from None
    return _of_splits(id, loaded, splits)


def _reason(error: Exception) -> str:
    return _clipped(f"{type(error).__name__}: {' '.join(str(error).split())}", 300)


def _clipped(text: str, most: int = 200) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
