"""What does a setting do: the learning rate, it and another one, and how many blocks are skipped?"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

from lezo.report.groups import Group, Spread, gathered, sparsity_families
from lezo.report.palette import DASHES, LIGHT, Palette
from lezo.report.plots.scores import said
from lezo.report.plots.sheet import INK, Sheet, sheet
from lezo.report.tables import step_seconds

_RATE, _SPARSITY = "optim.lr", "optim.sparsity"
_Value = Callable[[Group], Spread | None]
_Seeds = Callable[[Group], list[float]]


def _tested(in_perplexity: bool) -> _Value:
    return lambda group: group.result("test") if group.in_perplexity is in_perplexity else None


def _by_seed(key: str) -> _Seeds:
    return lambda group: [value for run in group.finished if (value := run.number(key)) is not None]


_SECONDS: _Seeds = lambda group: [value for run in group.runs if (value := run.step_seconds) is not None]  # noqa: E731
_SCORES: Sequence[tuple[str, float, _Value, _Seeds]] = (
    ("test score (%)", 100.0, _tested(False), _by_seed("test")),
    ("test perplexity", 1.0, _tested(True), _by_seed("test")),
)


def rate_sheets(groups: Sequence[Group], looks: Palette, of: tuple[str, str]) -> Iterator[Sheet]:
    """Lines where methods have several learning rates; a map where a method has another setting too that varies."""
    lines: list[list[Group]] = []
    for members in gathered(groups, lambda group: group.method).values():
        families = [same for same in _rate_families(members) if len(same) > 1]
        other = _other_setting(families)
        lines += families if other is None else []
        for what, unit, value, _ in _SCORES if other is not None else ():
            cells = [
                (group, mean)
                for group in members
                if any(group in same for same in families) and (mean := value(group))
            ]
            if cells and other is not None:
                yield _map(what, unit, cells, other, of)
    for what, unit, value, seeds in (
        *_SCORES,
        ("dev loss", 1.0, lambda group: group.dev_loss, _by_seed("dev_loss")),
    ):
        if any(value(group) for same in lines for group in same):
            yield _against_rate(what, unit, lines, value, seeds, looks, of)


def _rate_families(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups of one method that differ in the learning rate only, by it."""
    rated = [group for group in groups if _number(group, _RATE) > 0]
    ordered = sorted(rated, key=lambda group: _number(group, _RATE))
    return [*gathered(ordered, lambda group: group.without(_RATE)).values()]


def _other_setting(families: Sequence[Sequence[Group]]) -> str | None:
    """The one setting, if it is one, in which families of learning rates differ."""
    if len(families) < 2:
        return None
    every = [family[0].settings for family in families]
    keys = {key for one in every for key in one if len({other.get(key) for other in every}) > 1} - {_RATE}
    return keys.pop() if len(keys) == 1 else None


def _number(group: Group, key: str) -> float:
    try:
        return float(group.settings.get(key, ""))
    except ValueError:
        return math.nan


def _short(what: str) -> str:
    return what.partition(" (")[0]


def _against_rate(
    what: str,
    unit: float,
    families: Sequence[Sequence[Group]],
    value: _Value,
    seeds: _Seeds,
    looks: Palette,
    of: tuple[str, str],
) -> Sheet:
    drawn = sheet(
        f"{_short(what)} by learning rate",
        f"{_short(what)} against learning rate, mean ± std",
        "learning rate",
        what,
        of=of,
    )
    drawn.axes.set_xscale("log")
    rates = sorted({_number(group, _RATE) for family in families for group in family})
    drawn.axes.set_xticks(rates, [f"{rate:g}" for rate in rates], rotation=0 if len(rates) < 7 else 45)
    drawn.axes.set_xticks([], minor=True)
    for family in families:
        known = [(group, mean) for group in family if (mean := value(group))]
        _draw_line(drawn, known, unit, seeds, looks, key=_RATE)
    return drawn


