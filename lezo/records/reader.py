"""What do run folders say? Every run below some folders, finished or not, damaged or not. No torch."""

from __future__ import annotations

import math
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lezo.config.identity import settings
from lezo.config.methods import METHODS
from lezo.records.folder import (
    BENCH,
    CHECKPOINTS,
    CONFIG,
    ENVIRONMENT,
    LOCK,
    METRICS,
    MODEL,
    RESULT,
    TRACEBACK,
)
from lezo.records.rows import DevRow, Row, TrainRow, row_of
from lezo.records.schema import LARGEST, decoded, sifted

_APART = {CHECKPOINTS, MODEL, "wandb"}  # folders of a run that hold no runs
_FILES = (CONFIG, METRICS, RESULT, ENVIRONMENT, TRACEBACK, LOCK)


@dataclass(frozen=True)
class Step:
    """A train row: ``seconds`` since training began, ``phases`` in seconds; ``loss`` None where it was not finite."""

    step: int
    seconds: float
    loss: float | None
    phases: Mapping[str, float]


@dataclass(frozen=True)
class Run:
    """A run folder's content as far as it could be read; ``damage`` names what could not, a line each.

    ``settings``: its configuration by dotted keys. ``status``: its result's ("unknown" where that is none), or "running" or "unfinished".
    """

    folder: str
    settings: Mapping[str, Any]
    result: Mapping[str, Any]
    status: str
    error: str
    steps: Sequence[Step] = ()
    devs: Sequence[DevRow] = ()
    memory: float | None = None  # bytes, of the last train row
    damage: Sequence[str] = ()

    def said(self, key: str) -> Any:
        """A setting such as "optim.lr", by its result's word where the configuration has none."""
        found = self.settings.get(key)
        return self.result.get(_IN_RESULT.get(key, key.rpartition(".")[2])) if found is None else found

    def number(self, key: str) -> float | None:
        """A finite number of the result, such as "test" or "seconds.total"; None where there is none."""
        place: Any = self.result
        for part in key.split("."):
            place = place.get(part) if isinstance(place, Mapping) else None
        return _finite(place)

    @property
    def title(self) -> str:
        """The task, and beside it the data where they are not the published ones."""
        task, data = str(self.said("task.name")), self.said("data.name")
        return task if data == "hub" else f"{task} ({data or 'unknown data'})"

    @property
    def model(self) -> str:
        """The model's name; for `model=hf` its folder or hub id."""
        name = self.said("model.name")
        return str(self.settings.get("model.path") or name if name == "hf" else name)

    @property
    def optim(self) -> str:
        """The optimizer's name."""
        return str(self.said("optim.name"))

    @property
    def peft(self) -> str:
        """The adapter that is trained; "none" too where a folder knows of none."""
        return str(self.said("peft.name") or "none")

    @property
    def method(self) -> str:
        """The optimizer's name, with the adapter it trains: "mezo + lora"."""
        return self.optim if self.peft == "none" else f"{self.optim} + {self.peft}"

    @property
    def sparsity(self) -> float | None:
        """The fraction of blocks skipped: a method's own or its setting; None of what has none."""
        method = METHODS.get(self.optim)
        fixed = None if method is None else method.sparsity
        return _finite(self.said("optim.sparsity")) if fixed is None else fixed

    @property
    def seed(self) -> tuple[str, str]:
        """What makes a run another sample of the same setting: its seed, and that of its data."""
        return str(self.said("seed")), str(self.said("task.data_seed"))

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.status == "finished"


_IN_RESULT = {
    "task.name": "task",
    "data.name": "data",
    "model.name": "model",
    "optim.name": "optim",
    "peft.name": "peft",
}


@dataclass
class Reader:
    """Reads runs again and again; those whose files have not changed are not read a second time."""

    _known: dict[Path, tuple[Any, Run]] = field(default_factory=dict)

    def runs(self, roots: Sequence[Path]) -> list[Run]:
        """Every run below ``roots``, by name. Nothing outside them is read, and no link in them is followed."""
        found = {place.resolve(): place for root in roots for place in run_folders(root)}
        self._known = {place: self._run(place, shown) for place, shown in found.items()}
        return sorted((run for _, run in self._known.values()), key=lambda run: run.folder)

    def _run(self, place: Path, shown: Path) -> tuple[Any, Run]:
        now, known = _signature(place), self._known.get(place)
        if known is not None and known[0] == now and known[1].status != "running":
            return known
        return now, read_run(shown)


def run_folders(root: Path) -> Iterator[Path]:
    """The folders of runs at and below ``root``: those with a configuration and metrics, or with a result."""
    for folder, inner, files in os.walk(root, followlinks=False):
        held = set(files)
        is_run = {CONFIG, METRICS} <= held or RESULT in held
        inner[:] = sorted(set(inner) - _APART) if is_run else sorted(inner)
        if is_run and BENCH not in held and not _is_bench(Path(folder)):
            yield Path(folder)


