"""AdaLeZO (arXiv 2604.18264, Algorithm 1): layers drawn by how much they have moved the loss, weighted to stay unbiased."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from decimal import Context, Decimal
from itertools import accumulate

from lezo.noise import seeds
from lezo.zo.blocks import BlockChooser, GroupChooser, Learner, Weighted

_EXACT = Context(prec=20)  # whose exp is correctly rounded, as a library's is not: all machines draw alike


class AdaLezo(BlockChooser, GroupChooser, Weighted, Learner):
    """A bandit over groups: embeddings (a tied head with them), each block, and all else outside the blocks.

    K = max(1, floor(keep groups)) draws with replacement from p = (1 - gamma) softmax(Q / tau) + gamma / groups. Each group
    that is drawn, n_l times, moves once, its update multiplied by n_l min(1 / (K p_l), clip). With clip = inf
    the expected update is that of all groups. Then Q_l <- (1 - alpha) Q_l + alpha |g| for those that moved; Q begins at 0.

    What the paper leaves open, or differs:

    - Q is divided by its largest entry before the softmax, as in the published code (the paper's text has softmax(Q / tau)).
      So tau says the same for every task and loss, and a constant learning rate cancels: the reward is |c|, what
      the journal holds, which is lr |g|, over the step's share of the learning rate. Of several directions their sum.
    - K draws follow from the step's seed, each by inversion.
    - Only groups that have something to train are drawn: with LoRA or a prefix the blocks alone, and K is of those.
    """

    def __init__(
        self,
        total: int,
        keep: float = 0.2,
        tau: float = 0.6,
        gamma: float = 0.1,
        alpha: float = 0.1,
        clip: float | None = 16.0,
    ) -> None:
        """``clip`` None: no clipping."""
        self.total, self.share_kept = total, keep
        self.tau, self.gamma, self.alpha, self.clip = tau, gamma, alpha, math.inf if clip is None else clip
        self.groups: tuple[int, ...] = tuple(range(-1, total + 1))
        self.rewards: dict[int, float] = {}
        self._share: Callable[[int], float] = _all_of_it

    def over(self, groups: Sequence[int], share: Callable[[int], float]) -> AdaLezo:
        """See `GroupChooser.over`."""
        self.groups, self._share = tuple(groups), share
        return self

    @property
    def draws(self) -> int:
        """K."""
        return max(1, math.floor(self.share_kept * len(self.groups) + 1e-9))  # 0.2 of 5 is one

    @property
    def keep(self) -> int:
        """The most blocks that a step moves: as many as are drawn."""
        return min(self.draws, self.total)

    def most(self, sizes: Mapping[int, int]) -> int:
        """See `GroupChooser.most`: each draw may be of another group."""
        return sum(sorted(sizes.values(), reverse=True)[: self.draws])

    def probabilities(self) -> list[float]:
        """p of each group, in their order."""
        most = max(self.rewards.values(), default=0.0) or 1.0
        odds = [Decimal(self.rewards.get(group, 0.0) / most / self.tau) for group in self.groups]
        weights = [float(_EXACT.exp(odd)) for odd in odds]
        whole, even = math.fsum(weights), self.gamma / len(self.groups)
        return [(1 - self.gamma) * weight / whole + even for weight in weights]

    def drawn(self, seed: int) -> list[int]:
        """The places in ``groups`` of the K that are drawn, with replacement."""
        bounds = list(accumulate(self.probabilities()))
        at = [seeds.derive(seed, "adalezo", number) / 2.0**63 * bounds[-1] for number in range(self.draws)]
        return [min(bisect_right(bounds, place), len(bounds) - 1) for place in at]

    def importance(self, drawn: Sequence[int]) -> dict[int, float]:
        """n_l min(1 / (K p_l), clip) of each group drawn; ``drawn``: places in ``groups``."""
        p, times = self.probabilities(), Counter(drawn)
        return {
            self.groups[place]: times[place] * min(1 / (len(drawn) * p[place]), self.clip)
            for place in sorted(times)
        }

    def __call__(self, step: int, seed: int) -> tuple[int, ...]:
        return tuple(self.factors(step, seed))

    def factors(self, step: int, seed: int) -> Mapping[int, float]:
        """See `Weighted.factors`."""
        return self.importance(self.drawn(seed))

    def observe(self, step: int, blocks: Sequence[int], coefficients: Sequence[float]) -> None:
        """Q, of the groups that moved; a step that was skipped teaches nothing."""
        share = self._share(step)
        reward = math.fsum(map(abs, coefficients)) / share if share else math.nan
        if math.isfinite(reward):
            for group in blocks:
                self.rewards[group] = (1 - self.alpha) * self.rewards.get(group, 0.0) + self.alpha * reward

    def __str__(self) -> str:
        among = [f"{sum(0 <= group < self.total for group in self.groups)} blocks"]
        among += [
            name
            for group, name in ((-1, "embeddings"), (self.total, "the rest outside"))
            if group in self.groups
        ]
        return f"at most {self.draws} of {len(self.groups)} groups ({', '.join(among)}) by their rewards"


def _all_of_it(step: int) -> float:
    return 1.0
