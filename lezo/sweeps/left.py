"""How long will a sweep still take? By what its jobs took that have finished, and by how far those are that run."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Sequence


class TimeLeft:
    """Knows what jobs of a setting took, in seconds; of others it expects what jobs take on the average."""

    def __init__(self, slots: int) -> None:
        """``slots``: how many jobs run at a time."""
        self._slots, self._took = slots, dict[str, list[float]]()

    def took(self, setting: str, seconds: float) -> None:
        """A job of the setting finished."""
        self._took.setdefault(setting, []).append(seconds)

    def seconds(
        self, running: Sequence[tuple[str, float, float | None]], waiting: Sequence[str]
    ) -> float | None:
        """Seconds until all have ended, each in the first slot that is free; None where nothing tells.

        ``running``: setting, seconds since the start, and seconds that are left by the job's own rows, if they tell;
        ``waiting``: settings, in the order in which they will start.
        """
        projected = [elapsed + left for _, elapsed, left in running if left is not None]
        ends: list[float] = []
        for setting, elapsed, left in running:
            if left is None:
                expected = self._expected(setting, projected)
                left = None if expected is None else max(expected - elapsed, 0.0)
            if left is None:
                return None
            ends.append(left)
        ends += [0.0] * (self._slots - len(ends))
        heapq.heapify(ends)
        for setting in waiting:
            if (expected := self._expected(setting, projected)) is None:
                return None
            heapq.heappush(ends, heapq.heappop(ends) + expected)
        return max(ends)

    def _expected(self, setting: str, projected: Sequence[float]) -> float | None:
        """The mean of its setting, else of all, else of what those that run will have taken."""
        known = self._took.get(setting) or [s for took in self._took.values() for s in took] or projected
        return statistics.fmean(known) if known else None
