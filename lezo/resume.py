"""How far had the run come? The last step whose journal record, or checkpoint, and metrics are all there."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lezo.checkpoint import Checkpoint, find_checkpoints, remove
from lezo.evaluate import Evaluation
from lezo.identity import Origin, differences
from lezo.journal import Header, JournalFile, Recipe, read_journal
from lezo.record import FolderError, read_file
from lezo.train import Progress

JOURNAL, CHECKPOINTS, METRICS = "journal.bin", "checkpoints", "metrics.jsonl"
_NEEDED = {
    "train": {"step", "seconds", "loss", "skipped", "phases"},
    "dev": {"step", "seconds", "dev_loss", "dev_score", "eval_seconds"},
    "test": {"step", "seconds", "test_loss", "test_score"},
}
_APART = (
    "step",
    "seconds",
    "skipped",
    "phases",
    "memory",
)  # of a train row; the rest is what the step measured
_WAYS = "set it back, or start anew in another folder with hydra.run.dir=DIR"


@dataclass(frozen=True)
class Row:
    """A line of metrics.jsonl, and what it says."""

    line: bytes
    kind: str  # train, dev or test
    step: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Past:
    """What lasts of the earlier sessions: all of it is about steps up to ``step``.

    ``journal_end``: the bytes of the journal that are kept; None where a new one begins.
    """

    step: int = 0
    rows: Sequence[Row] = ()
    journal: JournalFile | None = None
    journal_end: int | None = None
    checkpoints: Sequence[Checkpoint] = field(default_factory=list)
    forgotten: Sequence[Checkpoint] = field(default_factory=list)

    @property
    def zero_shot(self) -> Evaluation | None:
        """The test score before training, where it was written."""
        rows = [row.values for row in self.rows if row.kind == "test"]
        return Evaluation(rows[0]["test_loss"], rows[0]["test_score"]) if rows else None

    def progress(self) -> Progress:
        """What training had come to."""
        done = Progress()
        for row in self.rows:
            values = row.values
            done.elapsed = values["seconds"]
            if row.kind == "train":
                measured = {k: _number(v) for k, v in values.items() if k not in _APART}
                done.count(row.step, not values["skipped"], values["phases"], measured)
            elif row.kind == "dev":
                done.judge(row.step, _evaluation(values))
        return done

    def forget(self) -> None:
        """Remove the checkpoints of steps that will be made again."""
        for checkpoint in self.forgotten:
            remove(checkpoint.path)


def refuse_changes(folder: Path, yaml: str) -> None:
    """Raise FolderError where the run in ``folder`` has another configuration, with each setting that differs."""
    before = _config(folder)
    try:
        changed = differences(before, yaml)
    except Exception as error:  # yaml and omegaconf have many ways to say that a file is not theirs
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FolderError(f"{folder / 'config.yaml'}: not the configuration of a run ({reason})") from None
    if changed:
        raise FolderError(_refusal(folder, changed))


def grows(folder: Path, yaml: str) -> bool:
    """Whether ``yaml`` asks for more steps or seconds than the run in ``folder`` was to make."""
    return bool(differences(yaml, _config(folder)))  # what may only grow is a difference the other way


def _config(folder: Path) -> str:
    return (read_file(folder / "config.yaml") or b"").decode(errors="replace")


def read_past(folder: Path, origin: Origin, recipe: Recipe | None, *, steps: int, eval_every: int) -> Past:
    """What the run in ``folder`` has to go on from. ``recipe`` None: a first-order run, which needs checkpoints.

    Raises FolderError where it is another run's, or damaged.
    """
    checkpoints = find_checkpoints(folder / CHECKPOINTS)
    for checkpoint in checkpoints:
        if (other := checkpoint.origin) != asdict(origin):
            _refuse_origin(checkpoint.path, other, origin)
    rows = read_rows(folder / METRICS)
    last = max((row.step for row in rows if row.kind == "train"), default=0)
    journal = None if recipe is None else _journal(folder, Header(origin, recipe))
    durable = min(last, journal.step if journal else 0)
    if recipe is None:
        durable = max((c.step for c in checkpoints if c.step <= last), default=0)
    judged = any(row.kind == "dev" and row.step == durable for row in rows)
    if journal is not None:
        judged = judged and any(r.step == durable for r in journal.devs())
    judged = judged and (durable % eval_every == 0 or durable == steps)
    return Past(
        step=durable,
        rows=[row for row in rows if _kept(row, durable, judged)],
        journal=journal,
        journal_end=None if journal is None else journal.cut(durable, judged),
        checkpoints=[c for c in checkpoints if c.step <= durable],
        forgotten=[c for c in checkpoints if c.step > durable],
    )


def read_rows(file: Path) -> list[Row]:
    """The rows of metrics.jsonl; a last line cut short is left out. Raises FolderError for other damage."""
    *lines, _ = (read_file(file) or b"").split(b"\n")
    rows: list[Row] = []
    made = 0
    for number, line in enumerate(lines, start=1):
        try:
            row = _row(line + b"\n", made)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            where = f"{file}, line {number}"
            ways = "remove it and the lines behind it, and their steps are made again"
            raise FolderError(f"{where}: not a row of this run ({error}); {ways}") from None
        made = row.step
        rows.append(row)
    return rows


def _row(line: bytes, made: int) -> Row:
    """One row behind ``made`` steps. Raises ValueError, KeyError or TypeError for what is not one."""
    values = json.loads(line)
    if not isinstance(values, dict):
        raise ValueError("not an object")
    kind = next((kind for kind, needed in _NEEDED.items() if needed <= values.keys()), None)
    if kind is None:
        raise ValueError("neither a train nor a dev nor a test row")
    phases = values.get("phases", {})
    if not all(map(_is_number, [values["seconds"], *phases.values()])) or not all(
        map(_is_value, values.values())
    ):
        raise ValueError("a value is not a number")
    if values["step"] != made + (kind == "train"):
        raise ValueError(f"step {values['step']} after step {made}")
    return Row(line, kind, values["step"], values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_value(value: Any) -> bool:
    return value is None or isinstance(value, bool | dict) or _is_number(value)


def _kept(row: Row, durable: int, judged: bool) -> bool:
    return row.step < durable or row.step == durable and (row.kind != "dev" or judged)


def _evaluation(values: Mapping[str, Any]) -> Evaluation:
    return Evaluation(values["dev_loss"], values["dev_score"], seconds=values["eval_seconds"])


def _number(value: Any) -> float:
    """A measure; what was not finite is null in the file."""
    return math.nan if value is None else float(value)


def _journal(folder: Path, header: Header) -> JournalFile | None:
    path = folder / JOURNAL
    if not path.exists():
        return None
    journal = read_journal(path)
    _refuse_origin(path, asdict(journal.header.origin), header.origin)
    now, then = asdict(header.recipe), asdict(journal.header.recipe)
    changed = [
        f"{key}: {then[key]} in the run and {now[key]} here" for key in _DECIDES if now[key] != then[key]
    ]
    if changed:
        raise FolderError(_refusal(path, changed))
    return journal


_DECIDES = ("seed", "sparsity", "decay", "rounding")  # of a recipe; where a model lies does not matter


def _refuse_origin(path: Path, then: Mapping[str, Any], now: Origin) -> None:
    try:
        changed = Origin(**then).differences(now)
    except TypeError:
        changed = ["what it starts from is not said in full"]
    if changed:
        raise FolderError(_refusal(path, changed))


def _refusal(path: Path, changed: Sequence[str]) -> str:
    return f"{path}: cannot go on with this run: {'; '.join(changed)}; {_WAYS}"
