"""Which rows of one's own are what: tables for train, dev and test by the names of files, or of a data set's splits."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from glob import glob, has_magic
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
_SAVED = ("dataset_dict.json", "state.json")  # what Dataset.save_to_disk leaves in a folder


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


def local_tables(path: str, splits: Mapping[str, str | None]) -> Found:
    """Of a file, a folder, a folder that the `datasets` library saved, or a pattern. Raises DataError."""
    place = Path(path).expanduser()
    if place.is_dir():
        if any((place / name).is_file() for name in _SAVED):
            return _of_splits(str(place), _saved(place), splits)
        return _of_files(place, tables_in(place), splits)
    if place.exists() or not has_magic(path):
        if splits:
            raise DataError(
                f"{place}: is one file, and data.splits={dict(splits)} names several; expected a folder"
            )
        return Found({"train": _table([_checked(place)])})
    return _of_files(place, _matching(place), splits)


def tables_in(folder: Path) -> list[Path]:
    """The tables that lie in a folder, or where there are none in its subfolder data/."""
    for place in (folder, folder / "data"):
        if place.is_dir():
            found = [file for file in sorted(place.iterdir()) if _is_table(file)]
            if found:
                return found
    return []


def _is_table(file: Path) -> bool:
    return form_of(file) is not None and not file.name.startswith(".") and file.is_file()


def _checked(file: Path) -> Path:
    if file.exists() and form_of(file) is None:
        raise DataError(f"{file}: the name says of no table what form it has; expected {KNOWN}")
    if not file.exists():
        raise DataError(f"{file}: no such file or folder")
    return file


def _matching(pattern: Path) -> list[Path]:
    matched = sorted(Path(name) for name in glob(str(pattern), recursive=True))
    files = [file for file in matched if _is_table(file)]
    if not files:
        others = f"matches no table, only {', '.join(file.name for file in matched[:3])}"
        raise DataError(f"data.path={pattern}: {others if matched else 'matches no file'}; expected {KNOWN}")
    return files


def _table(files: Sequence[Path]) -> Table:
    forms = {form.name: file for file in files if (form := form_of(file)) is not None}
    if len(forms) > 1:
        (one, first), (two, second) = list(forms.items())[:2]
        both = f"{first.name} is {one} and {second.name} is {two}"
        raise DataError(
            f"{first.parent}: {both}; expected rows in one form (data.path=FILE, data.splits={{train: FILE, test: FILE}})"
        )
    form = form_of(files[0])
    assert form is not None
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    shown, where = f"{files[0].name}{more}", f"{files[0]}{more}"
    return Table(shown, where, lambda: _all_rows(files, form), form.row, form.expected)


def _all_rows(files: Sequence[Path], form: Form) -> Iterator[Placed]:
    for file in files:
        yield from read(file, form)


def _of_files(place: Path, files: Sequence[Path], splits: Mapping[str, str | None]) -> Found:
    """By the names of the files; shards of a split, as train-00000-of-00002.parquet, are one table."""
    if not files:
        raise DataError(f"{place}: no table in this folder; expected files that end in {KNOWN}")
    given = {role: _named(place, files, role, name) for role, name in splits.items() if name is not None}
    taken = {file for named in given.values() for file in named}
    groups: dict[str, list[Path]] = {}
    for file in files:
        if file not in taken:
            groups.setdefault(_SHARD.sub("", stem_of(file)), []).append(file)
    named = {role: groups[name] for role, name in _by_name(place, [*groups], splits).items()}
    if not given and not named:
        return Found({"train": _table(files)})
    found = {**given, **named}
    _check_train(place, found, [file.name for file in files])
    unread = [file.name for file in files if not any(file in used for used in found.values())]
    return Found({role: _table(used) for role, used in found.items()}, tuple(unread))


def _named(place: Path, files: Sequence[Path], role: str, name: str) -> list[Path]:
    """The files that data.splits names: by name, by stem, by pattern, or by a path from the folder."""
    folder = place if place.is_dir() else place.parent
    found = [file for file in files if name in (file.name, stem_of(file), _SHARD.sub("", stem_of(file)))]
    found = found or [file for file in files if fnmatch(file.name, name)]
    found = (
        found or [file for file in sorted(folder.glob(name)) if _is_table(file)]
        if name[:1] not in "/~"
        else found
    )
    if not found and (folder / Path(name).expanduser()).is_file():
        found = [_checked(folder / Path(name).expanduser())]
    if not found:
        there = ", ".join(file.name for file in files)
        raise DataError(
            f"{place}: data.splits.{role}={name} is no file there; expected one of {_clipped(there)}"
        )
    return found


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


def _check_train(place: Path | str, found: Mapping[str, Any], names: Sequence[str]) -> None:
    if "train" not in found:
        there = _clipped(", ".join(names))
        raise DataError(
            f"{place}: none of {there} is called train; data.splits={{train: NAME}} says which is"
        )


def _of_splits(place: str, splits: Mapping[str, Any], given: Mapping[str, str | None]) -> Found:
    """By the names of a data set's splits."""
    for role, name in given.items():
        if name is not None and name not in splits:
            close = difflib.get_close_matches(name, splits, n=1)
            likely = f"did you mean {close[0]}? " if close else ""
            raise DataError(
                f"{place}: has no split {name!r} (data.splits.{role}); {likely}expected one of {', '.join(splits)}"
            )
    named = {role: name for role, name in given.items() if name is not None}
    found = {**named, **_by_name(place, [name for name in splits if name not in named.values()], given)}
    if not found and len(splits) == 1:
        found = {"train": next(iter(splits))}
    _check_train(place, found, [*splits])
    tables = {role: _split_table(place, name, splits[name]) for role, name in found.items()}
    return Found(tables, tuple(name for name in splits if name not in found.values()))


def _split_table(place: str, name: str, rows: Any) -> Table:
    return Table(f"the split {name}", f"{place} {name}", lambda: dataset_rows(f"{place} {name}", rows))


def _saved(folder: Path) -> dict[str, Any]:
    """What Dataset.save_to_disk or DatasetDict.save_to_disk wrote, mapped into memory as it lies there."""
    from datasets import DatasetDict, load_from_disk

    try:
        loaded = load_from_disk(str(folder))
    except Exception as error:  # damaged files raise anything: KeyError, ArrowInvalid, JSONDecodeError
        reason = _reason(error)
        raise DataError(
            f"{folder}: cannot be read as a folder that the datasets library saved ({reason})"
        ) from None
    return dict(loaded) if isinstance(loaded, DatasetDict) else {"all": loaded}


def hub_tables(id: str, config: str | None, revision: str | None, splits: Mapping[str, str | None]) -> Found:
    """Of a data set on the Hugging Face hub, kept in the cache of the `datasets` library (HF_HOME). Raises DataError.

    The library, from its version 4 on, runs no loading script of a data set.
    """
    from datasets import load_dataset

    try:
        loaded = load_dataset(id, config, revision=revision)
    except (
        Exception
    ) as error:  # whatever files hold that cannot be read; a message of some lines names the configs
        way_out = (
            "check data.path=OWNER/NAME, data.config and the connection, or use data=local data.path=FILE"
        )
        raise DataError(f"cannot read {id} from the Hugging Face hub ({_reason(error)}); {way_out}") from None
    return _of_splits(id, dict(loaded), splits)


def _reason(error: Exception) -> str:
    return _clipped(f"{type(error).__name__}: {' '.join(str(error).split())}", 300)


def _clipped(text: str, most: int = 200) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
