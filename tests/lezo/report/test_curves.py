"""Means of curves: exact where runs have values, and nothing beyond them."""

import random
from statistics import fmean

import pytest

from lezo.report.curves import Points, stretches, thinned


def told(lines: list[Points], most: int = 100) -> list[tuple[int, list[float], list[float]]]:
    """Each stretch's n, x and means, by x."""
    found = [(part.n, list(part.x), list(part.mean)) for part in stretches(lines, most)]
    return sorted(found, key=lambda part: part[1])


def test_mean_and_range_of_runs_that_have_all_values() -> None:
    (part,) = stretches([[(0, 1.0), (10, 3.0)], [(0, 2.0), (10, 7.0)], [(0, 3.0), (10, 5.0)]], 100)
    found = [column.tolist() for column in (part.x, part.mean, part.low, part.high)]
    assert (part.n, found) == (3, [[0, 10], [2.0, 5.0], [1.0, 3.0], [3.0, 7.0]])


def test_runs_of_different_length_are_a_mean_as_far_as_both_came() -> None:
    short, long = [(0, 0.0), (10, 0.0)], [(0, 2.0), (10, 4.0), (20, 6.0)]
    assert told([short, long]) == [(2, [0, 10], [1.0, 2.0]), (1, [10, 20], [4.0, 6.0])]


def test_between_points_values_are_interpolated_and_beyond_them_there_are_none() -> None:
    early, late = [(0.0, 0.0), (4.0, 4.0)], [(2.0, 10.0), (6.0, 10.0)]
    assert told([early, late]) == [
        (1, [0.0, 2.0], [0.0, 2.0]),
        (2, [2.0, 4.0], [6.0, 7.0]),
        (1, [4.0, 6.0], [10.0, 10.0]),
    ]


def test_a_missing_value_is_no_value_on_either_side() -> None:
    whole, holed = [(x, 1.0) for x in range(5)], [(0, 3.0), (1, 3.0), (2, None), (3, 3.0), (4, 3.0)]
    assert told([whole, holed]) == [(2, [0, 1], [2, 2]), (1, [1, 2, 3], [1, 1, 1]), (2, [3, 4], [2, 2])]
    assert told([holed]) == [(1, [0, 1], [3, 3]), (1, [3, 4], [3, 3])]


def test_values_with_no_neighbour_are_points() -> None:
    assert told([[(0, 1.0)], [(0, 3.0)]]) == [(2, [0], [2.0])]
    assert told([[(0, 1.0), (1, None), (2, 5.0)], [(0, 3.0)]]) == [(2, [0], [2.0]), (1, [2], [5.0])]
    assert told([[(0, 1.0)], [(5, 3.0)]]) == [(1, [0], [1.0]), (1, [5], [3.0])]


def test_other_runs_are_another_mean_even_where_they_are_as_many() -> None:
    first, second = [(0, 0.0), (1, 0.0)], [(1, 5.0), (2, 5.0)]
    assert told([first, second]) == [(1, [0, 1], [0.0, 0.0]), (1, [1, 2], [5.0, 5.0])]


def test_without_a_value_there_is_nothing() -> None:
    assert stretches([], 10) == [] and stretches([[], [(0, None), (1, None)]], 10) == []


def test_many_places_are_thinned_but_ends_stay() -> None:
    long, short = [(x, float(x)) for x in range(10_001)], [(x, float(x)) for x in range(7, 5_004)]
    found = told([long, short], 100)
    assert [part[0] for part in found] == [1, 2, 1]
    assert sum(len(part[1]) for part in found) < 120
    assert (found[1][1][0], found[1][1][-1], found[2][1][-1]) == (7, 5_003, 10_000)
    assert all(mean == pytest.approx(x) for _, xs, means in found for x, mean in zip(xs, means, strict=True))


def test_a_place_without_a_value_stays_where_many_are_thinned() -> None:
    line: Points = [(x, None if x == 501 else 1.0) for x in range(1_000)]
    assert [(xs[0], xs[-1]) for _, xs, _ in told([line], 10)] == [(0, 500), (502, 999)]


def test_points_in_disorder_are_put_in_order() -> None:
    assert told([[(2, 2.0), (0, 0.0)], [(0, 2.0), (2, 0.0)]]) == [(2, [0, 2], [1.0, 1.0])]


def test_of_points_at_one_place_the_last_counts() -> None:
    assert told([[(0, 1.0), (1, 9.0), (1, 3.0), (2, 5.0)]]) == [(1, [0, 1, 2], [1.0, 3.0, 5.0])]


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
def test_whatever_the_curves_a_mean_is_that_of_the_values_there_and_none_is_left_out(seed: int) -> None:
    chance = random.Random(seed)
    lines: list[Points] = [
        [(x, None if chance.random() < 0.2 else chance.gauss(0, 1)) for x in chance.sample(range(20), length)]
        for length in chance.choices([0, 1, 3, 12], k=4)
    ]
    found = told(lines)
    for n, xs, means in found:
        some = [line for line in lines if all(_value(line, x) is not None for x in xs)]
        assert len(some) == n
        for x, mean in zip(xs, means, strict=True):
            assert mean == pytest.approx(fmean(y for line in some if (y := _value(line, x)) is not None))
    places = {x for line in lines for x, _ in line if any(_value(line, x) is not None for line in lines)}
    assert places == {x for _, xs, _ in found for x in xs}


def test_no_extreme_is_lost_where_many_points_are_thinned() -> None:
    line: Points = [(x, 100.0 if x == 501 else -3.0 if x == 777 else 1.0) for x in range(10_000)]
    (part,) = stretches([line, [(x, 2 * (y or 0)) for x, y in line]], 100)
    assert len(part.x) < 200 and (part.high.max(), part.low.min(), part.mean.max()) == (200, -6, 150)
    x, y = thinned(line, 100)
    assert len(x) < 200 and (x[0], x[-1], y.max(), y.min()) == (0, 9_999, 100, -3)
    assert list(x[y > 1]) == [501]
