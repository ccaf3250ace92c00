"""Which runs belong together? Those that differ in their seeds only; and what sets the groups apart. No torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from omegaconf import MISSING, OmegaConf

from lezo.config.identity import APART, HOW, UP_TO_ROUNDING, settings, within
from lezo.config.methods import METHODS, NO_METHOD
from lezo.config.schema import RunConfig
from lezo.records.reader import Run

_ALWAYS = ("optim.lr", "optim.eps", "optim.sparsity")
_WHERE_SET = (
    "task.demos",
    "task.demo_sets",
    "eval.calibration",
    "optim.objective",
)  # the method, not its size
_NEVER = (  # they name the row already, are the seeds, change no result, or are where others' defaults come from
    *("task.name", "model.name", "optim.name", "peft.name", "data.name", "seed", "task.data_seed"),
    *(*APART, *HOW, *UP_TO_ROUNDING),
    *("model.lr", "model.lora_lr", "model.prefix_lr", "model.head_lr", "peft.lr", "peft.eps"),
)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (None of a single one) of ``n`` values."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Group:
    """Runs of one task, model, optimizer and setting; ``setting`` says in words what it is.

    ``optim`` has the adapter beside it: "mezo + lora". ``rates``: how many groups that have finished runs differ
    from this one in their learning rate only, itself included; ``best``: whether of those it is the one to report.
    """

    title: str
    model: str
    optim: str
    setting: str
    runs: Sequence[Run]
    rates: int = 1
    best: bool = True

    @property
    def samples(self) -> list[Run]:
        """One run a seed, for curves: the last that finished, else the one that came furthest."""
        seeds = {run.seed: run for run in sorted(self.runs, key=_came)}
        return list(seeds.values())

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


def _came(run: Run) -> tuple[bool, int]:
    """How far; `sorted` leaves the later of equals later."""
    return run.finished, max((row[-1].step for row in (run.steps, run.devs) if row), default=-1)


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
        family = families.setdefault((run.title, run.model, run.method), {})
        family.setdefault(tuple(sorted(_decisive(run).items())), []).append(run)
    found = [
        Group(*names, setting, members)
        for names in sorted(families)
        for setting, members in _named(list(families[names].values()))
    ]
    grids = {key: _ended(some) for key, some in _gathered(found, _but_rate).items()}
    return [_judged(group, grids[_but_rate(group)]) for group in found]


def _gathered(
    found: Iterable[Group], key: Callable[[Group], tuple[Any, ...]]
) -> dict[tuple[Any, ...], list[Group]]:
    gathered: dict[tuple[Any, ...], list[Group]] = {}
    for group in found:
        gathered.setdefault(key(group), []).append(group)
    return gathered


def _but_rate(group: Group) -> tuple[Any, ...]:
    """All that a group is but its learning rate."""
    return (group.title, group.model, group.optim, *_rest(group, "optim.lr"))


def _but_sparsity(group: Group) -> tuple[Any, ...]:
    return (_family(group.runs[0].optim), group.runs[0].peft, *_rest(group, "optim.sparsity"))


def _rest(group: Group, key: str) -> list[tuple[str, str]]:
    return sorted((k, v) for k, v in _decisive(group.runs[0]).items() if k != key)


def _ended(members: Sequence[Group]) -> list[Group]:
    """Those with a dev loss to judge by, the best first: the lowest mean over the seeds that finished."""
    known = [(found.mean, place) for place, group in enumerate(members) if (found := dev_loss(group))]
    return [members[place] for _, place in sorted(known)]


def _judged(group: Group, ended: Sequence[Group]) -> Group:
    """The group as one of its grid; where no two can be compared yet, nothing is chosen."""
    return replace(group, rates=len(ended), best=group is ended[0]) if len(ended) > 1 else group


def dev_loss(group: Group) -> Spread | None:
    """What learning rates are chosen by: the dev loss of each run's best step. Never a test score."""
    return group.spread(lambda run: run.number("dev_loss"))


def by_task(found: Sequence[Group]) -> dict[tuple[str, str], list[Group]]:
    """The groups of each task and model."""
    tasks = _gathered(found, lambda group: (group.title, group.model))
    return {(title, model): members for (title, model), members in tasks.items()}


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
    blocked = [g for g in members if _family(g.runs[0].optim) and g.runs[0].sparsity is not None]
    families = _gathered(blocked, _but_sparsity)
    ordered = [
        sorted(family, key=lambda group: group.runs[0].sparsity or 0.0) for family in families.values()
    ]
    return [family for family in ordered if len({group.runs[0].sparsity for group in family}) > 1]


def trains(optim: str) -> bool:
    """Whether an optimizer's runs take steps: not where they only score, whatever train.* says."""
    method = METHODS.get(optim)
    return method is None or method.trains


def _family(optim: str) -> str | None:
    return METHODS.get(optim, NO_METHOD).family


def _decisive(run: Run) -> dict[str, str]:
    """The settings that make another result, as text; without a configuration those that the result repeats."""
    if not run.settings:
        keys = (*_ALWAYS, "optim.weight_decay")
        return {key: _shown(value) for key in keys if (value := run.said(key)) is not None}
    said = {**_defaults(run.optim), **run.settings}
    without = (*_NEVER, *(("train",) if not trains(run.optim) else ()))
    return {key: _shown(value) for key, value in said.items() if not within(key, without)}


@cache
def _defaults(optim: str) -> dict[str, Any]:
    """What a setting was in the folders of versions that did not have it yet: what it is by default now."""
    config = RunConfig(optim=METHODS.get(optim, NO_METHOD).schema())
    return {key: value for key, value in settings(OmegaConf.to_yaml(config)).items() if value != MISSING}


def _named(members: Sequence[list[Run]]) -> list[tuple[str, list[Run]]]:
    """Each group with its setting in words: learning rate, eps, sparsity, and whatever else sets it apart."""
    said = [_decisive(runs[0]) for runs in members]
    keys = sorted(set().union(*said) - set(_ALWAYS)) if said else []
    apart = [key for key in keys if len({one.get(key, "-") for one in said}) > 1]
    return [
        (_words(one, list(dict.fromkeys([*_ALWAYS, *unusual(runs[0]), *apart]))), runs)
        for one, runs in sorted(zip(said, members, strict=True), key=lambda pair: _order(pair[0]))
    ]


def unusual(run: Run) -> dict[str, Any]:
    """Settings that make another method where they are not what they are by default: demonstrations and the like."""
    defaults = _defaults(run.optim)
    said = {key: run.settings[key] for key in _WHERE_SET if key in run.settings}
    return {key: value for key, value in said.items() if value != defaults.get(key)}


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
