"""Which model, and what are its decoder blocks? The one door to transformers' models and tokenizers."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn

from lezo import noise

TINY = Path(__file__).parent / "tiny"


class ModelError(ValueError):
    """A model or tokenizer that cannot be used; the message says which, why, and the way out."""


@dataclass(frozen=True)
class Source:
    """Where a model is: a folder or hub id with a revision, and, without a download, its published shape."""

    path: str
    revision: str | None = None
    shape: Mapping[str, Any] | None = None
    random_weights: bool = False


@dataclass(frozen=True)
class Layout:
    """The names of the trainable tensors: those of each decoder block, and the always-on rest.

    Tied tensors appear once. OPT's always-on group is embeddings, projections and the final norm. ``path`` is
    the name of the list of blocks: block i is the module ``path.i``.
    """

    always: tuple[str, ...]
    blocks: tuple[tuple[str, ...], ...]
    path: str

    def active(self, chosen: Iterable[int]) -> tuple[str, ...]:
        """The always-on tensors and those of the chosen blocks."""
        return self.always + tuple(name for block in chosen for name in self.blocks[block])


def load_config(source: Source) -> Any:
    """The model's transformers configuration. Raises ModelError where it cannot be read."""
    if source.random_weights and source.shape is not None:
        return transformers.OPTConfig(**source.shape)
    try:
        return transformers.AutoConfig.from_pretrained(source.path, revision=source.revision)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(_unreadable("the configuration of", source.path, error)) from error


def load_tokenizer(path: str, revision: str | None = None) -> Any:
    """The tokenizer of a folder or hub id. Raises ModelError where it cannot be read."""
    way_out = "; model.tokenizer=DIR names another folder with a tokenizer"
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, revision=revision)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(_unreadable("a tokenizer of", path, error) + way_out) from error
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:  # what transformers makes of no files
        raise ModelError(_unreadable("a tokenizer of", path, ValueError("no vocabulary")) + way_out)
    return tokenizer


def load(source: Source, config: Any, *, dtype: torch.dtype, device: torch.device, seed: int) -> Any:
    """The model in eval mode on ``device``. Weights come from safetensors only; nothing is unpickled.

    Random weights are drawn under ``seed``, the same on every device. Raises ModelError.
    """
    _quiet()
    if source.random_weights:
        return _random(config, dtype, device, seed)
    try:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            source.path,
            revision=source.revision,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(_unreadable("the weights of", source.path, error)) from error
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ModelError(
            f"{source.path}: the weights lack {missing}; expected a complete causal language model"
        )
    return model.to(device).eval()


@torch.no_grad()
def rebase(model: nn.Module, source: Source, config: Any, *, seed: int) -> None:
    """Give ``model``, which `load` made of the same, its first weights back; on the device they are not held twice."""
    if source.random_weights:
        _fill(model, seed)
        return
    theta = dict(model.named_parameters())
    dtype = next(iter(theta.values())).dtype
    base = load(source, config, dtype=dtype, device=torch.device("cpu"), seed=seed)
    for name, weight in base.named_parameters():
        theta[name].copy_(weight)


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write model and tokenizer for `from_pretrained`, in place of what was there: a whole folder or none."""
    partial, gone = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("partial", "gone"))
    for left in (partial, gone):
        shutil.rmtree(left, ignore_errors=True)
    try:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        if folder.exists():
            folder.rename(gone)
        partial.rename(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise ModelError(
            f"{folder}: cannot write the model there ({error}); make room and write it again"
        ) from error
    shutil.rmtree(gone, ignore_errors=True)


def skeleton(config: Any) -> nn.Module:
    """The model without its weights (meta tensors), to count and plan with."""
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)  # type: ignore[no-any-return]


def layout(model: nn.Module) -> Layout:
    """Find the model's list of decoder blocks and sort its trainable tensors by it.

    Raises ModelError where no list of modules has one entry for each of the configured layers.
    """
    prefix, count = _block_list(model)
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


def positions(config: Any) -> int | None:
    """How many positions the model has, where its configuration says so."""
    return next(
        (n for key in ("max_position_embeddings", "n_positions") if (n := getattr(config, key, None))), None
    )


def set_dropout(model: nn.Module, rate: float) -> None:
    """Give every dropout of the model this rate: its modules, and what attention reads from the configuration."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, rate)


def _block_list(model: nn.Module) -> tuple[str, int]:
    expected = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    lists = [(name, len(m)) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    fitting = [found for found in lists if expected is None or found[1] == expected]
    if not fitting:
        kind = type(model).__name__
        raise ModelError(
            f"{kind}: no list of {expected or ''} decoder blocks found among its modules ({lists or 'no lists'}); "
            "lezo needs a decoder-only causal language model, such as OPT, LLaMA or Qwen"
        )
    return max(fitting, key=lambda found: (found[1], -found[0].count(".")))


def _random(config: Any, dtype: torch.dtype, device: torch.device, seed: int) -> Any:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    _fill(model, seed)
    return model.eval()


@torch.no_grad()
def _fill(model: nn.Module, seed: int) -> None:
    """Random weights from our own noise, which has the same bits on every device: matrices of deviation 0.02."""
    for name, theta in model.named_parameters():
        if theta.dim() > 1:
            scale = torch.tensor(-0.02, device=theta.device)
            noise.update_(theta.zero_(), noise.derive(seed, "random weights"), name, scale, 0.0)
        else:
            theta.fill_(float(name.endswith("weight")))


def _quiet() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _unreadable(what: str, path: str, error: Exception) -> str:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    where = (
        "a folder in the Hugging Face form (config.json, model.safetensors, tokenizer) or a reachable hub id"
    )
    return f"cannot read {what} {path} ({reason}); expected {where}"
