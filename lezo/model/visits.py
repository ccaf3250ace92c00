"""How do blocks visit a CUDA device? Two buffers and a stream of copies: while a block runs, the next one comes.

A buffer is as large as the largest block. An event each way orders the two streams: a block runs when its copy is
there, and a buffer is copied into when all that was launched before and reads it is done. In a forward block i is in
buffer i modulo 2, so that addresses are known before it comes; in an update the buffers take turns.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lezo.model.berths import Berth, anonymous
from lezo.model.home import Elsewhere, with_next
from lezo.model.weights import ModelError


class Carrier(Protocol):
    """Copies whole blocks between home and a buffer on the device, in ``stream``, in the order of the calls."""

    stream: Any

    def fetch(self, berth: Berth, buffer: int, into: Tensor, after: Any) -> None:
        """Begin to copy a block to the device, when the event ``after`` is over."""

    def arrived(self, buffer: int) -> Any:
        """The event that the latest `fetch` into the buffer is done; the host waits until it is recorded."""

    def store(self, berth: Berth, buffer: int, source: Tensor) -> None:
        """Begin to copy a block home."""

    def settle(self) -> None:
        """Wait until all that was stored is in host memory."""


class FromHost:
    """Blocks in host memory, which is pinned where it lies: a visit is one copy."""

    def __init__(self, device: torch.device, berths: Sequence[Berth]) -> None:
        self.stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._whole = {berth: berth.whole for berth in berths}
        _pin(self, list(self._whole.values()))
        self._events = [_event(), _event()]
        self._stored: Any = None

    def fetch(self, berth: Berth, buffer: int, into: Tensor, after: Any) -> None:
        self.stream.wait_event(after)
        with torch.cuda.stream(self.stream):
            into.copy_(self._whole[berth], non_blocking=True)
            self._events[buffer].record(self.stream)

    def arrived(self, buffer: int) -> Any:
        return self._events[buffer]

    def store(self, berth: Berth, buffer: int, source: Tensor) -> None:
        with torch.cuda.stream(self.stream):
            self._whole[berth].copy_(source, non_blocking=True)
            self._stored = _event()
            self._stored.record(self.stream)

    def settle(self) -> None:
        if self._stored is not None:
            self._stored.synchronize()
            self._stored = None


class FromDisk:
    """Blocks in a mapped file, whose pages a thread copies through two pinned buffers, one task after the other."""

    def __init__(self, device: torch.device, berths: Sequence[Berth]) -> None:
        self.stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        largest = max(len(berth.memory) for berth in berths)
        self._staging = [torch.frombuffer(memory, dtype=torch.uint8) for memory in anonymous([largest] * 2)]
        _pin(self, self._staging)
        self._events, self._tasks = [_event(), _event()], list[Future[None]]()
        self._fetched: list[Future[None] | None] = [None, None]
        self._thread = ThreadPoolExecutor(1, "blocks")

    def fetch(self, berth: Berth, buffer: int, into: Tensor, after: Any) -> None:
        self._fetched[buffer] = self._thread.submit(self._read, berth, buffer, into, after)

    def arrived(self, buffer: int) -> Any:
        task = self._fetched[buffer]
        assert task is not None
        task.result()
        return self._events[buffer]

    def store(self, berth: Berth, buffer: int, source: Tensor) -> None:
        with torch.cuda.stream(self.stream):
            staged, there = self._staging[buffer][: len(source)], _event()
            staged.copy_(source, non_blocking=True)
            there.record(self.stream)
        self._tasks.append(self._thread.submit(self._write, berth, staged, there))

    def settle(self) -> None:
        for task in self._tasks:
            task.result()
        self._tasks.clear()

    def _read(self, berth: Berth, buffer: int, into: Tensor, after: Any) -> None:
        staged = self._staging[buffer][: len(into)]
        self._events[buffer].synchronize()  # of the last copy out of it; one that was never recorded is over
        staged.copy_(berth.whole)
        berth.let_go()
        self.stream.wait_event(after)
        with torch.cuda.stream(self.stream):
            into.copy_(staged, non_blocking=True)
            self._events[buffer].record(self.stream)

    def _write(self, berth: Berth, staged: Tensor, there: Any) -> None:
        there.synchronize()
        berth.whole.copy_(staged)
        berth.let_go()


class Visiting(Elsewhere):
    """Blocks that visit a CUDA device from host memory or, ``paged``, from a file."""

    def __init__(self, device: torch.device, berths: Sequence[Berth], *, paged: bool) -> None:
        super().__init__(device, berths, paged=paged)
        self.carrier: Carrier = FromDisk(device, berths) if paged else FromHost(device, berths)
        largest = max(len(berth.memory) for berth in berths)
        self._buffers = [torch.empty(largest, dtype=torch.uint8, device=device) for _ in range(2)]
        self._guests: dict[tuple[int, int], list[nn.Parameter]] = {}
        self._done = [_event(), _event()]  # all that reads or writes a buffer
        self._coming: dict[int, int] = {}  # buffer -> the block that was asked for ahead
        for buffer in (0, 1):  # whatever their memory was used for before is over before they are written
            self._leave(buffer)

    def begin(self, number: int) -> None:
        """Let the block's modules hold its tensors on the device, and ask for the next block."""
        then = number + 1 if number + 1 < len(self.berths) else None
        self._visit(number, number % 2, then)
        self._hold(number, self._guests_of(number, number % 2))

    def end(self, number: int) -> None:
        """The block's modules hold its tensors at home again."""
        self._hold(number, self.thetas[number])
        self._leave(number % 2)

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """See `Home.on_device`."""
        numbers = range(len(self.berths))
        try:
            for number in numbers:
                self._hold(number, self._guests_of(number, number % 2))
            yield
        finally:
            for number in numbers:
                self._hold(number, self.thetas[number])

    def updates(self, thetas: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
        """See `Home.updates`: blocks are written back, and the host waits for that at the end."""
        here, blocks = self._by_block(thetas)
        if here:
            yield here
        self._coming.clear()
        for turn, (number, then) in enumerate(with_next(list(blocks))):
            buffer, berth = turn % 2, self.berths[number]
            self._visit(number, buffer, then)
            guests = self._guests_of(number, buffer)
            yield {name: guests[seat] for name, seat in blocks[number].items()}
            self._leave(buffer)
            self.carrier.stream.wait_event(self._done[buffer])
            self.carrier.store(berth, buffer, self._buffers[buffer][: len(berth.memory)])
        self.carrier.settle()

    def _visit(self, number: int, buffer: int, then: int | None) -> None:
        """Wait, on the device, for a block's copy in the buffer, and begin the next one's into the other."""
        if self._coming.get(buffer) != number:
            self._coming.clear()  # another pass than the one that was asked for: home may have changed since
            self._fetch(number, buffer)
        self._coming = {} if then is None else {1 - buffer: then}
        if then is not None:
            self._fetch(then, 1 - buffer)
        torch.cuda.current_stream(self.device).wait_event(self.carrier.arrived(buffer))

    def _fetch(self, number: int, buffer: int) -> None:
        berth = self.berths[number]
        self.carrier.fetch(berth, buffer, self._buffers[buffer][: len(berth.memory)], self._done[buffer])

    def _leave(self, buffer: int) -> None:
        self._done[buffer].record(torch.cuda.current_stream(self.device))

    def _guests_of(self, number: int, buffer: int) -> list[nn.Parameter]:
        """A block's tensors in a buffer: the same ones in each visit."""
        if (number, buffer) not in self._guests:
            within = (seat.within(self._buffers[buffer]) for seat in self.berths[number].seats)
            self._guests[number, buffer] = [nn.Parameter(tensor, requires_grad=False) for tensor in within]
        return self._guests[number, buffer]

    def _hold(self, number: int, tensors: Sequence[Tensor]) -> None:
        for seat, tensor in zip(self.berths[number].seats, tensors, strict=True):
            seat.hold(tensor)


def _event() -> Any:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]


def _pin(owner: object, memories: Sequence[Tensor]) -> None:
    """Pin memory where it lies, until ``owner`` is gone. Raises ModelError where the driver refuses."""
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    for memory in memories:
        if (code := int(runtime.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0))) != 0:
            raise ModelError(
                f"model.home: the driver cannot pin {memory.nbytes / 1e9:.1f} GB of host memory (CUDA error {code}); "
                "expected more free memory, or model.home=disk, which pins two blocks only"
            )
        weakref.finalize(owner, runtime.cudaHostUnregister, memory.data_ptr())
