"""The report's plots as SVG for a page: its own variables colour them, and no text from a file is in them. No torch."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, cycle
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
_PHASE_COLOURS = {"data": 7, "forward": 5, "perturb": 4, "update": 6}  # the first colours are settings
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

Series = Mapping[tuple[str, str], int]  # a number of each method and setting
_Curve = Callable[[Run, bool], Points]  # of a run, against wall-clock or against steps


@dataclass(frozen=True)
class Plot:
    """A drawing, and in words what it shows."""

    title: str
    svg: str


def series(groups: Sequence[Group]) -> dict[tuple[str, str], int]:
    """A number for each method and setting, the same in all tasks: its colour, and its name in plots."""
    names = dict.fromkeys((group.method, group.setting) for group in groups)
    return {name: number for number, name in enumerate(names)}


def plots(groups: Sequence[Group], numbers: Series) -> dict[tuple[str, str], list[Plot]]:
    """The plots of each task and model; none of what no run has a number for."""
    import matplotlib

    place = count()
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        return {
            names: [Plot(plot.title, _own_ids(plot.svg, next(place))) for plot in _drawn(members, numbers)]
            for names, members in by_task(groups).items()
        }


def _drawn(groups: Sequence[Group], numbers: Series) -> Iterator[Plot]:
    yield from _curves(groups, numbers)
    yield from _bars(groups, numbers)
    yield from _ablations(groups, numbers)


def _curves(groups: Sequence[Group], numbers: Series) -> Iterator[Plot]:
    kinds: list[tuple[str, _Curve, bool]] = [
        ("dev score %", _dev_score, True),
        ("dev loss", _dev_loss, True),
        ("train loss, smoothed", train_loss, False),
    ]
    for clock in (False, True):
        for what, curve, marked in kinds:
            lines = [_line(group, numbers, curve, clock) for group in groups]
            if any(line.runs for line in lines):
                yield _lines(what, lines, clock=clock, marked=marked)


@dataclass(frozen=True)
class _Line:
    """A group's curves: one of each run, and those of one run a seed, which make the mean."""

    number: int
    runs: Sequence[Points]
    seeds: Sequence[Points]


def _line(group: Group, numbers: Series, curve: _Curve, clock: bool) -> _Line:
    """Runs without a value have no curve."""
    each = ([curve(run, clock) for run in runs] for runs in (group.runs, group.samples))
    runs, seeds = ([points for points in some if any(y is not None for _, y in points)] for some in each)
    return _Line(numbers[group.method, group.setting], runs, seeds)


def _lines(what: str, lines: Sequence[_Line], *, clock: bool, marked: bool) -> Plot:
    longest = max(x for line in lines for points in line.runs for x, _ in points)
    scale, unit = time_unit(longest) if clock else (1.0, "step")
    over = f"wall-clock, {unit}" if clock else unit
    figure, axes = _axes(what, over)
    for line in lines:
        _draw(axes, line, scale, marked=marked)
    return Plot(f"{what} against {over}", _svg(figure))


def _draw(axes: Axes, line: _Line, scale: float, *, marked: bool) -> None:
    """A single run as it is; of several the mean with their range, and each run faintly."""
    alone = len(line.runs) == 1
    look = _look(line.number) | {"linewidth": 1.3 if alone else 0.7, "alpha": 0.9 if alone else 0.3}
    for points in line.runs:
        x, y = np.array(points, dtype=float).T  # None becomes NaN: a gap
        axes.plot(x / scale, y, **look, **_marker(marked and alone or len(points) == 1))
    for part in [] if alone else stretches(line.seeds, _POINTS):
        x, whole = part.x / scale, part.n == len(line.seeds)
        look = _look(line.number) | {"linewidth": 1.8 if whole else 0.9}
        axes.plot(x, part.mean, **look, **_marker(marked or len(x) == 1))
        axes.fill_between(x, part.low, part.high, color=_colour(line.number), alpha=0.14, linewidth=0)


