"""Which units stand in which row? The cheapest rows, on CUDA of few different shapes.

A place costs one, plus its attention over the row: fewer rows waste fewer places, and attend further.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from heapq import heapreplace

ATTENTION_COSTS_AS_MUCH_AT = 600  # row length at which a narrow model attends for as long as it does the rest
ATTENTION_COSTS_AS_MUCH_ON_CUDA = 1000  # a guess that no GPU has been asked about
UNITS_A_ROW = (1, 2, 3, 6)  # on CUDA, in the mean; any number would make twice as many shapes
LENGTHS = 8  # on CUDA, of rows between one length and twice that

Rows = tuple[list[list[tuple[int, int]]], int]
"""Rows, each of (unit, first column), and their length."""


def cheapest_rows(sizes: Sequence[int]) -> Rows:
    """Of any number of rows, each as long as the fullest: a CPU's, whose batches stay as they always were."""
    least = {rows: max(*sizes, -(-sum(sizes) // rows)) for rows in range(1, len(sizes) + 1)}
    return _cheapest(least, partial(_balanced, sizes), ATTENTION_COSTS_AS_MUCH_AT)


def rows_of_few_shapes(sizes: Sequence[int]) -> Rows:
    """Of a few numbers of rows and a few lengths, for kernels are chosen, planned or compiled anew for each shape.

    A function of the batch alone, so that a run that goes on has the same. ``python -m tests.pretend_cuda.shapes``
    counts shapes and wasted tokens.
    """
    numbers = {-(-len(sizes) // units) for units in UNITS_A_ROW}
    least = {rows: _rounded(max(*sizes, -(-sum(sizes) // rows))) for rows in numbers}
    return _cheapest(least, partial(_shortest, sizes, least), ATTENTION_COSTS_AS_MUCH_ON_CUDA)


def _cheapest(least: dict[int, int], laid_out: Callable[[int], Rows], as_much_at: int) -> Rows:
    """The cheapest of some numbers of rows, of two the lower; ``least``: how long their rows are at least."""

    def cost(rows: int, length: int) -> float:
        return rows * length * (1 + length / as_much_at)

    found: list[tuple[float, int, Rows]] = []
    for bound, rows in sorted((cost(rows, length), rows) for rows, length in least.items()):
        if found and bound > min(found)[0]:
            break  # and so are those after it
        made = laid_out(rows)
        found.append((cost(rows, made[1]), rows, made))
    return min(found)[2]


def _balanced(sizes: Sequence[int], rows: int) -> Rows:
    """The longest unit first, each into the row that is emptiest."""
    filled: list[list[tuple[int, int]]] = [[] for _ in range(rows)]
    used = [(0, row) for row in range(rows)]  # a heap
    for unit in _longest_first(sizes):
        column, row = used[0]
        filled[row].append((unit, column))
        heapreplace(used, (column + sizes[unit], row))
    return filled, max(used)[0]


def _shortest(sizes: Sequence[int], least: dict[int, int], rows: int) -> Rows:
    """The shortest of the lengths into which the units fit."""
    length = least[rows]
    while (filled := _fitted(sizes, rows, length)) is None:
        length = _rounded(length + 1)
    return filled, length


def _fitted(sizes: Sequence[int], rows: int, length: int) -> list[list[tuple[int, int]]] | None:
    """The longest unit first, each into the fullest row that has room for it; None where one has none."""
    filled: list[list[tuple[int, int]]] = [[] for _ in range(rows)]
    used = [0] * rows
    for unit in _longest_first(sizes):
        room = length - sizes[unit]
        row = max(range(rows), key=lambda row: used[row] if used[row] <= room else -1)  # noqa: B023
        if used[row] > room:
            return None
        filled[row].append((unit, used[row]))
        used[row] += sizes[unit]
    return filled


def _longest_first(sizes: Sequence[int]) -> list[int]:
    return sorted(range(len(sizes)), key=lambda unit: -sizes[unit])


def _rounded(length: int) -> int:
    """To a multiple of 8 up to 128, of 16 up to 256, of 32 up to 512, and so on."""
    multiple = 8
    while 2 * LENGTHS * multiple <= length:
        multiple *= 2
    return -(-length // multiple) * multiple
