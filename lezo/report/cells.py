"""What stands in a table: texts to read, and the numbers in them. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lezo.report.groups import Spread


@dataclass(frozen=True)
class Cell:
    """What is shown, and for numbers what is sorted by; ``std`` where ``value`` is a mean."""

    text: str
    value: float | None = None
    std: float | None = None


NOTHING = Cell("-")


@dataclass(frozen=True)
class Table:
    """Rows under named columns; ``name`` is its identity in links and in the CSV file.

    ``about``: of each row, what the page filters by: "task", "model", "method" and "status", the last of several runs
    in words apart.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    about: Sequence[Mapping[str, str]] = ()

    @property
    def numeric(self) -> list[bool]:
        """Of each column, whether it has a number."""
        return [any(cell.value is not None for cell in cells) for cells in zip(*self.rows, strict=True)]


def number(value: float | None, as_text: Callable[[float], str] = "{:g}".format) -> Cell:
    """A number that is no mean."""
    return NOTHING if value is None else Cell(as_text(value), value)


def percent(fraction: Spread | None) -> Cell:
    """Of a fraction 0..1: "75.0 ± 7.1"."""
    if fraction is None:
        return NOTHING
    std = None if fraction.std is None else 100 * fraction.std
    return _mean(100 * fraction.mean, std, "{:.1f}".format)


def perplexity(value: Spread | None) -> Cell:
    """A perplexity: "12.35 ± 0.21"."""
    return NOTHING if value is None else _mean(value.mean, value.std, "{:.2f}".format)


def mean(values: Spread | None) -> Cell:
    """With two digits of the deviation, and as many of the mean."""
    if values is None:
        return NOTHING
    if not values.std:
        return _mean(values.mean, values.std, digits)
    places = min(max(1 - math.floor(math.log10(values.std)), 0), 12)
    return _mean(values.mean, values.std, f"{{:.{places}f}}".format)


def digits(value: float) -> str:
    """Three digits that count; all of a whole number."""
    return f"{value:.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"


def _mean(value: float, std: float | None, as_text: Callable[[float], str]) -> Cell:
    return Cell(as_text(value) if std is None else f"{as_text(value)} ± {as_text(std)}", value, std)
