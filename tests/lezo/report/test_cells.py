"""How numbers are shown."""

import pytest

from lezo.report.cells import Cell, Table, digits, mean, number, percent
from lezo.report.groups import Spread, spread


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.0, "2"), (0.12345, "0.123"), (1234.5, "1234"), (1e-7, "1.00e-07"), (0.68, "0.680"), (100.4, "100")],
)
def test_three_digits_count(value: float, text: str) -> None:
    assert digits(value) == text


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([0.5], "0.500"),
        ([0.5, 0.5], "0.500"),
        ([0.123456, 0.125], "0.1242 ± 0.0011"),
        ([100.0, 140.0], "120 ± 28"),
        ([None], "-"),
    ],
)
def test_a_mean_has_two_digits_of_its_deviation(values: list[float | None], text: str) -> None:
    assert mean(spread(values)).text == text


def test_percent_and_what_is_missing() -> None:
    assert percent(Spread(0.75, 0.0707)) == Cell("75.0 ± 7.1", 75.0, pytest.approx(7.07))
    assert (percent(None), number(None), number(2, str)) == (Cell("-"), Cell("-"), Cell("2", 2))


def test_a_column_with_one_number_is_numeric() -> None:
    assert Table("t", "T", ("a", "b"), [[Cell("x"), Cell("-")], [Cell("y"), Cell("1", 1)]]).numeric == [
        False,
        True,
    ]
