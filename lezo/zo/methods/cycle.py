"""Blocks that stay for some steps, as LISA has them, and blocks that the user names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from lezo.noise import seeds
from lezo.zo.blocks import BlockChooser, GroupChooser


class LisaBlocks(BlockChooser):
    """``keep`` of ``total`` blocks, drawn uniformly and kept for ``period`` steps, then drawn anew.

    LISA (arXiv 2403.17919, Algorithm 1) with zeroth-order steps: embeddings, head and final norm move in every step. There
    it is AdamW's, whose moments of frozen blocks are dropped; here is nothing to drop. ``keep``: all where there are fewer.
    """

    def __init__(self, total: int, keep: int, period: int) -> None:
        if keep < 1 or period < 1:
            raise ValueError(f"keep={keep}, period={period}: expected whole numbers from 1")
        self.total, self.period, self._keep, self._seed = total, period, keep, 0

    @property
    def keep(self) -> int:
        """K."""
        return min(self._keep, self.total)

    def begin(self, seed: int) -> None:
        """Draw from the seed of the period's first step."""
        self._seed = seed

    def __call__(self, step: int, seed: int) -> tuple[int, ...]:
        return seeds.subset(self._seed, self.total, self.keep)

    def __str__(self) -> str:
        return f"{self.keep} of {self.total} blocks, drawn anew every {self.period} steps"


@dataclass(frozen=True)
class GivenBlocks(BlockChooser, GroupChooser):
    """The same ``blocks`` in every step; negative ones count from the last, as in Python. Others never move.

    ``non_block``: whether what is outside the blocks moves too. ValueError for a block that the model lacks.
    """

    total: int
    blocks: Sequence[int]
    non_block: bool = True
    outside: tuple[int, ...] = ()  # the groups outside the blocks that move

    def __post_init__(self) -> None:
        for block in self.blocks:
            if not -self.total <= block < self.total:
                known = f"0 to {self.total - 1}, or {-self.total} to -1 from the last"
                raise ValueError(f"block {block} is none of the model's {self.total}: {known}")

    @property
    def keep(self) -> int:
        """As many as are named."""
        return len(self._named)

    @property
    def _named(self) -> tuple[int, ...]:
        return tuple(sorted({block % self.total for block in self.blocks}))

    def over(self, groups: Sequence[int], share: Callable[[int], float]) -> GivenBlocks:
        """Those outside the blocks that the model has, if they are to move."""
        outside = tuple(group for group in (-1, self.total) if group in groups)
        return replace(self, outside=outside if self.non_block else ())

    def most(self, sizes: Mapping[int, int]) -> int:
        """See `GroupChooser.most`: the same in every step."""
        return sum(sizes.get(group, 0) for group in self(0, 0))

    def __call__(self, step: int, seed: int) -> tuple[int, ...]:
        return tuple(sorted({*self._named, *self.outside}))

    def __str__(self) -> str:
        named = ", ".join(map(str, self._named)) or "none"
        beside = "what is outside them" if self.outside else "nothing else"
        return f"blocks {named} of {self.total} and {beside} in every step"
