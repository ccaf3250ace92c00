"""What happens before what on pretended devices: a use of memory that nothing orders behind the one before it raises.

The host and each stream have a clock, and know how far the others are before what they do next: an event takes along
what its stream knows, and who waits for it learns that. Two uses, of which one writes, must be in one stream, or the
later one's stream must know of the earlier. What the host has done is done before whatever it asks for next; that it
waits for a stream orders its own uses alone, not those of other streams, which is stricter than a device.

All that is asked for counts, in default streams too: operators by their operands, lezo's kernels, which find theirs by
addresses, what a captured graph used at each of its replays, and, as one memory, what the graphs of a pool share.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Iterable
from functools import cache
from itertools import count, permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

import lezo

if TYPE_CHECKING:
    from tests.pretend_cuda.gpu import PretendGpu

HOME = Path(lezo.__file__).parent
_LOCK = threading.RLock()


class Actor:
    """The host, or a stream. ``known``: of each actor, itself too, how far it is before what this one does next."""

    def __init__(self, name: str) -> None:
        self.name, self.known = name, dict[Actor, int]()

    def learns(self, known: dict[Actor, int]) -> None:
        """What comes next is behind all that is known."""
        with _LOCK:
            for actor, tick in known.items():
                self.known[actor] = max(tick, self.known.get(actor, 0))

    def is_behind(self, known: dict[Actor, int]) -> bool:
        """Whether what comes next is behind all that anyway."""
        return all(self.known.get(actor, 0) >= tick for actor, tick in known.items())

    def goes_on(self) -> int:
        """It does something more; its clock then."""
        self.known[self] = self.known.get(self, 0) + 1
        return self.known[self]


class Stream(Actor):
    """torch.cuda.Stream. ``side``: whether it is not the one that a device has without being asked."""

    numbers = count(1)

    def __init__(self, device: Any, *, side: bool = True) -> None:
        self.device, self.side = _present().checked(device), side
        name = f"stream {next(self.numbers)}" if side else "the default stream"
        super().__init__(f"{name} of {self.device}")

    def wait_stream(self, other: Stream) -> None:
        """What comes next here begins when the other stream has done all it was told to so far."""
        self.learns(dict(other.known))

    def record_event(self) -> Event:
        """What marks all that the stream was told to so far."""
        event = Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        """What comes next here begins when all that was marked is done: nothing, by an event that was never recorded."""
        self.learns(event.known)


class Event:
    """torch.cuda.Event: marks how far a stream had been told to go."""

    def __init__(self, **_: Any) -> None:
        self.gpu, self.known = _present(), dict[Actor, int]()
        self.stream: Stream | None = None

    def record(self, stream: Stream | None = None) -> None:
        """Now, in the stream or the current one."""
        self.stream = stream or self.gpu.stream(self.gpu.current)
        self.known = dict(self.stream.known)

    def synchronize(self) -> None:
        """The host waits, unless it knows already that all that was marked is done."""
        if not self.gpu.order.host.is_behind(self.known):
            self.gpu.wait("an event is waited for", self.known)

    def elapsed_time(self, other: Event) -> float:
        """Milliseconds."""
        assert self.stream is not None and self.stream is other.stream, "a time between two streams"
        self.gpu.timed.add(self.stream.device.index)
        return 1.0


class Memory:
    """What is used as a whole: the latest write, and each actor's latest read since, with clocks and lines of lezo."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.written: tuple[Actor, int, str] | None = None
        self.read: dict[Actor, tuple[Actor, int, str]] = {}


