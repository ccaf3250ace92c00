"""What a step is to whoever asks for one: it takes a batch, changes the weights once, and says what it measured."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepReport:
    """What a step measured. ``applied`` is False where a loss was not finite and theta was left alone.

    ``coefficient``: what a zeroth-order update multiplied z with, and ``more`` the same of further directions; they and
    the step's number are all it takes to make the update again (NaN for others). ``phases``: seconds of perturbing
    and updating; the rest of a step is its forwards.
    """

    loss: float
    applied: bool
    measures: Mapping[str, float] = field(default_factory=dict)
    coefficient: float = field(default=math.nan, compare=False)
    phases: Mapping[str, float] = field(default_factory=dict, compare=False)
    more: tuple[float, ...] = ()

    @property
    def coefficients(self) -> tuple[float, ...]:
        """Of all directions of the step, in their order."""
        return (self.coefficient, *self.more)


class Optimizer(Protocol):
    """Anything that can take step ``step`` on a batch."""

    def step(self, step: int, batch: Any) -> StepReport:
        """Change the model's weights once."""

    def state(self) -> Mapping[str, Tensor]:
        """What the optimizer remembers from step to step besides weights and journal: nothing, unless it says so."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Remember this instead."""
        return


class Stopwatch:
    """Adds up the seconds of named phases.

    On a CUDA device the phases are marked by events in its current stream and read at ``lap``; entering and leaving
    a phase never waits for the device. Of several devices, which work at the same time, that counts which took longest.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.device, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, phase: str, device: torch.device | None = None) -> Iterator[None]:
        """Count what happens inside, on ``device`` or the watch's own, towards ``phase``; phases must not nest."""
        device = device or self._device
        if device.type != "cuda":
            start = time.perf_counter()
            try:
                yield
            finally:
                self._seconds[phase] += time.perf_counter() - start
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        stream = torch.cuda.current_stream(device)
        begin.record(stream)
        try:
            yield
        finally:
            end.record(stream)
            self._events.append((phase, device, begin, end))

    def add(self, seconds: Mapping[str, float]) -> None:
        """Count what was measured elsewhere."""
        for phase, more in seconds.items():
            self._seconds[phase] += more

    def lap(self) -> dict[str, float]:
        """Seconds of each phase since the last lap. On CUDA it waits for the phases to be over."""
        each: dict[str, dict[torch.device, float]] = defaultdict(lambda: defaultdict(float))
        for phase, device, start, end in self._events:
            end.synchronize()
            each[phase][device] += start.elapsed_time(end) / 1000
        self.add({phase: max(devices.values()) for phase, devices in each.items()})
        seconds = dict(self._seconds)
        self._events.clear()
        self._seconds.clear()
        return seconds
