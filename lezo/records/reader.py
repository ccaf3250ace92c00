"""Reads every run below some folders for those who compare runs: finished or not, damaged or not. No torch."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lezo.config.identity import settings
from lezo.config.methods import METHODS, NO_METHOD, Method, method_name
from lezo.records.files import FolderError, read_file
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
from lezo.records.schema import LARGEST, decoded, result_of
from lezo.tasks.metrics import PERPLEXITY

_APART = {CHECKPOINTS, MODEL, "wandb"}  # folders of a run that hold no runs
UNKNOWN = "unknown"
DIVERGED = "diverged"  # failed by losses that were not finite, as it would again
_DIVERGED = (
    "non-finite losses in a row",
    "no dev loss since step 0 is finite",
)  # errors of results that say no more
_FILES = (CONFIG, METRICS, RESULT, ENVIRONMENT, TRACEBACK, LOCK)


@dataclass(frozen=True)
class Run:
    """A run folder's content as far as it could be read; ``damage`` names what could not, a line each.

    ``settings``: its configuration by dotted keys. ``status``: its result's ("unknown" where that has none), or
    "running" or "unfinished"; "diverged" of failures by losses. ``environment``: what environment.json says of its last session: device, packages, commit.
    """

    folder: str
    settings: Mapping[str, Any]
    result: Mapping[str, Any]
    status: str
    error: str
    steps: Sequence[TrainRow] = ()
    devs: Sequence[DevRow] = ()
    damage: Sequence[str] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)

    def setting(self, key: str) -> Any:
        """A setting such as "optim.lr"; from the result where the configuration has none."""
        value = self.settings.get(key)
        return self.result.get(key.removesuffix(".name").rpartition(".")[2]) if value is None else value

    def number(self, key: str) -> float | None:
        """A finite number of the result, such as "test" or "seconds.total"; None where there is none."""
        value: Any = self.result
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return _finite(value)

    @property
    def foreign(self) -> bool:
        """Whether nothing in its folder says what run it is: some other program's files."""
        said = self.settings or self.steps or self.devs or self.result.keys() & {"task", "model", "optim"}
        return not said

    @property
    def title(self) -> str:
        """The task, and beside it the data where they are not the published ones."""
        task, data = str(self.setting("task.name")), self.setting("data.name")
        return task if data == "hub" else f"{task} ({data or 'unknown data'})"

    @property
    def named(self) -> str:
        """The name that its user gave it; log.name of earlier versions chose who is told of it."""
        return str(self.settings.get("log.name") or "") if "log.wandb" in self.settings else ""

    @property
    def notes(self) -> str:
        """What its user wrote beside it."""
        return str(self.result.get("notes") or self.settings.get("log.notes") or "")

    @property
    def model(self) -> str:
        """The model's name; for `model=hf` its folder or hub id."""
        name = self.setting("model.name")
        return str(self.settings.get("model.path") or name if name == "hf" else name)

    @property
    def in_perplexity(self) -> bool:
        """Whether its scores are perplexities, lower being better; without a result as its task's settings tell."""
        told = self.result.get("metric") or self.settings.get("task.metric")
        return told == PERPLEXITY if told else "task.chat_template" in self.settings

    @property
    def metric(self) -> str:
        """What its scores are: "accuracy", "f1", ...; of a run that tells none an accuracy, or a perplexity where it is a chat."""
        usual = PERPLEXITY if self.in_perplexity else "accuracy"
        return str(self.result.get("metric") or self.settings.get("task.metric") or usual)

    @property
    def optim(self) -> str:
        """The optimizer's name."""
        return str(self.setting("optim.name"))

    @property
    def peft(self) -> str:
        """The adapter that is trained; "none" too in folders from before there were any."""
        return str(self.setting("peft.name") or "none")

    @property
    def method(self) -> str:
        """The optimizer, and the adapter it trains: "mezo + lora"."""
        return method_name(self.optim, self.peft)

    @property
    def kind(self) -> Method:
        """What lezo knows of the optimizer; NO_METHOD where it does not know it."""
        return METHODS.get(self.optim, NO_METHOD)

    @property
    def trains(self) -> bool:
        """Whether it takes steps: where it only scores it does not, whatever train.* says."""
        return self.kind is NO_METHOD or self.kind.trains

    @property
    def sparsity(self) -> float | None:
        """The fraction of blocks skipped: a method's own or its setting; None where it has none."""
        fixed = self.kind.sparsity
        return _finite(self.setting("optim.sparsity")) if fixed is None else fixed

    @cached_property
    def forwards_a_step(self) -> int | None:
        """What a step costs in forwards over its batch (`Method.forwards_a_step`); None where no configuration tells."""
        optim = {
            key[len("optim.") :]: value for key, value in self.settings.items() if key.startswith("optim.")
        }
        return _cost(self.kind, optim) if optim and self.kind.trains else None

    @property
    def forwards(self) -> float | None:
        """Training forwards over a batch that it has made, if it has ended: those of evaluations are not counted."""
        steps, cost = self.number("steps"), self.forwards_a_step
        return None if steps is None or cost is None else steps * cost

    @property
    def seed(self) -> tuple[str, str]:
        """What makes a run another sample of the same setting: its seed, and that of its data."""
        return str(self.setting("seed")), str(self.setting("task.data_seed"))

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.status == "finished"

    @cached_property
    def step_seconds(self) -> float | None:
        """The median seconds of a step: of the rows where there are any, else what the result says."""
        each = [sum(step.phases.values()) for step in self.steps if step.phases]
        return statistics.median(each) if each else self.number("seconds.step_median")


