"""Each example of a batch has a direction of its own, and one forward of both signs measures them all.

A linear layer moved along eps u v^T maps x to W x + eps u (v . x), so that moving it otherwise for each example costs two
thin products over the batch, and no copy of W: MeZO's two forwards (arXiv 2305.17333, Algorithm 1) give as many
slopes as there are examples, in place of one. With l_i the loss of example i of B,

    g_i = (l_i(theta + eps z_i) - l_i(theta - eps z_i)) / (2 eps),    theta <- theta - lr / B sum_i g_i z_i

is unbiased for the gradient of the mean loss as eps -> 0, for E[<G, z> z] = G. Its variance is d / B times the mean of
|grad l_i|^2 in place of MeZO's d |grad L|^2: up to B times less where examples agree, no less where they do not.
Relatives: EGGROLL (arXiv 2511.16652) evaluates a population by low-rank directions in one batch; GRZO (arXiv 2606.02857) has a
direction an example, normalised over groups, which this is not.

Weights of linear layers within blocks move, nothing else. Below the first block that moves both signs are one stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lezo.data.batches import MicroBatches
from lezo.data.pack import Batch
from lezo.model.forward import Network, replaced, wide_dtype
from lezo.model.layout import Layout
from lezo.model.load import ModelError
from lezo.model.loss import losses
from lezo.model.placement import mapped, placement_of
from lezo.noise import seeds
from lezo.noise.rank_one import RankOne, Sides, signs, split
from lezo.ranks.ranks import ALONE, Ranks
from lezo.zo.graphs import Recorder, Recordings
from lezo.zo.probe import TwoSided
from lezo.zo.step import Stopwatch


class RankOneOfLinear(RankOne):
    """Along u v^T on the weights of linear layers within blocks, and nowhere else."""

    def layout(self, model: nn.Module, tensors: Layout) -> Layout:
        """Of the tensors those that move. Raises ModelError where there are none."""
        weights = {
            id(module.weight)
            for name in tensors.modules
            for module in model.get_submodule(name).modules()
            if isinstance(module, nn.Linear)
        }
        named = dict(model.named_parameters())
        blocks = tuple(tuple(n for n in block if id(named[n]) in weights) for block in tensors.blocks)
        if not any(blocks):
            raise ModelError(
                f"{type(model).__name__}: no linear layer (torch.nn.Linear) to train within its blocks; expected a model "
                "whose blocks have such; choose another method, such as optim=lezo"
            )
        return Layout((), blocks, tensors.modules)


class Signs:
    """The directions of one device's matrices, and whose place is whose: in memory that stays where it is, for recordings.

    ``of``: each matrix's u, (examples, rows), and v, (examples, columns). ``shares``: (places of both streams, examples): eps where
    the place is the example's, -eps in the second stream, else 0. All are in the dtype of the weights.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, int]], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.shapes, self.device, self.dtype = shapes, device, dtype
        self.of: dict[str, Sides] = {}
        self.shares = torch.empty(0)
        self._drawn: dict[int, tuple[Tensor, dict[str, Sides]]] = {}  # by the number of examples
        self._shares: dict[torch.Size, Tensor] = {}

    def draw(self, along: Sequence[int], owner: Tensor, eps: float) -> None:
        """Of examples whose directions have the seeds ``along``; ``owner``: (rows, length), whose each place is."""
        new = signs(along, self.shapes, self.device)
        if len(along) not in self._drawn:
            room = torch.empty(new.shape, dtype=self.dtype, device=self.device)
            self._drawn[len(along)] = room, split(room, self.shapes)
        room, self.of = self._drawn[len(along)]
        room.copy_(new)
        own = torch.arange(len(along), device=owner.device) == owner.reshape(-1, 1)
        share = own.to(self.device, self.dtype) * eps
        self.shares = self._fixed(torch.cat([share, -share]))

    def _fixed(self, shares: Tensor) -> Tensor:
        place = self._shares.setdefault(shares.shape, shares)
        return place if place is shares else place.copy_(shares)


