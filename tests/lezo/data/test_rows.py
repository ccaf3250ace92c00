"""Which rows units stand in: whole, apart, and on CUDA in few shapes."""

import random

import pytest

from lezo.data.rows import cheapest_rows, rows_of_few_shapes
from tests.lezo.data import token_by_token
from tests.pretend_cuda import shapes

SIZES = [
    [draw.randint(1, longest) for _ in range(count)]
    for draw in [random.Random(0)]
    for count in (1, 2, 3, 5, 16, 16, 32)
    for longest in (1, 3, 10, 60, 300, 2000)
    for _ in range(5)
]


def test_a_cpus_rows_are_those_of_the_search_over_all_numbers_of_rows():
    for sizes in SIZES:
        assert cheapest_rows(sizes) == token_by_token._laid_out(sizes)


@pytest.mark.parametrize("laid_out", [cheapest_rows, rows_of_few_shapes])
def test_every_unit_stands_in_one_row_behind_the_one_before(laid_out):
    for sizes in SIZES:
        rows, length = laid_out(sizes)
        assert sorted(unit for row in rows for unit, _ in row) == [*range(len(sizes))]
        for row in rows:
            ends = [0, *(column + sizes[unit] for unit, column in row)]
            assert [column for _, column in row] == ends[:-1] and ends[-1] <= length


def test_rows_of_few_shapes_are_multiples_of_eight_long():
    assert all(rows_of_few_shapes(sizes)[1] % 8 == 0 for sizes in SIZES)


def test_a_batch_alone_decides_its_rows():
    """So that a run that goes on has the shapes of one that was never stopped."""
    first = [rows_of_few_shapes(sizes) for sizes in SIZES]
    assert [rows_of_few_shapes(sizes) for sizes in reversed(SIZES)] == first[::-1]


@pytest.mark.parametrize("task", ["rte", "sst2"])
def test_the_first_steps_have_few_shapes_and_waste_little(task, shared):
    """The bounds that rows are chosen for."""
    found = shapes.counted(shapes.sizes_of(shapes.real(task)))
    assert found.before > 100  # else there was nothing to do
    assert found.after <= 20
    assert found.wasted <= 0.05


def test_so_have_those_of_the_embedded_rows():
    """Their batches are a few hundred tokens, of which multiples of 8 take more."""
    found = shapes.counted(shapes.sizes_of(["task=sst2"]))
    assert found.after < found.before <= 20
    assert found.wasted <= 0.07
