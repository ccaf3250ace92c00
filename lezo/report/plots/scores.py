"""The headline: which method came to what on which task, with its seeds, beside what is published."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from lezo.report.groups import Group, Spread, by_task, gathered
from lezo.report.palette import LIGHT, Palette
from lezo.report.plots.sheet import INK, Sheet, in_font, sheet
from lezo.report.published import matching
from lezo.tasks.metrics import PERPLEXITY

_ROW, _GAP, _HIGHEST = 0.16, 0.8, 8.0  # inches a row, rows between tasks, inches of a figure at most


def score_sheets(groups: Sequence[Group], looks: Palette) -> Iterator[Sheet]:
    """Of the tasks whose scores are fractions, and of those whose scores are perplexities."""
    for in_perplexity, name in ((False, "test score"), (True, "test perplexity")):
        chosen = [group for group in representatives(groups) if group.in_perplexity is in_perplexity]
        if chosen:
            yield _sheet(name, chosen, looks, 1.0 if in_perplexity else 100.0)


def representatives(groups: Sequence[Group]) -> list[Group]:
    """Of each task, model and method the setting to show: that of the lowest mean dev loss among those with test scores."""
    scored = [group for group in groups if group.best and group.result("test")]
    each = gathered(scored, lambda group: (group.title, group.model, group.method)).values()
    return [min(settings, key=_loss) for settings in each]


def _loss(group: Group) -> float:
    return math.inf if group.dev_loss is None else group.dev_loss.mean


def _sheet(name: str, chosen: Sequence[Group], looks: Palette, unit: float) -> Sheet:
    blocks = by_task(chosen)
    rows = len(chosen) + _GAP * len(blocks)
    x = f"{name} (%)" if unit == 100 else name
    caption = f"{name} by task and method"
    drawn = sheet(f"{name}s by task", caption, x, "", height=min(0.45 + _ROW * rows, _HIGHEST))
    several = len({model for _, model in blocks}) > 1
    top, centres = 0.0, {}
    for (title, model), members in blocks.items():
        members = sorted(members, key=lambda group: looks.methods.index(group.method))
        for place, group in enumerate(members):
            _draw(drawn, group, top + place, looks, unit)
        _draw_zero_shot(drawn, members, top, unit)
        words = in_font(title, 24) + _metric(members)
        centres[top + (len(members) - 1) / 2] = f"{words}\n{in_font(model, 24)}" if several else words
        top += len(members) + _GAP
    drawn.axes.set_yticks([*centres], [*centres.values()])
    drawn.axes.tick_params(axis="y", length=0)
    drawn.axes.grid(visible=False, axis="y")
    drawn.axes.set_ylim(top - _GAP / 2 - 0.5, -0.5 - _GAP / 2)
    return drawn


def _metric(members: Sequence[Group]) -> str:
    """Behind a task's name what its scores are, where that is no accuracy and the axis does not tell: ", F1"."""
    metric = members[0].runs[0].metric
    return "" if metric in ("accuracy", PERPLEXITY) else f",\n{in_font(metric.replace('f1', 'F1'), 24)}"


def _draw(drawn: Sheet, group: Group, row: float, looks: Palette, unit: float) -> None:
    look, method = looks.look(group), group.method
    colour, mean = LIGHT[look.colour], group.result("test")
    assert mean is not None
    scores = [(run.seed[0], value) for run in group.finished if (value := run.number("test")) is not None]
    words = f"{group.title}, {group.model}: {method}, {group.setting}"
    if mean.std is not None:
        bar = drawn.axes.hlines(
            row,
            unit * (mean.mean - mean.std),
            unit * (mean.mean + mean.std),
            colour,
            linewidth=1.4,
            alpha=0.6,
        )
        drawn.part(bar, method)
    dots = [f"{words}, seed {seed}: {unit * value:.4g}" for seed, value in scores]
    x = [unit * value for _, value in scores]
    drawn.dots(x, [row + 0.3] * len(x), dots, method, markersize=5, color=colour, alpha=0.75)
    told = f"{words}: {said(mean, unit)}, n = {len(scores)}"
    drawn.points(
        [unit * mean.mean],
        [row],
        [told],
        method,
        marker=look.mark,
        markersize=5,
        color=colour,
        markeredgecolor="white",
        markeredgewidth=0.5,
    )
    drawn.explain(method, color=colour, marker=look.mark, markersize=4.5, linewidth=1.4)
    for one in matching(group.runs[0]):
        tip = f"published: {one.method} {one.printed}, {one.source}"
        drawn.points(
            [one.mean],
            [row],
            [tip],
            method,
            marker="d",
            markersize=4.5,
            color="none",
            markeredgecolor=INK,
            markeredgewidth=0.8,
        )
        drawn.explain(
            "published",
            linestyle="none",
            marker="d",
            markersize=4.5,
            color="none",
            markeredgecolor=INK,
            markeredgewidth=0.8,
        )


def _draw_zero_shot(drawn: Sheet, members: Sequence[Group], top: float, unit: float) -> None:
    """A mark before the methods' rows: the model as it was."""
    known = [
        value for group in members for run in group.finished if (value := run.number("zero_shot")) is not None
    ]
    if not known:
        return
    mean = unit * sum(known) / len(known)
    drawn.axes.vlines(mean, top - 0.5, top + len(members) - 0.5, INK, linewidth=0.7, linestyle=(0, (1, 1.5)))
    drawn.explain("zero-shot", color=INK, linewidth=0.7, linestyle=(0, (1, 1.5)))


def said(mean: Spread, unit: float) -> str:
    """A mean with its deviation where it has one: "75.0 ± 7.1"."""
    form, spread = (".1f", ".1f") if unit == 100 else (".4g", ".2g")
    std = "" if mean.std is None else f" ± {unit * mean.std:{spread}}"
    return f"{unit * mean.mean:{form}}{std}"
