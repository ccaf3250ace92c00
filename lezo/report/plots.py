"""The report's plots as SVG, coloured by the page's variables; no text from a file is in them. No torch."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, cycle, product
from typing import TYPE_CHECKING, Any

import numpy as np

from lezo.records.reader import Run
from lezo.records.rows import PHASES, DevRow, TrainRow
from lezo.report.curves import Points, stretches
from lezo.report.groups import Group, Spread, by_task, sparsity_families
from lezo.report.tables import mean_phases, step_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = 8  # the page's variables --c0 to --c7; further series are dashed
_POINTS = 400  # of a curve
_DASHES = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
_PHASE_COLOURS = dict(zip(PHASES, (7, 5, 4, 6), strict=True))  # the first colours are settings
_INK, _FAINT = "#0b0b0b", "#0c0c0c"
_VARIABLES = {_INK: "var(--ink)", _FAINT: "var(--line)"} | {
    f"#0d0d{i:02d}": f"var(--c{i})" for i in range(COLOURS)
}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lezo",  # the same drawing has the same identifiers
    "font.size": 9,
    "axes.titlesize": 9,
    "legend.frameon": False,
    "text.parse_math": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), _FAINT),
}

_Row = TrainRow | DevRow
_Curve = Callable[[Run], Sequence[tuple[_Row, float | None]]]  # a run's rows, each with its y


def _step(run: Run) -> Callable[[_Row], float]:
    return lambda row: row.step


def _forwards(run: Run) -> Callable[[_Row], float] | None:
    cost = run.forwards_a_step
    return None if cost is None else lambda row: row.step * cost


def _seconds(run: Run) -> Callable[[_Row], float]:
    return lambda row: row.seconds


_Axis = Callable[[Run], Callable[[_Row], float] | None]  # a run's rows' x; None where it is not known
_AXES: Mapping[str, _Axis] = {"step": _step, "training forwards": _forwards, "wall-clock": _seconds}


@dataclass(frozen=True)
class Plot:
    """A drawing, and in words what it shows."""

    title: str
    svg: str


def plots(groups: Sequence[Group]) -> dict[tuple[str, str], list[Plot]]:
    """The plots of each task and model; none of what no run has a number for."""
    import matplotlib

    place = count()
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        return {
            names: [Plot(title, _own_ids(_svg(figure), next(place))) for title, figure in drawings(members)]
            for names, members in by_task(groups).items()
        }


def drawings(groups: Sequence[Group]) -> Iterator[tuple[str, Figure]]:
    """The drawings of one task and model, each with what it shows in words."""
    kinds: list[tuple[str, _Curve, bool]] = [
        ("dev score %", partial(_dev_scores, in_perplexity=False), True),
        ("dev perplexity", partial(_dev_scores, in_perplexity=True), True),
        ("dev loss", lambda run: [(dev, dev.loss) for dev in run.devs], True),
        ("train loss, smoothed", train_loss, False),
    ]
    for over, (what, curve, marked) in product(_AXES, kinds):
        if any(_points(group.runs, curve, _AXES[over]) for group in groups):
            yield _curves(what, groups, curve, over, marked=marked)
    numbered = sorted(groups, key=lambda group: group.number)
    timed = [(group, phases) for group in numbered if (phases := mean_phases(group))]
    if timed:
        yield _bars(timed)
    values: list[tuple[str, float, Callable[[Group], Spread | None]]] = [
        ("test score %", 100.0, lambda group: None if group.in_perplexity else group.result("test")),
        ("test perplexity", 1.0, lambda group: group.result("test") if group.in_perplexity else None),
        ("seconds a step", 1.0, step_seconds),
    ]
    for what, unit, value in values:
        known = [
            [(group, y) for group in family if (y := value(group))] for family in sparsity_families(groups)
        ]
        if any(known):
            yield _against_sparsity(what, unit, list(filter(None, known)))


def _dev_scores(run: Run, *, in_perplexity: bool) -> list[tuple[DevRow, float | None]]:
    """Where its scores are of this kind: fractions in percent, or perplexities."""
    if run.in_perplexity is not in_perplexity:
        return []
    unit = 1 if in_perplexity else 100
    return [(dev, None if dev.score is None else unit * dev.score) for dev in run.devs]


def _points(runs: Sequence[Run], curve: _Curve, axis: _Axis) -> list[Points]:
    """The curves of those runs that have a value, and an x for it."""
    placed = [(run, place) for run in runs if (place := axis(run)) is not None]
    each = ([(place(row), y) for row, y in curve(run)] for run, place in placed)
    return [points for points in each if any(y is not None for _, y in points)]


def _curves(
    what: str, groups: Sequence[Group], curve: _Curve, over: str, *, marked: bool
) -> tuple[str, Figure]:
    axis = _AXES[over]
    each = [(group, _points(group.runs, curve, axis)) for group in groups]
    longest = max(x for _, lines in each for points in lines for x, _ in points)
    scale = 1.0
    if axis is _seconds:
        scale, unit = time_unit(longest)
        over = f"{over}, {unit}"
    figure, axes = _axes(what, over)
    for group, lines in each:
        seeds = _points(group.samples, curve, axis)
        _draw(axes, group, lines, seeds, scale, marked=marked)
    return f"{what} against {over}", figure


def _draw(
    axes: Axes, group: Group, runs: Sequence[Points], seeds: Sequence[Points], scale: float, *, marked: bool
) -> None:
    """A single run as it is; of several the mean of one run a seed with their range, and each run faintly.

    Of a learning rate that another of the grid is better than only the runs, faintly.
    """
    number, alone = group.number, len(runs) == 1 and group.best
    look = _look(number) | {"linewidth": 1.3 if alone else 0.7, "alpha": 0.9 if alone else 0.3}
    for points in runs:
        x, y = np.array(points, dtype=float).T  # None becomes NaN: a gap
        axes.plot(x / scale, y, **look, **_marker(marked and alone or len(points) == 1))
    for part in [] if alone or not group.best else stretches(seeds, _POINTS):
        x, whole = part.x / scale, part.n == len(seeds)
        look = _look(number) | {"linewidth": 1.8 if whole else 0.9}
        axes.plot(x, part.mean, **look, **_marker(marked or len(x) == 1))
        axes.fill_between(x, part.low, part.high, color=_colour(number), alpha=0.14, linewidth=0)


def _marker(wanted: bool) -> dict[str, Any]:
    return {"marker": "o", "markersize": 3} if wanted else {}


def train_loss(run: Run) -> list[tuple[TrainRow, float]]:
    """A running mean of about a twentieth of the run, true from its first step on."""
    rows = [row for row in run.steps if not math.isnan(row.loss)]
    keep = 1 - 1 / max(len(rows) / 20, 1.0)
    mean, weight, smooth = 0.0, 0.0, []
    for row in rows:
        mean, weight = keep * mean + (1 - keep) * row.loss, keep * weight + (1 - keep)
        smooth.append((row, mean / weight))
    every = max(len(smooth) // _POINTS, 1)
    return smooth[::every] + (smooth[-1:] if (len(smooth) - 1) % every else [])


def time_unit(longest: float) -> tuple[float, str]:
    """Seconds in the unit that fits, and its name."""
    if longest < 300:
        return 1.0, "seconds"
    return (60.0, "minutes") if longest < 3 * 3600 else (3600.0, "hours")


def _bars(timed: Sequence[tuple[Group, Mapping[str, float]]]) -> tuple[str, Figure]:
    """A bar a group, stacked by phase."""
    places, starts = range(len(timed)), np.zeros(len(timed))
    figure, axes = _axes("where a step's time goes", "mean seconds a step", height=1.4 + 0.22 * len(timed))
    for phase, colour in _PHASE_COLOURS.items():
        widths = np.array([phases.get(phase, 0.0) for _, phases in timed])
        axes.barh(places, widths, left=starts, color=_colour(colour), label=phase, height=0.7)
        starts = starts + widths
    axes.set_yticks(places, [f"{group.number + 1}" for group, _ in timed])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    return "mean seconds a step by phase, a bar a setting", figure


def _against_sparsity(
    what: str, unit: float, families: Sequence[Sequence[tuple[Group, Spread]]]
) -> tuple[str, Figure]:
    """A point a setting, in its colour, and a line through those that differ in sparsity only."""
    figure, axes = _axes(f"{what}, mean ± std", "sparsity: fraction of blocks skipped each step")
    for family, dash in zip(families, cycle(_DASHES)):
        x, y = [group.sparsity or 0.0 for group, _ in family], [unit * spread.mean for _, spread in family]
        axes.plot(x, y, color=_INK, linewidth=0.7, linestyle=dash)
        for at, mean, (group, spread) in zip(x, y, family, strict=True):
            colour, std = _colour(group.number), unit * (spread.std or 0.0)
            axes.errorbar(at, mean, std, color=colour, marker="o", markersize=4, capsize=3)
    return f"{what} against sparsity", figure


def _axes(title: str, x: str, *, height: float = 2.7) -> tuple[Figure, Axes]:
    """An empty drawing, inches high; ``x`` says what its x-axis shows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4, height), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(visible=True, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(x)
    axes.set_title(title, loc="left")
    return figure, axes


def _look(number: int) -> dict[str, Any]:
    return {"color": _colour(number), "linestyle": _DASHES[number // COLOURS % len(_DASHES)]}


def _colour(number: int) -> str:
    return f"#0d0d{number % COLOURS:02d}"


def _svg(figure: Figure) -> str:
    """The figure as an SVG element as wide as its place, whose colours are the page's variables."""
    file = io.StringIO()
    unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=unsaid)
    start, rest = file.getvalue().split("<svg", 1)[1].split(">", 1)
    text = "<svg" + re.sub(r' (width|height)="[^"]*"', "", start) + ">" + rest
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return text


def _own_ids(svg: str, number: int) -> str:
    """The drawing with identifiers that no other drawing of the page has."""
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>p{number}-", svg)
