"""Models of a few thousand random weights, and a toy whose gradient is known."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from lezo.data import pack
from lezo.data.encode import Encoded
from lezo.data.rows import rows_of_few_shapes
from lezo.model.forward import Network, additive

VOCABULARY = 61
CPU = torch.device("cpu")


def examples(count: int = 5, seed: int = 0, *, longest: int = 4) -> list[Encoded]:
    """Examples of one to three candidates of different lengths after the same prompt."""
    draw = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=draw))

    made = []
    for index in range(count):
        lens = [number(1, longest + 1) for _ in range(number(1, 4))]
        prompt = [0, *(number(4, VOCABULARY) for _ in range(number(1, 12)))]
        ids = tuple((*prompt, *(number(4, VOCABULARY) for _ in range(size))) for size in lens)
        made.append(Encoded(index, ids, tuple(lens), (number(0, len(lens)),)))
    return made


def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on rows are laid out, and masks given to attention, on a CPU too as they are on CUDA."""

    def mask(network, batch):
        return None if batch.mask is None else additive(batch.mask, network.model.dtype)

    monkeypatch.setattr(Network, "mask", mask)
    monkeypatch.setattr(pack, "cheapest_rows", rows_of_few_shapes)


def opt_config(**changes: object) -> OPTConfig:
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "ffn_dim": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 16,
        "max_position_embeddings": 64,
        "init_std": 0.2,
    }
    return OPTConfig(**{**shape, **changes})


def llama_like(kind: type[PreTrainedConfig], **changes: object) -> PreTrainedConfig:
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
    }
    return kind(**{**shape, **changes})


CONFIGS = {
    "opt": opt_config(),
    "opt-350m-style": opt_config(do_layer_norm_before=False, word_embed_proj_dim=8),
    "llama": llama_like(LlamaConfig),
    "qwen2-tied": llama_like(Qwen2Config, tie_word_embeddings=True),
    "neox": GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=64,
    ),
}


def small_model(name: str = "opt", dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    config = deepcopy(CONFIGS[name])  # saving a model writes its dtype there, in which another would begin
    return AutoModelForCausalLM.from_config(config).to(dtype).eval()


class Bowl(nn.Module):
    """0.5 sum curvature (theta - target)^2 over a tensor outside blocks and four blocks of one matrix each."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(7)
        self.head = nn.Parameter(torch.randn(3, generator=draw).to(dtype))
        self.blocks = nn.ModuleList(nn.Linear(3, 2, bias=False, dtype=dtype) for _ in range(4))
        self.target: dict[str, torch.Tensor] = {}
        for name, parameter in self.named_parameters():
            parameter.data = torch.randn(parameter.shape, generator=draw).to(dtype)
            self.target[name] = torch.randn(parameter.shape, generator=draw).to(dtype)

    def forward(self, scale: float = 1.0) -> torch.Tensor:
        return scale * sum(
            0.5 * (p - self.target[name]).square().sum() for name, p in self.named_parameters()
        )


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}
