"""Which weights stay quantised, and how are they used? Those of linear layers, by bitsandbytes, as a base that nothing moves.

The layers' outputs are those of the weights that the bits stand for: each is dequantised as it is used, in the dtype of
what it is used on, and let go of. bitsandbytes' own 8-bit product rounds what comes in too, by outliers of all rows
of a forward together, so that a row's loss would depend on its neighbours; its 4-bit one packs the bits anew on some CPUs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lezo.model.layout import decoder_blocks
from lezo.model.weights import ModelError, is_gguf, quantised

BITS = {"8bit": 8, "4bit": 4}
"""The settings that make a base of so many bits of plain weights."""

_GROUP = 64  # weights that share a scale in 4 bits


def kept_bits(wanted: str | None, config: Any) -> int | None:
    """How many bits a weight of a linear layer keeps; None: the weights are plain ones, or become so as they are read.

    ``wanted``: a key of `BITS`, of plain weights. Else the configuration says that bitsandbytes made them.
    """
    if wanted is not None:
        return BITS[wanted]
    if quantised(config) != "bitsandbytes":
        return None
    return 4 if _settings(config).get("load_in_4bit") else 8


def refuse_quantising(path: str, wanted: str | None, config: Any) -> None:
    """Raise ModelError where there are no plain weights to quantise as ``wanted``, or the extra for it is not installed."""
    method = "gguf" if is_gguf(path) else quantised(config)
    if wanted is not None and method is not None:
        raise ModelError(
            f"{path}: the weights are quantised ({method}), and model.quantization={wanted} quantises plain ones; "
            "leave it out, or expected the weights that they were made of"
        )
    lacking = [name for name in ("bitsandbytes", "accelerate") if find_spec(name) is None]
    if kept_bits(wanted, config) is not None and lacking:
        raise ModelError(
            f"{path}: quantised weights take an extra ({lacking[0]}); pip install 'lezo[bitsandbytes]'"
        )


def refuse_apart(path: str, devices: int, home: str) -> None:
    """Raise ModelError for a quantised base over several devices, or whose blocks live elsewhere than on the device."""
    if devices > 1 or home != "device":
        where = f"{devices} devices" if devices > 1 else home
        raise ModelError(
            f"{path}: quantised weights are on one device, as a whole, not on {where}; leave out devices or home"
        )


def loading_options(wanted: str | None, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` is told so that it quantises plain weights on ``device``, or reads bitsandbytes' own there."""
    options: dict[str, Any] = {"device_map": {"": device}}
    if wanted is not None:
        import transformers

        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_8bit=wanted == "8bit",
            load_in_4bit=wanted == "4bit",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
        )
    return options


def use_dequantised(model: nn.Module, path: str) -> None:
    """From now on quantised layers give the product with the weights that their bits stand for.

    Raises ModelError where one came without its scales.
    """
    for name, layer in quantised_layers(model):
        if not _scales(layer):
            raise ModelError(
                f"{path}: {name} has no scales beside its bits; expected weights as bitsandbytes saves them"
            )
        layer.forward = partial(_product, layer)


def quantised_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The linear layers whose weights bitsandbytes keeps, by their names; none where the weights are plain."""
    for name, module in model.named_modules():
        if type(module).__module__.startswith("bitsandbytes."):
            yield name, module


def scales(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What the bits of quantised layers are multiplied by, which is no parameter, by name."""
    for name, layer in quantised_layers(model):
        yield from ((f"{name}.weight.{key}", scale) for key, scale in _scales(layer).items())


def _scales(layer: Any) -> dict[str, Tensor]:
    """A layer's; in 8 bits they are the weight's until the first forward of bitsandbytes' own."""
    if (state := getattr(layer.weight, "quant_state", None)) is None:
        held = (getattr(holder, "SCB", None) for holder in (layer.weight, getattr(layer, "state", None)))
        scale = next((scale for scale in held if scale is not None), None)
        return {} if scale is None else {"SCB": scale}
    nested = {"nested_absmax": state.state2.absmax, "offset": state.offset} if state.nested else {}
    return {"absmax": state.absmax, "quant_map": state.code, **nested}


def stored_bytes(model: nn.Module, bits: int | None) -> dict[nn.Parameter, int]:
    """What the weights of linear layers that are to be quantised take, scales included; of a model without weights, or plain ones."""
    if bits is None:
        return {}
    inside = [part for name in decoder_blocks(model) for part in model.get_submodule(name).modules()]
    weights: list[Any] = [part.weight for part in inside if isinstance(part, nn.Linear | Conv1D)]
    scale = 4 / _GROUP if bits == 4 else 0.0
    return {w: int(w.numel() * (bits / 8 + scale)) + (4 * len(w) if bits == 8 else 0) for w in weights}


def _product(layer: Any, x: Tensor) -> Tensor:
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    if x.requires_grad:  # whose backward pass makes the weights again instead of keeping them
        return type(layer).forward(layer, x)  # type: ignore[no-any-return]
    weight = dequantize_bnb_weight(layer.weight, getattr(layer, "state", None))
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    return nn.functional.linear(x, weight.to(x.dtype), bias)


def _settings(config: Any) -> Mapping[str, Any]:
    parts = (config, config.get_text_config())
    settings = next(s for s in (getattr(part, "quantization_config", None) for part in parts) if s)
    return settings if isinstance(settings, Mapping) else settings.to_dict()  # type: ignore[union-attr]
