"""Several tensors in one launch: a table on the device, a row a tensor, of addresses, keys and sizes.

Column 0 is the first program that works on the tensor; a program finds its row by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from lezo.noise.operands import sent


def upload(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """``rows`` as an int64 tensor on the device; the host does not wait for the copy."""
    flat = np.fromiter(chain.from_iterable(rows), np.int64, len(rows) * len(rows[0]))
    return sent(torch.from_numpy(flat.reshape(len(rows), -1)), device)


@triton.jit
def row_of(program, table, rows, COLUMNS: tl.constexpr):
    """The row of ``table``, of ``rows``, whose programs ``program`` is one of."""
    low, high = program * 0, program * 0 + rows
    while high - low > 1:
        middle = (low + high) // 2
        here = tl.load(table + middle * COLUMNS) <= program
        low, high = tl.where(here, middle, low), tl.where(here, high, middle)
    return low