@dataclass
class Reader:
    """Reads runs again and again; those whose files have not changed are not read a second time."""

    _known: dict[Path, tuple[Any, Run]] = field(default_factory=dict)

    def runs(self, roots: Sequence[Path]) -> list[Run]:
        """Every run below ``roots``, by name. Nothing outside them is read, and no link in them is followed."""
        places = {folder.resolve(): folder for root in roots for folder in run_folders(root)}
        self._known = {place: self._run(place, folder) for place, folder in places.items()}
        return sorted((run for _, run in self._known.values()), key=lambda run: run.folder)

    def _run(self, place: Path, folder: Path) -> tuple[Any, Run]:
        signature, known = [_stat(place / name) for name in _FILES], self._known.get(place)
        if known is not None and known[0] == signature and known[1].status != "running":
            return known
        return signature, read_run(folder)


def run_folders(root: Path) -> Iterator[Path]:
    """The folders of runs at and below ``root``: those with a configuration and metrics, or with a result."""
    for name, inner, files in os.walk(root, followlinks=False):
        is_run = {CONFIG, METRICS} <= {*files} or RESULT in files
        inner[:] = sorted(set(inner) - _APART) if is_run else sorted(inner)
        folder = Path(name)
        if is_run and BENCH not in files and not _is_bench(folder):
            yield folder


def read_run(folder: Path) -> Run:
    """The run in ``folder``, with whatever of it can be read."""
    damage: list[str] = []
    result = read_result(folder, damage)
    status = ended_as(result) if result else _unended(folder)
    rows = _rows(folder / METRICS, damage, ended=bool(result))
    return Run(
        folder=str(folder),
        settings=_settings(folder / CONFIG, damage),
        result=result,
        status=status,
        error=_error(folder, result, status),
        steps=[row for row in rows if isinstance(row, TrainRow)],
        devs=[row for row in rows if isinstance(row, DevRow)],
        damage=damage,
        environment=_environment(folder / ENVIRONMENT, damage),
    )


def read_result(folder: Path, damage: list[str]) -> dict[str, Any]:
    """What of a run's result is as described; nothing where it has none (yet). What is not is added to ``damage``."""
    content = _content(folder / RESULT, damage)
    if content is None:
        return {}
    result, problems = result_of(content)
    damage += [f"{RESULT}: {problem}" for problem in problems]
    return {**result}


