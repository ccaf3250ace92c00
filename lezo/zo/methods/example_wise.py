"""Each example of a batch has directions of its own, and one forward measures them all.

A linear layer moved along eps u v^T maps x to W x + eps u (v . x), so that moving it otherwise for each example costs two
thin products over the batch, and no copy of W. Where only the last blocks move, all below them runs once, whatever number of
probes follows: with p probes a step, B examples and a share f of the blocks that moves, the blocks run 1 - f + 2 p f times
over the batch, and give p B slopes where MeZO's two forwards (arXiv 2305.17333, Algorithm 1) give one. With l_i the
loss of example i,

    g_ij = (l_i(theta + eps z_ij) - l_i(theta - eps z_ij)) / (2 eps),    theta <- theta - lr / (p B) sum_ij g_ij z_ij

is unbiased for the gradient of the mean loss by the weights that move as eps -> 0, for E[<G, z> z] = G. Its variance is d / (p B)
times the mean of |grad l_i|^2 in place of MeZO's d |grad L|^2: the p counts in full, the B where examples agree.
Relatives: EGGROLL (arXiv 2511.16652) evaluates a population by low-rank directions in one batch; GRZO (arXiv 2606.02857) has a
direction an example, normalised over groups, which this is not.

Weights of linear layers within blocks move, nothing else.
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


def _by_probe(side: Tensor, probes: int) -> Tensor:
    """(probes, examples, size) of a (probes * examples, size) tensor, in the same memory."""
    return side.as_strided(
        (probes, len(side) // probes, side.shape[1]), (len(side) // probes * side.stride(0), *side.stride())
    )


class Signs:
    """The directions of one device's matrices, and whose place is whose: in memory that stays where it is, for recordings.

    ``of``: each matrix's u, (probes, examples, rows), and v, (probes, examples, columns). ``shares``: (places of both signs,
    examples): eps where the place is the example's, -eps of the other sign, else 0. All are in the dtype of the weights.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, int]], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.shapes, self.device, self.dtype = shapes, device, dtype
        self.of: dict[str, Sides] = {}
        self.shares = torch.empty(0)
        self._drawn: dict[tuple[int, int], tuple[Tensor, dict[str, Sides]]] = {}
        self._shares: dict[torch.Size, Tensor] = {}

    def draw(self, along: Sequence[Sequence[int]], owner: Tensor, eps: float) -> None:
        """``along``: of each probe the seeds of the examples' directions; ``owner``: (rows, length), whose each place is."""
        probes, examples = len(along), len(along[0])
        new = signs([seed for each in along for seed in each], self.shapes, self.device)
        if (probes, examples) not in self._drawn:
            room = torch.empty(new.shape, dtype=self.dtype, device=self.device)
            sides = split(room, self.shapes).items()
            of = {name: (_by_probe(u, probes), _by_probe(v, probes)) for name, (u, v) in sides}
            self._drawn[probes, examples] = room, of
        room, self.of = self._drawn[probes, examples]
        room.copy_(new)
        own = torch.arange(examples, device=owner.device) == owner.reshape(-1, 1)
        share = own.to(self.device, self.dtype) * eps
        self.shares = self._fixed(torch.cat([share, -share]))

    def _fixed(self, shares: Tensor) -> Tensor:
        place = self._shares.setdefault(shares.shape, shares)
        return place if place is shares else place.copy_(shares)


