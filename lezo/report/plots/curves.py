"""How did scores and losses go, against steps, forwards and wall-clock?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

from lezo.records.reader import Run
from lezo.records.rows import DevRow, TrainRow
from lezo.report.curves import Points, common, thinned
from lezo.report.groups import Group
from lezo.report.palette import LIGHT, Palette
from lezo.report.plots.sheet import Sheet, sheet, stroke

MEAN_POINTS, RUN_POINTS = 400, 200  # of a curve at most, or about

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


def curve_sheets(groups: Sequence[Group], looks: Palette, of: tuple[str, str]) -> Iterator[Sheet]:
    """Of one task and model; none of what no run has a number for."""
    kinds: list[tuple[str, _Curve, bool]] = [
        ("dev score (%)", partial(_dev_scores, in_perplexity=False), True),
        ("dev perplexity", partial(_dev_scores, in_perplexity=True), True),
        ("dev loss", lambda run: [(dev, dev.loss) for dev in run.devs], True),
        ("train loss, smoothed", train_loss, False),
    ]
    for (what, curve, marked), over in product(kinds, _AXES):
        each = [(group, _points(group.runs, curve, _AXES[over])) for group in groups]
        if any(lines for _, lines in each):
            yield _sheet(what, each, curve, over, looks, of, marked=marked)


def _dev_scores(run: Run, *, in_perplexity: bool) -> list[tuple[DevRow, float | None]]:
    """Where its scores are of this kind: fractions in percent, or perplexities."""
    if run.in_perplexity is not in_perplexity:
        return []
    unit = 1 if in_perplexity else 100
    return [(dev, None if dev.score is None else unit * dev.score) for dev in run.devs]


def _points(runs: Sequence[Run], curve: _Curve, axis: _Axis) -> list[tuple[Run, Points]]:
    """The curves of those runs that have a value, and an x for it."""
    placed = [(run, place) for run in runs if (place := axis(run)) is not None]
    each = ((run, [(place(row), y) for row, y in curve(run)]) for run, place in placed)
    return [(run, points) for run, points in each if any(y is not None for _, y in points)]


def _sheet(
    what: str,
    each: Sequence[tuple[Group, Sequence[tuple[Run, Points]]]],
    curve: _Curve,
    over: str,
    looks: Palette,
    of: tuple[str, str],
    *,
    marked: bool,
) -> Sheet:
    short = what.partition(" (")[0].partition(",")[0]
    scale, x = 1.0, over
    if over == "wall-clock":
        scale, unit = time_unit(max(x for _, lines in each for _, points in lines for x, _ in points))
        x = f"{over} ({unit})"
    drawn = sheet(f"{short} by {over}", f"{short} against {over}", x, what, of=of)
    for group, lines in sorted(each, key=lambda pair: pair[0].number):
        if lines:
            scaled = [(run, [(x / scale, y) for x, y in points]) for run, points in lines]
            _draw(drawn, group, scaled, looks, marked=marked)
    drawn.shared_legend = True
    _cut(drawn, each, falls=what != "dev score (%)")
    return drawn


def _cut(drawn: Sheet, each: Sequence[tuple[Group, Sequence[tuple[Run, Points]]]], *, falls: bool) -> None:
    """The height that the chosen settings take, and of what is to fall no more than where they began.

    What diverged would leave the rest no height.
    """
    chosen = [points for group, lines in each if group.best for _, points in lines]
    curves = [values for points in chosen if (values := [y for _, y in points if y is not None])]
    if not curves:
        return
    least, most = min(map(min, curves)), max(map(max, curves))
    top = max(values[0] for values in curves) if falls else most
    low, high = drawn.axes.get_ylim()
    room = 0.1 * (top - least) or 0.1
    if most > top + room:
        drawn.caption += ", as far as where training began"
    elif all(group.best for group, _ in each):
        return
    drawn.axes.set_ylim(max(low, least - room), min(high, top + room))


def _draw(
    drawn: Sheet, group: Group, lines: Sequence[tuple[Run, Points]], looks: Palette, *, marked: bool
) -> None:
    """A single run as it is; of several the mean of one run a seed with their range, and each run faintly.

    Of a learning rate that another of the grid is better than only the runs, faintly.
    """
    alone, look = len(lines) == 1 and group.best, looks.look(group)
    width = {"linewidth": 1.2, "alpha": 0.95} if alone else {"linewidth": 0.6, "alpha": 0.35}
    for run, points in lines:
        x, y = thinned(points, MEAN_POINTS if alone else RUN_POINTS)
        words, shape = (
            f"{look.label}, seed {run.seed[0]}",
            _mark(look.mark, marked and alone or len(points) == 1),
        )
        drawn.line(x, y, group.method, words, **stroke(look), **width, **shape)
    if not group.best:
        return
    if not alone:
        _draw_mean(
            drawn, group, [points for run, points in lines if run in group.timed], looks, marked=marked
        )
    drawn.explain(look.label, **stroke(look), linewidth=1.4, **_mark(look.mark, marked))


def _draw_mean(drawn: Sheet, group: Group, seeds: Sequence[Points], looks: Palette, *, marked: bool) -> None:
    """As far as all of the seeds go: the faint lines show the rest."""
    look, part = looks.look(group), common(seeds, MEAN_POINTS)
    if part is None:
        return
    shape = _mark(look.mark, (marked and len(part.x) <= 60) or len(part.x) == 1)
    words = f"{look.label}, mean of {len(seeds)}"
    drawn.line(part.x, part.mean, group.method, words, **stroke(look), linewidth=1.4, **shape)
    band = drawn.axes.fill_between(
        part.x, part.low, part.high, color=LIGHT[look.colour], alpha=0.14, linewidth=0
    )
    drawn.part(band, group.method)


def _mark(shape: str, wanted: bool) -> dict[str, Any]:
    return {"marker": shape, "markersize": 2.6} if wanted else {}


def train_loss(run: Run) -> list[tuple[TrainRow, float]]:
    """A running mean of about a twentieth of the run, true from its first step on."""
    rows = [row for row in run.steps if not math.isnan(row.loss)]
    keep = 1 - 1 / max(len(rows) / 20, 1.0)
    mean, weight, smooth = 0.0, 0.0, []
    for row in rows:
        mean, weight = keep * mean + (1 - keep) * row.loss, keep * weight + (1 - keep)
        smooth.append((row, mean / weight))
    return smooth


def time_unit(longest: float) -> tuple[float, str]:
    """Seconds in the unit that fits, and its name."""
    if longest < 300:
        return 1.0, "seconds"
    return (60.0, "minutes") if longest < 3 * 3600 else (3600.0, "hours")