def ended_as(result: Mapping[str, Any]) -> str:
    """A result's status; "diverged" of one that failed by losses that were not finite. "unknown" where it has none."""
    status, error = str(result.get("status", UNKNOWN)), str(result.get("error"))
    diverged = result.get("diverged", any(words in error for words in _DIVERGED))
    return DIVERGED if status == "failed" and diverged else status


def _is_bench(folder: Path) -> bool:
    """Whether these are the timings of a lezo-bench that was interrupted: their rows name a variant."""
    return b'"variant"' in (_content(folder / METRICS, [], most=200) or b"")


def _content(path: Path, damage: list[str], most: int = -1) -> bytes | None:
    """A plain file's bytes, ``most`` at most; None where there is none: links, pipes and the like are named."""
    try:
        return read_file(path, plain=True, most=most)
    except FolderError as error:
        damage.append(str(error).removeprefix(f"{path.parent}/"))
        return None


def _stat(path: Path) -> tuple[int, int, int] | None:
    """What changes whenever a file does; None where it is not there."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _settings(file: Path, damage: list[str]) -> dict[str, Any]:
    content = _content(file, damage)
    try:
        values = settings((content or b"").decode())
    except Exception:  # yaml and omegaconf have many ways to say that a file is not theirs
        values = {}
    if "task.name" in values:
        return values
    damage.append(f"{file.name}: {'missing' if content is None else 'not the configuration of a run'}")
    return {}


def _environment(file: Path, damage: list[str]) -> dict[str, Any]:
    """What the run ran on and by; nothing where there is no such file."""
    content = _content(file, damage)
    try:
        return {} if content is None else decoded(content)
    except ValueError as error:
        damage.append(f"{file.name}: {error}")
        return {}


def _rows(file: Path, damage: list[str], *, ended: bool) -> list[Row]:
    """The rows of metrics.jsonl that are rows; the first of the others is named, and how many they are."""
    *lines, rest = (_content(file, damage) or b"").split(b"\n")
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
    if rest and ended:
        damage.append(f"{file.name}: the last line is cut short")
    return rows


def _cost(kind: Method, values: Mapping[str, Any]) -> int | None:
    """Forwards of a step under these settings, as far as the method still knows them."""
    known = {one.name for one in fields(kind.schema)}
    try:
        optim = OmegaConf.structured(kind.schema(name=kind.name))
        for key in values.keys() & known:
            optim[key] = values[key]
        return int(kind.forwards_a_step(OmegaConf.to_object(optim)))
    except Exception:  # values of an earlier or a damaged configuration, and a method of somebody else's
        return None


def _finite(value: Any) -> float | None:
    """A number of a file that anybody may have written to."""
    return float(value) if type(value) in (int, float) and abs(value) <= LARGEST else None


def _error(folder: Path, result: Mapping[str, Any], status: str) -> str:
    """Why a run did not finish, in the words there are."""
    if status in ("finished", "running"):
        return ""
    if status == "unfinished":
        written = max((found[2] for name in _FILES if (found := _stat(folder / name))), default=0)
        last = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(written / 1e9))
        return f"no result: killed, or at work on another machine; last wrote at {last}"
    lines = (_content(folder / TRACEBACK, []) or b"").decode(errors="replace").strip().splitlines()
    return str(result.get("error") or (lines[-1] if lines else ""))


def _unended(folder: Path) -> str:
    """Whether a run without a result still goes on: whether its process holds its lock, which is not touched."""
    owner = (_content(folder / LOCK, [], most=20) or b"").decode(errors="replace").strip()
    try:
        inode = (folder / LOCK).lstat().st_ino
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines() if " FLOCK " in line]
    except OSError:  # no lock, or not Linux
        return "unfinished"
    held = any(lock[4] == owner and lock[5].endswith(f":{inode}") for lock in locks)
    return "running" if held else "unfinished"
