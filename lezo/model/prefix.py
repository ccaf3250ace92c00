"""How does a prefix stand before the text? Trained keys and values in each block's attention (prefix tuning).

The text's positions go on behind the prefix, and every token sees all of it: what peft computes from the same
tensors. But peft keeps them in one tensor for all blocks, and reads them before the first one; here each block has
its own, read when it runs, so that one may be skipped, and perturbed, without the others.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from lezo.model.layout import decoder_blocks
from lezo.model.load import ModelError
from lezo.noise import seeds


class Prefixes:
    """A prefix in every block of ``model``: ``weight``, (tokens, 2, heads, width) flattened to (tokens, -1), fp32.

    From now on the model's forward takes them into account: packed (4-D mask and positions given, no cache), in plain
    rows (no mask, a cache of its own) or generating (2-D mask, a cache that grows). A window hides them from later tokens.
    """

    def __init__(self, model: Any, tokens: int) -> None:
        """Raises ModelError where the configuration does not tell the size of keys and values."""
        self.tokens, (self.heads, self.width) = tokens, _sizes(model.config.get_text_config())
        self.blocks = [model.get_submodule(name) for name in decoder_blocks(model)]
        for block in self.blocks:
            block.prefix = nn.Module()
            device = next(block.parameters()).device
            empty = torch.empty(tokens, 2 * self.heads * self.width, device=device)
            block.prefix.weight = nn.Parameter(empty)
        model.register_forward_pre_hook(self._before, with_kwargs=True)

    def pair(self, block: int) -> Tensor:
        """Keys and values of a block: (2, heads, tokens, width)."""
        weight: Tensor = self.blocks[block].prefix.weight
        return weight.view(self.tokens, 2, self.heads, self.width).permute(1, 2, 0, 3)

    def joined(self) -> Tensor:
        """All in peft's order, on the CPU: (tokens, blocks * 2 * heads * width)."""
        return torch.cat([block.prefix.weight.detach().cpu() for block in self.blocks], 1)

    def _before(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """What the forward is told, with the prefix in front."""
        mask, named = kwargs.get("attention_mask"), _cache_name(model)
        changed, cache = dict(kwargs), kwargs.get(named)
        if mask is not None:
            seen = 0 if mask.is_floating_point() else 1  # added to scores, or a truth
            front = mask.new_full((*mask.shape[:-1], self.tokens), seen)
            changed["attention_mask"] = torch.cat([front, mask], -1)
        for places in ("position_ids", "cache_position"):  # the second of transformers before 5.23
            if kwargs.get(places) is not None:
                changed[places] = kwargs[places] + self.tokens
        if mask is not None and mask.ndim == 4:
            changed[named] = _InFront(self)
            return args, changed
        changed[named] = cache = DynamicCache() if cache is None else cache
        if cache.get_seq_length() == 0:
            self._fill(cache, rows=len(kwargs["input_ids"]), dtype=model.dtype)  # type: ignore[arg-type]
        return args, changed

    def _fill(self, cache: Cache, *, rows: int, dtype: torch.dtype) -> None:
        for i in range(len(self.blocks)):
            keys, values = self.pair(i).to(dtype)[:, None].expand(-1, rows, -1, -1, -1)
            cache.update(keys, values, i)


class _InFront(Cache):  # type: ignore[misc]
    """Looks to a block's attention like a cache that holds its prefix; nothing is kept."""

    def __init__(self, prefixes: Prefixes) -> None:
        super().__init__(layers=[])
        self._prefixes = prefixes

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Keys and values, (rows, heads, length, width), behind the block's prefix."""
        pair = self._prefixes.pair(layer_idx).to(key_states.dtype)
        own = pair[:, None].expand(-1, len(key_states), -1, -1, -1)
        return torch.cat([own[0], key_states], 2), torch.cat([own[1], value_states], 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The prefix's tokens."""
        return self._prefixes.tokens


@torch.no_grad()
def activations(model: Any, tokens: int, seed: int) -> dict[str, Tensor]:
    """Keys and values of ``tokens`` random tokens of the vocabulary, drawn under ``seed``: each block's ``weight`` by its name.

    They stand alone, without BOS, at the first positions; MeZO's table 16 calls such a start crucial.
    """
    text = model.config.get_text_config()
    tokens_drawn = seeds.permutation(seeds.derive(seed, "prefix"), 0, text.vocab_size)[:tokens]
    ids = torch.tensor([tokens_drawn], device=model.device)
    heads, width = _sizes(text)
    pairs = _pairs(model, ids)
    blocks = decoder_blocks(model)
    if len(pairs) != len(blocks) or any(pair.shape != (2, heads, tokens, width) for pair in pairs):
        found = [tuple(pair.shape) for pair in pairs[:1]]
        raise ModelError(
            f"{type(model).__name__}: keys and values of {len(pairs)} blocks, {found}; expected {len(blocks)} of "
            f"{(2, heads, tokens, width)}, so that a prefix can stand before them (peft=lora needs no such thing)"
        )
    flat = (pair.permute(2, 0, 1, 3).reshape(tokens, -1).float() for pair in pairs)
    return {f"{name}.prefix.weight": value for name, value in zip(blocks, flat, strict=True)}


def _pairs(model: Any, ids: Tensor) -> list[Tensor]:
    """What each block keeps of a row of ids: keys and values, (2, heads, length, width)."""
    cache = DynamicCache()
    try:
        model(input_ids=ids, use_cache=True, **{_cache_name(model): cache})
        return [torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers]
    except (LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = f"not every block keeps keys and values ({type(error).__name__}: {error})"
        raise ModelError(
            f"{type(model).__name__}: {reason}; a prefix needs them, peft=lora does not"
        ) from error


def _cache_name(model: nn.Module) -> str:
    """What the model's forward calls its cache: transformers renamed it in 5.24."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def _sizes(config: Any) -> tuple[int, int]:
    """Key heads of a block, and their width."""
    heads = getattr(config, "num_attention_heads", None)
    if heads is None:
        raise ModelError(
            f"model_type {config.model_type}: no num_attention_heads; a prefix needs its size (peft=lora)"
        )
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return getattr(config, "num_key_value_heads", None) or heads, width
