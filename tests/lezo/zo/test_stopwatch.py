"""Phases add up, laps start anew, and a failing phase still counts."""

import time

import pytest
import torch

from lezo.zo.step import Stopwatch


def test_phases_add_up_until_the_lap() -> None:
    watch = Stopwatch(torch.device("cpu"))
    for phase in ("forward", "update", "forward"):
        with watch(phase):
            time.sleep(0.02)
    first = watch.lap()
    assert set(first) == {"forward", "update"}
    assert first["forward"] >= 0.04 and first["update"] >= 0.02
    assert first["forward"] > first["update"]
    assert watch.lap() == {}


def test_a_phase_that_fails_is_counted() -> None:
    watch = Stopwatch(torch.device("cpu"))
    with pytest.raises(RuntimeError), watch("forward"):
        time.sleep(0.01)
        raise RuntimeError
    assert watch.lap()["forward"] >= 0.01


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_phases_on_the_device_are_what_the_device_took() -> None:
    device = torch.device("cuda")
    watch, matrix = Stopwatch(device), torch.randn(4096, 4096, device=device)
    matrix @ matrix
    with watch("forward"):
        for _ in range(10):
            matrix @ matrix
    with watch("update"):
        matrix.add_(1)
    seconds = watch.lap()
    assert seconds["forward"] > seconds["update"] > 0
