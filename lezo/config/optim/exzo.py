"""optim=exzo: rank-one directions of each example of a batch, on the last blocks (`lezo.zo.methods.example_wise`)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from lezo.config.method import Composition, Method, Objective, Part, ZerothOrderConfig, step_size
from lezo.config.ranges import KEPT, PROBES, ranged


@dataclass
class ExzoConfig(ZerothOrderConfig):
    """optim=exzo. ``top``: the fraction of decoder blocks that move, the last ones; those below run once for all probes."""

    probes: int = ranged(4, PROBES)
    top: float = ranged(0.33, KEPT)


def _compose(optim: ExzoConfig, steps: int) -> Composition:
    return Composition(
        Part("last", {"share": optim.top}),
        Part("rank-one"),
        Part("example-wise", {"probes": optim.probes}),
        step_size(optim, steps),
    )


def _problems(optim: ExzoConfig) -> Iterator[str]:
    if optim.objective is Objective.metric:
        yield "optim.objective=metric: exzo compares losses of single examples; expected loss, or another method such as mezo"


def _forwards(optim: ExzoConfig) -> int:
    """The blocks below run once, those that move for both signs of each probe; in whole forwards, rounded up."""
    return math.ceil(round(1 - optim.top + 2 * optim.probes * optim.top, 6))


METHOD = Method("exzo", ExzoConfig, compose=_compose, forwards=_forwards, problems=_problems)
