"""Which blocks take part in a step: all (MeZO), some drawn uniformly (LeZO), or as `lezo.zo.methods` or a package has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from lezo.model.layout import Layout
from lezo.noise import seeds


class BlockChooser(Protocol):
    """Chooses the blocks that a step perturbs and updates, for training and for every replay of it."""

    @property
    def keep(self) -> int:
        """The most blocks that take part in a step."""

    def __call__(self, step: int, seed: int) -> tuple[int, ...]:
        """The blocks of step ``step``, counted from 0, in ascending order; ``seed`` is the step's own."""


@runtime_checkable
class Learner(Protocol):
    """A `BlockChooser` that learns from step to step.

    It knows of a step no more than ``observe`` tells: so much follows from the journal, and a replay learns it again.
    It is copied (`copy.deepcopy`) before it learns, for going back to the beginning.
    """

    def observe(self, step: int, blocks: Sequence[int], coefficients: Sequence[float]) -> None:
        """In step ``step`` the ``blocks`` moved by ``coefficients``, one a direction; not finite where it was skipped."""


@runtime_checkable
class GroupChooser(Protocol):
    """A `BlockChooser` that also says whether what is outside the blocks takes part: it returns groups of a `Layout`.

    Group -1 is the embeddings, tied head included, group len(blocks) all else outside the blocks.
    """

    def over(self, groups: Sequence[int], share: Callable[[int], float]) -> BlockChooser:
        """The one that chooses of these groups: those in which the model has something to train, in ascending order.

        ``share``: a step's share of the learning rate, by its number (`lezo.zo.step_size.StepSize.share`).
        """

    def most(self, sizes: Mapping[int, int]) -> int:
        """The most that a step moves of groups of these sizes."""


@runtime_checkable
class Weighted(Protocol):
    """A `BlockChooser` that gives each block, or group, of a step a factor by which its update is multiplied."""

    def factors(self, step: int, seed: int) -> Mapping[int, float]:
        """Of all blocks, or groups, that it chooses for step ``step``."""


def active(layout: Layout, blocks: BlockChooser, chosen: Sequence[int]) -> tuple[str, ...]:
    """The names of the tensors that take part where ``blocks`` has ``chosen``."""
    if isinstance(blocks, GroupChooser):
        return tuple(name for group in chosen for name in layout.of(group))
    return layout.active(chosen)


@runtime_checkable
class Periodic(Protocol):
    """A `BlockChooser` or a `Direction` that keeps what it draws for ``period`` steps: steps 0 to period - 1, and so on."""

    @property
    def period(self) -> int:
        """In steps, from 1."""

    def begin(self, seed: int) -> None:
        """Be as in the period whose first step has this seed. Called before each step's blocks and z are drawn."""


@dataclass(frozen=True)
class AllBlocks(BlockChooser):
    """MeZO's choice: each of ``total`` blocks in every step."""

    total: int

    @property
    def keep(self) -> int:
        """All."""
        return self.total

    def __call__(self, step: int, seed: int) -> tuple[int, ...]:
        return tuple(range(self.total))


@dataclass(frozen=True)
class UniformBlocks(BlockChooser):
    """LeZO's choice: ``keep`` of ``total`` blocks, uniformly without replacement, drawn from the step's seed."""

    total: int
    sparsity: float

    @property
    def keep(self) -> int:
        """K = N - round(sparsity N)."""
        return self.total - round(self.sparsity * self.total)

    def __call__(self, step: int, seed: int) -> tuple[int, ...]:
        return seeds.subset(seed, self.total, self.keep)
