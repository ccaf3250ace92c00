"""Tiny models of many families, and how far lezo's scores and probe losses of each are from plain transformers'.

``python -m tests.lezo.zoo`` prints the table of docs/models.md.
"""

import inspect
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from lezo.data.encode import Encoded
from lezo.data.pack import candidate_batch
from lezo.model.layout import layout
from lezo.model.loss import answer_scores
from lezo.noise import directions
from lezo.zo.packing_check import network_for, probe_for
from lezo.zo.step import Stopwatch
from tests.lezo.small_models import CPU, VOCABULARY, examples

EPS, SEED = 1e-3, 5
WINDOW = 8  # shorter than most of the examples

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "initializer_range": 0.2,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
"""What every configuration gets of what it knows."""

LATENT = {  # attention through latent keys and values has as many heads of one kind as of the other
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
STATE = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
MIXED = {"layer_types": ["linear_attention", "full_attention"]}

FAMILIES: dict[str, dict[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "bamba": {**STATE, "attn_layer_indices": [1]},
    "bert": {"is_decoder": True},
    "biogpt": {},
    "bitnet": {},
    "bloom": {},
    "codegen": {"rotary_dim": 4, "n_ctx": 64},
    "cohere": {},
    "cohere2": {"sliding_window": WINDOW},
    "ctrl": {"dff": 48},
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "diffllama": {},
    "dots1": {},
    "ernie4_5": {},
    "exaone4": {"sliding_window": WINDOW},
    "falcon": {"alibi": False},
    "falcon_alibi": {"model_type": "falcon", "alibi": True, "new_decoder_architecture": False},
    "falcon_h1": {**STATE, "mamba_d_ssm": 64},
    "falcon_mamba": {"state_size": 4},
    "gemma": {},
    "gemma2": {"sliding_window": WINDOW},
    "gemma3_text": {"sliding_window": WINDOW},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "laurel_rank": 4,
        "activation_sparsity_pattern": [0.0] * 4,
        "altup_num_inputs": 2,
    },
    "glm": {},
    "glm4": {},
    "glm4_moe": {},
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": {
        "num_layers": 2,
        "attention_types": [[["global", "local"], 1]],
        "window_size": WINDOW,
    },
    "gpt_neox": {},
    "gpt_neox_japanese": {},
    "gpt_oss": {"sliding_window": WINDOW},
    "gptj": {"rotary_dim": 4},
    "granite": {"logits_scaling": 4.0, "attention_multiplier": 0.2, "embedding_multiplier": 2.0},
    "granitemoe": {"logits_scaling": 4.0},
    "granitemoehybrid": {**STATE, "layer_types": ["mamba", "attention"]},
    "helium": {},
    "hunyuan_v1_dense": {},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4, "mamba_dt_rank": 4},
    "jetmoe": {},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "llama": {},
    "llama4_text": {},
    "longcat_flash": {**LATENT, "num_layers": 2, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 16},
    "mamba": {"state_size": 4},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "minimax": {},
    "mistral": {"sliding_window": WINDOW},
    "mixtral": {},
    "modernbert-decoder": {"local_attention": 2 * WINDOW},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
    "nanochat": {},
    "nemotron": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": {"sliding_window": WINDOW},
    "olmoe": {},
    "openai-gpt": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.2},
    "opt_post_norm": {
        "model_type": "opt",
        "do_layer_norm_before": False,
        "word_embed_proj_dim": 16,
        "ffn_dim": 48,
        "init_std": 0.2,
    },
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "phimoe": {},
    "qwen2": {},
    "qwen2_moe": {},
    "qwen3": {"tie_word_embeddings": True},
    "qwen3_moe": {},
    "qwen3_next": {**LINEAR, **MIXED},
    "recurrent_gemma": {
        "attention_window_size": WINDOW,
        "lru_width": 32,
        "block_types": ["recurrent", "attention"],
    },
    "rwkv": {"attention_hidden_size": 32},
    "seed_oss": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
    "xglm": {"num_layers": 2, "d_model": 32, "ffn_dim": 48, "attention_heads": 4, "init_std": 0.2},
    "zamba": {
        "num_hidden_layers": 6,
        "attn_layer_period": 3,
        "attn_layer_offset": 2,
        "mamba_d_state": 4,
        "n_mamba_heads": 2,
    },
}
"""Each family with what its configuration needs besides, or what makes it its own kind; ``model_type`` where the name is another."""