def read_run(folder: Path) -> Run:
    """The run in ``folder``, with whatever of it can be read."""
    damage: list[str] = []
    result = read_result(folder, damage)
    status = str(result.get("status", "unknown")) if result else _unended(folder)
    rows = _rows(folder / METRICS, damage, torn_is_damage=status not in ("running", "unfinished"))
    return Run(
        folder=str(folder),
        settings=_settings(folder, damage),
        result=result,
        status=status,
        error=_error(folder, result, status),
        steps=[_step(row) for row in rows if isinstance(row, TrainRow)],
        devs=[row for row in rows if isinstance(row, DevRow)],
        memory=next((row.memory for row in reversed(rows) if isinstance(row, TrainRow)), None),
        damage=damage,
    )


def _signature(folder: Path) -> Any:
    """What changes whenever a file of the run does."""
    return [_stat(folder / name) for name in _FILES]


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _is_bench(folder: Path) -> bool:
    """Whether these are the timings of lezo-bench, interrupted ones too: their rows name a variant."""
    return b'"variant"' in (_content(folder / METRICS, [], most=200) or b"")


def _content(path: Path, damage: list[str], most: int = -1) -> bytes | None:
    """A plain file's bytes, ``most`` at most; None where there is none: links, pipes and the like are named."""
    try:
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(number, "rb") as file:
            if not stat.S_ISREG(os.fstat(number).st_mode):
                raise OSError(0, "not a plain file")
            return file.read(most)
    except FileNotFoundError:
        return None
    except OSError as error:
        damage.append(f"{path.name}: cannot be read ({error.strerror})")
        return None


def read_result(folder: Path, damage: list[str]) -> dict[str, Any]:
    """What of a run's result is as described; nothing where it has none (yet). What is not is added to ``damage``."""
    content = _content(folder / RESULT, damage)
    if content is None:
        return {}
    try:
        found, wrong = sifted(decoded(content))
    except ValueError:
        found, wrong = {}, ["not a result"]
    damage += [f"{RESULT}: {problem}" for problem in wrong]
    return found


def _settings(folder: Path, damage: list[str]) -> dict[str, Any]:
    content = _content(folder / CONFIG, damage)
    if content is None:
        damage.append(f"{CONFIG}: missing")
        return {}
    try:
        found = settings(content.decode())
    except Exception:  # yaml and omegaconf have many ways to say that a file is not theirs
        found = {}
    if "task.name" not in found:
        damage.append(f"{CONFIG}: not the configuration of a run")
        return {}
    return found


def _rows(file: Path, damage: list[str], *, torn_is_damage: bool) -> list[Row]:
    """The rows of metrics.jsonl that are rows; the first of the others is named, and how many they are."""
    content = _content(file, damage)
    if content is None:
        return []
    *lines, rest = content.split(b"\n")
    rows: list[Row] = []
    wrong: list[int] = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(row_of(line))
        except ValueError:
            wrong.append(number)
    if wrong:
        more = f" and {len(wrong) - 1} more" if wrong[1:] else ""
        damage.append(f"{file.name}: line {wrong[0]}{more} not a row of a run")
    if rest and torn_is_damage:
        damage.append(f"{file.name}: the last line is cut short")
    return rows


def _step(row: TrainRow) -> Step:
    return Step(row.step, row.seconds, None if math.isnan(row.loss) else row.loss, row.phases)


def _finite(value: Any) -> float | None:
    """A number of a configuration that anybody may have written to."""
    return float(value) if type(value) in (int, float) and abs(value) <= LARGEST else None


def _error(folder: Path, result: Mapping[str, Any], status: str) -> str:
    """Why a run did not finish, in the words there are."""
    if status in ("finished", "running"):
        return ""
    if result.get("error"):
        return str(result["error"])
    if status == "unfinished":
        return f"no result: killed, or at work on another machine; {_last_sign(folder)}"
    told = (_content(folder / TRACEBACK, []) or b"").decode(errors="replace").strip().splitlines()
    return told[-1] if told else ""


def _last_sign(folder: Path) -> str:
    times = [found[2] for name in _FILES if (found := _stat(folder / name)) is not None]
    return f"last wrote at {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(max(times, default=0) / 1e9))}"


def _unended(folder: Path) -> str:
    """Whether a run without a result still goes on: whether its process holds its lock, which is not touched."""
    owner = (_content(folder / LOCK, [], most=20) or b"").decode(errors="replace").strip()
    held = _stat(folder / LOCK)
    try:
        locks = Path("/proc/locks").read_text().split("\n") if held else []
    except OSError:  # not Linux
        locks = []
    ours = (line.split() for line in locks if " FLOCK " in line)
    return (
        "running"
        if any(lock[4] == owner and lock[5].endswith(f":{held[0]}") for lock in ours if held)
        else "unfinished"
    )


def seconds_a_step(run: Run) -> float | None:
    """The median; of the rows where there are any, else what the result says."""
    spent = sorted(sum(step.phases.values()) for step in run.steps if step.phases)
    if not spent:
        return run.number("seconds.step_median")
    middle = spent[(len(spent) - 1) // 2 : len(spent) // 2 + 1]
    return math.fsum(middle) / len(middle)
