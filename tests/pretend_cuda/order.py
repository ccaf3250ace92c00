"""What happens before what on pretended devices: a use of memory that nothing orders behind the one before it raises.

Each stream has a clock, and what it knows of the others': an event takes that along, and who waits for it learns it.
The host is one more of them; what it has done is done before whatever it asks for next. Looked after is the memory that a
stream beside the default one has been given to do with, and host memory that was pinned where it lies.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

HOST = "the host"
Actor = Any  # HOST, or a stream's name


@dataclass
class Uses:
    """Who wrote last, and who has read since: names, their clocks then, and the lines of lezo."""

    writer: tuple[Actor, int, str] | None = None
    readers: dict[Actor, tuple[int, str]] = field(default_factory=dict)


class Order:
    """Clocks of streams and of the host, and the uses of memory that is looked after."""

    def __init__(self) -> None:
        self.knows: dict[Actor, dict[Actor, int]] = {}
        self.uses: dict[Any, Uses] = {}
        self.shared: set[int] = set()  # storages that a stream beside the default one was given
        self.pinned: dict[int, int] = {}  # address -> bytes
        self.numbers, self.lock, self.thread = count(1), threading.RLock(), threading.local()

    def stream_of(self, device: torch.device) -> Actor:
        """This thread's stream on the device."""
        return getattr(self.thread, "streams", {}).get(device.index, ("default", device.index))

    def is_default(self) -> bool:
        """Whether this thread works in default streams."""
        return not getattr(self.thread, "streams", {})

    def learns(self, actor: Actor, known: dict[Actor, int]) -> None:
        """From here on the actor is behind all that is known."""
        own = self.knows.setdefault(actor, {})
        own |= {other: max(tick, own.get(other, 0)) for other, tick in known.items()}

    def known_to(self, actor: Actor) -> dict[Actor, int]:
        """All that is behind the actor, its own work included."""
        return dict(self.knows.setdefault(actor, {}))

    def all_done(self) -> None:
        """The host has waited for everything."""
        for known in [*self.knows.values()]:
            self.learns(HOST, dict(known))

    def region(self, tensor: Tensor) -> int | None:
        """The pinned memory that a tensor of the CPU lies in."""
        address = tensor.data_ptr()
        return next((start for start, size in self.pinned.items() if start <= address < start + size), None)

    def used(self, actor: Actor, what: Any, writes: bool, where: str) -> None:
        """Raises AssertionError where the use may run beside an earlier one, of which one writes."""
        with self.lock:
            uses, own = self.uses.setdefault(what, Uses()), self.knows.setdefault(actor, {})
            before = [uses.writer] if uses.writer else []
            before += [(reader, *then) for reader, then in uses.readers.items()] if writes else []
            for other, tick, line in before:
                behind = other in (actor, HOST) or tick <= own.get(other, 0)
                verb = "written" if writes else "read"
                assert behind, (
                    f"{what} {verb} by {actor} at {where} while {other} may still use it, of {line}"
                )
            own[actor] = own.get(actor, 0) + 1
            if writes:
                uses.writer, uses.readers = (actor, own[actor], where), {}
            else:
                uses.readers[actor] = own[actor], where

    def ran(self, operator: Any, args: Any, kwargs: Any, where: str) -> None:
        """An operator was given to a device: its operands are used."""
        given = list(zip(operator._schema.arguments, args, strict=False))
        given += [(a, kwargs[a.name]) for a in operator._schema.arguments if a.name in kwargs]
        if any(a.alias_info is not None and not a.alias_info.is_write for a, _ in given):
            return  # a view
        if operator.namespace == "prim" or "sym_" in str(operator):
            return  # asks about a tensor, not for its values
        for argument, value in given:
            for leaf in tree_leaves(value):
                if isinstance(leaf, Tensor):
                    self.tensor(leaf, argument.alias_info is not None, where)

    def tensor(self, tensor: Tensor, writes: bool, where: str) -> None:
        """This thread's stream uses a tensor of its device."""
        if not isinstance(tensor, FakeTensor) or tensor.device.type != "cuda":
            return
        actor, key = self.stream_of(tensor.device), tensor.untyped_storage()._cdata
        if actor[0] != "default":
            self.shared.add(key)
        if key in self.shared:
            self.used(actor, f"memory on {tensor.device} (no. {key % 1000})", writes, where)

    def host(self, tensor: Tensor, writes: bool, where: str, actor: Actor = HOST) -> None:
        """The host, or a copy, uses host memory, if it is pinned."""
        if self.pinned and (region := self.region(tensor)) is not None:
            self.used(actor, f"host memory (no. {[*self.pinned].index(region)})", writes, where)


class Stream:
    """torch.cuda.Stream, or a device's default one."""

    def __init__(self, device: Any, name: Actor = None) -> None:
        from tests.pretend_cuda.gpu import PretendGpu

        self.gpu = PretendGpu.present
        self.device, self.order = self.gpu.checked(device), self.gpu.order
        self.name = name or ("side", next(self.order.numbers))

    def wait_stream(self, other: Stream) -> None:
        """What comes next here begins when the other stream has done all it was told to so far."""
        self.order.learns(self.name, self.order.known_to(other.name))

    def wait_event(self, event: Event) -> None:
        """The same up to an event; one that was never recorded is over."""
        self.order.learns(self.name, event.known)


class Event:
    """torch.cuda.Event: marks how far a stream, and the device, had been told to go."""

    def __init__(self, gpu: Any) -> None:
        self.gpu, self.mark, self.known = gpu, 0, dict[Actor, int]()

    def record(self, stream: Stream | None = None) -> None:
        """Now, in the stream or the present one."""
        order: Order = self.gpu.order
        actor = order.stream_of(torch.device("cuda", self.gpu.current)) if stream is None else stream.name
        self.mark, self.known = self.gpu.operators, order.known_to(actor)

    def synchronize(self) -> None:
        """The host waits."""
        self.gpu.order.learns(HOST, self.known)
        if self.mark > self.gpu.reached:  # else the device is past it, and nobody waits
            self.gpu.wait("an event is waited for", self.mark)

    def elapsed_time(self, other: Event) -> float:
        """Milliseconds."""
        return 1.0


class within:
    """torch.cuda.stream: while it lasts, this thread's stream on its device is another one."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.thread = stream, stream.order.thread

    def __enter__(self) -> None:
        self.before = getattr(self.thread, "streams", {})
        self.thread.streams = {**self.before, self.stream.device.index: self.stream.name}

    def __exit__(self, *exception: Any) -> None:
        self.thread.streams = self.before
