"""Means of curves: exact where runs have values, and nothing beyond them."""

import random
from statistics import fmean

import pytest

from lezo.report.curves import Points, common, thinned


def told(lines: list[Points], most: int = 100) -> tuple[list[float], list[float]] | None:
    """The x and the means."""
    found = common(lines, most)
    return None if found is None else (list(found.x), list(found.mean))


def test_mean_and_range_of_runs_that_have_all_values() -> None:
    part = common([[(0, 1.0), (10, 3.0)], [(0, 2.0), (10, 7.0)], [(0, 3.0), (10, 5.0)]], 100)
    assert part is not None
    found = [column.tolist() for column in (part.x, part.mean, part.low, part.high)]
    assert found == [[0, 10], [2.0, 5.0], [1.0, 3.0], [3.0, 7.0]]


def test_runs_of_different_length_are_one_mean_as_far_as_both_came() -> None:
    short, long = [(0, 0.0), (10, 0.0)], [(0, 2.0), (10, 4.0), (20, 6.0)]
    assert told([short, long]) == ([0, 10], [1.0, 2.0])


def test_between_points_values_are_interpolated_and_beyond_them_there_are_none() -> None:
    early, late = [(0.0, 0.0), (4.0, 4.0)], [(2.0, 10.0), (6.0, 10.0)]
    assert told([early, late]) == ([2.0, 4.0], [6.0, 7.0])


def test_a_mean_ends_at_a_missing_value() -> None:
    whole, holed = [(x, 1.0) for x in range(6)], [(0, 3.0), (1, 3.0), (2, 3.0), (3, None), (4, 3.0), (5, 3.0)]
    assert told([whole, holed]) == ([0, 1, 2], [2, 2, 2])


def test_one_common_point_is_a_mean_only_of_runs_that_have_no_other() -> None:
    assert told([[(0, 1.0)], [(0, 3.0)]]) == ([0], [2.0])
    assert told([[(0, 1.0), (1, 5.0)], [(0, 3.0)]]) is None
    assert told([[(0, 1.0)], [(5, 3.0)]]) is None
    assert told([[(0, 0.0), (1, 0.0)], [(1, 5.0), (2, 5.0)]]) is None


def test_without_a_value_there_is_nothing() -> None:
    assert common([], 10) is None and common([[], [(0, None), (1, None)]], 10) is None


def test_many_places_are_thinned_but_ends_stay() -> None:
    long, short = [(x, float(x)) for x in range(10_001)], [(x, float(x)) for x in range(7, 5_004)]
    found = told([long, short], 100)
    assert found is not None and len(found[0]) < 110 and (found[0][0], found[0][-1]) == (7, 5_003)
    assert found[0] == pytest.approx(found[1])


def test_points_in_disorder_are_put_in_order() -> None:
    assert told([[(2, 2.0), (0, 0.0)], [(0, 2.0), (2, 0.0)]]) == ([0, 2], [1.0, 1.0])


def test_of_points_at_one_place_the_last_counts() -> None:
    assert told([[(0, 1.0), (1, 9.0), (1, 3.0), (2, 5.0)]]) == ([0, 1, 2], [1.0, 3.0, 5.0])


def _value(line: Points, x: float) -> float | None:
    """A run's value at a place, point by point."""
    known = dict(line)
    if x in known:
        return known[x]
    left, right = (
        max((p for p in known if p < x), default=None),
        min((p for p in known if p > x), default=None),
    )
    if left is None or right is None or (a := known[left]) is None or (b := known[right]) is None:
        return None
    return a + (b - a) * (x - left) / (right - left)


@pytest.mark.parametrize("seed", range(30))
def test_whatever_the_curves_a_mean_is_that_of_all_the_values_there(seed: int) -> None:
    chance = random.Random(seed)
    lines: list[Points] = [
        [
            (x, None if chance.random() < 0.05 else chance.gauss(0, 1))
            for x in chance.sample(range(20), length)
        ]
        for length in chance.choices([8, 12, 20], k=3)
    ]
    xs, means = told(lines) or ([], [])
    for x, mean in zip(xs, means, strict=True):
        values = [y for line in lines if (y := _value(line, x)) is not None]
        assert len(values) == 3 and mean == pytest.approx(fmean(values))
    places = sorted({x for line in lines for x, _ in line})
    shared = [x for x in places if all(_value(line, x) is not None for line in lines)]
    begin = shared.index(xs[0]) if xs else 0
    assert shared[begin : begin + len(xs)] == xs


def test_no_extreme_is_lost_where_many_points_are_thinned() -> None:
    line: Points = [(x, 100.0 if x == 501 else -3.0 if x == 777 else 1.0) for x in range(10_000)]
    part = common([line, [(x, 2 * (y or 0)) for x, y in line]], 100)
    assert (
        part is not None
        and len(part.x) < 200
        and (part.high.max(), part.low.min(), part.mean.max()) == (200, -6, 150)
    )
    x, y = thinned(line, 100)
    assert len(x) < 200 and (x[0], x[-1], y.max(), y.min()) == (0, 9_999, 100, -3)
    assert list(x[y > 1]) == [501]