def known(family: str) -> bool:
    """Whether the installed transformers has it."""
    return FAMILIES[family].get("model_type", family) in CONFIG_MAPPING


def small(family: str) -> Any:
    """A model of a few ten thousand random weights in fp32."""
    return drawn(small_config(family))


def drawn(config: Any) -> Any:
    """A model of this configuration with random weights in fp32, the same each time."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def small_config(family: str, **changes: Any) -> Any:
    """The configuration of such a model."""
    own = dict(FAMILIES[family])
    kind = CONFIG_MAPPING[own.pop("model_type", family)]
    names = {
        name
        for base in kind.__mro__[:-1]
        for name in (*_parameters(base), *vars(base).get("__annotations__", {}))
    }
    names |= set(getattr(kind, "attribute_map", {}))
    shape = {key: value for key, value in SHAPE.items() if key in names and key not in own}
    return kind(**{**shape, **own, **changes})


def _parameters(kind: type) -> Iterator[str]:
    return iter(inspect.signature(kind.__init__).parameters)


@dataclass(frozen=True)
class Compared:
    """How a family's model runs, and the largest difference in nats of its scores and of its probes' losses."""

    rows: str
    scores: float
    probes: float


@torch.no_grad()
def compare(family: str, given: list[Encoded]) -> Compared:
    """Of the examples: scores and both losses of probes with all blocks and with some, against transformers alone."""
    model, errors = small(family), []
    blocks, longest = layout(model), max(len(ids) for example in given for ids in example.input_ids)
    network = network_for(model, blocks, longest=longest)
    batch = candidate_batch(given, pad=1, device=CPU, plain=network.plain)
    scores = answer_scores(network, batch)[0]
    probe = probe_for(network, blocks, Stopwatch(CPU))
    for every in (1, 2):
        active = blocks.active(range(0, len(blocks.blocks), every))
        losses = probe([batch], active, seed=SEED, eps=EPS)
        expected = torch.stack([alone(moved(model, active, sign), given)[1] for sign in (0, 1)])
        errors.append(float((losses - expected).abs().max()))
    return Compared(network.rows, float((scores - alone(model, given)[0]).abs().max()), max(errors))


def alone(model: nn.Module, given: list[Encoded]) -> tuple[Tensor, Tensor]:
    """Transformers' own: each sequence by itself -> summed log-probabilities of the answers, and their loss."""
    sums, losses = [], []
    for example in given:
        own = torch.stack(
            [score(model, ids, n) for ids, n in zip(example.input_ids, example.answer_lens, strict=True)]
        )
        means = own / torch.tensor(example.answer_lens)
        losses.append(means.logsumexp(0) - means[example.gold[0]])
        sums.append(own)
    return torch.cat(sums), torch.stack(losses).mean()


def score(model: Any, ids: tuple[int, ...], size: int) -> Tensor:
    logits = model(input_ids=torch.tensor([ids])).logits[0, -size - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[-size:])[:, None]).sum()


def moved(model: nn.Module, active: tuple[str, ...], sign: int) -> nn.Module:
    """A copy at theta + eps z or theta - eps z."""
    other = deepcopy(model)
    for name in active:
        theta = other.get_parameter(name)
        theta.copy_(directions.perturb(theta, SEED, name, EPS)[sign])
    return other


def table() -> Iterator[str]:
    """A row a family that the installed transformers has."""
    yield "| family | rows | scores off by | probes off by |"
    yield "|---|---|---|---|"
    for family in filter(known, FAMILIES):
        compared = compare(family, examples())
        yield f"| {family} | {compared.rows} | {compared.scores:.0e} | {compared.probes:.0e} |"


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    for row in table():
        print(row, flush=True)
