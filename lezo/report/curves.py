"""What do several runs of one setting look like together? Mean and range where they have values, nowhere else. No torch."""

from __future__ import annotations

import statistics
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

Points = Sequence[tuple[float, float | None]]  # by x; None where a run was but had no finite value


@dataclass(frozen=True)
class Stretch:
    """A part of the x-axis through which the same ``n`` runs have values: their mean, lowest and highest."""

    n: int
    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def stretches(lines: Sequence[Points], most: int) -> list[Stretch]:
    """The mean of some runs' curves, in parts between which runs come or go; at about ``most`` of their x.

    Between two of its points a run's value lies on their straight line; before its first, after its last and
    beside a point without a value it has none. Where two parts meet, each has its own runs' mean.
    """
    ordered = [sorted(line, key=lambda point: point[0]) for line in lines if line]
    places = _places(ordered, most)
    values = [[_value(line, x) for x in places] for line in ordered]
    there = [tuple(r for r, at in enumerate(values) if at[i] is not None) for i in range(len(places))]
    both = [tuple(sorted({*here} & {*then})) for here, then in zip(there, there[1:], strict=False)]
    parts = [[i for i, _ in some] for _, some in groupby(enumerate(both), key=lambda found: found[1])]
    joined = [_stretch(both[part[0]], places[part[0] : part[-1] + 2], values, part[0]) for part in parts]
    return [*filter(lambda stretch: stretch.n, joined), *_alone(places, values, there, both)]


def _alone(
    places: Sequence[float],
    values: Sequence[Sequence[float | None]],
    there: Sequence[tuple[int, ...]],
    both: Sequence[tuple[int, ...]],
) -> list[Stretch]:
    """Places with values but with no neighbour that has any of the same runs'."""
    near = [{*before} | {*after} for before, after in zip([(), *both], [*both, ()], strict=True)]
    return [
        _stretch(there[i], places[i : i + 1], values, i)
        for i in range(len(places))
        if there[i] and not near[i]
    ]


def _stretch(
    runs: Sequence[int], x: Sequence[float], values: Sequence[Sequence[float | None]], first: int
) -> Stretch:
    """Of the runs that have values at all of these places, the first of which is number ``first``."""
    if not runs:
        return Stretch(0, (), (), (), ())
    found = [[y for r in runs if (y := values[r][first + i]) is not None] for i in range(len(x))]
    return Stretch(
        len(runs), x, list(map(statistics.fmean, found)), list(map(min, found)), list(map(max, found))
    )


def _places(lines: Sequence[Points], most: int) -> list[float]:
    """Every x of any run, thinned where they are many; where a run begins, ends or has no value stays."""
    every = sorted({x for line in lines for x, _ in line})
    ends = {line[place][0] for line in lines for place in (0, -1)}
    gaps = {x for line in lines for x, y in line if y is None}
    return sorted({*every[:: max(len(every) // most, 1)], *ends, *gaps})


def _value(line: Points, x: float) -> float | None:
    place = bisect_left(line, x, key=lambda point: point[0])
    if place == len(line) or (place == 0 and x < line[0][0]):
        return None
    right = line[place]
    return right[1] if right[0] == x else _between(line[place - 1], right, x)


def _between(left: tuple[float, float | None], right: tuple[float, float | None], x: float) -> float | None:
    if left[1] is None or right[1] is None:
        return None
    return left[1] + (right[1] - left[1]) * (x - left[0]) / (right[0] - left[0])
