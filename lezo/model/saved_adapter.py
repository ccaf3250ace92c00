"""Which adapter lies in a folder, as peft saves it, and its values put into a model that has a place for them. No code of it runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lezo.model.adapter import Adapter
from lezo.model.load import ModelError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PLAIN = {"use_dora": False, "use_rslora": False, "bias": "none", "rank_pattern": {}, "alpha_pattern": {}}
_MERGE = "peft's merge_and_unload makes a whole model of it, which is read"


@dataclass(frozen=True)
class SavedAdapter:
    """``base``: folder or hub id of the model that it is of, at ``revision``, as the folder says."""

    folder: Path
    base: str
    revision: str | None
    adapter: Adapter


def read_adapter(folder: Path) -> SavedAdapter:
    """A LoRA or a prefix. Raises ModelError for another kind, or what cannot be read."""
    try:
        told = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        base, kind = str(told["base_model_name_or_path"]), told["peft_type"]
        adapter = _lora(folder, told) if kind == "LORA" else _prefix(folder, told)
    except (OSError, ValueError, LookupError, TypeError) as error:
        if isinstance(error, ModelError):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise ModelError(f"{folder / CONFIG}: not what peft writes ({reason}); expected an adapter") from None
    if not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder}: has no {WEIGHTS}; expected an adapter in safetensors, as peft saves it")
    return SavedAdapter(folder, base, told.get("revision"), adapter)


def _lora(folder: Path, told: Mapping[str, Any]) -> Adapter:
    others = [key for key, usual in _PLAIN.items() if (told.get(key) or usual) != usual]
    others += ["modules_to_save"] if told.get("modules_to_save") else []
    if others:
        raise ModelError(f"{folder}: a LoRA with {', '.join(others)}; expected a plain one ({_MERGE})")
    targets, alpha = told["target_modules"], told["lora_alpha"]
    if isinstance(targets, str) or alpha != int(alpha):
        raise ModelError(
            f"{folder}: a LoRA of target_modules {targets!r}, alpha {alpha}; expected names and a whole number ({_MERGE})"
        )
    names = sorted({str(target).rpartition(".")[2] for target in targets})
    return Adapter("lora", rank=int(told["r"]), alpha=int(alpha), targets=tuple(names))


def _prefix(folder: Path, told: Mapping[str, Any]) -> Adapter:
    if told["peft_type"] != "PREFIX_TUNING" or told.get("prefix_projection"):
        kind = told["peft_type"] + (" with a projection" if told.get("prefix_projection") else "")
        raise ModelError(
            f"{folder}: an adapter of kind {kind}; expected LORA or PREFIX_TUNING, as lezo and peft save them"
        )
    return Adapter("prefix", tokens=int(told["num_virtual_tokens"]))


@torch.no_grad()
def take_values(model: Any, saved: SavedAdapter) -> None:
    """Give the adapter that ``model`` has the saved values. Raises ModelError where they are of another one."""
    try:
        values = load_file(saved.folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{saved.folder / WEIGHTS}: cannot read it ({error})") from None
    places = dict(_places(model, values))
    wrong = sorted(values.keys() ^ places.keys())
    wrong += sorted(
        name for name in values.keys() & places.keys() if values[name].shape != places[name].shape
    )
    if wrong:
        raise ModelError(
            f"{saved.folder / WEIGHTS}: {wrong[0]} does not fit the base model; expected an adapter of this very one"
        )
    for name, place in places.items():
        place.copy_(values[name])


def _places(model: Any, values: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The model's own tensors by peft's names for them."""
    if not hasattr(model, "prefixes"):
        for name, theta in model.named_parameters():
            if theta.requires_grad:
                yield f"base_model.model.{name.replace('.default.', '.')}", theta
        return
    weights: list[nn.Parameter] = [block.prefix.weight for block in model.prefixes.blocks]
    joined = values.get("prompt_embeddings")
    whole = torch.empty(len(weights[0]), sum(weight.shape[1] for weight in weights))
    if joined is not None and joined.shape == whole.shape:
        parts = torch.split(joined, len(whole[0]) // len(weights), 1)
        for weight, part in zip(weights, parts, strict=True):
            weight.copy_(part)
        whole = joined
    yield "prompt_embeddings", whole
