"""Which tensors does a step take or skip together? Those of a block: a language model's decoder block, or any module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
import transformers
from torch import nn

from lezo.model.weights import ModelError

STEPPED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Layout:
    """The names of a model's trainable tensors: those of each block, and those outside the blocks; tied ones once.

    ``modules``: the names of the blocks. Outside OPT's decoder blocks are embeddings, projections and the final norm.
    ``embeddings``: those outside that are tables of words or positions, which a head may be tied to.

    Where what is outside is chosen too, group -1 is the embeddings, group len(blocks) all else outside.
    """

    non_block: tuple[str, ...]
    blocks: tuple[tuple[str, ...], ...]
    modules: tuple[str, ...]
    embeddings: tuple[str, ...] = ()

    def active(self, chosen: Iterable[int]) -> tuple[str, ...]:
        """The tensors outside the blocks and those of the chosen blocks."""
        return self.non_block + tuple(name for block in chosen for name in self.blocks[block])

    @property
    def groups(self) -> tuple[int, ...]:
        """All groups that have tensors, in ascending order."""
        return tuple(group for group in range(-1, len(self.blocks) + 1) if self.of(group))

    def of(self, group: int) -> tuple[str, ...]:
        """A group's tensors."""
        if group == -1:
            return self.embeddings
        if group == len(self.blocks):
            return tuple(name for name in self.non_block if name not in self.embeddings)
        return self.blocks[group]


def layout(model: nn.Module, modules: Sequence[str] | None = None) -> Layout:
    """Sort the trainable tensors by the blocks of these names. None: the decoder blocks (see `decoder_blocks`).

    A tensor that two blocks share is the first one's.
    """
    modules = decoder_blocks(model) if modules is None else tuple(modules)
    rest = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    parameters = [list(model.get_submodule(module).parameters()) for module in modules]
    blocks = tuple(tuple(rest.pop(id(p)) for p in block if id(p) in rest) for block in parameters)
    tables = {
        id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()
    }
    embeddings = tuple(name for key, name in rest.items() if key in tables)
    return Layout(tuple(rest.values()), blocks, modules, embeddings)


def layout_of(model: nn.Module, blocks: Sequence[str | nn.Module]) -> Layout:
    """Sort the trainable tensors by ``blocks``, modules of the model or their names.

    ValueError for a block that is not the model's, is inside another, or holds no trainable tensor of its own.
    """
    names = _names(model, blocks)
    _refuse_overlap(names)
    sorted_by_block = layout(model, names)
    for name, tensors in zip(names, sorted_by_block.blocks, strict=True):
        if not tensors:
            raise ValueError(f"block {name!r} holds no trainable tensor of its own; leave it out of blocks")
    return sorted_by_block


def decoder_blocks(model: nn.Module) -> tuple[str, ...]:
    """The names of a causal language model's decoder blocks. Raises ModelError where it has no list of them."""
    inner = decoder(model)
    if names := _list_of_blocks(model, inner, nn.ModuleList, lambda _: True):
        return names
    layers = _layers(inner)
    raise ModelError(
        f"{type(model).__name__}: no list of {'' if layers is None else f'{layers} '}decoder blocks found among its modules; "
        "expected a decoder-only causal language model, such as OPT, LLaMA or Qwen"
    )


def trainable_blocks(model: nn.Module) -> tuple[str, ...]:
    """The names of any module's blocks: the entries of its list of blocks (ModuleList, else Sequential) that have something
    to train. Raises ValueError where no list has two.
    """
    for kind in (nn.ModuleList, nn.Sequential):
        if len(names := _list_of_blocks(model, model, kind, _trains)) > 1:
            return names
    raise ValueError(
        f"{type(model).__name__}: no list of blocks found among its modules; name them, as in "
        f"blocks={[name for name, child in model.named_children() if _trains(child)]}, or use lezo.MeZO"
    )


def _list_of_blocks(
    model: nn.Module, inner: Any, kind: type[nn.Module], counts: Callable[[nn.Module], bool]
) -> tuple[str, ...]:
    """The names of one list's entries, of those that count. Empty: there is no list of blocks in ``inner``.

    The list has as many as the configuration says there are layers. Without such a number it is the longest, and where
    the number fits no list (some families count other layers) the outermost, not one of a block's experts.
    """
    layers, inside = _layers(inner), set(inner.modules())
    lists = [
        tuple(f"{path}.{name}".removeprefix(".") for name, child in module.named_children() if counts(child))
        for path, module in model.named_modules()
        if isinstance(module, kind) and module in inside
    ]
    fitting = [names for names in lists if names and len(names) == layers]
    several = [names for names in lists if len(names) > 1]
    if layers:
        outermost = min((_depth(names) for names in several), default=0)
        several = [names for names in several if _depth(names) == outermost]
    return max(fitting or several, key=lambda names: (len(names), -_depth(names)), default=())


def _layers(module: Any) -> int | None:
    return getattr(getattr(module, "config", None), "num_hidden_layers", None)


def _depth(names: Sequence[str]) -> int:
    return names[0].count(".")


def _trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def decoder(model: Any) -> Any:
    """The model itself; of one that also sees or hears, the module that is its language model."""
    config = getattr(model, "config", None)
    if not isinstance(config, transformers.PreTrainedConfig) or config.get_text_config() is config:
        return model
    return model.get_decoder()


def refuse_no_module(model: Any, caller: str) -> None:
    """Raise TypeError for what other optimizers take in place of the module, such as its parameters."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{caller}: expected the module itself, as in {caller}(model, ...), not a {type(model).__name__}: its "
            "parameters are what is perturbed in it, those with requires_grad"
        )


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a step may change, by name: those that require a gradient; tied ones once.

    Raises ValueError where there are none, and for a dtype that no step can be computed in.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError(
            f"{type(model).__name__} has no trainable tensors; expected parameters with requires_grad=True: "
            "set it on those to train"
        )
    for name, parameter in parameters.items():
        if parameter.dtype not in STEPPED:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in STEPPED)
            raise ValueError(
                f"{name} is of {str(parameter.dtype).removeprefix('torch.')}; expected one of {allowed}, "
                "or requires_grad_(False) on it"
            )
    return parameters


def _names(model: nn.Module, blocks: Sequence[str | nn.Module]) -> tuple[str, ...]:
    """The names of modules that are given by name or themselves. ValueError for one that is not the model's."""
    if isinstance(blocks, str | nn.Module):
        raise ValueError(f"blocks={blocks!r}: expected a list of modules of the model, or of their names")
    kind, names = type(model).__name__, {module: name for name, module in model.named_modules()}
    for block in blocks:
        if isinstance(block, nn.Module) and block not in names:
            raise ValueError(f"a {type(block).__name__} of blocks is no module of the {kind}")
        if isinstance(block, str) and block not in names.values():
            close = get_close_matches(block, names.values(), 3) or [n for n, _ in model.named_children()]
            expected = f"expected names from named_modules(), such as {', '.join(close)}"
            raise ValueError(f"block {block!r} is no module of the {kind}; {expected}")
    return tuple(names[block] if isinstance(block, nn.Module) else block for block in blocks)


def _refuse_overlap(blocks: Sequence[str]) -> None:
    for block in blocks:
        if blocks.count(block) > 1:
            raise ValueError(f"blocks overlap: {block!r} is given twice")
        for other in blocks:
            if block != other and (other == "" or block.startswith(f"{other}.")):
                raise ValueError(f"blocks overlap: {block!r} is inside {other!r}; expected modules apart")
