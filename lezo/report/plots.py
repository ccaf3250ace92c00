"""The report's plots as SVG for a page: its own variables colour them, and no text from a file is in them. No torch."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

from lezo.records.reader import Run, seconds_a_step
from lezo.report.curves import Points, stretches
from lezo.report.groups import Group, Spread, by_task, sparsity_families, spread
from lezo.report.tables import PHASES, mean_phases

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
    **{"svg.fonttype": "none", "svg.hashsalt": "lezo", "font.size": 9, "axes.titlesize": 9},
    **{"text.color": _INK, "axes.labelcolor": _INK, "xtick.color": _INK, "ytick.color": _INK},
    **{"axes.edgecolor": _FAINT, "grid.color": _FAINT, "legend.frameon": False, "text.parse_math": False},
}

Series = Mapping[tuple[str, str], int]


@dataclass(frozen=True)
class Plot:
    """A drawing, and in words what it shows."""

    title: str
    svg: str


def series(found: Sequence[Group]) -> dict[tuple[str, str], int]:
    """A number for each optimizer and setting, the same in all tasks: its colour, and its name in plots."""
    return {name: number for number, name in enumerate(dict.fromkeys((g.optim, g.setting) for g in found))}


def plots(found: Sequence[Group], numbers: Series) -> dict[tuple[str, str], list[Plot]]:
    """The plots of each task and model; none of what no run has a number for."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        drawn = {
            names: [*_curves(members, numbers), *_bars(members, numbers), *_ablations(members, numbers)]
            for names, members in by_task(found).items()
        }
    unique = iter(range(10**6))
    return {
        names: [Plot(plot.title, _apart(plot.svg, next(unique))) for plot in some]
        for names, some in drawn.items()
    }


def _curves(members: Sequence[Group], numbers: Series) -> Iterator[Plot]:
    kinds: list[tuple[str, Callable[[Run, bool], Points], bool]] = [
        ("dev score %", _dev_score, True),
        ("dev loss", _dev_loss, True),
        ("train loss, smoothed", _train_loss, False),
    ]
    for clock in (False, True):
        for what, points, marked in kinds:
            lines = [_line(group, numbers, points, clock) for group in members]
            if any(line.runs for line in lines):
                yield _lines(what, lines, clock=clock, marked=marked)


@dataclass(frozen=True)
class _Line:
    """A group's curves: one of each run, and those of one run a seed, which make the mean."""

    number: int
    runs: Sequence[Points]
    seeds: Sequence[Points]


def _line(group: Group, numbers: Series, points: Callable[[Run, bool], Points], clock: bool) -> _Line:
    """Runs without a value have no curve."""
    runs, seeds = ([points(run, clock) for run in some] for some in (group.runs, group.samples))
    return _Line(
        numbers[group.optim, group.setting], *(list(filter(_has_value, some)) for some in (runs, seeds))
    )


def _has_value(line: Points) -> bool:
    return any(y is not None for _, y in line)


def _lines(what: str, lines: Sequence[_Line], *, clock: bool, marked: bool) -> Plot:
    figure, axes = _axes()
    longest = max(x for line in lines for points in line.runs for x, _ in points)
    scale, unit = _unit(longest) if clock else (1.0, "step")
    for line in lines:
        _draw(axes, line, scale, marked=marked)
    over = f"wall-clock, {unit}" if clock else "step"
    axes.set_xlabel(over)
    axes.set_title(what, loc="left")
    return Plot(f"{what} against {over}", _svg(figure))


def _draw(axes: Axes, line: _Line, scale: float, *, marked: bool) -> None:
    """A single run as it is; of several the mean with their range, and each run faintly."""
    alone = len(line.runs) == 1
    look = _look(line.number) | {"linewidth": 1.3 if alone else 0.7, "alpha": 0.9 if alone else 0.3}
    for points in line.runs:
        marker = _marker(marked and alone or len(points) == 1)
        axes.plot([x / scale for x, _ in points], [_drawn(y) for _, y in points], **look, **marker)
    for part in [] if alone else stretches(line.seeds, _POINTS):
        x, whole = [x / scale for x in part.x], part.n == len(line.seeds)
        look = _look(line.number) | {"linewidth": 1.8 if whole else 0.9}
        axes.plot(x, part.mean, **look, **_marker(marked or len(x) == 1))
        axes.fill_between(x, part.low, part.high, color=_colour(line.number), alpha=0.14, linewidth=0)


def _marker(wanted: bool) -> dict[str, Any]:
    return {"marker": "o", "markersize": 3} if wanted else {}


def _drawn(value: float | None) -> float:
    """Where there is no number, nothing is drawn."""
    return math.nan if value is None else value


