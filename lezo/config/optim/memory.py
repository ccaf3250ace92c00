"""Rules with a memory of earlier estimates: momentum and Adam (`lezo.zo.methods.momentum`, `lezo.zo.methods.adam`)."""

from __future__ import annotations

from dataclasses import dataclass

from lezo.config.method import Composition, Method, Part, SparseConfig, drawn_blocks, objective, step_size
from lezo.config.ranges import FRACTION, POSITIVE, ranged


@dataclass
class MomentumConfig(SparseConfig):
    """optim=zo-momentum."""

    beta: float = ranged(0.9, FRACTION)


@dataclass
class AdamConfig(SparseConfig):
    """optim=zo-adam. ``adam_eps``: beside the root of the second moment; ``eps`` is the perturbation's size."""

    beta1: float = ranged(0.9, FRACTION)
    beta2: float = ranged(0.999, FRACTION)
    adam_eps: float = ranged(1e-8, POSITIVE)


def _momentum(optim: MomentumConfig, steps: int) -> Composition:
    return Composition(
        drawn_blocks(optim),
        estimator=objective(optim),
        step_size=step_size(optim, steps),
        rule=Part("momentum", {"beta": optim.beta}),
    )


def _adam(optim: AdamConfig, steps: int) -> Composition:
    settings = {"lr": optim.lr, "beta1": optim.beta1, "beta2": optim.beta2, "adam_eps": optim.adam_eps}
    return Composition(
        drawn_blocks(optim),
        estimator=objective(optim),
        step_size=step_size(optim, steps),
        rule=Part("adam", settings),
    )


MOMENTUM = Method("zo-momentum", MomentumConfig, compose=_momentum, family="zo-momentum")
ADAM = Method("zo-adam", AdamConfig, compose=_adam, family="zo-adam")
