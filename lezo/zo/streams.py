"""theta + eps z and theta - eps z through one forward, theta read-only.

Both streams travel as one batch of twice the rows, plus above minus. A block that is not perturbed runs once over
both. A perturbed one runs on two scratch copies of its tensors, each over its own half. The model's forward stays
its own: only what is called where perturbed tensors live is replaced, and only while a probe lasts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lezo.data.pack import Batch
from lezo.model.forward import Network, replaced, wide_dtype
from lezo.model.home import Slot, home_of, slots
from lezo.model.layout import Layout
from lezo.model.placement import mapped, placement_of
from lezo.zo.copies import Copies, Part
from lezo.zo.direction import GAUSSIAN, Direction
from lezo.zo.graphs import Recorder, Recordings
from lezo.zo.lanes import Lanes
from lezo.zo.step import Stopwatch


class Streams(Network):
    """A network at theta + eps z and theta - eps z, z on the active tensors of a step (inside ``perturbed``).

    Memory beyond a forward over both: two copies of one block and of the other modules outside blocks, but of word
    embeddings only the rows that the batch reads, and of the head only those it scores, or a chunk at a time.
    In 16 bits the gains of norms are perturbed in fp32, for near 1 a gain realises only part of eps z.
    ``compiled`` runs the blocks through torch.compile: one graph for parameters, one for copies. ``recordings`` makes what
    replays the blocks' forwards. Each device that holds blocks has copies and recordings of its own, in each lane.
    """

    streams = 2

    def __init__(
        self,
        model: Any,
        layout: Layout,
        watch: Stopwatch,
        *,
        direction: Direction = GAUSSIAN,
        compiled: bool = False,
        recordings: Recorder | None = None,
    ) -> None:
        super().__init__(model)
        self.watch, self.direction, self._words = watch, direction, model.get_input_embeddings()
        self._placement, self._recordings, self._home = placement_of(model), recordings, home_of(model)
        self.lanes = Lanes(self._placement.devices)
        self._copies: list[Copies] = []  # of each lane
        self._recorded: dict[tuple[int, int], Recordings] = {}  # by place and lane
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._blocks = {
            model.get_submodule(module): slots(model, names)
            for module, names in zip(layout.modules, layout.blocks, strict=True)
        }
        compile_ = partial(torch.compile, dynamic=True) if compiled else lambda forward: forward
        self._held = {block: [*block.parameters(), *block.buffers()] for block in self._blocks}
        self._forwards = {block: compile_(block.forward) for block in self._blocks}
        self._places = {model.get_submodule(name): self._placement.place(name) for name in layout.modules}
        self._non_block = _by_owner(slots(model, layout.non_block))
        self._parts: dict[tuple[nn.Module, tuple[str, ...]], Part] = {}
        self._active: frozenset[str] = frozenset()
        self._found: tuple[dict[nn.Module, Part], dict[nn.Module, Part]] = {}, {}
        self._batch: Batch | None = None
        self._doubled: dict[int, tuple[Tensor, Tensor]] = {}
        self._seed, self._eps, self._rows = 0, 0.0, 0

    @contextmanager
    def perturbed(self, active: Sequence[str], seed: int, eps: float, parts: int = 1) -> Iterator[None]:
        """While it lasts, the network is two streams, moved along z(seed) on the active tensors, for so many micro-batches."""
        self._seed, self._eps = seed, eps
        if self._active != (moving := frozenset(active)):  # MeZO's are the same in each step
            self._active = moving
            self._found = self._moving(self._blocks), self._moving(self._non_block)
        blocks, others = self._found
        by_rows = self.head, self._words
        whole = {module: part for module, part in (blocks | others).items() if module not in by_rows}
        while len(self._copies) < self.lanes.used(parts):
            self._copies.append(Copies(self.direction, self.watch))
        with self._home.on_device():
            for copies in self._copies[: self.lanes.used(parts)]:
                copies.begin(whole, seed, eps)
        with ExitStack() as stack:
            for module, part in (blocks | others).items():
                if module is not self.head:
                    self._part(stack, module, part)
            for module in self._blocks.keys() - blocks.keys():
                stack.enter_context(replaced(module, self._together(module, self._forwards[module])))
            yield

    def _moving(self, modules: Mapping[nn.Module, Sequence[Slot]]) -> dict[nn.Module, Part]:
        """The modules that hold active tensors, with these."""
        active = {m: [slot for slot in slots if slot[0] in self._active] for m, slots in modules.items()}
        return {module: self._part_of(module, slots) for module, slots in active.items() if slots}

    def _part_of(self, module: nn.Module, slots: Sequence[Slot]) -> Part:
        """The same for the same tensors. Gains and biases of a 16-bit norm that all move are copied in fp32."""
        key = module, tuple(name for name, *_ in slots)
        if key not in self._parts:
            norms = [
                norm for norm in filter(is_16_bit_norm, module.modules()) if self._all_move(norm, key[1])
            ]
            wide = [torch.float32 if slot[1] in norms else _theta(slot).dtype for slot in slots]
            self._parts[key] = Part(slots, wide, norms, self._places.get(module, 0))
        return self._parts[key]

    def _all_move(self, module: nn.Module, names: Sequence[str]) -> bool:
        return {self._names[id(parameter)] for parameter in module.parameters()} <= set(names)

    def hidden(self, batch: Batch) -> Tensor:
        """As ``Network.hidden``, of both streams: (2, reads, width)."""
        mask = self.mask(batch)
        assert mask is not None  # plain rows have no two streams
        self._batch, self._rows, self._doubled = batch, len(batch.input_ids), {}
        for recorded in self._recorded.values():
            recorded.start()
        inputs = [batch.input_ids, batch.position_ids, mask]
        if self._parts_at_the_start():
            inputs = [torch.cat([tensor, tensor]) for tensor in inputs]
        # else nothing runs twice before the first perturbed block
        states = self._states(*inputs)
        return states.reshape(-1, batch.tokens, states.shape[-1])[:, batch.read].expand(2, -1, -1)

    def _parts_at_the_start(self) -> bool:
        """Whether an embedding or projection moves: all that is always on but the head and norms, which come late."""
        early = [module for module in self._non_block if module is not self.head and not _is_norm(module)]
        return any(slot[0] in self._active for module in early for slot in self._non_block[module])

    def _part(self, stack: ExitStack, module: nn.Module, part: Part) -> None:
        """Make ``module`` run each stream on its own copies."""
        for norm in part.norms:
            stack.enter_context(replaced(norm, _in_fp32(norm.forward)))
        if module is self._words:
            forward = self._looking_up(module, module.forward, part.slots[0])
        else:
            forward = self._on_copies(module, self._forwards.get(module, module.forward), part)
        stack.enter_context(replaced(module, forward))

    def _on_copies(self, module: nn.Module, original: Callable[..., Any], part: Part) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            self._enter(module)
            pairs = self._copies_at().of(module)

            def both(*args: Any, **kwargs: Any) -> Any:
                outputs = []
                for sign in (0, 1):
                    own_args, own_kwargs = mapped((args, kwargs), lambda tensor: self._half(tensor, sign))  # noqa: B023
                    with _swapped(part.slots, [pair.minus if sign else pair.plus for pair in pairs]):
                        outputs.append(original(*own_args, **own_kwargs))
                return _joined(*outputs)

            ends = pairs[0].plus.data_ptr(), pairs[0].minus.data_ptr()
            return self._run(module, (part, *ends), both, args, kwargs)

        return forward

    def _together(self, module: nn.Module, original: Callable[..., Any]) -> Callable[..., Any]:
        """An unperturbed block, whose mask and positions follow where the streams have parted before it."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            self._enter(module)
            states = args[0] if args else kwargs["hidden_states"]
            if len(states) == 2 * self._rows:
                args, kwargs = mapped((args, kwargs), self._twice)
            return self._run(module, None, original, args, kwargs)

        return forward

    def _run(
        self, module: nn.Module, copies: Any, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """A block's forward, by its recording where there are such; ``copies``: which it runs on, and where they lie."""
        if self._recordings is None or module not in self._blocks:
            return forward(*args, **kwargs)
        places = tuple(tensor.data_ptr() for tensor in self._held[module])
        kind = type(module), copies is None, self._rows
        key = module, copies, places
        return self._recordings_at(self._places[module]).run(kind, key, forward, args, kwargs)

    def _enter(self, module: nn.Module) -> None:
        """A block's device is where the lane's micro-batch is now."""
        if module in self._places:
            self.lanes.enter(self._places[module])

    def _copies_at(self) -> Copies:
        """Of the present lane."""
        return self._copies[self.lanes.at]

    def _recordings_at(self, place: int) -> Recordings:
        """Of the blocks of a device, in the present lane."""
        where = place, self.lanes.at
        if where not in self._recorded:
            assert self._recordings is not None
            self._recorded[where] = self._recordings(self._placement.devices[place], self.lanes.at)
        return self._recorded[where]

    def _looking_up(self, words: nn.Module, original: Callable[..., Any], slot: Slot) -> Callable[..., Any]:
        """The word embeddings on copies of the rows that the batch reads."""

        def forward(ids: Tensor) -> Any:
            assert self._batch is not None
            with self.watch("perturb"):
                name, rows = slot[0], self._batch.words
                pair = self.direction.perturb(_theta(slot), self._seed, name, self._eps, rows=rows)
            with _without_padding(words):
                looked_up = []
                for copy in pair:
                    with _swapped([slot], [copy]):
                        looked_up.append(original(self._batch.word_index))
            return _joined(*looked_up)

        return forward

    def _half(self, tensor: Tensor, sign: int) -> Tensor:
        """One stream's rows; a tensor that both streams share as it is."""
        if tensor.ndim > 1 and len(tensor) == 2 * self._rows:
            return tensor[sign * self._rows : (sign + 1) * self._rows]
        return tensor

    def _twice(self, tensor: Tensor) -> Tensor:
        """A tensor of one stream's rows, for both; blocks are handed the same mask, which is doubled once a forward."""
        if tensor.ndim < 2 or len(tensor) != self._rows:
            return tensor
        if id(tensor) not in self._doubled:
            self._doubled[id(tensor)] = tensor, torch.cat([tensor, tensor])
        return self._doubled[id(tensor)][1]

    def _head_rows(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        weight = self.head.weight
        if self._names[id(weight)] not in self._active:
            return super()._head_rows(rows)
        ids = rows if isinstance(rows, Tensor) else torch.arange(len(weight), device=weight.device)[rows]
        return self._wide_pair(weight, rows=ids), self._bias(rows)

    def _bias(self, rows: Tensor | slice) -> Tensor:
        bias = self.head.bias
        if bias is None or self._names[id(bias)] not in self._active:
            return super()._bias(rows)
        return self._wide_pair(bias)[:, rows]

    def _wide_pair(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        """Both copies of a parameter, or of its ``rows``, in fp32: (2, ...)."""
        dtype, shape = wide_dtype(theta), theta.shape if rows is None else (len(rows), *theta.shape[1:])
        both = torch.empty((2, *shape), dtype=dtype, device=theta.device)
        name, out = self._names[id(theta)], (both[0], both[1])
        with self.watch("perturb"):
            self.direction.perturb(
                theta.detach(), self._seed, name, self._eps, rows=rows, dtype=dtype, out=out
            )
        return both


def _by_owner(slots: Sequence[Slot]) -> dict[nn.Module, list[Slot]]:
    owners: dict[nn.Module, list[Slot]] = {}
    for slot in slots:
        owners.setdefault(slot[1], []).append(slot)
    return owners


def _theta(slot: Slot) -> Tensor:
    _, module, leaf = slot
    return module.get_parameter(leaf).detach()


@contextmanager
def _swapped(slots: Sequence[Slot], tensors: Sequence[Tensor]) -> Iterator[None]:
    """While it lasts, the modules find these tensors in their parameters' places."""
    before = [module._parameters[leaf] for _, module, leaf in slots]
    try:
        for (_, module, leaf), tensor in zip(slots, tensors, strict=True):
            module._parameters[leaf] = tensor  # type: ignore[assignment]
        yield
    finally:
        for (_, module, leaf), parameter in zip(slots, before, strict=True):
            module._parameters[leaf] = parameter


@contextmanager
def _without_padding(words: nn.Module) -> Iterator[None]:
    """While it lasts, no id of an embedding is padding: ids count the rows of a shorter table."""
    before = getattr(words, "padding_idx", None)
    words.padding_idx = None  # type: ignore[assignment]
    try:
        yield
    finally:
        words.padding_idx = before  # type: ignore[assignment]


def _is_norm(module: nn.Module) -> bool:
    """Whether it is a norm (LayerNorm, any RMSNorm): a module of gains and biases only."""
    own = list(module.parameters())
    return bool(own) and "norm" in type(module).__name__.lower() and all(p.ndim == 1 for p in own)


def is_16_bit_norm(module: nn.Module) -> bool:
    """Whether it is a norm whose gains a probe perturbs in fp32."""
    return _is_norm(module) and all(p.dtype.itemsize == 2 for p in module.parameters())


def _in_fp32(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(states: Tensor) -> Any:
        return original(states.float()).to(states.dtype)

    return forward


def _joined(plus: Any, minus: Any) -> Any:
    """Both streams' outputs as one batch."""
    if isinstance(plus, Tensor):
        return torch.cat([plus, minus])
    return tuple(map(_joined, plus, minus)) if isinstance(plus, tuple) else plus
