"""Which seed belongs to what? Every draw is a function of its key; no global state is read or set."""

from __future__ import annotations

import hashlib

import numpy as np

VERSION = 1  # of every draw here and in philox: a change of any makes another run of an old journal


def derive(*key: int | str) -> int:
    """A seed of 63 bits from a key, such as (run seed, "step", 7); the same on every machine."""
    text = "/".join(map(str, key)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def step_seed(run_seed: int, step: int) -> int:
    """s_t: the seed that decides step t's noise and blocks, as MeZO's Algorithm 1 (arXiv 2305.17333) draws one a step."""
    return derive(run_seed, "step", step)


def direction_seed(seed: int, number: int) -> int:
    """The seed of a step's direction ``number``, counted from 0, where it has several; the first one's is the step's."""
    return seed if number == 0 else derive(seed, "direction", number)


def subset(seed: int, total: int, size: int) -> tuple[int, ...]:
    """``size`` of ``range(total)`` without replacement, uniformly, in ascending order."""
    ranked = sorted(range(total), key=lambda item: derive(seed, "subset", item))
    return tuple(sorted(ranked[:size]))


def permutation(run_seed: int, epoch: int, size: int) -> list[int]:
    """The order of the training examples in an epoch (NumPy's frozen legacy generator)."""
    key = derive(run_seed, "epoch", epoch)
    return [int(i) for i in np.random.RandomState([key & 0xFFFFFFFF, key >> 32]).permutation(size)]