class Order:
    """The clocks, and the memory of devices and what is pinned of the host's where it lies.

    ``overlapping``: how many things were asked for that need not wait for what another stream of their device had to do then.
    """

    def __init__(self, gpu: PretendGpu) -> None:
        self.gpu, self.host, self.overlapping = gpu, Actor("the host"), 0
        self.pinned: dict[int, tuple[int, Memory]] = {}  # by address; bytes
        self._storages: dict[int, Memory] = {}
        self._working: dict[int, dict[Stream, None]] = {}  # by device: streams that were given anything

    def use(self, actor: Actor, reads: Iterable[Memory], writes: Iterable[Memory]) -> None:
        """The host, or a stream, does one thing more. Raises AssertionError where that may be too early."""
        with _LOCK:
            tick, line = actor.goes_on(), where()
            for memory in reads:
                self._after(actor, [memory.written], f"{memory.name} read by {actor.name} at {line}")
                memory.read[actor] = actor, tick, line
            for memory in writes:
                before = [memory.written, *memory.read.values()]
                self._after(actor, before, f"{memory.name} written by {actor.name} at {line}")
                memory.written, memory.read = (actor, tick, line), {}
            if isinstance(actor, Stream):
                streams = self._working.setdefault(actor.device.index, {})
                streams[actor] = None
                self.overlapping += any(actor.known.get(one, 0) < one.known[one] for one in streams)

    def _after(self, actor: Actor, before: Iterable[tuple[Actor, int, str] | None], said: str) -> None:
        for other, tick, line in filter(None, before):
            behind = other in (actor, self.host) or tick <= actor.known.get(other, 0)
            assert behind, f"{said} while {other.name} may still use it, of {line}"

    def ran(self, operator: Any, args: Any, kwargs: Any, result: Any) -> None:
        """An operator was given to a device, or to two, which wait for each other: one that copies between them."""
        leaves, made = _there((args, kwargs)), _there(result)
        held = {leaf.untyped_storage()._cdata for leaf in leaves}
        new = [leaf for leaf in made if leaf.untyped_storage()._cdata not in held]
        if not new and not operator._schema.is_mutable:
            return  # a view, or a question about a tensor
        streams = [self.gpu.stream(number) for number in {leaf.device.index for leaf in (*leaves, *new)}]
        _meet(streams)
        self.given(leaves, [*new, *_written(operator, args, kwargs)])
        _meet(streams)

    def given(self, reads: Iterable[Tensor], writes: Iterable[Tensor]) -> None:
        """The current streams of tensors' devices use them; a graph, where this thread captures one, in each replay."""
        by_device, graph = dict[int, tuple[set[Memory], set[Memory]]](), self.gpu.captured()
        with _LOCK:
            for kind, tensors in enumerate((reads, writes)):
                for tensor in tensors:
                    by_device.setdefault(tensor.device.index, (set(), set()))[kind].add(self._of(tensor))
        for number, (read, written) in by_device.items():
            if graph is None:
                self.use(self.gpu.stream(number), read, written)
            else:
                graph.reads |= read
                graph.writes |= written

    def at_home(self, tensor: Tensor, *, writes: bool, actor: Actor | None = None) -> None:
        """The host, or the stream of a copy, uses host memory; looked after if it is pinned where it lies."""
        if (memory := self.region(tensor)) is not None:
            self.use(actor or self.host, [memory], [memory] if writes else [])

    def region(self, tensor: Tensor) -> Memory | None:
        """The pinned memory that a tensor of the CPU lies in."""
        if not self.pinned:
            return None
        at, regions = tensor.data_ptr(), [*self.pinned.items()]
        return next((memory for start, (size, memory) in regions if start <= at < start + size), None)

    def pin(self, address: int, size: int, flags: int) -> int:
        """cudaHostRegister."""
        self.pinned[address] = size, Memory(f"host memory at {address:#x}")
        return 0

    def unpin(self, address: int) -> int:
        """cudaHostUnregister."""
        self.pinned.pop(address, None)
        return 0

    def streams(self, number: int) -> list[Stream]:
        """Those of a device that were given anything."""
        return [*self._working.get(number, ())]

    def _of(self, tensor: Tensor) -> Memory:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._storages:
            self._storages[key] = Memory(f"memory on {tensor.device} of {tensor.dtype} {tuple(tensor.shape)}")
            weakref.finalize(storage, self._storages.pop, key, None)
        return self._storages[key]


def _present() -> PretendGpu:
    """Of whoever asks torch for a stream or an event, which are classes there."""
    from tests.pretend_cuda.gpu import PretendGpu

    return PretendGpu.present


def _there(tree: Any) -> list[Tensor]:
    """Tensors on a device."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.device.type == "cuda"]


def _written(operator: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The operands that an operator writes."""
    if not operator._schema.is_mutable:
        return []
    arguments = operator._schema.arguments
    given = [
        *zip(arguments, args, strict=False),
        *((a, kwargs[a.name]) for a in arguments if a.name in kwargs),
    ]
    return [leaf for a, value in given if a.alias_info and a.alias_info.is_write for leaf in _there(value)]


def _meet(streams: list[Stream]) -> None:
    """What comes next in any of them begins when all have done all they were told to so far."""
    for one, other in permutations(streams, 2):
        one.wait_stream(other)


def where() -> str:
    """The innermost line of lezo, else of transformers, on the stack."""
    frame, found = sys._getframe(1), "elsewhere"
    while frame is not None:
        own, name = _place(frame.f_code.co_filename)
        if own:
            return f"{name}:{frame.f_lineno}"
        if found == "elsewhere" and name:
            found = f"{name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return found


@cache
def _place(filename: str) -> tuple[bool, str]:
    """Whether a file is lezo's, and its name; none where it is nobody's that is named."""
    file = Path(filename)
    if HOME in file.parents:
        return True, str(file.relative_to(HOME))
    return False, file.name if "transformers" in file.parts else ""
