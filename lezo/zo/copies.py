"""Perturbed copies of one module's tensors after another, side by side in a room that the next module takes over."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from lezo.model.home import Slot
from lezo.noise.directions import Pair
from lezo.zo.direction import Direction, perturbations
from lezo.zo.step import Stopwatch

_STRIDE = 256  # bytes; every copy begins at a multiple, as torch's own allocations do


@dataclass(frozen=True, eq=False)
class Part:
    """A module's tensors that move, the dtypes of their copies, and its ``norms``, whose copies are wider than the rest.

    ``place``: the number of the device that they are on (`lezo.model.placement`).
    """

    slots: Sequence[Slot]
    dtypes: Sequence[torch.dtype]
    norms: Sequence[nn.Module]
    place: int = 0

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
    """A device's memory for both copies of one part at a time, as much as the largest part takes that came."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None
        self._pairs: dict[Part, list[Pair]] = {}

    def pairs(self, parts: Sequence[Part]) -> list[list[Pair]]:
        """Each part's tensors with places for their copies: the same places for all parts."""
        if not all(part in self._pairs for part in parts):
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

    They are made when a module asks for them. Made ahead in a stream of their own, while the block before runs, they
    take as long: matrix products leave no room on the device (measured on an H100, docs/engine.md).
    """

    def __init__(self, direction: Direction, watch: Stopwatch) -> None:
        self.direction, self.watch = direction, watch
        self._rooms: dict[int, Room] = defaultdict(Room)  # one a device
        self._pairs: dict[nn.Module, list[Pair]] = {}
        self._draw: dict[nn.Module, Callable[[], None]] = {}

    def begin(self, parts: Mapping[nn.Module, Part], seed: int, eps: float) -> None:
        """From now on the copies are of these modules, along z(seed)."""
        self._pairs = {}
        for place in sorted({part.place for part in parts.values()}):
            own = {module: part for module, part in parts.items() if part.place == place}
            self._pairs |= zip(own, self._rooms[place].pairs(list(own.values())), strict=True)
        calls = perturbations(self.direction, list(self._pairs.values()), seed, eps)
        self._draw = dict(zip(self._pairs, calls, strict=True))

    def of(self, module: nn.Module) -> list[Pair]:
        """The module's copies, until another module asks for its own."""
        pairs = self._pairs[module]
        with self.watch("perturb", pairs[0].theta.device):
            self._draw[module]()
        return pairs
