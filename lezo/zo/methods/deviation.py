"""A step divided by the deviation of what it measured: normalised SGD without a gradient (FZOO, arXiv 2506.09034)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from lezo.zo.step_size import Scheduled, StepSize


@dataclass(frozen=True)
class Deviation(StepSize):
    """lr / sigma, sigma the standard deviation (of N - 1) of a step's slopes: c_i = lr / (N sigma) (l_i - l_0) / eps.

    That of the losses is eps times as large, as their differences are: so the step does not depend on eps but by curvature.
    Where all losses are alike there is no step: c is not finite. ``scheduled``: schedule, warm-up and clipping.
    """

    scheduled: Scheduled = field(default_factory=Scheduled)

    def share(self, step: int) -> float:
        return self.scheduled.share(step)

    def clipped(self, slopes: Tensor) -> Tensor:
        return self.scheduled.clipped(slopes)

    def __call__(self, step: int, slopes: Tensor) -> Tensor:
        return self.scheduled.share(step) / slopes.std()
