"""Means of curves: exact where runs have values, and nothing beyond them."""

import pytest

from lezo.report.curves import Points, Stretch, stretches


def told(lines: list[Points], most: int = 100) -> list[tuple[int, list[float], list[float]]]:
    """Each stretch's n, x and means, by x."""
    found = [(part.n, list(part.x), list(part.mean)) for part in stretches(lines, most)]
    return sorted(found, key=lambda part: part[1])


def test_mean_and_range_of_runs_that_have_all_values() -> None:
    (part,) = stretches([[(0, 1.0), (10, 3.0)], [(0, 2.0), (10, 7.0)], [(0, 3.0), (10, 5.0)]], 100)
    assert part == Stretch(3, [0, 10], [2.0, 5.0], [1.0, 3.0], [3.0, 7.0])


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


def test_points_in_disorder_are_put_in_order() -> None:
    assert told([[(2, 2.0), (0, 0.0)], [(0, 2.0), (2, 0.0)]]) == [(2, [0, 2], [1.0, 1.0])]
