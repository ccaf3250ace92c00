"""What transformers 4 reads of a folder that transformers 5 wrote: the same model, where it can.

Version 5 writes the settings of rotary positions as ``rope_parameters``; version 4 looks for ``rope_theta`` and
``rope_scaling``, takes its defaults where they are missing, and says nothing of it. So a saved folder says both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_READ_ALIKE = {
    *("arcee", "bamba", "bert", "biogpt", "bitnet", "bloom", "codegen", "cohere", "cohere2", "ctrl"),
    *("deepseek_v2", "deepseek_v3", "diffllama", "dots1", "ernie4_5", "exaone4", "falcon", "falcon_h1"),
    *("falcon_mamba", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "glm4_moe", "gpt2", "gpt_bigcode"),
    *("gpt_neo", "gpt_neox", "gpt_neox_japanese", "gpt_oss", "gptj", "granite", "granitemoe", "helium"),
    *("hunyuan_v1_dense", "jetmoe", "lfm2", "llama", "llama4_text", "longcat_flash", "mamba", "minimax"),
    *("mistral", "mixtral", "mpt", "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "openai-gpt", "opt"),
    *("persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next", "rwkv"),
    *("seed_oss", "smollm3", "stablelm", "starcoder2", "xglm"),
}
"""Kinds of models whose logits were the same in transformers 4.57 and 5.24, by folders that `write_for_version_4` had been over."""

_NEOX = ("gpt_neox", "gpt_neox_japanese")
_OLDER_NAMES = {
    "rope_theta": dict.fromkeys(_NEOX, "rotary_emb_base"),
    "partial_rotary_factor": dict.fromkeys(_NEOX, "rotary_pct"),
}
"""What version 4 calls a setting in configurations of these kinds; in all others it has its own name."""
_LOCAL_BASE = ("gemma3_text", "gemma3n_text")  # their sliding attention has a base of its own


def readers(kind: str) -> str:
    """Which versions of transformers read a saved model of this ``model_type`` as it is, in words."""
    return "4.57 and newer" if kind in _READ_ALIKE else "5 and newer; nobody has compared 4 for this kind"


def write_for_version_4(folder: Path) -> None:
    """Let the configurations of model and tokenizer in ``folder`` say to transformers 4 what they say to 5."""
    _change(folder / "config.json", with_older_names)
    _change(folder / "tokenizer_config.json", with_known_class)


def _change(file: Path, changed: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
    if file.exists():
        config = changed(json.loads(file.read_text(encoding="utf-8")))
        text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
        file.write_text(f"{text}\n", encoding="utf-8")


def with_older_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """A model's configuration, and those within it, with the settings that version 4 looks for under other names."""
    parts = {key: part for key, part in config.items() if isinstance(part, dict) and "model_type" in part}
    kind, rope = str(config.get("model_type")), config.get("rope_parameters")
    older = {key: with_older_names(part) for key, part in parts.items()}
    if kind == "qwen3_moe" and "num_local_experts" in config:
        older["num_experts"] = config["num_local_experts"]
    return {**config, **older, **(_rope(kind, rope) if rope else {})}


def _rope(kind: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What was in place of ``rope_parameters``, which may have those of full and sliding attention apart."""
    full, sliding = parameters.get("full_attention") or parameters, parameters.get("sliding_attention")
    older = {names.get(kind, key): full[key] for key, names in _OLDER_NAMES.items() if key in full}
    if sliding and kind in _LOCAL_BASE:
        older["rope_local_base_freq"] = sliding["rope_theta"]
    scaling = {key: value for key, value in full.items() if key not in _OLDER_NAMES}
    if scaling.get("rope_type", "default") != "default":
        older["rope_scaling"] = _three(scaling) if kind == "phi3" else scaling
    return older


def _three(scaling: Mapping[str, Any]) -> dict[str, Any]:
    """Those of Phi-3, of which version 4 takes these and no others."""
    factors = {key: scaling[key] for key in ("short_factor", "long_factor") if key in scaling}
    return {"type": scaling["rope_type"], **factors}


def with_known_class(config: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer's configuration with the names that both versions have for the same."""
    names = {"extra_special_tokens": "additional_special_tokens"}
    listed = isinstance(config.get("extra_special_tokens"), list)
    both = {names.get(key, key) if listed else key: value for key, value in config.items()}
    if both.get("tokenizer_class") == "TokenizersBackend":
        both["tokenizer_class"] = "PreTrainedTokenizerFast"
    return both
