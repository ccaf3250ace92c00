"""What do several runs of one setting look like together? Mean and range where all have values, nowhere else. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = Sequence[tuple[float, float | None]]  # x, y; y is None where a run had no finite value
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Common:
    """A part of the x-axis on which all of several runs have values: their mean, lowest and highest, each [points]."""

    x: Floats
    mean: Floats
    low: Floats
    high: Floats


def common(lines: Sequence[Points], most: int) -> Common | None:
    """The mean of some runs' curves from where all have begun to where the first ends, at about ``most`` of their x.

    Between two of its points a run's value lies on their straight line; before its first, after its last and
    beside a point without a value it has none, so a mean ends there: of several parts it is the longest. None where no
    two points are common, but for runs of a single point each. Of points that are left out none is a lowest or highest of its neighbours.
    """
    runs = [np.array(sorted(dict(line).items()), dtype=float).T for line in lines if line]  # None becomes NaN
    if not runs:
        return None
    x = np.unique(np.concatenate([x for x, _ in runs]))
    values = np.array([np.interp(x, run[0], run[1], np.nan, np.nan) for run in runs])  # [runs, points]
    there = np.flatnonzero(~np.isnan(values).any(axis=0))
    parts = np.split(there, np.flatnonzero(np.diff(there) > 1) + 1)  # of neighbours
    longest = max(parts, key=len)
    if len(longest) < min(len(x), 2):
        return None
    y = values[:, longest]
    mean, low, high = y.mean(axis=0), y.min(axis=0), y.max(axis=0)
    places = _kept(most, mean, low, high)
    return Common(x[longest][places], mean[places], low[places], high[places])


def thinned(points: Points, most: int) -> tuple[Floats, Floats]:
    """About ``most`` of a line's points as x and y, [points] each, NaN where there is no value: ends and extremes stay."""
    x, y = np.array(points, dtype=float).T  # None becomes NaN
    places = _kept(most, y)
    return x[places], y[places]


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