def _train_loss(run: Run, clock: bool) -> Points:
    """A running mean of about a twentieth of the run, true from its first step on."""
    rows = [
        (step.seconds if clock else float(step.step), step.loss)
        for step in run.steps
        if step.loss is not None
    ]
    keep = 1 - 1 / max(len(rows) / 20, 1.0)
    mean, weight, smooth = 0.0, 0.0, []
    for x, loss in rows:
        mean, weight = keep * mean + (1 - keep) * loss, keep * weight + (1 - keep)
        smooth.append((x, mean / weight))
    every = max(len(smooth) // _POINTS, 1)
    return smooth[::every] + (smooth[-1:] if (len(smooth) - 1) % every else [])


def _dev_loss(run: Run, clock: bool) -> Points:
    return [(dev.seconds if clock else float(dev.step), dev.loss) for dev in run.devs]


def _dev_score(run: Run, clock: bool) -> Points:
    return [(dev.seconds if clock else float(dev.step), 100 * dev.score) for dev in run.devs]


def _unit(longest: float) -> tuple[float, str]:
    """Seconds in the unit that fits, and its name."""
    if longest < 300:
        return 1.0, "seconds"
    return (60.0, "minutes") if longest < 3 * 3600 else (3600.0, "hours")


def _bars(members: Sequence[Group], numbers: Series) -> Iterator[Plot]:
    """A bar a group, stacked by phase."""
    timed = [(group, spent) for group in members if (spent := mean_phases(group))]
    if not timed:
        return
    figure, axes = _axes(height=1.4 + 0.22 * len(timed))
    starts = [0.0] * len(timed)
    for phase in PHASES:
        widths = [spent.get(phase, 0.0) for _, spent in timed]
        axes.barh(
            range(len(timed)),
            widths,
            left=starts,
            color=_colour(_PHASE_COLOURS[phase]),
            label=phase,
            height=0.7,
        )
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    axes.set_yticks(range(len(timed)), [f"{numbers[g.optim, g.setting] + 1}" for g, _ in timed])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("mean seconds a step")
    axes.set_title("where a step's time goes", loc="left")
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    yield Plot("mean seconds a step by phase, a bar a setting", _svg(figure))


@dataclass(frozen=True)
class _Point:
    """A group's mean and deviation at its sparsity, under the number of its setting."""

    number: int
    sparsity: float
    mean: float
    std: float


def _ablations(members: Sequence[Group], numbers: Series) -> Iterator[Plot]:
    """Test score, and seconds a step, against sparsity: a point a setting, a line for those that differ in it only."""
    kinds: list[tuple[str, Callable[[Group], Spread | None]]] = [
        ("test score %", _test),
        ("seconds a step", lambda group: spread(map(seconds_a_step, group.runs))),
    ]
    families = sparsity_families(members)
    for what, value in kinds:
        lines = [[_point(group, numbers, value(group)) for group in family] for family in families]
        shown = [there for line in lines if (there := [point for point in line if point is not None])]
        if shown:
            yield _errors(what, shown)


def _test(group: Group) -> Spread | None:
    return group.spread(lambda run: None if (test := run.number("test")) is None else 100 * test)


def _point(group: Group, numbers: Series, found: Spread | None) -> _Point | None:
    sparsity = group.runs[0].sparsity
    if found is None or sparsity is None:
        return None
    return _Point(numbers[group.optim, group.setting], sparsity, found.mean, found.std or 0.0)


def _errors(what: str, lines: Sequence[Sequence[_Point]]) -> Plot:
    """A line is no setting and has no setting's colour: only its points do."""
    figure, axes = _axes()
    for line, dash in zip(lines, cycle(_DASHES)):
        x, y = [point.sparsity for point in line], [point.mean for point in line]
        axes.plot(x, y, color=_INK, linewidth=0.7, linestyle=dash)
        for point in line:
            look: dict[str, Any] = {
                "color": _colour(point.number),
                "marker": "o",
                "markersize": 4,
                "capsize": 3,
            }
            axes.errorbar(point.sparsity, point.mean, yerr=point.std, **look)
    axes.set_xlabel("sparsity: fraction of blocks skipped each step")
    axes.set_title(f"{what}, mean ± std", loc="left")
    return Plot(f"{what} against sparsity", _svg(figure))


def _axes(height: float = 2.7) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4, height), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(visible=True, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _look(number: int) -> dict[str, Any]:
    return {"color": _colour(number), "linestyle": _DASHES[number // COLOURS % len(_DASHES)]}


def _colour(number: int) -> str:
    return f"#0d0d{number % COLOURS:02d}"


def _svg(figure: Figure) -> str:
    """The figure as an SVG element as wide as its place, whose colours are the page's variables."""
    file = io.StringIO()
    figure.savefig(
        file,
        format="svg",
        transparent=True,
        metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
    )
    text = file.getvalue()
    text = re.sub(
        r'(<svg[^>]*?) width="[^"]*"',
        r"\1",
        re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text[text.index("<svg") :]),
    )
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return text


def _apart(svg: str, number: int) -> str:
    """The drawing with identifiers that no other drawing of the page has."""
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>p{number}-", svg)
