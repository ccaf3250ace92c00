"""The published seeded subsets."""

import numpy as np
import pytest

from lezo.data.sampling import demo_sets, own_sizes, split, subset
from lezo.tasks import TASKS, Example

FIRST_FIVE = {
    "sst2": [43787, 16159, 59015, 5108, 67052],
    "rte": [2325, 1450, 1047, 2390, 2283],
    "cb": [225, 122, 92, 157, 154],
    "wsc": [85, 132, 96, 107, 140],
    "copa": [132, 309, 341, 196, 246],
    "wic": [2708, 1625, 3158, 2382, 142],
    "boolq": [4424, 3019, 5529, 9232, 7349],
    "multirc": [3085, 7448, 11614, 4691, 22709],
    "squad": [50436, 22762, 45227, 54941, 33360],
    "drop": [67454, 11388, 48515, 48537, 23294],
    "record": [46709, 71939, 14815, 28500, 47043],
}
# task: num_dev of the scripts, effective train / dev / test
SIZES = {
    "sst2": (500, (1000, 500, 872)),
    "rte": (500, (1000, 500, 277)),
    "cb": (100, (150, 100, 56)),
    "boolq": (500, (1000, 500, 1000)),
    "wsc": (500, (54, 500, 104)),
    "wic": (500, (1000, 500, 638)),
    "multirc": (500, (1000, 500, 1000)),
    "copa": (100, (300, 100, 100)),
    "record": (500, (1000, 500, 1000)),
    "squad": (500, (1000, 500, 1000)),
    "drop": (500, (1000, 500, 1000)),
}


def pool(rows, name="train"):
    return [Example(f"{name} {i}", ("Yes", "No"), (0,)) for i in range(rows)]


def drawn(rows, name="train", seed=0):
    """The whole pool in the order of the seed's permutation."""
    order = np.random.RandomState(seed).permutation(rows)
    return tuple(pool(rows, name)[i] for i in order)


def parts(train, val=20, num_train=6, num_dev=3, num_test=None, data_seed=0, demos=0):
    return split(
        pool(train),
        pool(val, "val"),
        num_train=num_train,
        num_dev=num_dev,
        num_test=num_test,
        data_seed=data_seed,
        demos=demos,
    )


@pytest.mark.parametrize("task", TASKS)
def test_published_permutation(task):
    assert subset(TASKS[task].hub.train_rows, 5, 0) == FIRST_FIVE[task]


def test_subset_is_all_rows_where_no_size_is_given_or_too_few_are_there():
    assert sorted(subset(7, None, 3)) == sorted(subset(7, 50, 3)) == list(range(7))
    assert subset(7, 50, 3) == subset(7, None, 3)
    assert subset(7, 0, 3) == []


def test_subset_leaves_the_global_generator_alone():
    np.random.seed(1)
    before = np.random.get_state()[1].tolist()
    subset(100, 5, 0)
    assert np.random.get_state()[1].tolist() == before


@pytest.mark.parametrize("task", TASKS)
def test_effective_sizes(task):
    num_dev, expected = SIZES[task]
    hub = TASKS[task].hub
    found = split(
        range(hub.train_rows),  # the pool's elements are only moved, never looked at
        range(hub.val_rows),
        num_train=1000,
        num_dev=num_dev,
        num_test=1000,
        data_seed=0,
    )
    assert (len(found.train), len(found.dev), len(found.test)) == expected
    assert found.train[:5] == tuple(FIRST_FIVE[task])


def test_dev_takes_the_last_rows_drawn():
    found = parts(train=40)
    assert found.train == drawn(40)[:6]
    assert found.dev == drawn(40)[6:9]


def test_where_rows_are_short_train_shrinks():
    found = parts(train=7)
    assert found.train == drawn(7)[:4]
    assert found.dev == drawn(7)[4:]


@pytest.mark.parametrize("rows", [3, 2, 0])
def test_train_shrinks_to_nothing(rows):
    found = parts(train=rows, demos=2)
    assert found.train == found.demos == ()
    assert found.dev == drawn(rows)


def test_without_dev_all_is_train():
    found = parts(train=40, num_dev=0)
    assert found.train == drawn(40)[:6]
    assert found.dev == ()


def test_test_rows_come_from_validation_under_the_same_seed():
    assert parts(train=40, num_test=5, data_seed=4).test == drawn(20, "val", seed=4)[:5]
    assert parts(train=40, num_test=None).test == drawn(20, "val")


def test_seeds_differ():
    assert parts(train=40, data_seed=1).train == drawn(40, seed=1)[:6] != drawn(40)[:6]


def test_demos_are_the_first_train_rows_and_no_longer_trained_on():
    found = parts(train=40, demos=2)
    assert found.demos == drawn(40)[:2]
    assert found.train == drawn(40)[2:6]
    assert found.dev == parts(train=40).dev


def test_each_test_example_has_demonstrations_under_the_published_seeds():
    rows = [Example(str(i), ("a",), (0,)) for i in range(40)]
    found = demo_sets(rows, 3, 4, 0)
    assert found == tuple(tuple(rows[i] for i in subset(40, 4, seed)) for seed in (2732, 9845, 3264))
    assert demo_sets(rows, 2, 4, 0) == found[:2] and demo_sets(rows, 3, 4, 1) != found


@pytest.mark.parametrize("task", TASKS)
def test_a_published_set_from_ones_own_files_is_split_as_published(task):
    known = TASKS[task]
    usual = (known.num_train, known.num_dev)
    assert usual[1] == SIZES[task][0]
    assert own_sizes(known.hub.train_rows, known.hub.train_rows, usual, None, None) == usual


@pytest.mark.parametrize(
    ("rows", "given", "expected"),
    [
        (300, (None, None), (1000, 100)),
        (1499, (None, None), (1000, 499)),
        (1500, (None, None), (1000, 500)),
        (2, (None, None), (1000, 1)),
        (1, (None, None), (1000, 1)),  # which leaves none to train on, and is refused
        (0, (None, None), (1000, 500)),
        (300, (None, 500), (1000, 500)),  # given sizes stay
        (300, (1000, 200), (1000, 200)),
        (300, (250, None), (250, 50)),
        (300, (100, None), (100, 100)),
        (300, (1000, None), (1000, 100)),
        (1600, (1500, None), (1500, 500)),
    ],
)
def test_sizes_left_open_follow_few_rows_of_ones_own(rows, given, expected):
    assert own_sizes(rows, 67349, (1000, 500), *given) == expected
