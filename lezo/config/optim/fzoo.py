"""FZOO (arXiv 2506.09034): a batch of one-sided probes along signs, and a step divided by their losses' deviation.

Its update: theta <- theta - lr / (eps N sigma) (sum of (l_i - l_0) u_i), where u_i are N vectors of random signs, l_0 and l_i the losses at theta and
at theta + eps u_i on one batch, and sigma the deviation (of N - 1) of l_1 to l_N (`lezo.zo.methods.one_sided`, `lezo.zo.methods.deviation`).

Differences: probes travel two in a forward; eps is 1e-3 as MeZO's, where FZOO has 1e-4. In 16 bits eps 1e-4 is below half a unit
of the last place of larger weights (bf16 from 0.03, fp16 from 0.25), and in the losses' own rounding. The step is divided by what
eps scales, so that learning rates mean the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lezo.config.method import Composition, Method, Objective, Part, SparseConfig, drawn_blocks, step_size
from lezo.config.ranges import PROBES, ranged


@dataclass
class FzooConfig(SparseConfig):
    """optim=fzoo. ``probes``: N of the paper."""

    probes: int = ranged(8, PROBES)


def _compose(optim: FzooConfig, steps: int) -> Composition:
    estimator = Part("one-sided", {"probes": optim.probes})
    return Composition(
        drawn_blocks(optim), Part("rademacher"), estimator, step_size(optim, steps, "deviation")
    )


def _problems(optim: FzooConfig) -> Iterator[str]:
    if optim.probes % 2:
        yield f"optim.probes={optim.probes}: fzoo runs two probes in a forward; expected an even number"
    if optim.objective is Objective.metric:
        reason = "a metric is often the same for all probes of a step, whose deviation fzoo divides by"
        yield f"optim.objective=metric: {reason}; expected loss"


METHOD = Method(
    "fzoo", FzooConfig, compose=_compose, forwards=lambda optim: optim.probes + 1, problems=_problems
)
