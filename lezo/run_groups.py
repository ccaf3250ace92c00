"""Which runs belong together? Those that differ in their seeds only; and what sets the groups apart. No torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lezo.identity import APART, HOW, UP_TO_ROUNDING, within
from lezo.runs_read import Run

_ALWAYS = ("optim.lr", "optim.eps", "optim.sparsity")
_NEVER = (  # they name the row already, are the seeds, or change no result
    *("task.name", "model.name", "optim.name", "data.name", "seed", "task.data_seed"),
    *(*APART, *HOW, *UP_TO_ROUNDING, "model.lr"),
)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (None of a single one) of ``n`` values."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Group:
    """Runs of one task, model, optimizer and setting; ``setting`` says in words what it is."""

    title: str
    model: str
    optim: str
    setting: str
    runs: Sequence[Run]

    @property
    def finished(self) -> list[Run]:
        """The runs that came to their end, one a seed: a repeated run is no further sample."""
        return list({run.seed: run for run in self.runs if run.finished}.values())

    def spread(self, value: Callable[[Run], float | None]) -> Spread | None:
        """Of a value over the finished runs that have it."""
        return spread(map(value, self.finished))


@dataclass(frozen=True)
class Target:
    """A dev loss to come down to, or a dev score (0..1) to come up to, and in words where it is from."""

    loss: float | None
    score: float | None
    words: str

    def reached(self, run: Run) -> tuple[int, float] | None:
        """The first step after training began whose dev row is there, and its seconds."""
        for dev in run.devs:
            if dev.step > 0 and self._met(dev.loss, dev.score):
                return dev.step, dev.seconds
        return None

    def _met(self, loss: float | None, score: float) -> bool:
        if self.score is not None:
            return score >= self.score
        return self.loss is not None and loss is not None and loss <= self.loss


def spread(values: Iterable[float | None]) -> Spread | None:
    """Of the values that are there; None of none."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    return Spread(statistics.fmean(there), statistics.stdev(there) if there[1:] else None, len(there))


def groups(runs: Sequence[Run]) -> list[Group]:
    """The groups by task, model and optimizer; runs that finished later come later within each."""
    families: dict[tuple[str, str, str], dict[tuple[Any, ...], list[Run]]] = {}
    for run in runs:
        family = families.setdefault((run.title, run.model, run.optim), {})
        family.setdefault(tuple(sorted(_decisive(run).items())), []).append(run)
    return [
        Group(*names, setting, members)
        for names in sorted(families)
        for setting, members in _named(list(families[names].values()))
    ]


def by_task(found: Sequence[Group]) -> dict[tuple[str, str], list[Group]]:
    """The groups of each task and model."""
    tasks: dict[tuple[str, str], list[Group]] = {}
    for group in found:
        tasks.setdefault((group.title, group.model), []).append(group)
    return tasks


def target(members: Sequence[Group], loss: float | None, score: float | None) -> Target | None:
    """What is asked for, else the lowest best dev loss that all finished runs reach; None without any."""
    if score is not None:
        return Target(None, score, f"a dev score of {100 * score:.4g} % (report.target_score)")
    if loss is not None:
        return Target(loss, None, f"a dev loss of {loss:.4g} (report.target_loss)")
    best = [least for group in members for run in group.finished if (least := _best(run)) is not None]
    if not best:
        return None
    words = f"a dev loss of {max(best):.4f}, the lowest that every finished run reached"
    return Target(max(best), None, words + _no_gain(members, max(best)))


def _no_gain(members: Sequence[Group], loss: float) -> str:
    """A warning where a run already started there."""
    started = [dev.loss for group in members for run in group.runs for dev in run.devs[:1] if dev.step == 0]
    worse = any(start is not None and start <= loss for start in started)
    return "; no better than before training, so ask for another (report.target_loss)" if worse else ""


def _best(run: Run) -> float | None:
    return min((dev.loss for dev in run.devs if dev.step > 0 and dev.loss is not None), default=None)


def sparsity_families(members: Sequence[Group]) -> list[list[Group]]:
    """Groups of one task and model that differ in sparsity only, mezo being 0; by sparsity."""
    families: dict[tuple[Any, ...], list[Group]] = {}
    for group in members:
        if group.optim in ("mezo", "lezo") and group.runs[0].sparsity is not None:
            rest = {k: v for k, v in _decisive(group.runs[0]).items() if k != "optim.sparsity"}
            families.setdefault(tuple(sorted(rest.items())), []).append(group)
    ordered = [
        sorted(family, key=lambda group: group.runs[0].sparsity or 0.0) for family in families.values()
    ]
    return [family for family in ordered if len({group.runs[0].sparsity for group in family}) > 1]


def _decisive(run: Run) -> dict[str, str]:
    """The settings that make another result, as text; without a configuration those that the result repeats."""
    if not run.settings:
        keys = (*_ALWAYS, "optim.weight_decay")
        return {key: _shown(value) for key in keys if (value := run.said(key)) is not None}
    return {key: _shown(value) for key, value in run.settings.items() if not within(key, _NEVER)}


def _named(members: Sequence[list[Run]]) -> list[tuple[str, list[Run]]]:
    """Each group with its setting in words: learning rate, eps, sparsity, and whatever else sets it apart."""
    said = [_decisive(runs[0]) for runs in members]
    keys = sorted(set().union(*said) - set(_ALWAYS)) if said else []
    apart = [key for key in keys if len({one.get(key, "-") for one in said}) > 1]
    return [
        (_words(one, [*_ALWAYS, *apart]), runs)
        for one, runs in sorted(zip(said, members, strict=True), key=lambda pair: _order(pair[0]))
    ]


def _words(said: Mapping[str, str], keys: Sequence[str]) -> str:
    parts = [
        f"{key.removeprefix('optim.')} {said[key]}"
        for key in keys
        if said.get(key, "None") != "None" or key not in _ALWAYS and key in said
    ]
    return ", ".join(parts) or "-"


def _order(said: Mapping[str, str]) -> tuple[Any, ...]:
    """Sparsity first, then learning rate as numbers, then all the rest as text."""
    numbers = [_float(said.get(key, "")) for key in ("optim.sparsity", "optim.lr", "optim.eps")]
    return (*numbers, sorted(said.items()))


def _float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return -math.inf
    return -math.inf if math.isnan(value) else value


def _shown(value: Any) -> str:
    return f"{value:g}" if type(value) in (int, float) else str(value)
