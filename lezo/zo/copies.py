"""Perturbed copies of one module's tensors after another: where they lie, and when they are drawn.

A module's copies lie side by side in a room, which the next module takes over. On a CUDA device the blocks have two
rooms in turn: while a block runs on the copies in one, those of the next block are drawn into the other, in a stream
of their own. Each stream waits for the other's events; the host waits for neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from lezo.noise.directions import Pair
from lezo.zo.direction import Direction, perturbations
from lezo.zo.step import Stopwatch

Slot = tuple[str, nn.Module, str]
"""A tensor's name in the model, the module that owns it, and its name there."""

_STRIDE = 256  # bytes; every copy begins at a multiple, as torch's own allocations do


@dataclass(frozen=True, eq=False)
class Part:
    """A module's tensors that move, the dtypes of their copies, and its ``norms``, whose copies are wider than the rest."""

    slots: Sequence[Slot]
    dtypes: Sequence[torch.dtype]
    norms: Sequence[nn.Module]

    @property
    def thetas(self) -> list[nn.Parameter]:
        """The weights."""
        return [module.get_parameter(leaf) for _, module, leaf in self.slots]

    @property
    def sizes(self) -> list[int]:
        """Bytes of each copy, in whole strides."""
        sizes = (t.numel() * dtype.itemsize for t, dtype in zip(self.thetas, self.dtypes, strict=True))
        return [-(-size // _STRIDE) * _STRIDE for size in sizes]


class Room:
    """Memory for both copies of one part at a time, as much as the largest part takes that came."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None
        self._pairs: dict[Part, list[Pair]] = {}

    def pairs(self, parts: Sequence[Part]) -> list[list[Pair]]:
        """Each part's tensors with places for their copies: the same places for all parts."""
        if any(part not in self._pairs for part in parts):
            self._make_room(max(sum(part.sizes) for part in parts), parts[0].thetas[0].device)
            self._pairs |= {part: list(self._placed(part)) for part in parts if part not in self._pairs}
        return [self._pairs[part] for part in parts]

    def _make_room(self, size: int, device: torch.device) -> None:
        if self._memory is None or self._memory.shape[1] < size:
            self._pairs, self._memory = {}, None  # before there are two
            self._memory = torch.empty((2, size), dtype=torch.uint8, device=device)

    def _placed(self, part: Part) -> Iterator[Pair]:
        assert self._memory is not None
        starts = accumulate(part.sizes, initial=0)
        for (name, *_), theta, dtype, start in zip(
            part.slots, part.thetas, part.dtypes, starts, strict=False
        ):
            end = start + theta.numel() * dtype.itemsize
            plus, minus = (half[start:end].view(dtype).view(theta.shape) for half in self._memory)
            yield Pair(name, theta, plus, minus)


class Copies:
    """The copies of a step's modules, theta +- eps z; ``watch`` times making them as phase perturb.

    On a CUDA device, where they are made ahead, the phase is what waiting for them takes.
    """

    def __init__(self, direction: Direction, watch: Stopwatch, device: torch.device) -> None:
        self.direction, self.watch = direction, watch
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._rooms = [Room() for _ in range(2 if self._stream else 1)]
        self._room_of_others = Room()
        self._pairs: dict[nn.Module, list[Pair]] = {}
        self._draw: dict[nn.Module, Callable[[], None]] = {}
        self._order: list[nn.Module] = []
        self._ahead: nn.Module | None = None

    def begin(
        self, blocks: Mapping[nn.Module, Part], others: Mapping[nn.Module, Part], seed: int, eps: float
    ) -> None:
        """From now on the copies are along z(seed). ``blocks`` come in the order in which they run."""
        self._order, parts, turns = list(blocks), list(blocks.values()), len(self._rooms)
        rooms = [room.pairs(parts[turn::turns]) for turn, room in enumerate(self._rooms) if parts[turn:]]
        self._pairs = {block: rooms[i % turns][i // turns] for i, block in enumerate(blocks)}
        if others:
            self._pairs |= zip(others, self._room_of_others.pairs(list(others.values())), strict=True)
        calls = perturbations(self.direction, list(self._pairs.values()), seed, eps)
        self._draw = dict(zip(self._pairs, calls, strict=True))

    def start(self) -> None:
        """A forward begins, with the first block."""
        if self._order:
            self._draw_ahead(self._order[0])

    def of(self, module: nn.Module) -> list[Pair]:
        """The module's copies, until the next module's, or the one's after that, are made."""
        with self.watch("perturb"):
            if self._stream is None or module not in self._order:
                self._draw[module]()
                return self._pairs[module]
            if self._ahead is not module:
                self._draw_ahead(module)
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
        following = self._order.index(module) + 1
        self._draw_ahead(self._order[following] if following < len(self._order) else None)
        return self._pairs[module]

    def end(self) -> None:
        """Nothing is drawn any more when what is asked of the device next begins."""
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
        self._ahead = None

    def _draw_ahead(self, module: nn.Module | None) -> None:
        """When the device has done what it was asked so far: the room's last block has run, and theta is up to date."""
        self._ahead = module
        if self._stream is not None and module is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
            with torch.cuda.stream(self._stream):
                self._draw[module]()
