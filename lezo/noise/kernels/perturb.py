"""theta + eps z and theta - eps z in one pass on CUDA: theta is read once, z is nowhere stored."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lezo.noise.kernels import normal
from lezo.noise.kernels.normal import groups_from, normals


@triton.jit(do_not_specialize=["key"])
def _perturb(
    theta,
    rows,
    plus,
    minus,
    key: tl.int64,
    eps,
    columns,
    pieces,
    SELECTED: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """plus <- theta + (eps z), minus <- theta - (eps z), in fp32, each rounded once.

    Program i: piece i % pieces, of GROUPS groups, of row i // pieces of the results. A row is ``columns``
    elements that begin anywhere in a chunk, so its pieces begin with that chunk. SELECTED: it is row
    ``rows[i // pieces]`` of theta; else theta is one row.
    """
    row = (tl.program_id(0) // pieces).to(tl.int64)
    source = tl.load(rows + row) if SELECTED else row
    chunk = source * columns // 1024 + tl.program_id(0) % pieces * (GROUPS // 256)
    group, offset = groups_from(chunk, GROUPS)
    start = chunk * 1024 - source * columns  # column of the first chunk: negative in a row's first piece
    low, high = tl.maximum(-start, 0).to(tl.int32), tl.minimum(columns - start, GROUPS * 4).to(tl.int32)
    theta, plus, minus = theta + chunk * 1024, plus + (row * columns + start), minus + (row * columns + start)
    z0, z1, z2, z3 = normals(key.to(tl.int64), group)
    _plus_minus(theta, plus, minus, offset, low, high, eps, z0)
    _plus_minus(theta, plus, minus, offset + 256, low, high, eps, z1)
    _plus_minus(theta, plus, minus, offset + 512, low, high, eps, z2)
    _plus_minus(theta, plus, minus, offset + 768, low, high, eps, z3)


@triton.jit
def _plus_minus(theta, plus, minus, offset, low, high, eps, z):
    """One lane; of its offsets, those in [low, high)."""
    mask = (offset >= low) & (offset < high)
    wide, step = tl.load(theta + offset, mask).to(tl.float32), z * eps
    tl.store(plus + offset, (wide + step).to(plus.dtype.element_ty), mask)
    tl.store(minus + offset, (wide - step).to(minus.dtype.element_ty), mask)


def perturb(theta: Tensor, key: int, eps: float, rows: Tensor | None, plus: Tensor, minus: Tensor) -> None:
    """plus <- theta + eps z, minus <- theta - eps z; with ``rows``, of those rows of theta alone.

    Contiguous tensors on one device, theta and results of fp32, fp16 or bf16; eps an fp32 number; no empty result.
    """
    count, columns = (1, theta.numel()) if rows is None else (len(rows), theta.shape[1])
    chunks = triton.cdiv(columns, 1024) + (rows is not None)  # a row may begin in the middle of a chunk
    pieces = triton.cdiv(chunks, normal.GROUPS // 256)
    with torch.cuda.device_of(theta):
        _perturb[(count * pieces,)](
            theta,
            rows,
            plus,
            minus,
            key,
            eps,
            columns,
            pieces,
            rows is not None,
            normal.GROUPS,
            **normal.EXACT,
        )
