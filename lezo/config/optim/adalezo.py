"""AdaLeZO (`lezo.zo.methods.adalezo`)."""

from __future__ import annotations

from dataclasses import dataclass

from lezo.config.method import Composition, Method, Part, ZerothOrderConfig, objective, step_size
from lezo.config.ranges import KEPT, POSITIVE, SHARE, ranged


@dataclass
class AdaLezoConfig(ZerothOrderConfig):
    """optim=adalezo. Defaults are the paper's (Table 3); its ablation prefers keep=0.4 where accuracy counts most.

    ``keep``: draws a step, as a share of the groups. ``tau``: the softmax's temperature. ``gamma``: share of uniform draws.
    ``alpha``: how fast rewards follow. ``importance_clip``: of importance weights, null for none (the paper's C).
    """

    keep: float = ranged(0.2, KEPT)
    tau: float = ranged(0.6, POSITIVE)
    gamma: float = ranged(0.1, SHARE)
    alpha: float = ranged(0.1, SHARE)
    importance_clip: float | None = ranged(16.0, POSITIVE)


def _compose(optim: AdaLezoConfig, steps: int) -> Composition:
    settings = {"keep": optim.keep, "tau": optim.tau, "gamma": optim.gamma, "alpha": optim.alpha}
    return Composition(
        Part("adalezo", {**settings, "clip": optim.importance_clip}),
        estimator=objective(optim),
        step_size=step_size(optim, steps),
    )


METHOD = Method("adalezo", AdaLezoConfig, compose=_compose, published="AdaLeZO")
