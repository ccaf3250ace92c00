"""Losses at theta and at theta + eps z_i of several z_i, of which two travel in one forward (FZOO, arXiv 2506.09034)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from lezo.noise import seeds
from lezo.noise.directions import Pair
from lezo.zo.direction import Direction, perturbations, update_all_
from lezo.zo.probe import Estimator, Site


class Beside:
    """A direction that has theta + eps z_a in the place of theta + eps z, and theta + eps z_b in that of theta - eps z.

    z_a and z_b are directions 2 ``pair`` and 2 ``pair`` + 1 of a step. Memory: one more copy of the largest tensor.
    """

    def __init__(self, along: Direction) -> None:
        self.along, self.pair = along, 0

    def perturb(
        self,
        theta: Tensor,
        seed: int,
        name: str,
        eps: float,
        *,
        rows: Tensor | None = None,
        dtype: torch.dtype | None = None,
        out: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """theta + eps z_a and theta + eps z_b."""
        wanted = (None, None) if out is None else out
        moved = partial(self._moved, theta, name, eps, rows, dtype)
        a, b = (moved(one, place) for one, place in zip(self._seeds(seed), wanted, strict=True))
        return a, b

    def perturbations(
        self, groups: Sequence[Sequence[Pair]], seed: int, eps: float
    ) -> list[Callable[[], None]]:
        """The same of many tensors."""
        pairs = [pair for group in groups for pair in group]
        spare = {
            device: torch.empty(
                max(pair.plus.nbytes for pair in pairs if pair.theta.device == device),
                dtype=torch.uint8,
                device=device,
            )
            for device in {pair.theta.device for pair in pairs}
        }

        def onto(side: Literal["plus", "minus"], pair: Pair) -> Pair:
            place: Tensor = getattr(pair, side)
            room = spare[pair.theta.device][: place.nbytes].view(place.dtype).view(place.shape)
            return Pair(pair.name, pair.theta, place, room)

        a, b = self._seeds(seed)
        first = perturbations(self.along, [[onto("plus", p) for p in group] for group in groups], a, eps)
        second = perturbations(self.along, [[onto("minus", p) for p in group] for group in groups], b, eps)
        return [partial(_both, *calls) for calls in zip(first, second, strict=True)]

    def update_(self, theta: Tensor, *args: Any, **settings: Any) -> None:
        """That of the direction itself, along z(seed)."""
        self.along.update_(theta, *args, **settings)

    def update_all_(self, *args: Any, **settings: Any) -> None:
        """That of the direction itself, along z(seed)."""
        update_all_(self.along, *args, **settings)

    def _seeds(self, seed: int) -> tuple[int, int]:
        return seeds.direction_seed(seed, 2 * self.pair), seeds.direction_seed(seed, 2 * self.pair + 1)

    def _moved(
        self,
        theta: Tensor,
        name: str,
        eps: float,
        rows: Tensor | None,
        dtype: torch.dtype | None,
        seed: int,
        place: Tensor | None,
    ) -> Tensor:
        out = None if place is None else (place, torch.empty_like(place))
        return self.along.perturb(theta, seed, name, eps, rows=rows, dtype=dtype, out=out)[0]


def _both(first: Callable[[], None], second: Callable[[], None]) -> None:
    first()
    second()


class OneSided(Estimator):
    """(1 + ``probes``,) losses: at theta, then at theta + eps z_i; slopes (l_i - l_0) / eps.

    All probes of a step draw alike from torch's generators. Raises ValueError for a number of probes that is odd or below 2.
    """

    def __init__(self, context: Site, probes: int = 8) -> None:
        if probes < 2 or probes % 2:
            raise ValueError(f"probes={probes}: expected an even number, for two travel in a forward")
        self.count, self._beside = probes, Beside(context.direction)
        self._probe, self._at_theta = context.probe(self._beside), context.loss

    @torch.no_grad()
    def __call__(self, batch: Any, active: Sequence[str], *, seed: int, eps: float) -> Tensor:
        losses = [self._at_theta(batch, seed=seed).reshape(1)]
        for pair in range(self.count // 2):
            self._beside.pair = pair
            losses.append(self._probe(batch, active, seed=seed, eps=eps))
        return torch.cat(losses)

    def slopes(self, losses: Tensor, eps: float) -> Tensor:
        """(l_i - l_0) / eps."""
        return (losses[1:] - losses[0]) / eps

    def measures(self, losses: Sequence[float]) -> dict[str, float]:
        """The loss at theta, and the mean around it."""
        return {"loss_theta": losses[0], "loss_plus": sum(losses[1:]) / (len(losses) - 1)}
