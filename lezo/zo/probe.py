"""What a zeroth-order step measures: losses near theta, along z, with theta read-only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from numbers import Real
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lezo.data.pack import Batch
from lezo.model.forward import replaced
from lezo.model.home import Slot, home_of, slots
from lezo.model.loss import contributions, gathered
from lezo.noise import seeds
from lezo.ranks.ranks import ALONE, Ranks
from lezo.zo.direction import GAUSSIAN, Direction
from lezo.zo.streams import Streams


class Estimator(Protocol):
    """Measures a batch's loss at some places near theta, along one z or several, and what slopes they amount to.

    Direction i has the seed `seeds.direction_seed(seed, i)`, so that the update draws the same z.
    """

    def __call__(self, batch: Any, active: Sequence[str], *, seed: int, eps: float) -> Tensor:
        """Losses, (n,), in fp32 or wider, on the device. z is on the ``active`` tensors; theta is not written."""

    def slopes(self, losses: Tensor, eps: float) -> Tensor:
        """Estimates of dL/dz, (q,), one a direction, of which a step takes the mean; the device is not waited for."""

    def measures(self, losses: Sequence[float]) -> dict[str, float]:
        """What a row of the metrics says of the losses, by names of their own."""
        return {}


class TwoSided(Estimator):
    """Losses at theta + eps z and theta - eps z, (2,), or such pairs of several directions one after the other."""

    def slopes(self, losses: Tensor, eps: float) -> Tensor:
        """g = (l+ - l-) / (2 eps) of each direction."""
        return (losses[0::2] - losses[1::2]) / (2 * eps)

    def measures(self, losses: Sequence[float]) -> dict[str, float]:
        """Their means on both sides."""
        plus, minus = losses[0::2], losses[1::2]
        return {"loss_plus": sum(plus) / len(plus), "loss_minus": sum(minus) / len(minus)}


class StreamProbe(TwoSided):
    """The fast probe of a causal language model: both signs in one forward over packed batches."""

    def __init__(self, streams: Streams, ranks: Ranks = ALONE) -> None:
        self.streams, self.ranks = streams, ranks

    @torch.no_grad()
    def __call__(self, batch: Sequence[Batch], active: Sequence[str], *, seed: int, eps: float) -> Tensor:
        """(2,): plus, minus; a batch is this rank's micro-batches, each of which draws its copies again, in its lane."""
        with self.streams.perturbed(active, seed, eps, len(batch)):
            own = self.streams.lanes.spread(contributions(self.streams, batch), len(batch))
            return gathered(self.streams, own, batch, self.ranks).sum(0)


class PlainProbe(TwoSided):
    """The textbook's probe of any module and loss, one sign after the other: the reference of the fast one.

    ``objective`` maps (module, batch) to the loss: a tensor of one element or a number, in fp32 or wider if g is to
    be worth anything. While it runs, the module's active parameters are perturbed copies, whoever calls the module.
    Both signs draw alike from torch's generators, as dropout does. Running statistics (the buffers of modules in
    training mode) start the same for both, and keep what theta - eps z made of them.

    Memory: one copy of the active tensors, and a second of one of them. Noise is drawn once for each sign. Of blocks
    that visit the device (`lezo.model.home`) a copy of one at a time, drawn again whenever it is called.
    """

    def __init__(
        self,
        module: nn.Module,
        objective: Callable[[nn.Module, Any], Tensor | float],
        direction: Direction = GAUSSIAN,
    ) -> None:
        self.module, self.objective, self.direction = module, objective, direction

    @torch.no_grad()
    def __call__(self, batch: Any, active: Sequence[str], *, seed: int, eps: float) -> Tensor:
        """(2,) in fp32 or wider: plus, minus. ValueError where the loss is not one number."""
        kept = {id(buffer): buffer.clone() for buffer in self._statistics()}
        here, visiting = home_of(self.module).apart(slots(self.module, active))

        def side(sign: int, kept: Mapping[int, Tensor]) -> Tensor:
            with ExitStack() as stack:
                for block, own in visiting.items():
                    moved = partial(self._visit, block.forward, block, own, sign, seed, eps)
                    stack.enter_context(replaced(block, moved))
                return self._at({**self._moved(here, sign, seed, eps), **kept}, batch, seed)

        return torch.stack([side(0, kept), side(1, {})])

    @torch.no_grad()
    def at_theta(self, batch: Any, seed: int) -> Tensor:
        """The loss at theta itself, (), in fp32 or wider, with the draws of a probe of this seed."""
        return self._at({}, batch, seed)

    def _moved(self, active: Sequence[Slot], sign: int, seed: int, eps: float) -> dict[int, Tensor]:
        """Perturbed copies by the identity of what they stand in for."""
        thetas = [(name, module.get_parameter(leaf)) for name, module, leaf in active]
        return {id(theta): self.direction.perturb(theta, seed, name, eps)[sign] for name, theta in thetas}

    def _visit(
        self,
        original: Callable[..., Any],
        block: nn.Module,
        active: Sequence[Slot],
        sign: int,
        seed: int,
        eps: float,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """A block's forward on copies of what it holds now."""
        with _standing_in(block, self._moved(active, sign, seed, eps)):
            return original(*args, **kwargs)

    def _at(self, stand_ins: Mapping[int, Tensor], batch: Any, seed: int) -> Tensor:
        devices = list(dict.fromkeys(parameter.device for parameter in self.module.parameters()))
        with _standing_in(self.module, stand_ins), seeded(seeds.derive(seed, "objective"), *devices):
            return _number(self.objective(self.module, batch), devices[0])

    def _statistics(self) -> list[Tensor]:
        training = (module for module in self.module.modules() if module.training)
        return [buffer for module in training for buffer in module.buffers(recurse=False)]


@contextmanager
def _standing_in(module: nn.Module, stand_ins: Mapping[int, Tensor]) -> Iterator[None]:
    """While it lasts, tensors are in the places of those of these identities, wherever the module has them.

    Not torch's `functional_call`, which leaves the stand-ins where a module is in two places.
    """
    owners = list(module.modules())
    tables: list[dict[str, Any]] = [*(o._parameters for o in owners), *(o._buffers for o in owners)]
    places = [(table, *item) for table in tables for item in table.items() if id(item[1]) in stand_ins]
    try:
        for table, leaf, tensor in places:
            table[leaf] = stand_ins[id(tensor)]
        yield
    finally:
        for table, leaf, tensor in places:
            table[leaf] = tensor


def _number(loss: Any, device: torch.device) -> Tensor:
    """A loss as a () tensor on ``device``, in fp32 or wider."""
    if isinstance(loss, Real):
        return torch.tensor(float(loss), dtype=torch.float64, device=device)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        given = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else f"type {type(loss).__name__}"
        raise ValueError(
            f"the loss is of {given}; expected a tensor of one element or a number, such as loss.mean()"
        )
    return loss.detach().reshape(()).to(device, torch.promote_types(loss.dtype, torch.float32))


class seeded:
    """Torch's global generators under a seed, restored afterwards: dropout can draw from nothing else."""

    def __init__(self, seed: int, *devices: torch.device) -> None:
        self.seed, cuda = seed, [device for device in devices if device.type == "cuda"]
        self.cpu, self.fork = not cuda, torch.random.fork_rng(devices=cuda)

    def __enter__(self) -> None:
        self.fork.__enter__()
        if self.cpu:
            torch.default_generator.manual_seed(self.seed)  # torch.manual_seed takes a third of a small step
        else:
            torch.manual_seed(self.seed)

    def __exit__(self, *exception: Any) -> None:
        self.fork.__exit__(*exception)
