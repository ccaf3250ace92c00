"""One row a run, one column a setting, a score, a time: results.csv and results.parquet, for pandas and R as they are. No torch."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lezo.config.identity import CHANGEABLE, within
from lezo.records.reader import Run
from lezo.records.rows import PHASES
from lezo.report.groups import SOURCES
from lezo.report.text import csv_text, plain

_SETTINGS = {
    "lr": "optim.lr",
    "eps": "optim.eps",
    "seed": "seed",
    "data_seed": "task.data_seed",
    "steps": "train.steps",
    "batch_size": "train.batch_size",
    "num_train": "task.num_train",
    "num_dev": "task.num_dev",
    "num_test": "task.num_test",
}  # those that have short names; all others go by their own, "optim_schedule"
_SCORES = ("test", "dev", "dev_loss", "zero_shot")
_HASHES = {"base_weights": "weights", "tokenizer": "tokenizer", "data": "data", "config": "config"}
_PACKAGES = ("torch", "transformers")
# Settings with a column of another kind, where defaults come from, and those of commands other than lezo-run.
_ELSEWHERE = ("task.name", "data.name", "model.name", "optim.name", "peft.name", "optim.sparsity")
_NOT_OF_RUNS = ("dry_run", "resume", "sweep", "inspect", "bench")
_LEFT_OUT = (
    *_ELSEWHERE,
    *_NOT_OF_RUNS,
    *SOURCES,
    *_SETTINGS.values(),
    *CHANGEABLE,
)

Rows = Sequence[Mapping[str, Any]]


def rows_of_runs(runs: Sequence[Run], root_of: Callable[[Run], str]) -> list[dict[str, Any]]:
    """A row a run: its columns by name, None where it has no such value. Scores as in result.json, times in seconds, memory in bytes."""
    rows = [_row(run, root_of(run)) for run in runs]
    more = [_settings(run) for run in runs]
    names = sorted({name for settings in more for name in settings} - rows[0].keys()) if rows else []
    every = [{**row, **{name: own.get(name) for name in names}} for row, own in zip(rows, more, strict=True)]
    return [{name: _scalar(value) for name, value in row.items()} for row in every]


def as_csv(rows: Rows) -> str:
    """As CSV: an empty cell is a missing value."""
    return csv_text([*rows[0]], rows)


def as_parquet(rows: Rows) -> bytes:
    """As Parquet: a column is of booleans, whole numbers, numbers or texts, by what all its values are."""
    import pyarrow
    from pyarrow import parquet

    columns = {name: _column([row[name] for row in rows]) for name in rows[0]}
    content = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), content)
    return content.getvalue()


def _column(values: Sequence[Any]) -> Any:
    """Of one type; of several, texts."""
    import pyarrow

    kinds = {type(value) for value in values if value is not None}
    for kind, allowed in ((bool, {bool}), (int, {int}), (float, {int, float})):
        if kinds and kinds <= allowed:
            return pyarrow.array([None if value is None else kind(value) for value in values])
    texts = [None if value is None else str(value).encode(errors="replace").decode() for value in values]
    return pyarrow.array(texts, pyarrow.string())


def _row(run: Run, root: str) -> dict[str, Any]:
    """The columns that every report has, in their order."""
    return {
        **_names(run),
        **{name: run.setting(key) for name, key in _SETTINGS.items()},
        "sparsity": run.sparsity,
        **_outcome(run),
        **_times(run),
        **_origin(run),
        "root": root,
        "folder": run.folder,
        "command": run.result.get("command") or run.environment.get("command"),
    }


def _names(run: Run) -> dict[str, Any]:
    return {
        "task": run.setting("task.name"),
        "dataset": run.setting("data.name"),
        "model": run.model,
        "method": run.method,
        "optimizer": run.optim,
        "peft": run.peft,
        "name": run.result.get("name") or run.named,
        "notes": run.notes or None,
    }


def _outcome(run: Run) -> dict[str, Any]:
    """What became of it, its scores, and the examples that there were."""
    examples = {f"examples_{split}": _count(run, f"examples.{split}") for split in ("train", "dev", "test")}
    return {
        "status": run.status,
        "error": run.error,
        "metric": run.result.get("metric"),
        **{name: run.number(name) for name in _SCORES},
        "best_step": _count(run, "best_step"),
        "steps_made": _count(run, "steps"),
        "skipped_steps": _count(run, "skipped_steps"),
        "forwards": None if run.forwards is None else int(run.forwards),
        **examples,
        "truncated": _count(run, "truncated"),
    }


def _times(run: Run) -> dict[str, Any]:
    """Wall-clock in seconds, and memory in bytes."""
    kinds = ("total", "train", "eval", "step_median", *PHASES)
    return {
        **{f"seconds_{kind}": run.number(f"seconds.{kind}") for kind in kinds},
        "peak_device_bytes": _count(run, "peak_memory_bytes.device"),
        "peak_host_bytes": _count(run, "peak_memory_bytes.host"),
        "expected_bytes": _count(run, "memory_bytes.expected"),
        "used_bytes": _count(run, "memory_bytes.used"),
    }


def _origin(run: Run) -> dict[str, Any]:
    """What it was made from, by which code, on what."""
    origin, ran_on = run.result.get("origin") or {}, run.environment
    packages = ran_on.get("packages")
    versions = packages if isinstance(packages, Mapping) else {}
    return {
        "weights_hash": run.result.get("weights"),
        **{f"{name}_hash": origin.get(key) for name, key in _HASHES.items()},
        "dtype": origin.get("dtype"),
        "code": origin.get("code"),
        "commit": ran_on.get("git_commit"),
        "device": ran_on.get("device"),
        "cpu_threads": ran_on.get("cpu_threads"),
        "platform": ran_on.get("platform"),
        "python": ran_on.get("python"),
        **{package: versions.get(package) for package in _PACKAGES},
        "started": ran_on.get("started"),
    }


def _settings(run: Run) -> dict[str, Any]:
    """All its other settings, under their keys; one of several values, such as a task's words, as JSON."""
    found: dict[str, Any] = {}
    for key, value in run.settings.items():
        name, *inner = _parts(key)
        if within(key, _LEFT_OUT):
            continue
        if inner:
            found.setdefault(plain(name), {})[inner[0]] = value
        else:
            found[plain(name)] = value
    return found


def _parts(key: str) -> list[str]:
    """A setting, and what comes below it: "task.words", "happy"."""
    group, *rest = key.split(".", 2)
    return [".".join([group, *rest[:1]]), *rest[1:]]


def _count(run: Run, key: str) -> int | None:
    value = run.number(key)
    return None if value is None else int(value)


def _scalar(value: Any) -> Any:
    """What a cell can hold: a text, a number, a truth; None where there is nothing, as JSON what is more than that."""
    if value is None or value == "" or value == []:
        return None
    if isinstance(value, int) and abs(value) >= 2**63:
        return str(value)  # no column of whole numbers holds it
    return value if isinstance(value, (str, bool, int, float)) else json.dumps(value, default=str)
