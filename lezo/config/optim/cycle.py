"""Blocks that stay for some steps, and blocks that the user names (`lezo.zo.methods.cycle`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lezo.config.method import Composition, Method, Part, ZerothOrderConfig, objective, step_size
from lezo.config.ranges import COUNT, INDICES, ranged


@dataclass
class LisaConfig(ZerothOrderConfig):
    """optim=zo-lisa. ``keep``: blocks that move, of which others are drawn every ``period`` steps."""

    keep: int = ranged(2, COUNT)
    period: int = ranged(20, COUNT)


@dataclass
class BlocksConfig(ZerothOrderConfig):
    """optim=zo-blocks. ``blocks``: by number from 0, negative ones from the last. ``non_block``: whether all else moves too."""

    blocks: Any = ranged([0, -1], INDICES)
    non_block: bool = True


def _lisa(optim: LisaConfig, steps: int) -> Composition:
    return Composition(
        Part("lisa", {"keep": optim.keep, "period": optim.period}),
        estimator=objective(optim),
        step_size=step_size(optim, steps),
    )


def _blocks(optim: BlocksConfig, steps: int) -> Composition:
    settings = {"blocks": [*optim.blocks], "non_block": optim.non_block}
    return Composition(Part("given", settings), estimator=objective(optim), step_size=step_size(optim, steps))


LISA = Method("zo-lisa", LisaConfig, compose=_lisa)
BLOCKS = Method("zo-blocks", BlocksConfig, compose=_blocks)