class ExampleStreams(Network):
    """A network at theta + eps z_i and theta - eps z_i for the rows of example i (inside ``perturbed``).

    Memory beyond a forward over both: the signs of the directions, a vector a side and direction of each matrix.
    ``recordings`` makes what replays the blocks' forwards, as in `lezo.zo.streams`.
    """

    streams = 2

    def __init__(
        self, model: Any, layout: Layout, watch: Stopwatch, recordings: Recorder | None = None
    ) -> None:
        super().__init__(model)
        self.watch, self._layout, self._placement = watch, layout, placement_of(model)
        self._blocks = [model.get_submodule(name) for name in layout.modules]
        self._linears = {
            name: model.get_submodule(name.rpartition(".")[0]) for own in layout.blocks for name in own
        }
        self._shapes = {name: tuple(linear.weight.shape) for name, linear in self._linears.items()}
        self._recordings, self._recorded = recordings, dict[torch.device, Recordings]()
        self._signs: dict[tuple[str, ...], dict[torch.device, Signs]] = {}
        self._now: dict[torch.device, Signs] = {}
        self._rows = 0
        self._twice_of: dict[int, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def perturbed(
        self, active: tuple[str, ...], batch: Batch, seed: int, eps: float, first: int
    ) -> Iterator[None]:
        """While it lasts, the network is two streams of ``batch``, whose first example is number ``first`` of the step."""
        along = [seeds.direction_seed(seed, first + number) for number in range(len(batch.gold))]
        self._now = self._signs.setdefault(active, {}) or self._made(active)
        with self.watch("perturb"):
            for one in self._now.values():
                one.draw(along, batch.owner, eps)
        moving = set(active)
        lowest = min(i for i, own in enumerate(self._layout.blocks) if not moving.isdisjoint(own))
        with ExitStack() as stack:
            for number, block in enumerate(self._blocks):
                run = partial(self._run, number, number >= lowest, active, block.forward)
                stack.enter_context(replaced(block, run))
            for name in active:
                linear = self._linears[name]
                stack.enter_context(replaced(linear, partial(self._moved, name, linear.forward)))
            yield

    def _made(self, active: tuple[str, ...]) -> dict[torch.device, Signs]:
        """For the matrices of each device."""
        by_device: dict[torch.device, dict[str, Any]] = {}
        for name in active:
            by_device.setdefault(self._placement.device(name), {})[name] = self._shapes[name]
        made = {device: Signs(own, device, self.model.dtype) for device, own in by_device.items()}
        self._signs[active] = made
        return made

    def hidden(self, batch: Batch) -> Tensor:
        """As ``Network.hidden``, of both streams: (2, reads, width)."""
        self._rows, self._twice_of = len(batch.input_ids), {}
        for recorded in self._recorded.values():
            recorded.start()
        states = self._states(batch.input_ids, batch.position_ids, self.mask(batch))
        return states.reshape(2, batch.tokens, -1)[:, batch.read]

    def _run(
        self,
        number: int,
        both: bool,
        active: tuple[str, ...],
        forward: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Block ``number`` over the rows of one stream or, from the first that moves on, of ``both``."""
        if both:
            args, kwargs = mapped((args, kwargs), self._twice)
        if self._recordings is None:
            return forward(*args, **kwargs)
        device, block = self._placement.device(self._layout.modules[number]), self._blocks[number]
        if device not in self._recorded:
            self._recorded[device] = self._recordings(device, 0)
        own = self._now.get(device)
        shares = None if own is None or not both else own.shares.data_ptr()
        signs_at = None if own is None or not both else next(iter(own.of.values()))[0].data_ptr()
        places = tuple(tensor.data_ptr() for tensor in block.parameters())
        moves = both and not set(active).isdisjoint(self._layout.blocks[number])
        kind = type(block), moves, self._rows
        return self._recorded[device].run(
            kind, (number, active, places, shares, signs_at), forward, args, kwargs
        )

    def _twice(self, tensor: Tensor) -> Tensor:
        """A tensor of one stream's rows, for both; masks and the like, which blocks are handed alike, are doubled once."""
        if tensor.ndim < 2 or len(tensor) != self._rows:
            return tensor
        if id(tensor) not in self._twice_of:
            self._twice_of[id(tensor)] = tensor, torch.cat([tensor, tensor])
        return self._twice_of[id(tensor)][1]

    def _moved(self, name: str, forward: Callable[..., Any], states: Tensor) -> Tensor:
        """W x + b +- eps u (v . x), of each place by the directions of its example."""
        out: Tensor = forward(states)
        own = self._now[self._placement.device(name)]
        u, v = own.of[name]
        rows = states.reshape(-1, states.shape[-1])
        if len(rows) != len(own.shares):
            raise ModelError(
                f"{name}: its layer gets {len(rows)} rows for {len(own.shares)} tokens (experts, say), so that none is one "
                "example's; choose another method, such as optim=lezo"
            )
        along = (rows.to(v.dtype) @ v.mT) * own.shares
        return torch.addmm(out.reshape(len(rows), -1), along.to(out.dtype), u.to(out.dtype)).view_as(out)


class ExampleWise(TwoSided):
    """Losses of each example at theta +- eps z_i, (2 examples,): plus and minus in turns, those of the mean over the batch."""

    def __init__(self, streams: ExampleStreams, ranks: Ranks = ALONE) -> None:
        self.streams, self.ranks = streams, ranks

    @classmethod
    def of(
        cls,
        network: Network,
        layout: Layout,
        watch: Stopwatch,
        ranks: Ranks = ALONE,
        recordings: Recorder | None = None,
    ) -> ExampleWise:
        """Of the model of ``network``, whose tensors that move ``layout`` sorts. Raises ModelError for plain rows."""
        if network.plain:
            raise ModelError(
                f"{type(network.model).__name__}: its rows are {network.rows}, and a direction for each example needs packed "
                "rows; choose another method, such as optim=lezo"
            )
        return cls(ExampleStreams(network.model, layout, watch, recordings), ranks)

    @torch.no_grad()
    def __call__(self, batch: MicroBatches, active: Sequence[str], *, seed: int, eps: float) -> Tensor:
        """``batch``: this rank's micro-batches; examples are numbered through all of them."""
        own = [
            self._losses(part, active, seed, eps, first, batch)
            for part, first in zip(batch, batch.firsts, strict=True)
        ]
        filled = [nn.functional.pad(found, (0, batch.most - found.shape[1])) for found in own]
        together = torch.stack(filled) if filled else self._none(batch.most)
        each = self.ranks.gather(together, batch.of).transpose(1, 2).reshape(-1, 2)
        return each[: batch.examples].flatten()  # only the last micro-batch may have fewer than most

    def _losses(
        self, part: Batch, active: Sequence[str], seed: int, eps: float, first: int, batch: MicroBatches
    ) -> Tensor:
        """(2, examples of the part): plus above minus."""
        with self.streams.perturbed(tuple(active), part, seed, eps, first):
            return losses(self.streams, part) * (part.weight / batch.weight * batch.examples)

    def _none(self, most: int) -> Tensor:
        """Of a rank that has no micro-batch of this step."""
        weight = self.streams.head.weight
        return torch.empty((0, 2, most), dtype=wide_dtype(weight), device=weight.device)
