"""What the processes of a run say to each other. Rank 0 decides; the others do what it says.

Numbers go as tensors and everything else as JSON, over torch.distributed: NCCL between GPUs, Gloo between CPUs.
Nothing is pickled.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lezo.ranks.launcher import Place
from lezo.ranks.pulse import BEAT, Pulse
from lezo.ranks.pulse import RankError as RankError

T = TypeVar("T")

_HEAD = 256  # bytes of a message that come with its size
# Rank 0 may replay, or write a model, for as long as it takes: the pulse says that it lives.
_FOR_LONG = timedelta(days=30)


class Ranks(Protocol):
    """The processes that make a run together: this one is ``rank`` of ``size``. All call the same, in the same order."""

    rank: int
    size: int

    def name(self, rank: int) -> str:
        """What a rank is called in messages, with its machine and process."""

    def lost(self) -> str | None:
        """Which other rank failed or does not answer any more, in words; it takes some seconds to find that there is none."""

    def tell(self, word: Any) -> None:
        """On rank 0: say a JSON value to all the others, who `hear` it."""

    def hear(self) -> Any:
        """On the others: what rank 0 tells next. Raises RankError where it does not answer any more."""

    def exchange(self, value: T, *, patient: bool = False) -> list[T]:
        """Each rank's JSON value, in order. Floats keep their bits. ``patient``: however long some take to come."""

    def gather(self, parts: Tensor, count: int) -> Tensor:
        """All ``count`` parts, (count, ...), in their order, on every rank: part i is one of rank i % size's ``parts``."""

    def send(self, tensors: Iterable[Tensor]) -> None:
        """Rank 0's values, into the others' tensors."""


class Alone(Ranks):
    """A run of one process."""

    rank, size = 0, 1

    def name(self, rank: int) -> str:
        """The process."""
        return "the process"

    def lost(self) -> str | None:
        """None."""
        return None

    def tell(self, word: Any) -> None:
        """There is nobody."""

    def hear(self) -> Any:
        """Never asked for."""
        raise AssertionError("a process alone has nobody to hear")

    def exchange(self, value: T, *, patient: bool = False) -> list[T]:
        """The value."""
        return [value]

    def gather(self, parts: Tensor, count: int) -> Tensor:
        """The parts."""
        return parts

    def send(self, tensors: Iterable[Tensor]) -> None:
        """There is nobody."""


ALONE = Alone()


def share(ranks: Ranks, items: Sequence[T]) -> Sequence[T]:
    """Those of the items that are this rank's: every ``size``-th, from its number on."""
    return items[ranks.rank :: ranks.size]


def in_order(found: Tensor, size: int, count: int) -> Tensor:
    """The first ``count`` parts in their order, of all ranks' parts one rank after the other: (size * most, ...)."""
    shape = found.shape[1:]
    return found.view(size, -1, *shape).transpose(0, 1).reshape(-1, *shape)[:count].contiguous()


class Joined(Ranks):
    """This process among those that a launcher started.

    ``timeout``: seconds after which a rank that does not come to an exchange counts as hanging.
    """

    def __init__(self, place: Place, address: tuple[str, int], timeout: float) -> None:
        self.rank, self.size = place.rank, place.size
        host, port = address
        self._timeout = timedelta(seconds=timeout)
        self._hosts = place.launcher != "torchrun" and place.rank == 0
        cuda = torch.cuda.is_available()
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            init_method=f"tcp://{host}:{port}" if place.launcher != "torchrun" else "env://",
            rank=self.rank,
            world_size=self.size,
            timeout=self._timeout,
        )
        self._words = dist.new_group(backend="gloo", timeout=_FOR_LONG)
        self._pulse = Pulse(host, port, self.rank, self.size, timeout)
        self._pulse.start(self.exchange)

    def name(self, rank: int) -> str:
        """As of `Ranks`."""
        return self._pulse.name(rank)

    def lost(self) -> str | None:
        """As of `Ranks`."""
        return self._pulse.lost()

    def tell(self, word: Any) -> None:
        """As of `Ranks`: one small message, a second one for what is longer."""
        content = json.dumps(word).encode()
        head = torch.zeros(_HEAD, dtype=torch.uint8)
        first = len(content).to_bytes(8, "little") + content[: _HEAD - 8]
        head[: len(first)] = torch.frombuffer(bytearray(first), dtype=torch.uint8)
        rest = content[_HEAD - 8 :]
        parts = [head, *([torch.frombuffer(bytearray(rest), dtype=torch.uint8)] if rest else [])]
        with self._named():
            for (
                part
            ) in parts:  # rank 0 does not wait for one that hangs; the others hear for as long as it takes
                work = dist.broadcast(part, 0, group=self._words, async_op=True)
                assert work is not None
                work.wait(self._timeout)

    def hear(self) -> Any:
        """As of `Ranks`."""
        head = torch.empty(_HEAD, dtype=torch.uint8)
        with self._named():
            dist.broadcast(head, 0, group=self._words)
            content = head.numpy().tobytes()
            size, content = int.from_bytes(content[:8], "little"), content[8:]
            if size > len(content):
                rest = torch.empty(size - len(content), dtype=torch.uint8)
                dist.broadcast(rest, 0, group=self._words)
                content += rest.numpy().tobytes()
        return json.loads(content[:size])

    def exchange(self, value: T, *, patient: bool = False) -> list[T]:
        """As of `Ranks`: sizes first, then the longest size of each."""
        group = self._words if patient else None
        content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with self._named():
            dist.all_gather(sizes, torch.tensor([len(content)]), group=group)
            padded = torch.zeros(int(max(sizes)), dtype=torch.uint8)
            padded[: len(content)] = content
            found = [torch.empty_like(padded) for _ in sizes]
            dist.all_gather(found, padded, group=group)
        return [json.loads(each[: int(n)].numpy().tobytes()) for each, n in zip(found, sizes, strict=True)]

    def gather(self, parts: Tensor, count: int) -> Tensor:
        """As of `Ranks`; on CUDA the host does not wait."""
        most, shape = -(-count // self.size), parts.shape[1:]
        mine = parts.new_zeros(most, *shape)
        mine[: len(parts)] = parts
        found = parts.new_empty(self.size * most, *shape)
        with self._named():
            dist.all_gather(list(found.chunk(self.size)), mine)
        return in_order(found, self.size, count)

    def send(self, tensors: Iterable[Tensor]) -> None:
        """As of `Ranks`."""
        for tensor in tensors:
            whole = tensor.contiguous()
            with self._named():
                dist.broadcast(whole, 0)
            if whole is not tensor:
                tensor.copy_(whole)

    def failed(self, message: str) -> None:
        """Let the others know why this process ends."""
        self._pulse.say(failed=message)

    def leave(self, code: int) -> None:
        """End for good, with the process's exit code."""
        self._pulse.say(ended=code)
        if code and self._hosts:  # the store, in which the others have yet to read this
            time.sleep(2 * BEAT)
        self._pulse.close()
        if code == 0:
            dist.destroy_process_group()

    def code_of_first(self) -> int | None:
        """The exit code that rank 0 left with, where it has left."""
        return self._pulse.ended(0)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """An exchange. Raises RankError with the rank that is to blame."""
        self._pulse.exchanges += 1
        try:
            yield
        except RuntimeError as error:
            raise RankError(self._pulse.why(error)) from error
