"""What stands in a table: texts to read, and the numbers in them. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lezo.report.groups import Spread


@dataclass(frozen=True)
class Cell:
    """What is shown, and for numbers what is sorted by; ``std`` where ``value`` is a mean.

    ``parts``: of a setting, its values by their names. ``best``: whether it is to be shown in bold. ``hidden``: more parts, in the CSV file alone.
    """

    text: str
    value: float | None = None
    std: float | None = None
    parts: Mapping[str, str] = field(default_factory=dict)
    best: bool = False
    hidden: Mapping[str, str] = field(default_factory=dict)


NOTHING = Cell("-")


@dataclass(frozen=True)
class Table:
    """Rows under named columns; ``name`` is its identity in links and its files' name.

    ``about``: of each row, what the page filters by: "task", "model", "method" and "status", the last of several runs
    in words apart. ``above``: what stands before its rows, since it holds for all of them.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    about: Sequence[Mapping[str, str]] = ()
    above: str = ""

    @property
    def numeric(self) -> list[bool]:
        """Of each column, whether it has a number."""
        return [any(cell.value is not None for cell in cells) for cells in zip(*self.rows, strict=True)]


def setting(parts: Mapping[str, str]) -> Cell:
    """A setting in words: "lr 1e-07, eps 0.001"."""
    return Cell(", ".join(f"{key} {value}" for key, value in parts.items()) or NOTHING.text, parts=parts)


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
    """With two digits of the deviation, and as many of the mean; of equal numbers, such as counts, one of them."""
    if values is None:
        return NOTHING
    if not values.std:
        return Cell(digits(values.mean), values.mean, values.std)
    return _mean(values.mean, values.std, f"{{:.{places(values.std, 2)}f}}".format)


def places(value: float, digits: int = 3) -> int:
    """After the point, for so many digits that count."""
    return min(max(digits - 1 - math.floor(math.log10(value)), 0), 12) if value > 0 else 0


def digits(value: float) -> str:
    """Three digits that count; all of a whole number."""
    return f"{value:.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def _mean(value: float, std: float | None, as_text: Callable[[float], str]) -> Cell:
    return Cell(as_text(value) if std is None else f"{as_text(value)} ± {as_text(std)}", value, std)