def _draw_line(
    drawn: Sheet,
    known: Sequence[tuple[Group, Spread]],
    unit: float,
    seeds: _Seeds,
    looks: Palette,
    *,
    key: str,
) -> None:
    """A line through a method's means, in its colour; the chosen rate has a larger mark with an edge."""
    if not known:
        return
    first = next((group for group, _ in known if group.best), known[0][0])
    look, method = looks.look(first), first.method
    x, y = [_number(group, key) for group, _ in known], [unit * mean.mean for _, mean in known]
    std = [unit * (mean.std or 0.0) for _, mean in known]
    container = drawn.axes.errorbar(x, y, std, color=LIGHT[look.colour], linewidth=1.2, elinewidth=0.9)
    for artist in (container.lines[0], *container.lines[2]):
        drawn.part(artist, method)
    for at, (group, mean) in zip(x, known, strict=True):
        _draw_point(drawn, at, group, mean, unit, seeds, looks, starred=group.best and group.rates > 1)
    drawn.explain(method, color=LIGHT[look.colour], marker=look.mark, markersize=4, linewidth=1.2)
    if any(group.best and group.rates > 1 for group, _ in known):
        drawn.explain(
            "chosen by dev loss",
            linestyle="none",
            marker="o",
            markersize=7,
            color="none",
            markeredgecolor=INK,
            markeredgewidth=0.8,
        )


def _draw_point(
    drawn: Sheet,
    at: float,
    group: Group,
    mean: Spread,
    unit: float,
    seeds: _Seeds,
    looks: Palette,
    *,
    starred: bool,
) -> None:
    look = looks.look(group)
    colour, values = LIGHT[look.colour], seeds(group)
    if len(values) > 1:
        dots = [f"{group.method}, {group.setting}: one run {unit * one:.4g}" for one in values]
        places = [at] * len(values), [unit * one for one in values]
        drawn.dots(*places, dots, group.method, markersize=4.5, color=colour, alpha=0.6)
    tip = f"{group.method}, {group.setting}: {said(mean, unit)}, n = {len(values)}"
    drawn.points([at], [unit * mean.mean], [tip], group.method, marker=look.mark, markersize=4, color=colour)
    if starred:
        drawn.points(
            [at],
            [unit * mean.mean],
            [f"{tip}; chosen by dev loss"],
            group.method,
            marker="o",
            markersize=7,
            color="none",
            markeredgecolor=INK,
            markeredgewidth=0.8,
        )


def _map(
    what: str, unit: float, cells: Sequence[tuple[Group, Spread]], other: str, of: tuple[str, str]
) -> Sheet:
    """A colour for each pair of values, with mean and deviation in words; brighter is higher."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    short, method = other.rpartition(".")[2], cells[0][0].method
    rates = sorted({_number(group, _RATE) for group, _ in cells})
    others = sorted({group.settings.get(other, "-") for group, _ in cells}, key=_order)
    drawn = sheet(
        f"{_short(what)} by learning rate and {short} {method}",
        f"{method}: {what} at each learning rate and {short}",
        "learning rate",
        short,
        of=of,
        height=0.7 + 0.32 * len(others),
    )
    means = [unit * mean.mean for _, mean in cells]
    scale, colour = Normalize(min(means), max(max(means), min(means) + 1e-9)), colormaps["viridis"]
    for group, mean in cells:
        _draw_cell(
            drawn,
            rates.index(_number(group, _RATE)),
            others.index(group.settings.get(other, "-")),
            group,
            mean,
            unit,
            colour(scale(unit * mean.mean)),
        )
    drawn.axes.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    drawn.axes.set_yticks(range(len(others)), others)
    drawn.axes.set_xlim(-0.5, len(rates) - 0.5)
    drawn.axes.set_ylim(-0.5, len(others) - 0.5)
    drawn.axes.grid(visible=False)
    return drawn


def _draw_cell(
    drawn: Sheet,
    x: int,
    y: int,
    group: Group,
    mean: Spread,
    unit: float,
    colour: tuple[float, float, float, float],
) -> None:
    from matplotlib.patches import Rectangle

    name = f"tips-{len(drawn.tips)}"
    drawn.axes.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, facecolor=colour, gid=name))
    drawn.tips[name] = [f"{group.method}, {group.setting}: {said(mean, unit)}, n = {len(group.finished)}"]
    light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 0.5
    star = "\u2605 " if group.best and group.rates > 1 else ""
    drawn.axes.text(
        x,
        y,
        star + said(mean, unit),
        ha="center",
        va="center",
        fontsize=6.5,
        color="#000000" if light else "#ffffff",
    )


def _order(value: str) -> tuple[float, str]:
    try:
        return float(value), value
    except ValueError:
        return math.inf, value


def sparsity_sheets(groups: Sequence[Group], looks: Palette, of: tuple[str, str]) -> Iterator[Sheet]:
    """Score and seconds against the fraction of blocks skipped, each sparsity at its learning rate, the chosen one of several."""
    families = _sparsity_families(groups)
    for what, unit, value, seeds in (*_SCORES, ("seconds a step", 1.0, step_seconds, _SECONDS)):
        known = [[(group, mean) for group in family if (mean := value(group))] for family in families]
        if any(known):
            yield _against_sparsity(what, unit, [*filter(None, known)], seeds, looks, of)


def _sparsity_families(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups that differ in sparsity only, and in the learning rate that each has, the chosen one of several."""
    sparse = [group for group in groups if group.best and group.sparsity is not None]
    ordered = sorted(
        (group for group in sparse if group.runs[0].kind.family), key=lambda group: group.sparsity or 0.0
    )
    chosen = {key: same for key, same in gathered(ordered, _but_rate).items() if _each_once(same)}
    return [
        *chosen.values(),
        *(same for same in sparsity_families(groups) if _but_rate(same[0]) not in chosen),
    ]


