"""Where does a step's time go? Seconds by phase, measured without stopping the device."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up the seconds of named phases.

    On a CUDA device the phases are marked by events in the stream and read at ``lap``; entering and leaving
    a phase never waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count what happens inside towards ``phase``; phases must not nest."""
        if not self._cuda:
            start = time.perf_counter()
            try:
                yield
            finally:
                self._seconds[phase] += time.perf_counter() - start
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        try:
            yield
        finally:
            end.record()
            self._events.append((phase, begin, end))

    def add(self, seconds: Mapping[str, float]) -> None:
        """Count what was measured elsewhere."""
        for phase, more in seconds.items():
            self._seconds[phase] += more

    def lap(self) -> dict[str, float]:
        """Seconds of each phase since the last lap. On CUDA it waits for the phases to be over."""
        for phase, start, end in self._events:
            end.synchronize()
            self._seconds[phase] += start.elapsed_time(end) / 1000
        seconds = dict(self._seconds)
        self._events.clear()
        self._seconds.clear()
        return seconds
