"""The square root that the kernels write out, of every number that they take one of."""

import pytest
import torch

FIRST, LAST = 0x33800000, 0x42380000  # the bits of 2^-24 and 46, which -2 ln u lies between where it is not 0


@pytest.fixture
def root(device):
    import triton
    import triton.language as tl

    from lezo.noise.kernels.normal import _root  # private to the kernels

    @triton.jit
    def kernel(x, result, numel, BLOCK: tl.constexpr):
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(result + at, _root(tl.load(x + at, at < numel)), at < numel)

    def run(x):
        result = torch.empty_like(x)
        kernel[(triton.cdiv(len(x), 1 << 14),)](x, result, len(x), 1 << 14)
        return result

    return run


def test_it_is_rounded_correctly(root, device):
    """Of all 240 million on a GPU; in the interpreter, whose root is another, of some."""
    step = 1 if device == "cuda" else 4001
    for first in range(FIRST, LAST, step << 24):
        x = torch.arange(first, min(first + (step << 24), LAST), step, dtype=torch.int32, device=device)
        x = x.view(torch.float32)
        assert torch.equal(root(x), x.double().sqrt().float())


def test_of_zero_it_is_zero_with_its_sign(root, device):
    x = torch.tensor([0.0, -0.0, 1.0], device=device)
    assert root(x).tolist() == [0.0, 0.0, 1.0] and root(x).signbit().tolist() == [False, True, False]
