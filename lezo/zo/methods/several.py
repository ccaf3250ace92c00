"""Several directions a step, of whose slopes it takes the mean: n-SPSA (MeZO, arXiv 2305.17333, appendix A.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lezo.noise import seeds
from lezo.zo.probe import TwoSided


class Several(TwoSided):
    """``probe`` along ``count`` directions, one after the other: (2 count,) losses, in pairs.

    Raises ValueError for a count below 1.
    """

    def __init__(self, probe: TwoSided, count: int) -> None:
        if count < 1:
            raise ValueError(f"probes={count}: expected at least 1")
        self.probe, self.count = probe, count

    def __call__(self, batch: Any, active: Sequence[str], *, seed: int, eps: float) -> Tensor:
        along = [seeds.direction_seed(seed, number) for number in range(self.count)]
        return torch.cat([self.probe(batch, active, seed=one, eps=eps) for one in along])
