"""Forwards of blocks recorded once for each shape of a batch and replayed: the host asks for a block in one call.

A recording reads and writes fixed memory. All recordings of one shape share one place for the hidden states, which a
block reads and then writes, so that nothing is copied from block to block.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

Run = Callable[..., Any]
MOST = 4096  # recordings; beyond, what is new runs as it is
_PLAIN = (type(None), bool, int, float, str)
_LEAVES = (Tensor, *_PLAIN)


class Recordings:
    """Runs blocks by recordings, which ``record`` makes of a call and gives back as a call that replays it.

    A block is recorded when it is met, unless it is the first of its kind to be met: then it runs as it is, since what
    loads as it is first used cannot be recorded. So does what is called with other things than hidden states, more
    tensors and plain values, and what does not give one tensor. A device that refuses a recording gets no more of them.
    """

    def __init__(self, record: Callable[[Callable[[], None]], Callable[[], None]]) -> None:
        self._record = record
        self._places: dict[Hashable, Tensor] = {}
        self._memory: dict[Hashable, Tensor] = {}
        self._met: set[Hashable] = set()
        self._calls: dict[Hashable, tuple[Callable[[], None], Any] | None] = {}
        self._arguments: dict[int, tuple[Tensor, Tensor]] = {}
        self._refused = False

    def start(self) -> None:
        """A forward begins: its masks and positions are others."""
        self._arguments.clear()

    def run(
        self, kind: Hashable, key: Hashable, forward: Run, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """What ``forward`` makes of the arguments, of which the first tensor are the hidden states.

        ``kind``: what is alike in blocks that run the same kernels. ``key``: all that decides what is computed, weights
        by their places.
        """
        leaves, tree = _flattened(args, kwargs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        plain = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
        if self._refused or not tensors or not all(isinstance(leaf, _PLAIN) for leaf in plain):
            return forward(*args, **kwargs)
        kind = kind, *plain, *((tensor.shape, tensor.dtype) for tensor in tensors)
        if kind not in self._met:
            self._met.add(kind)
            return forward(*args, **kwargs)
        states, own = tensors[0], self._place("states", tensors[0])
        fixed = [
            leaf if not isinstance(leaf, Tensor) else own if leaf is states else self._argument(leaf)
            for leaf in leaves
        ]
        key = kind, key, *(leaf.data_ptr() for leaf in fixed if isinstance(leaf, Tensor))
        if key not in self._calls and len(self._calls) < MOST:
            self._calls[key] = self._recorded(forward, fixed, tree)
        call = self._calls.get(key)
        if call is None:
            return forward(*args, **kwargs)
        if own.data_ptr() != states.data_ptr():
            own.copy_(states)
        call[0]()
        return call[1]

    def _recorded(self, forward: Run, fixed: list[Any], tree: Any) -> tuple[Callable[[], None], Any] | None:
        """The call that replays, and its output; None where that is no one tensor, or no recording can be made."""
        outputs: list[Any] = []

        def body() -> None:
            args, kwargs = tree(fixed)
            leaves, shape = tree_flatten(forward(*args, **kwargs))
            if isinstance(leaves[0], Tensor) and all(leaf is None for leaf in leaves[1:]):
                place = self._place("states", leaves[0])
                place.copy_(leaves[0])
                outputs.append(tree_unflatten([place, *leaves[1:]], shape))

        try:
            replay = self._record(body)
        except RuntimeError as error:
            self._refused = True
            warnings.warn(f"blocks run as they are, not as CUDA graphs: {error}", stacklevel=2)
            return None
        return (replay, outputs[0]) if outputs else None

    def _argument(self, tensor: Tensor) -> Tensor:
        """Where a forward's tensor lies for recordings: copied there when it is first met."""
        if id(tensor) not in self._arguments:
            place = self._place(len(self._arguments), tensor)
            place.copy_(tensor)
            self._arguments[id(tensor)] = tensor, place
        return self._arguments[id(tensor)][1]

    def _place(self, what: Hashable, like: Tensor) -> Tensor:
        """Fixed memory for a tensor of that shape; shapes share it, of which a forward has one."""
        key = what, like.shape, like.dtype
        if key not in self._places:
            memory = self._memory.get((what, like.dtype))
            if memory is None or len(memory) < like.numel():  # recordings keep what they use
                memory = torch.empty(like.numel(), dtype=like.dtype, device=like.device)
                self._memory[what, like.dtype] = memory
            self._places[key] = memory[: like.numel()].view(like.shape)
        return self._places[key]


def _flattened(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """All tensors and plain values of a call, and what makes its arguments of as many others."""
    leaves, count = [*args, *kwargs.values()], len(args)
    if all(isinstance(leaf, _LEAVES) for leaf in leaves):  # torch's way takes as long as a block's kernels
        names = tuple(kwargs)
        return leaves, lambda new: (tuple(new[:count]), dict(zip(names, new[count:], strict=True)))
    leaves, tree = tree_flatten((args, kwargs))
    return leaves, lambda new: tree_unflatten(new, tree)


Recorder = Callable[[torch.device, int], Recordings]
"""(device, lane) -> what replays the blocks' forwards there."""


class CudaGraphs:
    """Records what is asked of a CUDA device as a graph; all graphs share the memory of what they compute in between.

    So they are replayed one after the other: those of another ``lane`` (`lezo.zo.lanes`) have memory of their own.
    """

    def __init__(self, device: torch.device, lane: int = 0) -> None:
        self._stream = _stream(device, lane)
        self._pool = torch.cuda.graph_pool_handle()  # type: ignore[no-untyped-call]

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        """The call that replays it; recording it computes nothing. Other threads may go on with their work."""
        graph, stream = torch.cuda.CUDAGraph(), self._stream
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            graph.capture_begin(self._pool, capture_error_mode="thread_local")
            try:
                run()
            finally:
                graph.capture_end()
        return graph.replay


@cache
def _stream(device: torch.device, lane: int) -> Any:
    """The one stream of a device and lane that is recorded in: matrix products keep some memory for each that they see."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