def _marker(wanted: bool) -> dict[str, Any]:
    return {"marker": "o", "markersize": 3} if wanted else {}


def _x(row: TrainRow | DevRow, clock: bool) -> float:
    return row.seconds if clock else float(row.step)


def train_loss(run: Run, clock: bool) -> Points:
    """A running mean of about a twentieth of the run, true from its first step on."""
    rows = [(_x(step, clock), step.loss) for step in run.steps if not math.isnan(step.loss)]
    keep = 1 - 1 / max(len(rows) / 20, 1.0)
    mean, weight, smooth = 0.0, 0.0, []
    for x, loss in rows:
        mean, weight = keep * mean + (1 - keep) * loss, keep * weight + (1 - keep)
        smooth.append((x, mean / weight))
    every = max(len(smooth) // _POINTS, 1)
    return smooth[::every] + (smooth[-1:] if (len(smooth) - 1) % every else [])


def _dev_loss(run: Run, clock: bool) -> Points:
    return [(_x(dev, clock), dev.loss) for dev in run.devs]


def _dev_score(run: Run, clock: bool) -> Points:
    return [(_x(dev, clock), 100 * dev.score) for dev in run.devs]


def time_unit(longest: float) -> tuple[float, str]:
    """Seconds in the unit that fits, and its name."""
    if longest < 300:
        return 1.0, "seconds"
    return (60.0, "minutes") if longest < 3 * 3600 else (3600.0, "hours")


def _bars(groups: Sequence[Group], numbers: Series) -> Iterator[Plot]:
    """A bar a group, stacked by phase."""
    timed = [(group, phases) for group in groups if (phases := mean_phases(group))]
    if not timed:
        return
    places = range(len(timed))
    figure, axes = _axes("where a step's time goes", "mean seconds a step", height=1.4 + 0.22 * len(timed))
    starts = np.zeros(len(timed))
    for phase in PHASES:
        widths = np.array([phases.get(phase, 0.0) for _, phases in timed])
        colour = _colour(_PHASE_COLOURS[phase])
        axes.barh(places, widths, left=starts, color=colour, label=phase, height=0.7)
        starts = starts + widths
    axes.set_yticks(places, [f"{numbers[group.method, group.setting] + 1}" for group, _ in timed])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    yield Plot("mean seconds a step by phase, a bar a setting", _svg(figure))


def _ablations(groups: Sequence[Group], numbers: Series) -> Iterator[Plot]:
    """Test score, and seconds a step, against sparsity: a point a setting, a line for those that differ in it only."""
    families = sparsity_families(groups)
    kinds: list[tuple[str, float, Callable[[Group], Spread | None]]] = [
        ("test score %", 100.0, lambda group: group.result("test")),
        ("seconds a step", 1.0, step_seconds),
    ]
    for what, unit, value in kinds:
        known = [[(group, y) for group in family if (y := value(group))] for family in families]
        if any(known):
            yield _against_sparsity(what, unit, list(filter(None, known)), numbers)


def _against_sparsity(
    what: str, unit: float, families: Sequence[Sequence[tuple[Group, Spread]]], numbers: Series
) -> Plot:
    """A line is no setting and has no setting's colour: only its points do."""
    figure, axes = _axes(f"{what}, mean ± std", "sparsity: fraction of blocks skipped each step")
    for family, dash in zip(families, cycle(_DASHES)):
        x, y = [group.sparsity or 0.0 for group, _ in family], [unit * spread.mean for _, spread in family]
        axes.plot(x, y, color=_INK, linewidth=0.7, linestyle=dash)
        for at, mean, (group, spread) in zip(x, y, family, strict=True):
            colour = _colour(numbers[group.method, group.setting])
            look: dict[str, Any] = {"color": colour, "marker": "o", "markersize": 4, "capsize": 3}
            axes.errorbar(at, mean, yerr=unit * (spread.std or 0.0), **look)
    return Plot(f"{what} against sparsity", _svg(figure))


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
