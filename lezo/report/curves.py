"""What do several runs of one setting look like together? Mean and range where they have values, nowhere else. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = Sequence[tuple[float, float | None]]  # x, y; y is None where a run had no finite value
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Stretch:
    """A part of the x-axis on which the same ``n`` runs have values: their mean, lowest and highest, each [points]."""

    n: int
    x: Floats
    mean: Floats
    low: Floats
    high: Floats


def stretches(lines: Sequence[Points], most: int) -> list[Stretch]:
    """The mean of some runs' curves, in parts between which runs come or go; at about ``most`` of their x.

    Between two of its points a run's value lies on their straight line; before its first, after its last and
    beside a point without a value it has none. Where two parts meet, each has its own runs' mean. Means are those of
    all points; of those that are left out none is a lowest or highest of its neighbours.
    """
    runs = [np.array(sorted(dict(line).items()), dtype=float).T for line in lines if line]  # None becomes NaN
    if not runs:
        return []
    x = np.unique(np.concatenate([x for x, _ in runs]))
    values = np.array([np.interp(x, run[0], run[1], np.nan, np.nan) for run in runs])  # [runs, points]
    there = ~np.isnan(values)
    joined = there[:, :-1] & there[:, 1:]  # [runs, points - 1]: those with values at both ends of an interval
    changes = np.flatnonzero((joined[:, 1:] != joined[:, :-1]).any(axis=0)) + 1
    bounds = [0, *changes.tolist(), len(x) - 1]
    parts = [(joined[:, a], slice(a, b + 1)) for a, b in zip(bounds, bounds[1:], strict=False) if a < b]
    near = np.pad(joined.any(axis=0), 1)  # [points + 1]: a point lies between two intervals
    alone = np.flatnonzero(~(near[:-1] | near[1:])).tolist()
    parts += [(there[:, i], slice(i, i + 1)) for i in alone]
    return [_stretch(x[part], values[some, part], most) for some, part in parts if some.any()]


def thinned(points: Points, most: int) -> tuple[Floats, Floats]:
    """About ``most`` of a line's points as x and y, [points] each, NaN where there is no value: ends and extremes stay."""
    x, y = np.array(points, dtype=float).T  # None becomes NaN
    places = _kept(most, y)
    return x[places], y[places]


def _stretch(x: Floats, y: Floats, most: int) -> Stretch:
    """``y``: [runs, points], all of them numbers."""
    mean, low, high = y.mean(axis=0), y.min(axis=0), y.max(axis=0)
    places = _kept(most, mean, low, high)
    return Stretch(len(y), x[places], mean[places], low[places], high[places])


def _kept(most: int, *curves: Floats) -> NDArray[np.int64]:
    """The places of about ``most`` points: first and last, and of each part the lowest and highest of every curve."""
    n = len(curves[0])
    if n <= most:
        return np.arange(n)
    parts = np.array_split(np.arange(n), max(most // (2 * len(curves)), 1))
    kept = [0, n - 1]
    for part in parts:
        for curve in curves:
            y, gap = curve[part], np.isnan(curve[part])
            kept += [part[np.argmin(np.where(gap, np.inf, y))], part[np.argmax(np.where(gap, -np.inf, y))]]
            kept += part[gap][:1].tolist()
    return np.unique(np.array(kept))
