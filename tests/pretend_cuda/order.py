"""Is what is asked for in several streams done in an order that nobody can get wrong? By what waits for what."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tests.pretend_cuda.gpu import COPIES, Graph, PretendGpu, Stream, where


class Order:
    """While its context lasts, an operator fails that reads what another stream may not have written yet, or writes what
    another may still read or write. That the host waits for a device is not counted as an order.

    ``overlapping``: how many things were asked for that need not wait for what another stream of the device had to do then.
    """

    def __init__(self) -> None:
        self.ticks, self.overlapping = 0, 0
        self._tokens: dict[
            Any, int
        ] = {}  # of a storage, and of a pool of graphs: never that of another before it
        self._written: dict[int, tuple[Stream, int]] = {}
        self._read: dict[int, dict[Stream, int]] = {}
        self._captured: tuple[Graph, int] | None = None  # and by which thread
        self._uses: dict[Graph, tuple[set[int], set[int]]] = {}  # what a graph reads and writes
        self._reached: dict[torch.device, dict[Stream, int]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Order:
        from tests.pretend_cuda import pretend_driver

        kernels = pretend_driver.defined_once()
        perturb, update = kernels["perturb"], kernels["update"]
        for owner, name, instead in (
            (PretendGpu, "run", self._running(PretendGpu.run)),
            (perturb, "_launch", self._perturbing(vars(perturb)["_launch"])),
            (update, "update", self._updating(vars(update)["update"])),
            (Graph, "capture_begin", self._beginning(Graph.capture_begin)),
            (Graph, "capture_end", self._ending(Graph.capture_end)),
            (Graph, "replay", self._replaying(Graph.replay)),
        ):
            self._stack.enter_context(mock.patch.object(owner, name, instead))
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()

    def _running(self, run: Any) -> Any:
        def ordered(gpu: PretendGpu, operator: Any, args: Any, kwargs: Any) -> Any:
            result = run(gpu, operator, args, kwargs)
            leaves = [leaf for leaf in tree_leaves((args, kwargs)) if _is_there(leaf)]
            made = [leaf for leaf in tree_leaves(result) if _is_there(leaf)]
            numbers = sorted({leaf.device.index for leaf in (*leaves, *made)})
            streams = [gpu.stream(number) for number in numbers]
            if operator in COPIES:  # between devices: both streams wait for each other
                for one in streams:
                    for other in streams:
                        one.wait_stream(other)
            held = {_cdata(leaf) for leaf in leaves}
            writes = [leaf for leaf in made if _cdata(leaf) not in held or operator._schema.is_mutable]
            views = not operator._schema.is_mutable and all(_cdata(leaf) in held for leaf in made)
            if not views:
                self._done(streams, leaves, writes)
            return result

        return ordered

    def _perturbing(self, launch: Any) -> Any:
        def ordered(group: Any, rows: Tensor, *rest: Any) -> None:
            launch(group, rows, *rest)
            stream = PretendGpu.present.stream(rows.device.index)
            written = [tensor for copies in group for tensor in (copies.plus, copies.minus)]
            self._done([stream], [rows, *(copies.theta for copies in group)], written)

        return ordered

    def _updating(self, update: Any) -> Any:
        def ordered(steps: Any, coefficient: Tensor, stochastic: bool) -> None:
            update(steps, coefficient, stochastic)
            stream = PretendGpu.present.stream(coefficient.device.index)
            thetas = [step.theta for step in steps]
            self._done([stream], [coefficient, *thetas], thetas)

        return ordered

    def _beginning(self, begin: Any) -> Any:
        def began(graph: Graph, pool: Any, capture_error_mode: str) -> None:
            begin(graph, pool, capture_error_mode)
            own = self._tokens.setdefault(("pool", pool), len(self._read))
            self._read.setdefault(own, {})
            self._captured, self._uses[graph] = (graph, threading.get_ident()), (set(), {own})

        return began

    def _ending(self, end: Any) -> Any:
        def ended(graph: Graph) -> None:
            end(graph)
            self._captured = None

        return ended

    def _replaying(self, replay: Any) -> Any:
        def replayed(graph: Graph) -> None:
            replay(graph)
            self._use([PretendGpu.present.stream(graph.device)], *self._uses[graph])

        return replayed

    def _done(self, streams: Sequence[Stream], reads: Sequence[Tensor], writes: Sequence[Tensor]) -> None:
        """One more thing is asked for, in a stream or between two that wait for each other; what is captured is not done."""
        read, written = ({self._token(tensor) for tensor in tensors} for tensors in (reads, writes))
        if self._captured is not None and self._captured[1] == threading.get_ident():
            for known, more in zip(self._uses[self._captured[0]], (read, written), strict=True):
                known |= more
        else:
            self._use(streams, read, written)

    def _use(self, streams: Sequence[Stream], reads: set[int], writes: set[int]) -> None:
        self.ticks += 1
        stream = streams[0]
        for token in reads:
            self._after(stream, [self._written.get(token)], "read", "written")
            self._read[token][stream] = self.ticks
        for token in writes:
            self._after(stream, [self._written.get(token), *self._read[token].items()], "written", "used")
            self._written[token] = stream, self.ticks
        for one in streams:
            others = self._reached.setdefault(one.device, {})
            self.overlapping += any(one.done.get(other, 0) < tick for other, tick in others.items())
            one.done[stream] = one.done[one] = others[one] = self.ticks

    def _after(
        self, stream: Stream, before: Iterable[tuple[Stream, int] | None], now: str, then: str
    ) -> None:
        for other, tick in filter(None, before):
            if other is not stream and stream.done.get(other, 0) < tick:
                raise AssertionError(f"{now} while another stream may not have {then} it, at {where()}")

    def _token(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._tokens:
            token = self._tokens[storage._cdata] = len(self._read)
            self._read[token] = {}
            weakref.finalize(storage, self._tokens.pop, storage._cdata, None)
        return self._tokens[storage._cdata]


def _is_there(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.device.type == "cuda"


def _cdata(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
