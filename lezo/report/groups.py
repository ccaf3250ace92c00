"""Groups of runs that differ in their seeds only, and what sets the groups apart. No torch."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, TypeVar

from omegaconf import MISSING, OmegaConf

from lezo.config.identity import CHANGEABLE, IGNORED, UP_TO_ROUNDING, settings, within
from lezo.config.methods import Method
from lezo.config.schema import RunConfig
from lezo.records.reader import DIVERGED, Run
from lezo.records.rows import DevRow
from lezo.report.alike import same_words

_SHOWN = ("optim.lr", "optim.eps", "optim.sparsity")  # wherever they are set
_SHOWN_IF_UNUSUAL = (
    *("task.demos", "task.demo_sets", "eval.calibration", "eval.max_new_tokens", "optim.objective"),
    *("model.max_length", "model.quantization"),
    *("optim.probes", "optim.schedule", "optim.warmup", "optim.clip"),
)
# A group has its names beside its settings; rates and eps of models and adapters are where others' defaults come from.
_NAMES = ("task.name", "model.name", "optim.name", "peft.name", "data.name", "seed", "task.data_seed")
SOURCES = ("model.lr", "model.lora_lr", "model.prefix_lr", "model.head_lr", "peft.lr", "peft.eps")
_IGNORED = (*_NAMES, *SOURCES, *IGNORED, *CHANGEABLE, *UP_TO_ROUNDING)  # the last three change no result
ROOT = "root"  # the setting of those that are compared with the runs of another root

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)
_Settings = Callable[[Run], dict[str, str]]


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (None of a single value)."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class Group:
    """Runs of one task, model, method and setting.

    ``method``: the optimizer, and the adapter it trains: "mezo + lora". ``said``: what sets the group apart, by its
    short name; ``settings``: all that makes another result, as text. ``number``: that of its method and setting, the same in
    all tasks. ``rates``: how many groups that have finished runs differ from this one in their learning rate only,
    itself included, and ``diverged`` how many whose runs all diverged; ``best``: whether it is the one of those to report; ``edge``: whether its rate is the "highest" or the
    "lowest" of three or more.
    """

    title: str
    model: str
    method: str
    said: Mapping[str, str]
    settings: Mapping[str, str]
    runs: Sequence[Run]
    number: int = 0
    rates: int = 1
    diverged: int = 0
    best: bool = True
    edge: str = ""

    @property
    def setting(self) -> str:
        """What sets it apart, in words: "lr 1e-07, eps 0.001"."""
        return ", ".join(f"{key} {value}" for key, value in self.said.items()) or "-"

    @property
    def samples(self) -> list[Run]:
        """One run a seed, for curves: the last that finished, else the one that came furthest."""
        return list({run.seed: run for run in sorted(self.runs, key=_progress)}.values())

    @property
    def finished(self) -> list[Run]:
        """The runs that came to their end, one a seed: a repeated run is no further sample."""
        return list({run.seed: run for run in self.runs if run.finished}.values())

    @property
    def timed(self) -> Sequence[Run]:
        """Those whose seconds are told: that finished, while none has all."""
        return self.finished or self.samples

    @property
    def sparsity(self) -> float | None:
        """The fraction of blocks skipped: of mezo 0, None of what has none."""
        return self.runs[0].sparsity

    def result(self, key: str) -> Spread | None:
        """Of a number of the finished runs' results, such as "test"."""
        return spread(run.number(key) for run in self.finished)

    def by_seed(self, key: str) -> dict[tuple[str, str], float]:
        """The same, of each seed that has it."""
        values = {run.seed: run.number(key) for run in self.finished}
        return {seed: value for seed, value in values.items() if value is not None}

    @property
    def in_perplexity(self) -> bool:
        """Whether its scores are perplexities, lower being better."""
        return any(run.in_perplexity for run in self.runs)

    @property
    def dev_loss(self) -> Spread | None:
        """What learning rates are chosen by: the dev loss of each run's best step. Never a test score."""
        return self.result("dev_loss")

    def without(self, key: str) -> Hashable:
        """All settings but one."""
        return tuple(sorted((name, value) for name, value in self.settings.items() if name != key))


@dataclass(frozen=True)
class Target:
    """What runs are to reach: whether a dev row does, and in words what that is and where it is from."""

    met: Callable[[DevRow], bool]
    words: str

    def reached(self, run: Run) -> DevRow | None:
        """The first dev row after training began that meets it."""
        return next((dev for dev in run.devs if dev.step > 0 and self.met(dev)), None)


