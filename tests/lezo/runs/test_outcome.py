"""How a run ends when the machine gives out: one message, a way out, no traceback."""

import pytest
import torch

from lezo.data.source import DataError
from lezo.runs.outcome import message_of


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_says_what_to_lower(error: Exception) -> None:
    words = message_of(error)
    assert words is not None and words.startswith("out of memory (")
    assert "train.micro_batch_size" in words and "eval.batch_size" in words and "model.dtype" in words


def test_only_expected_errors_go_without_their_traceback() -> None:
    assert message_of(DataError("file, line 3: bad")) == "file, line 3: bad"
    assert message_of(RuntimeError("a bug")) is None
