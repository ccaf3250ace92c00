"""optim=exzo: a rank-one direction for each example of a batch, on the last blocks (`lezo.zo.methods.example_wise`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lezo.config.method import Composition, Method, Objective, Part, ZerothOrderConfig, step_size
from lezo.config.ranges import KEPT, ranged


@dataclass
class ExzoConfig(ZerothOrderConfig):
    """optim=exzo. ``top``: the fraction of decoder blocks that move, the last ones; the others run once for both signs."""

    top: float = ranged(1 / 3, KEPT)


def _compose(optim: ExzoConfig, steps: int) -> Composition:
    return Composition(
        Part("last", {"share": optim.top}),
        Part("rank-one"),
        Part("example-wise"),
        step_size(optim, steps),
    )


def _problems(optim: ExzoConfig) -> Iterator[str]:
    if optim.objective is Objective.metric:
        yield "optim.objective=metric: exzo compares losses of single examples; expected loss, or another method such as mezo"


METHOD = Method("exzo", ExzoConfig, compose=_compose, problems=_problems)
