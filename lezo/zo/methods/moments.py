"""What momentum and Adam remember of each tensor that has moved: in its shape, in fp32 (fp64 for fp64), and how often."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lezo.noise.philox import compute_dtype
from lezo.zo.rule import Rule

_COUNTS = "moves"


class Moments(Rule):
    """A rule with memories of each tensor by the names of ``kinds``; they begin at 0 when a tensor first moves.

    A tensor that a step skips keeps its own as they are. They live where the tensor lives: of blocks in host memory or in
    a file, in host memory.
    """

    kinds: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self.moments: dict[tuple[str, str], Tensor] = {}  # by kind and tensor
        self.moves: dict[str, int] = {}  # steps that moved a tensor

    def held(self, kind: str, name: str, home: Tensor) -> Tensor:
        """A tensor's, where it lives."""
        if (kind, name) not in self.moments:
            self.moments[kind, name] = torch.zeros(home.shape, dtype=compute_dtype(home), device=home.device)
        return self.moments[kind, name]

    def made(self, names: Iterable[str], finite: bool) -> None:
        """See `Rule.made`."""
        for name in names if finite else ():
            self.moves[name] = self.moves.get(name, 0) + 1

    def state(self, thetas: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """See `Rule.state`: moments by kind and tensor, and how often each trainable tensor has moved."""
        names = _trained(thetas)
        moved = [name for name in names if self.moves.get(name)]
        counts = torch.tensor([self.moves.get(name, 0) for name in names], dtype=torch.int64)
        moments = {f"{kind}.{name}": self.moments[kind, name] for kind in self.kinds for name in moved}
        return {_COUNTS: counts, **moments}

    def restore(self, state: Mapping[str, Tensor], thetas: Mapping[str, Tensor]) -> None:
        """See `Rule.restore`."""
        names = _trained(thetas)
        counts = state[_COUNTS].tolist() if _COUNTS in state else [0] * len(names)
        if len(counts) != len(names) or (state and _COUNTS not in state):
            raise ValueError(f"{_COUNTS} is not of {len(names)} trainable tensors")
        moves = {name: int(count) for name, count in zip(names, counts, strict=True) if count}
        moments = {
            (kind, name): _fitting(state, kind, name, thetas[name]) for name in moves for kind in self.kinds
        }
        self.moves, self.moments = moves, moments

    def state_bytes(self, thetas: Iterable[Tensor]) -> int:
        """See `Rule.state_bytes`."""
        return len(self.kinds) * sum(_wide_bytes(theta) for theta in thetas)

    def scratch_bytes(self, thetas: Iterable[Tensor]) -> int:
        """Of `Move.descend_`: theta, the step, and both together, in the state's dtype, of one tensor at a time."""
        return 4 * max(map(_wide_bytes, thetas), default=0)


def chunks(thetas: Mapping[str, Tensor], most: int = 1 << 26) -> Iterator[dict[str, Tensor]]:
    """Tensors in their order, of at most so many elements together, or one tensor."""
    part: dict[str, Tensor] = {}
    for name, theta in thetas.items():
        if part and sum(one.numel() for one in part.values()) + theta.numel() > most:
            yield part
            part = {}
        part[name] = theta
    if part:
        yield part


def _trained(thetas: Mapping[str, Tensor]) -> Sequence[str]:
    return [name for name, theta in thetas.items() if theta.requires_grad]


def _wide_bytes(theta: Tensor) -> int:
    return theta.numel() * compute_dtype(theta).itemsize


def _fitting(state: Mapping[str, Tensor], kind: str, name: str, theta: Tensor) -> Tensor:
    found = state.get(f"{kind}.{name}")
    if found is None or found.shape != theta.shape or found.dtype != compute_dtype(theta):
        raise ValueError(f"it has no {kind} of {name} in the tensor's shape")
    return found.to(theta.device, copy=True)
