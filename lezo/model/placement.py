"""Which device is each part of a model on? Contiguous blocks on each of several, and all else on the first.

A forward follows its weights: what a module is called with is moved to the module's device before it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lezo.model.layout import decoder_blocks
from lezo.model.weights import ModelError


@dataclass(frozen=True)
class Placement:
    """``devices``: the first is home, where all outside the blocks is. ``places``: of each of ``blocks``, by their names,
    the number of its device; it never falls from block to block.

    Of one device nothing need be said of blocks. Two devices may be the same one; their places still are two.
    """

    devices: tuple[torch.device, ...]
    blocks: tuple[str, ...] = ()
    places: tuple[int, ...] = ()

    @property
    def home(self) -> torch.device:
        """The first device."""
        return self.devices[0]

    def place(self, name: str) -> int:
        """The number of the device of a module or tensor of this name."""
        pairs = zip(self.blocks, self.places, strict=True)
        return next((place for block, place in pairs if f"{name}.".startswith(f"{block}.")), 0)

    def device(self, name: str) -> torch.device:
        """The device of a module or tensor of this name."""
        return self.devices[self.place(name)]

    def is_outside(self, name: str) -> bool:
        """Whether a module of this name is neither a block nor in one."""
        return not any(f"{name}.".startswith(f"{block}.") for block in self.blocks)


def placed(model: nn.Module, devices: Sequence[torch.device]) -> Placement:
    """As many bytes on each device as contiguous blocks allow; all outside the blocks counts as the first one's.

    ``model`` may be without weights. Raises ModelError where there are fewer blocks than devices.
    """
    if len(devices) == 1:
        return Placement(tuple(devices))
    blocks = decoder_blocks(model)
    if len(blocks) < len(devices):
        named = ", ".join(map(str, devices))
        raise ModelError(
            f"{len(devices)} devices ({named}) are named, and the model has {len(blocks)} blocks; expected at most a "
            "device a block (model.devices, replay.devices)"
        )
    sizes = [sum(p.nbytes for p in model.get_submodule(block).parameters()) for block in blocks]
    outside = sum(p.nbytes for p in model.parameters()) - sum(sizes)
    return Placement(tuple(devices), blocks, tuple(_cut(sizes, outside, len(devices))))


def _cut(sizes: Sequence[int], outside: int, devices: int) -> Iterator[int]:
    """The place of each block: a device takes blocks up to its share of what the ones before it left, one at least."""
    at, left, held = 0, sum(sizes) + outside, outside
    for place in range(devices):
        first, others = at, devices - place - 1
        share = left / (others + 1)
        while at < len(sizes) - others and (at == first or held + sizes[at] / 2 <= share):
            held += sizes[at]
            at += 1
            yield place
        left, held = left - held, 0


@torch.no_grad()
def settle(model: Any, placement: Placement) -> Any:
    """Move every tensor to its device; a parameter without memory (on meta) gets some, without values. Returns the model."""
    if len(placement.devices) == 1:
        return model.to(placement.home)
    moved: dict[int, tuple[Tensor, Tensor]] = {}  # tied ones once
    for name, module in model.named_modules():
        for table in (module._parameters, module._buffers):
            for leaf, tensor in table.items():
                if tensor is not None and id(tensor) not in moved:
                    moved[id(tensor)] = tensor, _on(tensor, placement.device(name))
                if tensor is not None:
                    table[leaf] = moved[id(tensor)][1]
    return model


def _on(tensor: Tensor, device: torch.device) -> Tensor:
    if tensor.device == device:
        return tensor
    made = torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device)
    return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


def follow(model: Any, placement: Placement) -> None:
    """From now on forwards of ``model``, whose tensors are where ``placement`` says, go from device to device."""
    model.placement = placement
    if len(placement.devices) == 1:
        return
    carried = _Carried()
    for name, module in model.named_modules():
        if name in placement.blocks or (placement.is_outside(name) and _owns_tensors(module)):
            to = partial(carried.to, placement.device(name))
            module.register_forward_pre_hook(to, with_kwargs=True)
    model.register_forward_hook(carried.forget, always_call=True)


def placement_of(model: nn.Module) -> Placement:
    """Where the parts of a model are; of one that was never told, all on the device of its first parameter."""
    told = model.__dict__.get("placement")
    return told if isinstance(told, Placement) else Placement((next(model.parameters()).device,))


def _owns_tensors(module: nn.Module) -> bool:
    return bool(module._parameters or module._buffers)


class _Carried:
    """Moves what modules are called with. What blocks share (masks, positions) goes once to a device in a forward.

    Between GPUs the host does not wait for a copy.
    """

    def __init__(self) -> None:
        self._shared: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def to(
        self, device: torch.device, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A module's arguments on its device: the first, the hidden states, is each module's own."""
        first = mapped(args[:1], lambda tensor: tensor.to(device, non_blocking=True))
        rest, named = mapped((args[1:], kwargs), lambda tensor: self._once(tensor, device))
        return (*first, *rest), named

    def forget(self, *_: Any) -> None:
        """A forward is over."""
        self._shared.clear()

    def _once(self, tensor: Tensor, device: torch.device) -> Tensor:
        if tensor.device == device:
            return tensor
        key = id(tensor), device
        if key not in self._shared:
            self._shared[key] = tensor, tensor.to(device, non_blocking=True)
        return self._shared[key][1]


def mapped(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nested tuples, lists and dicts with every tensor changed."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, tuple | list):
        return type(tree)(mapped(item, change) for item in tree)
    return {key: mapped(item, change) for key, item in tree.items()} if isinstance(tree, dict) else tree
