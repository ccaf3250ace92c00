"""theta + eps z and theta - eps z of several tensors in one launch on CUDA: theta is read once, z is nowhere stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from lezo.noise import philox
from lezo.noise.kernels import normal, table
from lezo.noise.kernels.normal import drawn, groups_from
from lezo.noise.kernels.table import row_of
from lezo.noise.operands import Copies

DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
COLUMNS = 9
"""Of a table: first program, theta, plus, minus, rows or 0, key, columns, pieces, whether the results are fp32."""


@triton.jit(do_not_specialize=["tensors"])
def _perturb(
    tensors_table,
    tensors,
    eps,
    DTYPE: tl.constexpr,
    WIDE: tl.constexpr,
    ALIGNED: tl.constexpr,
    SIGNS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """plus <- theta + (eps z), minus <- theta - (eps z), in fp32, each rounded once; theta is of ``DTYPE``.

    A row of the results is ``columns`` elements that begin anywhere in a chunk, so its ``pieces``, of GROUPS groups
    and a program each, begin with that chunk. With rows, it is row rows[i] of theta; else theta is one row.
    WIDE: some results are fp32, others of DTYPE. ALIGNED: rows begin and end where wide accesses may. SIGNS: z is of
    signs, not of normals.
    """
    program = tl.program_id(0)
    entry = tensors_table + row_of(program, tensors_table, tensors, COLUMNS) * COLUMNS
    local, pieces = (program - tl.load(entry)).to(tl.int32), tl.load(entry + 7).to(tl.int32)
    rows, key, columns = tl.load(entry + 4), tl.load(entry + 5), tl.load(entry + 6)
    row = (local // pieces).to(tl.int64)
    chosen = tl.load(rows.to(tl.pointer_type(tl.int64)) + row, mask=rows != 0, other=0)
    source = tl.where(rows != 0, chosen, row)
    chunk = source * columns // 1024 + local % pieces * (GROUPS // 256)
    group, offset = groups_from(chunk, GROUPS)
    start = chunk * 1024 - source * columns  # column of the first chunk: negative in a row's first piece
    low, high = tl.maximum(-start, 0).to(tl.int32), tl.minimum(columns - start, GROUPS * 4).to(tl.int32)
    theta = tl.load(entry + 1).to(tl.pointer_type(DTYPE)) + chunk * 1024
    if ALIGNED:
        theta, low, high = tl.multiple_of(theta, 16), tl.multiple_of(low, 8), tl.multiple_of(high, 8)
    plus, minus, at = tl.load(entry + 2), tl.load(entry + 3), row * columns + start
    wide_high = tl.where(tl.load(entry + 8) != 0, high, 0)  # of results in fp32
    if ALIGNED:
        wide_high = tl.multiple_of(wide_high, 8)
    z0, z1, z2, z3 = drawn(key, group, SIGNS)
    _lane(theta, plus, minus, at, offset, low, high, wide_high, z0 * eps, DTYPE, WIDE, ALIGNED)
    _lane(theta, plus, minus, at, offset + 256, low, high, wide_high, z1 * eps, DTYPE, WIDE, ALIGNED)
    _lane(theta, plus, minus, at, offset + 512, low, high, wide_high, z2 * eps, DTYPE, WIDE, ALIGNED)
    _lane(theta, plus, minus, at, offset + 768, low, high, wide_high, z3 * eps, DTYPE, WIDE, ALIGNED)


@triton.jit
def _lane(
    theta,
    plus,
    minus,
    at,
    offset,
    low,
    high,
    wide_high,
    step,
    DTYPE: tl.constexpr,
    WIDE: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """One lane; of its offsets, those in [low, high), into fp32 up to ``wide_high``."""
    mask = (offset >= low) & (offset < high)
    near = tl.load(theta + offset, mask).to(tl.float32)
    if WIDE:
        _store(plus, minus, at, offset, mask & (offset < wide_high), near, step, tl.float32, ALIGNED)
        mask = mask & (offset >= wide_high)
    _store(plus, minus, at, offset, mask, near, step, DTYPE, ALIGNED)


@triton.jit
def _store(plus, minus, at, offset, mask, near, step, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    plus, minus = plus.to(tl.pointer_type(DTYPE)) + at, minus.to(tl.pointer_type(DTYPE)) + at
    if ALIGNED:
        plus, minus = tl.multiple_of(plus, 16), tl.multiple_of(minus, 16)
    tl.store(plus + offset, (near + step).to(DTYPE), mask)
    tl.store(minus + offset, (near - step).to(DTYPE), mask)


def perturbations(
    groups: Sequence[Sequence[Copies]], eps: float, draw: int = philox.NORMALS
) -> list[Callable[[], None]]:
    """A launch for each group. All groups' thetas are on one device and of one dtype: fp32, fp16 or bf16.

    A result is of theta's dtype or fp32; eps is an fp32 number. Groups may be launched in any order, in any stream
    that has waited for the one this is called in.
    """
    device, tables = groups[0][0].theta.device, list(map(_table, groups))
    uploaded = table.upload([row for rows, *_ in tables for row in rows], device)
    parts = uploaded.split([len(rows) for rows, *_ in tables])
    return [
        partial(_launch, group, own, programs, aligned, eps, draw)
        for group, own, (_, programs, aligned) in zip(groups, parts, tables, strict=True)
    ]


def _launch(
    group: Sequence[Copies], rows: Tensor, programs: int, aligned: bool, eps: float, draw: int
) -> None:
    theta = group[0].theta
    with torch.cuda.device_of(theta):
        _perturb[(programs,)](
            rows,
            len(group),
            eps,
            DTYPES[theta.dtype],
            any(copies.plus.dtype != theta.dtype for copies in group),
            aligned,
            draw == philox.SIGNS,
            COLUMNS,
            normal.GROUPS,
            **normal.LAUNCH,
        )


def _table(group: Sequence[Copies]) -> tuple[list[list[int]], int, bool]:
    """The group's rows of a table, the number of its programs, and whether wide accesses may be made to all of it."""
    table_rows, first, odd, stretch = [], 0, 0, normal.GROUPS // 256
    for theta, key, rows, plus, minus in group:
        count, columns = (1, theta.numel()) if rows is None else (len(rows), theta.shape[1])
        chunks = -(-columns // 1024) + (rows is not None)  # a row may begin in the middle of a chunk
        pieces = -(-chunks // stretch)
        a, b, c = theta.data_ptr(), plus.data_ptr(), minus.data_ptr()
        places = 0 if rows is None else rows.data_ptr()
        table_rows.append([first, a, b, c, places, key, columns, pieces, plus.dtype == torch.float32])
        odd |= (a | b | c) % 16 | columns % 8
        first += count * pieces
    return table_rows, first, not odd
