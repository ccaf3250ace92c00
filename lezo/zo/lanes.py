"""How do devices that each hold some of the blocks work at the same time? Micro-batches are asked for in lanes.

A lane is a stream on each device. What is asked for in one lane is done in order; a micro-batch enters a device's blocks
when the one before it, in another lane, has left them, and waits for nothing else of it. So while one is in the last
device's blocks, or comes back to the first one's head, the next is in the first one's blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle, islice
from typing import Any, TypeVar

import torch

_Made = TypeVar("_Made")


class Lanes:
    """As many lanes as there are ``devices``, the first of which is the current one. On a CPU all is done in order anyway.

    ``at``: the number of the lane that is asked now. Lanes share what is only read; what one writes is its own.
    """

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self._devices = devices
        self._streams: list[list[Any]] = []  # of each lane, by device
        self._asking = False  # in a lane's streams
        self._place: int | None = None  # the number of the device whose blocks are asked now
        self._left: dict[int, Any] = {}  # what marks that the micro-batch before has left a device
        self.at = 0

    def used(self, parts: int) -> int:
        """How many lanes so many parts take."""
        return min(len(self._devices), parts)

    def spread(self, parts: Iterator[_Made], count: int) -> list[_Made]:
        """The ``count`` things that ``parts`` makes, one lane after the other; the host waits for none of them.

        They may be used as if they had been made one after the other: by then all lanes have joined.
        """
        if self.used(count) < 2:
            return list(parts)
        self._part(self.used(count))
        try:
            return [self._made(parts, lane) for lane in islice(cycle(range(self.used(count))), count)]
        finally:
            self.at = 0
            self._join()

    def enter(self, place: int | None) -> None:
        """A micro-batch goes on to a device's blocks, or (None) to none any more."""
        if not self._asking or place == self._place:
            return
        if self._place is not None:
            self._left[self._place] = self._streams[self.at][self._place].record_event()
        if place in self._left:
            self._streams[self.at][place].wait_event(self._left[place])
        self._place = place

    def _made(self, parts: Iterator[_Made], lane: int) -> _Made:
        self.at = lane
        with self._asked():
            self.enter(0)
            made = next(parts)
            self.enter(None)
            return made

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """While it lasts, the current stream of each device is the lane's."""
        with ExitStack() as stack:
            for stream in reversed(self._streams[self.at]):  # the first device is the current one again
                stack.enter_context(torch.cuda.stream(stream))
            self._asking = bool(self._streams[self.at])
            try:
                yield
            finally:
                self._asking = False

    def _part(self, lanes: int) -> None:
        """A lane begins when all that was asked for before is done."""
        while len(self._streams) < lanes:
            own = [torch.cuda.Stream(d) for d in self._devices if d.type == "cuda"]  # type: ignore[no-untyped-call]
            self._streams.append(own)
        self._place = None
        self._left.clear()
        for stream in (stream for lane in self._streams for stream in lane):
            stream.wait_stream(torch.cuda.current_stream(stream.device))

    def _join(self) -> None:
        """What comes next begins when all lanes are done."""
        self._place = None
        for stream in (stream for lane in self._streams for stream in lane):
            torch.cuda.current_stream(stream.device).wait_stream(stream)
