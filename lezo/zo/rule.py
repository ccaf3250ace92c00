"""By what rule an estimate moves theta: at once (SGD), or through a memory of earlier estimates (`lezo.zo.methods`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from lezo.noise import philox, seeds
from lezo.zo.direction import Direction, Joint, update_all_


@dataclass(frozen=True)
class Move:
    """What a step is to move theta by: u = sum of c_i z_i, tensor for tensor, times the tensor's factor; and the decay.

    ``coefficients``: (q,), c_i = lr g_i / q, on a device, finite all or none. ``decay``: lr * weight decay. ``share``: the
    step's of the learning rate. ``factors``: of tensors whose factor is not 1.
    """

    direction: Direction
    seed: int
    coefficients: Tensor
    decay: float = 0.0
    rounding: Literal["nearest", "stochastic"] = "nearest"
    share: float = 1.0
    factors: Mapping[str, float] = field(default_factory=dict)

    def take_(self, targets: Mapping[str, Tensor], decays: Mapping[str, float], scale: float = 1.0) -> None:
        """target <- target - (scale u + decay target) of all; z is drawn anew. Nothing where c is not finite."""
        along = [seeds.direction_seed(self.seed, number) for number in range(len(self.coefficients))]
        for factor, names in self._by_factor(targets):
            some = {name: targets[name] for name in names}
            c = self.coefficients if factor * scale == 1 else self.coefficients * (factor * scale)
            if isinstance(self.direction, Joint):
                self.direction.update_along_(some, along, c, decays, rounding=self.rounding)
            else:
                self._take_one_by_one_(some, along, c, decays)

    def _take_one_by_one_(
        self, targets: Mapping[str, Tensor], along: Sequence[int], c: Tensor, decays: Mapping[str, float]
    ) -> None:
        """Along each direction; what decays does so with the first."""
        for number, (seed, coefficient) in enumerate(zip(along, c, strict=True)):
            each = {name: decays[name] if number == 0 else 0.0 for name in targets}
            update_all_(self.direction, targets, seed, coefficient, each, rounding=self.rounding)

    def _by_factor(self, names: Iterable[str]) -> list[tuple[float, list[str]]]:
        found: dict[float, list[str]] = {}
        for name in names:
            found.setdefault(self.factors.get(name, 1.0), []).append(name)
        return list(found.items())

    def finite(self, device: torch.device) -> Tensor:
        """Whether the step is to be made, () on ``device``; the host does not wait."""
        return self.coefficients.isfinite().all().to(device, non_blocking=True)

    def decay_of(self, theta: Tensor) -> float:
        """What a tensor loses."""
        return self.decay if decays(theta) else 0.0

    @torch.no_grad()
    def descend_(self, name: str, theta: Tensor, step: Tensor) -> None:
        """theta <- theta - (step + decay theta), rounded once, as `Direction.update_`; nothing where c is not finite.

        ``step``: of theta's shape, in the dtype that steps on theta are computed in. Products and sums are rounded one by one,
        so that all devices have the same bits.
        """
        key = seeds.derive(self.seed, name) if self.rounding == "stochastic" else None
        philox.descend_(theta, step, self.decay_of(theta), self.finite(theta.device), key=key)


class Rule(Protocol):
    """Moves tensors by what steps measured. It knows of a step what a `Move` has, so that a replay does the same."""

    def move(self, thetas: Mapping[str, Tensor], homes: Mapping[str, Tensor], by: Move) -> None:
        """Update ``thetas`` in place, by their names, on their devices; ``homes``: where each lives (`lezo.model.home`)."""

    def made(self, names: Iterable[str], finite: bool) -> None:
        """A step over these tensors is over, all of its `move` calls; ``finite``: whether it moved them."""
        return

    def state(self, thetas: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What it remembers of the model's tensors, complete: empty for a rule without memory."""
        return {}

    def restore(self, state: Mapping[str, Tensor], thetas: Mapping[str, Tensor]) -> None:
        """Remember this instead; ValueError where it is not what `state` gives. Nothing: be as in the beginning."""
        return

    def state_bytes(self, thetas: Iterable[Tensor]) -> int:
        """Of what it will remember of these tensors, which may be on torch's meta device."""
        return 0

    def scratch_bytes(self, thetas: Iterable[Tensor]) -> int:
        """Of what an update of them takes beside that, at most."""
        return 0


@dataclass(frozen=True)
class Sgd(Rule):
    """theta <- theta - (u + decay theta), as in MeZO's Algorithm 1 (arXiv 2305.17333)."""

    def move(self, thetas: Mapping[str, Tensor], homes: Mapping[str, Tensor], by: Move) -> None:
        """See `Rule.move`."""
        by.take_(thetas, {name: by.decay_of(theta) for name, theta in thetas.items()})


def decays(theta: Tensor) -> bool:
    """Weight decay spares biases and norm gains: the tensors of one dimension."""
    return theta.ndim > 1