class ExampleStreams(Network):
    """A network at theta + eps z and theta - eps z of each of some probes, z another for each example (inside ``perturbed``).

    Its streams are both signs of the first probe, of the second, and so on. Memory beyond a forward over all: the signs of
    the directions, a vector a side and direction of each matrix. ``recordings`` makes what replays the blocks' forwards, as in
    `lezo.zo.streams`.
    """

    def __init__(
        self,
        model: Any,
        layout: Layout,
        watch: Stopwatch,
        probes: int = 1,
        recordings: Recorder | None = None,
    ) -> None:
        super().__init__(model)
        self.streams, self.probes = 2 * probes, probes
        self.watch, self._layout, self._placement = watch, layout, placement_of(model)
        self._blocks = [model.get_submodule(name) for name in layout.modules]
        names = [name for own in layout.blocks for name in own]
        self._linears = {name: model.get_submodule(name.rpartition(".")[0]) for name in names}
        self._shapes = {name: tuple(linear.weight.shape) for name, linear in self._linears.items()}
        self._recordings, self._recorded = recordings, dict[torch.device, Recordings]()
        self._signs: dict[tuple[str, ...], dict[torch.device, Signs]] = {}
        self._now: dict[torch.device, Signs] = {}
        self._rows = 0
        self._repeated: dict[int, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def perturbed(
        self, active: tuple[str, ...], batch: Batch, along: Sequence[Sequence[int]], eps: float
    ) -> Iterator[None]:
        """While it lasts, the network is all streams of ``batch``; ``along``: seeds of directions, (probes, examples)."""
        self._now = self._signs.get(active) or self._made(active)
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
        self._signs[active] = {
            device: Signs(own, device, self.model.dtype) for device, own in by_device.items()
        }
        return self._signs[active]

    def hidden(self, batch: Batch) -> Tensor:
        """As ``Network.hidden``, of all streams: (streams, reads, width)."""
        self._rows, self._repeated = len(batch.input_ids), {}
        for recorded in self._recorded.values():
            recorded.start()
        states = self._states(batch.input_ids, batch.position_ids, self.mask(batch))
        return states.reshape(self.streams, batch.tokens, -1)[:, batch.read]

    def _run(
        self,
        number: int,
        apart: bool,
        active: tuple[str, ...],
        forward: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Block ``number`` over the batch's rows or, from the first that moves on, over those of all streams, ``apart``."""
        if apart:
            args, kwargs = mapped((args, kwargs), self._of_all_streams)
        if self._recordings is None:
            return forward(*args, **kwargs)
        device = self._placement.device(self._layout.modules[number])
        if device not in self._recorded:
            self._recorded[device] = self._recordings(device, 0)
        moves = not set(active).isdisjoint(self._layout.blocks[number])
        places = [tensor.data_ptr() for tensor in self._blocks[number].parameters()]
        if moves:
            own = self._now[device]
            places += [own.shares.data_ptr(), next(iter(own.of.values()))[0].data_ptr()]
        kind, key = (type(self._blocks[number]), moves, self._rows), (number, active, *places)
        return self._recorded[device].run(kind, key, forward, args, kwargs)

    def _of_all_streams(self, tensor: Tensor) -> Tensor:
        """A tensor of the batch's rows for all streams; masks and the like, which blocks are handed alike, are made once."""
        if tensor.ndim < 2 or len(tensor) != self._rows:
            return tensor
        if id(tensor) not in self._repeated:
            repeated = tensor.repeat(self.streams, *(1 for _ in tensor.shape[1:]))
            self._repeated[id(tensor)] = tensor, repeated
        return self._repeated[id(tensor)][1]

    def _moved(self, name: str, forward: Callable[..., Any], states: Tensor) -> Tensor:
        """W x + b +- eps u (v . x), of each place by the directions of its example."""
        out: Tensor = forward(states)
        own = self._now[self._placement.device(name)]
        (u, v), places = own.of[name], len(own.shares)
        if states[..., 0].numel() != self.probes * places:
            raise ModelError(
                f"{name}: its layer gets {states[..., 0].numel()} rows for {self.probes * places} tokens (experts, say), so that "
                "none is one example's; choose another method, such as optim=lezo"
            )
        each = states.reshape(self.probes, places, -1).to(v.dtype)
        along = (each @ v.mT) * own.shares
        return torch.baddbmm(
            out.reshape(self.probes, places, -1), along.to(out.dtype), u.to(out.dtype)
        ).view_as(out)


class ExampleWise(TwoSided):
    """Losses of each example at theta +- eps z, (2 probes examples,): plus and minus in turns, those of the mean over the batch.

    Direction ``examples probe + i`` of a step is example i's of that probe.
    """

    def __init__(self, streams: ExampleStreams, ranks: Ranks = ALONE) -> None:
        self.streams, self.ranks = streams, ranks

    @classmethod
    def of(
        cls,
        network: Network,
        layout: Layout,
        watch: Stopwatch,
        probes: int = 1,
        ranks: Ranks = ALONE,
        recordings: Recorder | None = None,
    ) -> ExampleWise:
        """Of the model of ``network``, whose tensors that move ``layout`` sorts. Raises ModelError for plain rows."""
        if network.plain:
            raise ModelError(
                f"{type(network.model).__name__}: its rows are {network.rows}, and a direction for each example needs packed "
                "rows; choose another method, such as optim=lezo"
            )
        return cls(ExampleStreams(network.model, layout, watch, probes, recordings), ranks)

    @torch.no_grad()
    def __call__(self, batch: MicroBatches, active: Sequence[str], *, seed: int, eps: float) -> Tensor:
        """``batch``: this rank's micro-batches; examples are numbered through all of them."""
        own = [
            self._losses(part, tuple(active), seed, eps, first, batch)
            for part, first in zip(batch, batch.firsts, strict=True)
        ]
        filled = [nn.functional.pad(found, (0, batch.most - found.shape[1])) for found in own]
        together = torch.stack(filled) if filled else self._none(batch.most)
        every = self.ranks.gather(together, batch.of).transpose(0, 1).flatten(1)  # (streams, examples)
        every = every[:, : batch.examples]  # only the last micro-batch may have fewer than most
        return every.reshape(-1, 2, batch.examples).transpose(1, 2).flatten()

    def _losses(
        self, part: Batch, active: tuple[str, ...], seed: int, eps: float, first: int, batch: MicroBatches
    ) -> Tensor:
        """(streams, examples of the part)."""
        numbers = range(first, first + len(part.gold))
        starts = range(0, self.streams.probes * batch.examples, batch.examples)
        along = [[seeds.direction_seed(seed, start + number) for number in numbers] for start in starts]
        with self.streams.perturbed(active, part, along, eps):
            return losses(self.streams, part) * (part.weight / batch.weight * batch.examples)

    def _none(self, most: int) -> Tensor:
        """Of a rank that has no micro-batch of this step."""
        weight = self.streams.head.weight
        shape = 0, self.streams.streams, most
        return torch.empty(shape, dtype=wide_dtype(weight), device=weight.device)