def _each_once(groups: Sequence[Group]) -> bool:
    """Whether they are several sparsities, each at one rate: of a grid that is not finished nothing is chosen yet."""
    return 1 < len(groups) == len({group.sparsity for group in groups})


def _but_rate(group: Group) -> Hashable:
    """What else a group is than its sparsity and its learning rate."""
    rest = {key: value for key, value in group.settings.items() if key not in (_RATE, _SPARSITY)}
    return group.runs[0].kind.family, group.runs[0].peft, tuple(sorted(rest.items()))


def _against_sparsity(
    what: str,
    unit: float,
    families: Sequence[Sequence[tuple[Group, Spread]]],
    seeds: _Seeds,
    looks: Palette,
    of: tuple[str, str],
) -> Sheet:
    caption = f"{_short(what)} against sparsity, mean ± std"
    drawn = sheet(
        f"{_short(what)} by sparsity", caption, "sparsity: fraction of blocks skipped each step", what, of=of
    )
    names = _apart([[group for group, _ in family] for family in families])
    for number, family in enumerate(families):
        x, y = [group.sparsity or 0.0 for group, _ in family], [unit * mean.mean for _, mean in family]
        dash = DASHES[number % len(DASHES)]
        line: dict[str, Any] = {"color": INK, "linewidth": 0.6, "linestyle": (0, dash) if dash else "solid"}
        drawn.axes.plot(x, y, **line)
        if len(families) > 1:
            drawn.explain(names[number], **line)
        for at, mean, (group, spread) in zip(x, y, family, strict=True):
            look, std = looks.look(group), unit * (spread.std or 0.0)
            bar = drawn.axes.vlines(at, mean - std, mean + std, LIGHT[look.colour], linewidth=1.1)
            drawn.part(bar, group.method)
            _draw_point(drawn, at, group, spread, unit, seeds, looks, starred=False)
            drawn.explain(
                group.method, color=LIGHT[look.colour], marker=look.mark, markersize=4, linewidth=1.1
            )
    return drawn


def _apart(families: Sequence[Sequence[Group]]) -> list[str]:
    """A family's last method, and those settings of all its members that not all families have: "lezo, eps 0.01"."""
    inside = [set.intersection(*({*group.said.items()} for group in family)) for family in families]
    shared = set.intersection(*inside)
    own = [
        [f"{key} {value}" for key, value in family[-1].said.items() if (key, value) in common - shared]
        for family, common in zip(families, inside, strict=True)
    ]
    return [
        f"line: {', '.join([family[-1].method, *parts])}" for family, parts in zip(families, own, strict=True)
    ]
