"""What a kernel works on: a tensor, the key of its noise, and where the results go."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Copies(NamedTuple):
    """plus <- theta + eps z(key), minus <- theta - eps z(key); with ``rows``, of those rows of theta alone.

    theta, plus and minus are contiguous and not empty; plus and minus are of one dtype. ``rows``: (k,) int64.
    """

    theta: Tensor
    key: int
    rows: Tensor | None
    plus: Tensor
    minus: Tensor


class Step(NamedTuple):
    """theta <- theta - (c z(key) + decay theta); theta is contiguous and not empty, decay an fp32 number."""

    theta: Tensor
    key: int
    decay: float


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on ``device``: to a GPU through pinned memory, without waiting."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
