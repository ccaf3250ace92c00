"""Where does the randomness come from? Every draw is a function of its key; no global state is read or set."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor


def derive(*key: int | str) -> int:
    """A seed of 63 bits from a key, such as (run seed, "step", 7); the same on every machine."""
    text = "/".join(map(str, key)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def step_seed(run_seed: int, step: int) -> int:
    """s_t: the seed that decides step t's noise and blocks (design section 1)."""
    return derive(run_seed, "step", step)


def normal(seed: int, name: str, like: Tensor) -> Tensor:
    """z(seed, tensor): standard normal of ``like``'s shape, on its device, in fp32.

    The same seed and name give the same z whenever and in whatever order they are asked for (on one kind
    of device; CPU and CUDA draw differently). fp64 tensors get the same fp32 values, widened.
    """
    generator = torch.Generator(like.device).manual_seed(derive(seed, name))
    z = torch.randn(like.shape, generator=generator, device=like.device, dtype=torch.float32)
    return z.to(torch.promote_types(like.dtype, torch.float32))


def subset(seed: int, total: int, size: int) -> tuple[int, ...]:
    """``size`` of ``range(total)`` without replacement, uniformly, in ascending order."""
    ranked = sorted(range(total), key=lambda item: derive(seed, "subset", item))
    return tuple(sorted(ranked[:size]))


def permutation(run_seed: int, epoch: int, size: int) -> list[int]:
    """The order of the training examples in an epoch (NumPy's frozen legacy generator)."""
    key = derive(run_seed, "epoch", epoch)
    return [int(i) for i in np.random.RandomState([key & 0xFFFFFFFF, key >> 32]).permutation(size)]
