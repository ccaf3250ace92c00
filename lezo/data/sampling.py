"""Which rows a run uses: the published seeded subsets, as MeZO's code draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lezo.tasks.task import Example


@dataclass(frozen=True)
class Splits:
    """The run's examples, in sampled order; an example's index is its place in its split.

    ``demos`` are the first rows of the train subset; they are shown in every prompt and are
    therefore no training examples. ``own_demos``: instead, those of each test example.
    """

    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    test: tuple[Example, ...]
    demos: tuple[Example, ...] = ()
    own_demos: tuple[tuple[Example, ...], ...] = ()


def subset(rows: int, size: int | None, seed: int) -> list[int]:
    """The first ``size`` indices of NumPy's legacy permutation under ``seed``; all where None."""
    return [int(i) for i in np.random.RandomState(seed).permutation(rows)[:size]]


def demo_sets(
    train: Sequence[Example], examples: int, size: int, seed: int
) -> tuple[tuple[Example, ...], ...]:
    """For each of so many test examples demonstrations of its own, from all of the train rows.

    As published: each set is drawn under a seed of its own, and those below 10,000 under ``seed``.
    """
    seeds = np.random.RandomState(seed).randint(0, 10000, examples)
    return tuple(tuple(train[i] for i in subset(len(train), size, int(own))) for own in seeds)


def own_sizes(
    rows: int, published: int, usual: tuple[int | None, int], num_train: int | None, num_dev: int | None
) -> tuple[int, int]:
    """How many of ``rows`` train rows of one's own to train on and to take for dev; None is left open.

    ``usual`` as published, where there are as many rows as the ``published`` set has, or three times the dev
    set; fewer give a third of them to dev, or what a given ``num_train`` leaves, and at least one.
    """
    train = num_train if num_train is not None else rows if usual[0] is None else usual[0]
    if num_dev is not None or rows in (0, published) or rows >= 3 * usual[1]:
        return train, usual[1] if num_dev is None else num_dev
    most = rows - num_train if num_train is not None and num_train < rows else rows
    return train, max(min(rows // 3, most), 1)


def split(
    train: Sequence[Example],
    val: Sequence[Example],
    *,
    num_train: int,
    num_dev: int,
    num_test: int | None,
    data_seed: int,
    demos: int = 0,
    dev: Sequence[Example] | None = None,
) -> Splits:
    """Draw train and dev from the train rows, dev from rows of its own where there are some, and test from the validation rows.

    Else the dev set takes the last ``num_dev`` of what was drawn, so where rows are short it is the train
    set that shrinks, possibly to nothing.
    """
    if dev is not None:
        own = tuple(dev[i] for i in subset(len(dev), num_dev, data_seed))
        rest = split(
            train,
            val,
            num_train=num_train,
            num_dev=0,
            num_test=num_test,
            data_seed=data_seed,
            demos=demos,
        )
        return replace(rest, dev=own)
    drawn = subset(len(train), num_train + num_dev, data_seed)
    kept = max(len(drawn) - num_dev, 0)
    trained = [train[i] for i in drawn[:kept]]
    return Splits(
        train=tuple(trained[demos:]),
        dev=tuple(train[i] for i in drawn[kept:]),
        test=tuple(val[i] for i in subset(len(val), num_test, data_seed)),
        demos=tuple(trained[:demos]),
    )
