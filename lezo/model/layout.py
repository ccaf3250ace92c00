"""Which tensors does a step take or skip together? The blocks of a language model, or of any module, found or named."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
    """The names of the trainable tensors: those of each decoder block, and the always-on rest.

    Tied tensors appear once. OPT's always-on group is embeddings, projections and the final norm. ``path`` is
    the name of the list of blocks: block i is the module ``path.i``.
    """

    non_block: tuple[str, ...]
    blocks: tuple[tuple[str, ...], ...]
    path: str

    def active(self, chosen: Iterable[int]) -> tuple[str, ...]:
        """The always-on tensors and those of the chosen blocks."""
        return self.non_block + tuple(name for block in chosen for name in self.blocks[block])


def layout(model: nn.Module) -> Layout:
    """Find the model's list of decoder blocks and sort its trainable tensors by it.

    Raises ModelError where no list of modules has one entry for each of the configured layers.
    """
    prefix, count = block_list(model)
    blocks: list[list[str]] = [[] for _ in range(count)]
    always = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith(prefix + "."):
            blocks[int(name[len(prefix) + 1 :].split(".")[0])].append(name)
        else:
            always.append(name)
    return Layout(tuple(always), tuple(map(tuple, blocks)), prefix)


def block_list(model: nn.Module) -> tuple[str, int]:
    """The name of the model's list of decoder blocks, and how many there are. Raises ModelError where there is none."""
    inner = decoder(model)
    expected = getattr(getattr(inner, "config", None), "num_hidden_layers", None)
    inside = set(inner.modules())
    lists = [
        (name, len(m))
        for name, m in model.named_modules()
        if isinstance(m, nn.ModuleList) and len(m) and m in inside
    ]
    fitting = [found for found in lists if expected is None or found[1] == expected]
    if not fitting and expected:
        # Some families count other layers: of their lists the outermost, not one of experts.
        depth = min((name.count(".") for name, count in lists if count > 1), default=0)
        fitting = [found for found in lists if found[1] > 1 and found[0].count(".") == depth]
    if not fitting:
        kind = type(model).__name__
        raise ModelError(
            f"{kind}: no list of {'' if expected is None else f'{expected} '}decoder blocks found among its modules ({lists or 'no lists'}); "
            "lezo needs a decoder-only causal language model, such as OPT, LLaMA or Qwen"
        )
    return max(fitting, key=lambda found: (found[1], -found[0].count(".")))


def decoder(model: Any) -> Any:
    """The model, or of one that also sees or hears the module that its language model is."""
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
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no trainable tensors; expected parameters with requires_grad=True: "
            "set it on those to train"
        )
    for name, parameter in found.items():
        if parameter.dtype not in STEPPED:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in STEPPED)
            raise ValueError(
                f"{name} is of {str(parameter.dtype).removeprefix('torch.')}; expected one of {allowed}, "
                "or requires_grad_(False) on it"
            )
    return found


def layout_of(model: nn.Module, blocks: Sequence[str]) -> Layout:
    """The trainable tensors sorted by ``blocks``, names of modules. A tensor that two share is the first one's.

    ValueError for a block that holds no tensor of its own, and for one inside another.
    """
    _refuse_overlap(blocks)
    left = {id(p): name for name, p in trainable(model).items()}
    taken = []
    for block in blocks:
        own = [left.pop(id(p)) for p in model.get_submodule(block).parameters() if id(p) in left]
        if not own:
            raise ValueError(f"block {block!r} holds no trainable tensor of its own; leave it out of blocks")
        taken.append(tuple(own))
    return Layout(tuple(left.values()), tuple(taken), "")


def named(model: nn.Module, blocks: Sequence[str | nn.Module]) -> tuple[str, ...]:
    """The names of modules that are given by name or themselves. ValueError for one that is not the model's."""
    if isinstance(blocks, str | nn.Module):
        raise ValueError(f"blocks={blocks!r}: expected a list of modules of the model, or of their names")
    modules = dict(model.named_modules())
    by_identity = {id(module): name for name, module in modules.items()}
    return tuple(_name(model, block, modules, by_identity) for block in blocks)


def found(model: nn.Module) -> tuple[str, ...]:
    """The names of the blocks of a model that has them in a list.

    Of the lists (ModuleList, else Sequential) the longest, counting what is trainable; the outermost of equals. For a
    transformers model a list of as many as it says it has hidden layers. ValueError where none has two.
    """
    for kind in (nn.ModuleList, nn.Sequential):
        lists = [names for names in _lists(model, kind) if len(names) > 1]
        fitting = [names for names in lists if len(names) == _layers(model)] or lists
        if fitting:
            return max(fitting, key=lambda names: (len(names), -names[0].count(".")))
    raise ValueError(
        f"{type(model).__name__}: no list of blocks found among its modules; name them, as in "
        f"blocks={[name for name, child in model.named_children() if _trains(child)]}, or use lezo.MeZO"
    )


def _lists(model: nn.Module, kind: type[nn.Module]) -> Iterator[tuple[str, ...]]:
    """The names of the trainable entries of each list of the kind."""
    for path, module in model.named_modules():
        if isinstance(module, kind):
            entries = [name for name, child in module.named_children() if _trains(child)]
            yield tuple(f"{path}.{name}" if path else name for name in entries)


def _layers(model: nn.Module) -> Any:
    return getattr(getattr(model, "config", None), "num_hidden_layers", None)


def _trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def _name(
    model: nn.Module,
    block: str | nn.Module,
    modules: dict[str, nn.Module],
    by_identity: dict[int, str],
) -> str:
    if isinstance(block, nn.Module):
        if id(block) in by_identity:
            return by_identity[id(block)]
        raise ValueError(f"a {type(block).__name__} of blocks is no module of the {type(model).__name__}")
    if block not in modules:
        close = get_close_matches(block, modules, 3) or [name for name, _ in model.named_children()]
        raise ValueError(
            f"block {block!r} is no module of the {type(model).__name__}; expected names from "
            f"named_modules(), such as {', '.join(close)}"
        )
    return block


def _refuse_overlap(blocks: Sequence[str]) -> None:
    for block in blocks:
        if blocks.count(block) > 1:
            raise ValueError(f"blocks overlap: {block!r} is given twice")
        for other in blocks:
            if block != other and (other == "" or block.startswith(f"{other}.")):
                raise ValueError(f"blocks overlap: {block!r} is inside {other!r}; expected modules apart")
