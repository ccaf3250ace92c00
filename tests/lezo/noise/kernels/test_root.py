"""The square root that the kernels write out, of every number that they take one of."""

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed (it comes with lezo[test], on Linux)")

import triton.language as tl  # noqa: E402

from lezo.noise.kernels.normal import _root  # noqa: E402 - private to the kernels

FIRST, LAST = 0x33800000, 0x42380000  # the bits of 2^-24 and 46, which -2 ln u lies between where it is not 0


@triton.jit
def _roots(x, result, numel, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(result + at, _root(tl.load(x + at, at < numel)), at < numel)


def root(x):
    result = torch.empty_like(x)
    _roots[(triton.cdiv(len(x), 1 << 14),)](x, result, len(x), 1 << 14)
    return result


def test_it_is_rounded_correctly(device):
    """Of all 240 million on a GPU; in the interpreter, whose root is another, of some."""
    step = 1 if device == "cuda" else 4001
    for first in range(FIRST, LAST, step << 24):
        x = torch.arange(first, min(first + (step << 24), LAST), step, dtype=torch.int32, device=device)
        x = x.view(torch.float32)
        assert torch.equal(root(x), x.double().sqrt().float())


def test_of_zero_it_is_zero_with_its_sign(device):
    x = torch.tensor([0.0, -0.0, 1.0], device=device)
    assert root(x).tolist() == [0.0, 0.0, 1.0] and root(x).signbit().tolist() == [False, True, False]
