"""Where the Triton kernels are tested: on CUDA, or in the interpreter where there is none."""

import numpy as np
import pytest
import torch


@pytest.fixture
def device(monkeypatch):
    """The device of the tensors; skips where Triton is absent."""
    pytest.importorskip("triton", reason="Triton is not installed (it comes with lezo[test], on Linux)")
    if torch.cuda.is_available():
        return "cuda"
    from triton.runtime import interpreter

    from lezo.noise.kernels import normal

    monkeypatch.setattr(interpreter, "_convert_float", rounding_bf16(interpreter._convert_float))
    monkeypatch.setattr(normal, "GROUPS", 1 << 11)  # few programs, each of which is a loop of NumPy calls
    return "cpu"


def rounding_bf16(convert):
    """``convert`` of Triton's interpreter, which cuts fp32 to bf16 where a GPU rounds to nearest."""
    import triton.language as tl

    def repaired(values, source, target, mode):
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(values, source, target, mode)
        rounded = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)
        return rounded.view(torch.int16).numpy().view(np.uint16)

    return repaired