def gathered(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """The items of each key, both in the order in which they come."""
    lists: dict[Key, list[Item]] = {}
    for item in items:
        lists.setdefault(key(item), []).append(item)
    return lists


def spread(values: Iterable[float | None]) -> Spread | None:
    """Of the values that are there; None of none."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    return Spread(statistics.fmean(there), statistics.stdev(there) if there[1:] else None)


def group_runs(runs: Sequence[Run], root_of: Callable[[Run], str] = lambda run: "") -> list[Group]:
    """The groups by task, model, method and setting; within each the runs keep their order.

    ``root_of``: by what name the folder that a run was found below goes. Where a seed of a setting is in several of those,
    they are compared: groups are of one of them each.
    """
    settings_of: _Settings = partial(_decisive, words=same_words(runs))
    if _repeated(runs, root_of, settings_of):
        settings_of = partial(_in_root, root_of=root_of, settings_of=settings_of)
    families = gathered(runs, lambda run: (run.title, run.model, run.method))
    groups = [
        group for names in sorted(families) for group in _by_setting(*names, families[names], settings_of)
    ]
    grids = {key: _by_dev_loss(grid) for key, grid in gathered(groups, _but_rate).items()}
    first = sorted(
        groups, key=lambda group: _rejected(group, grids[_but_rate(group)])
    )  # get colours of their own
    numbers = {name: number for number, name in enumerate(gathered(first, _name))}
    lost = Counter(_but_rate(group) for group in groups if all(run.status == DIVERGED for run in group.runs))
    numbered = [_numbered(group, numbers[_name(group)], grids[_but_rate(group)]) for group in groups]
    return [replace(group, diverged=lost[_but_rate(group)]) for group in numbered]


def by_task(groups: Sequence[Group]) -> dict[tuple[str, str], list[Group]]:
    """The groups of each task and model."""
    return gathered(groups, lambda group: (group.title, group.model))


def sparsity_families(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups of one task and model that differ in sparsity only, mezo being 0; by sparsity."""

    def family(group: Group) -> Hashable:
        run = group.runs[0]
        return run.kind.family, group.title, group.model, run.peft, group.without("optim.sparsity")

    sparse = [g for g in groups if g.runs[0].kind.family and g.sparsity is not None]
    families = gathered(sorted(sparse, key=lambda g: g.sparsity or 0.0), family).values()
    return [members for members in families if len({g.sparsity for g in members}) > 1]


def target(groups: Sequence[Group], loss: float | None, score: float | None) -> Target | None:
    """What is asked for, else the lowest dev loss that all finished runs at chosen rates reach; None without any.

    A score up to 1 is asked of fractions, a larger one of perplexities.
    """
    in_perplexity = any(group.in_perplexity for group in groups)
    if score is not None and not in_perplexity and score <= 1:
        words = f"a dev score of {100 * score:.4g} % (report.target_score)"
        return Target(lambda dev: dev.score is not None and dev.score >= score, words)
    if score is not None and in_perplexity and score > 1:
        words = f"a dev perplexity of at most {score:.4g} (report.target_score)"
        return Target(lambda dev: dev.score is not None and dev.score <= score, words)
    if loss is not None:
        return _at_most(loss, f"a dev loss of {loss:.4g} (report.target_loss)")
    chosen = [run for group in groups if group.best for run in group.finished]
    lowest = [least for run in chosen if (least := _lowest(run)) is not None]
    if not lowest:
        return None
    where = "" if all(group.best for group in groups) else " at a chosen learning rate"
    words = f"a dev loss of {max(lowest):.4f}, the lowest that every finished run{where} reached"
    return _at_most(max(lowest), words + _no_gain(groups, max(lowest)))


def _at_most(loss: float, words: str) -> Target:
    return Target(lambda dev: dev.loss is not None and dev.loss <= loss, words)


def unusual(run: Run) -> dict[str, Any]:
    """Settings that make another method where they are not what they are by default: demonstrations and the like."""
    usual = _defaults(run.kind)
    given = {key: run.settings[key] for key in _SHOWN_IF_UNUSUAL if key in run.settings and key in usual}
    return {key: value for key, value in given.items() if value != usual[key]}


def _progress(run: Run) -> tuple[bool, int]:
    """How far a run came; `sorted` leaves the later of equals later."""
    return run.finished, max((row[-1].step for row in (run.steps, run.devs) if row), default=-1)


def _lowest(run: Run) -> float | None:
    return min((dev.loss for dev in run.devs if dev.step > 0 and dev.loss is not None), default=None)


def _no_gain(groups: Sequence[Group], loss: float) -> str:
    """A warning where a run already started there."""
    starts = [run.devs[0] for group in groups for run in group.runs if run.devs]
    no_gain = any(dev.step == 0 and dev.loss is not None and dev.loss <= loss for dev in starts)
    return "; no better than before training, so ask for another (report.target_loss)" if no_gain else ""


def _but_rate(group: Group) -> Hashable:
    """All that a group is but its learning rate."""
    return group.title, group.model, group.method, group.without("optim.lr")


def _by_dev_loss(grid: Sequence[Group]) -> list[Group]:
    """Those with a dev loss, the lowest mean over the seeds that finished first."""
    known = [(loss.mean, place) for place, group in enumerate(grid) if (loss := group.dev_loss)]
    return [grid[place] for _, place in sorted(known)]


def _name(group: Group) -> Hashable:
    return group.method, group.setting


def _numbered(group: Group, number: int, grid: Sequence[Group]) -> Group:
    """The group with its number, and as one of its grid; where no two can be compared yet, nothing is chosen."""
    numbered = replace(group, number=number)
    if len(grid) < 2:
        return numbered
    rates = [_rate(one) for one in grid]
    ends = {max(rates): "highest", min(rates): "lowest"} if len(grid) > 2 else {}
    edge = ends.get(_rate(group), "")
    return replace(numbered, rates=len(grid), best=not _rejected(group, grid), edge=edge)


def _rejected(group: Group, grid: Sequence[Group]) -> bool:
    """Whether another group of the grid is the one to report."""
    return len(grid) > 1 and group is not grid[0]


def _rate(group: Group) -> float:
    return _number(group.settings.get("optim.lr", ""))


def _repeated(runs: Sequence[Run], root_of: Callable[[Run], str], settings_of: _Settings) -> bool:
    """Whether a seed of a setting is in several roots."""
    if len({*map(root_of, runs)}) < 2:
        return False
    samples = gathered(
        runs, lambda run: (run.title, run.model, run.method, run.seed, *sorted(settings_of(run).items()))
    )
    return any(len({*map(root_of, same)}) > 1 for same in samples.values())


def _in_root(run: Run, root_of: Callable[[Run], str], settings_of: _Settings) -> dict[str, str]:
    return {**settings_of(run), ROOT: root_of(run)}


def _by_setting(
    title: str, model: str, method: str, runs: Sequence[Run], settings_of: _Settings
) -> Iterator[Group]:
    """One task, model and method's groups: by sparsity and learning rate as numbers, then by the rest as text."""
    alike = gathered(runs, lambda run: tuple(sorted(settings_of(run).items())))
    each = sorted(((dict(items), same) for items, same in alike.items()), key=lambda pair: _order(pair[0]))
    keys = sorted({key for values, _ in each for key in values if key not in _SHOWN})
    apart = [key for key in keys if len({values.get(key, "-") for values, _ in each}) > 1]
    for values, same in each:
        named = dict.fromkeys([*_SHOWN, *unusual(same[0]), *apart])
        yield Group(title, model, method, _said(values, list(named)), values, same)


def _decisive(run: Run, words: _Settings) -> dict[str, str]:
    """The settings that make another result, as text, in ``words`` that runs share; without a configuration those that the result repeats."""
    if not run.settings:
        values = {key: run.setting(key) for key in (*_SHOWN, "optim.weight_decay")}
        return {key: _text(value) for key, value in values.items() if value is not None}
    ignored = (*_IGNORED, "train") if not run.trains else _IGNORED
    values = {**_defaults(run.kind), **run.settings}
    values |= {key: said for key, said in words(run).items() if key in values}
    return {key: _text(value) for key, value in values.items() if not within(key, ignored)}


@cache
def _defaults(kind: Method) -> dict[str, Any]:
    """What a setting was in the folders of versions that did not have it yet: what it is by default now."""
    config = RunConfig(optim=kind.schema())
    return {key: value for key, value in settings(OmegaConf.to_yaml(config)).items() if value != MISSING}


def _said(values: Mapping[str, str], keys: Sequence[str]) -> dict[str, str]:
    """Such as {"lr": "1e-07", "eps": "0.001"}; a learning rate, eps or sparsity of None goes without saying."""
    shown = [key for key in keys if key in values and not (key in _SHOWN and values[key] == "None")]
    return {key.removeprefix("optim."): values[key] for key in shown}


def _order(values: Mapping[str, str]) -> tuple[Any, ...]:
    numbers = [_number(values.get(key, "")) for key in ("optim.sparsity", "optim.lr", "optim.eps")]
    return (*numbers, sorted(values.items()))


def _number(text: str) -> float:
    """-inf where there is none."""
    try:
        value = float(text)
    except ValueError:
        return -math.inf
    return -math.inf if math.isnan(value) else value


def _text(value: Any) -> str:
    return f"{value:g}" if type(value) in (int, float) else str(value)
