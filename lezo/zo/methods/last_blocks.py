"""The last blocks of a model alone: what lies below them is the same for all that a step compares, and runs once."""

from __future__ import annotations

from dataclasses import dataclass

from lezo.zo.blocks import BlockChooser


@dataclass(frozen=True)
class LastBlocks(BlockChooser):
    """The last ``keep`` of ``total`` blocks, in every step: ``share`` of them, rounded, one at least."""

    total: int
    share: float

    @property
    def keep(self) -> int:
        """max(1, round(share N))."""
        return max(1, round(self.share * self.total))

    def __call__(self, step: int, seed: int) -> tuple[int, ...]:
        return tuple(range(self.total - self.keep, self.total))
