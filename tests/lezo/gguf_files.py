"""A small LLaMA as a GGUF file, written as llama.cpp's converter writes one."""

from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.lezo.small_models import llama_like

LETTERS = ["▁", *"abcdefghijklmnopqrstuvwxyz"]
TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS]
TYPES = [2, 3, 3, *[6] * 256, *[1] * len(LETTERS)]


def small_llama() -> nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        llama_like(
            LlamaConfig,
            vocab_size=len(TOKENS),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            max_position_embeddings=512,
        )
    ).eval()


def write_gguf(path: Path, model: nn.Module, kind: str) -> dict[str, Tensor]:
    """Matrices as ``kind`` (F16, Q8_0), vectors as F32. Returns what each tensor is when it is read again, fp32."""
    config, writer = model.config, gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([-float(place) for place in range(len(TOKENS))])
    writer.add_token_types(TYPES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    expected = {}
    for name, tensor in model.state_dict().items():
        values = tensor.float().numpy()
        type_ = gguf.GGMLQuantizationType[kind if values.ndim > 1 else "F32"]
        turned = (
            _turned(values, config.num_attention_heads) if "q_proj" in name or "k_proj" in name else values
        )
        stored = gguf.quantize(np.ascontiguousarray(turned), type_)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), stored, raw_dtype=type_)
        expected[name] = torch.tensor(gguf.dequantize(gguf.quantize(values, type_), type_))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def _turned(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head in the order in which llama.cpp rotates them: pairs beside each other."""
    return values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
