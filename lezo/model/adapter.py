"""What is trained in place of the whole model? LoRA, a prefix or the head alone. The one door to peft.

An adapter's tensors of a decoder block stand in that block, so that whoever skips the block skips them. They are
fp32 whatever the model is; the head's copy has the model's own dtype.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lezo.model.hashes import weights_hash
from lezo.model.home import home_of
from lezo.model.layout import decoder_blocks
from lezo.model.load import ModelError
from lezo.model.prefix import Prefixes, activations
from lezo.noise import directions, seeds

_PEFT = "adapter_model.safetensors"


@dataclass(frozen=True)
class Adapter:
    """Which adapter. LoRA: ``rank``, ``alpha`` (scale: alpha / rank), ``targets``: linear layers by their last names.

    Prefix: ``tokens``, how many keys and values stand before the text in each block.
    """

    name: Literal["lora", "prefix", "head"]
    rank: int = 8
    alpha: int = 16
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    tokens: int = 5

    @property
    def positions(self) -> int:
        """Positions of the model that the adapter takes."""
        return self.tokens if self.name == "prefix" else 0

    def settings(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "targets": list(self.targets)}

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Adapter:
        """From `settings`. Raises ValueError for what they cannot be."""
        adapter = cls(**{**settings, "targets": tuple(settings["targets"])})
        known = adapter.name in ("lora", "prefix", "head")
        if adapter.settings() != settings or not known or min(adapter.rank, adapter.tokens) < 1:
            raise ValueError(f"adapter settings {settings}")
        return adapter


def attach(model: Any, adapter: Adapter) -> None:
    """Freeze ``model`` and give it the adapter's tensors, as yet without values: enough to count with.

    Raises ModelError where the model has no place for them.
    """
    model.requires_grad_(False)
    if adapter.name == "lora":
        import peft

        _refuse_targets(model, adapter.targets)
        with home_of(model).on_device():  # where the adapter's tensors will be: with those they stand beside
            peft.inject_adapter_in_model(_config(model, adapter, ""), model)
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.data = parameter.data.float()
    elif adapter.name == "prefix":
        model.prefixes = Prefixes(model, adapter.tokens)
    else:
        untie_head(model)


class Attached:
    """An adapter in ``model``, at its first values; those stay in host memory, to come back to.

    First values: LoRA's A uniform as published (Kaiming), under ``seed``, the same on every device, B zero; a prefix
    from the real keys and values of random tokens (MeZO, table 16), whose last bits differ from device to
    device: ``start``, a file of what `start` gave, has them instead where it is there; the head's are the model's.
    """

    def __init__(self, model: Any, adapter: Adapter, *, seed: int, start: Path | None = None) -> None:
        self.model, self.adapter = model, adapter
        values: Mapping[str, Tensor] = {}
        if adapter.name == "prefix":  # of the model without it
            values = activations(model, adapter.tokens, seed) if start is None else _read(start)
        attach(model, adapter)
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if adapter.name != "head":
            self._fill(values or _lora_values(self._trained, seed))
        self._first = {name: p.detach().cpu().clone() for name, p in self._trained.items()}

    def rebase(self, expected: str) -> None:
        """Back to the first values. Raises ModelError where the model is no longer of the SHA-256 ``expected``."""
        self._fill(self._first)
        if weights_hash(self.model) != expected:
            raise ModelError("the model's frozen weights are no longer those that the run started from")

    def start(self) -> bytes | None:
        """The first values as a safetensors file, where another device could not make their very bits: a prefix's."""
        return save(self._first) if self.adapter.name == "prefix" else None

    def save(self, folder: Path, base: str, revision: str | None = None) -> None:
        """Write the adapter as peft does, for `PeftModel.from_pretrained`; a head as the whole model, untied."""
        if self.adapter.name == "head":
            self.model.save_pretrained(folder)
            return
        folder.mkdir(parents=True, exist_ok=True)
        config = _config(self.model, self.adapter, base)
        config.revision = revision
        config.save_pretrained(folder)
        save_file(_by_pefts_names(self.model, self._trained), folder / _PEFT, metadata={"format": "pt"})

    @torch.no_grad()
    def _fill(self, values: Mapping[str, Tensor]) -> None:
        for name, theta in self._trained.items():
            if name not in values or values[name].shape != theta.shape:
                raise ModelError(
                    f"{name}: no first value of shape {list(theta.shape)}; expected the run's own file"
                )
            theta.copy_(values[name])


def _refuse_targets(model: Any, targets: Sequence[str]) -> None:
    """LoRA stands on linear layers of the decoder blocks; each target is one of theirs."""
    inside = [
        module for block in decoder_blocks(model) for module in model.get_submodule(block).named_modules()
    ]
    known = sorted({n.rpartition(".")[2] for n, module in inside if isinstance(module, nn.Linear | Conv1D)})
    unknown = [target for target in targets if target not in known]
    if unknown:
        raise ModelError(
            f"peft.targets={list(targets)}: the blocks of {type(model).__name__} have no linear layer {', '.join(unknown)}; "
            f"expected some of {', '.join(known)}"
        )


def _targets(model: Any, targets: Sequence[str]) -> list[str]:
    """What peft calls them: by their last names, or in full where a part of the model that is not trained has such too."""
    blocks = tuple(f"{block}." for block in decoder_blocks(model))
    known = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in targets]
    inside = [name for name in known if name.startswith(blocks)]
    return list(targets) if inside == known else inside


def untie_head(model: Any) -> None:
    """Give the head weights of its own, where it shares the embeddings'."""
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    model.config = copy.deepcopy(model.config)  # which another model may share
    model.config.tie_word_embeddings = False


def _lora_values(trained: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    values = {}
    for name, theta in trained.items():
        values[name] = torch.zeros(theta.shape)
        if ".lora_A." in name:
            uniform = directions.uniform(seeds.derive(seed, "lora"), name, values[name])
            values[name] = (2 * uniform - 1) / math.sqrt(theta.shape[1])
    return values


def _config(model: Any, adapter: Adapter, base: str) -> Any:
    import peft

    shared: dict[str, Any] = {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": bool(base),
    }
    if adapter.name == "lora":
        return peft.LoraConfig(
            r=adapter.rank,
            lora_alpha=adapter.alpha,
            target_modules=_targets(model, adapter.targets),
            lora_dropout=0.0,
            **shared,
        )
    heads, width = model.prefixes.heads, model.prefixes.heads * model.prefixes.width
    return peft.PrefixTuningConfig(
        num_virtual_tokens=adapter.tokens,
        num_layers=len(model.prefixes.blocks),
        num_attention_heads=heads,
        token_dim=width,
        num_transformer_submodules=1,
        encoder_hidden_size=width,
        **shared,
    )


def _by_pefts_names(model: Any, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if hasattr(model, "prefixes"):
        return {"prompt_embeddings": model.prefixes.joined()}
    named = {f"base_model.model.{name.replace('.default.', '.')}": p for name, p in trained.items()}
    return {name: p.detach().cpu().contiguous() for name, p in named.items()}


def _read(start: Path) -> dict[str, Tensor]:
    try:
        with safe_open(start, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{start}: cannot read the prefix's first values ({error}); take them from a copy"
        ) from error
