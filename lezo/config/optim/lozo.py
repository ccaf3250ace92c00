"""LOZO (arXiv 2410.07698, Algorithm 1): directions of low rank, of which one factor is kept for some steps.

Differences: z has entries of variance one, so eps is sqrt(rank) times LOZO's for the same step (`lezo.noise.low_rank`); the default is
MeZO's. V is drawn at the first step of each period from that step's seed. LOZO-M's momentum is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from lezo.config.method import Composition, Method, Part, SparseConfig, drawn_blocks, objective, step_size
from lezo.config.ranges import COUNT, PROBES, ranged


@dataclass
class LozoConfig(SparseConfig):
    """optim=lozo. ``rank``: r of the paper. ``period``: steps for which V is kept, its nu."""

    rank: int = ranged(2, PROBES)
    period: int = ranged(50, COUNT)


def _compose(optim: LozoConfig, steps: int) -> Composition:
    direction = Part("low-rank", {"rank": optim.rank, "period": optim.period})
    return Composition(drawn_blocks(optim), direction, objective(optim), step_size(optim, steps))


METHOD = Method("lozo", LozoConfig, compose=_compose)
