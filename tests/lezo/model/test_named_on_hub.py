"""Each model by name, from a stand-in of the hub that has small random weights in that repository's form under its id."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoConfig, AutoModelForCausalLM

from lezo.config.compose import compose
from lezo.model.hashes import weights_hash
from lezo.tasks.sample import rows
from tests.lezo.hub import MAIN, Hub, served
from tests.lezo.whole_runs import Runner

LLAMA3 = {
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}
QWEN3 = {"use_sliding_window": False, "sliding_window": None, "max_window_layers": 28, "rope_theta": 1000000}
GEMMA3 = {
    "sliding_window_pattern": 6,
    "query_pre_attn_scalar": 16,
    "rope_local_base_freq": 10000,
    "rope_theta": 1e6,
}
GEMMA3 |= {
    "num_hidden_layers": 7,
    "cache_implementation": "hybrid",
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}
# What the repositories' files have beside the shape: of config.json, and of tokenizer_config.json.
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "smollm2-135m": ({"rope_theta": 100000}, {"tokenizer_class": "GPT2Tokenizer", "bos_token": "</s>"}),
    "qwen3-0.6b": (QWEN3, {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "add_bos_token": False}),
    "qwen3-8b": (QWEN3, {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "add_bos_token": False}),
    "llama-3.2-1b": (LLAMA3, {"tokenizer_class": "PreTrainedTokenizerFast"}),
    "llama-3.1-8b": (LLAMA3, {"tokenizer_class": "PreTrainedTokenizerFast"}),
    "mistral-7b": ({"sliding_window": None, "rope_theta": 1e6}, {"tokenizer_class": "LlamaTokenizer"}),
    "gemma-3-1b": (GEMMA3, {"tokenizer_class": "GemmaTokenizer", "pad_token": "<pad>"}),
    "llama-2-7b": ({"pretraining_tp": 1}, {"tokenizer_class": "LlamaTokenizer", "pad_token": None}),
}
SMALL = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 12}
SMALL |= {"num_attention_heads": 4, "vocab_size": 640, "bos_token_id": 1, "eos_token_id": 2}
IN_PARTS = (
    "8b",
    "7b",
)  # several files, and in folders beside them, or beside an index, the authors' own form


def words_of(kind: str, folder: Path) -> Tokenizer:
    """A tokenizer of a family's form, trained on made-up reviews."""
    pieces = kind in ("LlamaTokenizer", "GemmaTokenizer")
    made = Tokenizer(
        models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True) if pieces else models.BPE()
    )
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    if pieces:
        scheme = "first" if kind == "LlamaTokenizer" else "never"
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        special += [f"<0x{byte:02X}>" for byte in range(256)]
        made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)])
    else:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
    alphabet = [] if pieces else pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=640, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(
        [f"{row['sentence']} It was great. terrible" for row in rows("sst2")[0][:300]], trainer
    )
    made.add_special_tokens([AddedToken(word, special=True) for word in special[:4]])
    if kind not in ("GPT2Tokenizer", "Qwen2Tokenizer"):
        made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    made.save(str(folder / "tokenizer.json"))
    return made


def published(name: str, folder: Path) -> Path:
    """A repository in the form of the named one."""
    folder.mkdir()
    others, words = PUBLISHED[name]
    shape = dict(compose([f"model={name}"]).config.model.shape or {})
    heads = max(4 * shape["num_key_value_heads"] // shape["num_attention_heads"], 1)
    config = {**shape, **SMALL, "num_key_value_heads": heads, **others, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).to(torch.bfloat16)
    parts = name.endswith(IN_PARTS)
    model.save_pretrained(folder, max_shard_size="100KB" if parts else "1GB")
    (folder / "config.json").write_text(json.dumps(config))
    if parts:
        (folder / "consolidated.safetensors").write_bytes(b"not what transformers reads")
    words_of(words["tokenizer_class"], folder)
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **words}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def hub(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    path = compose([f"model={request.param}"]).config.model.path
    assert path is not None
    commits = {MAIN: published(request.param, tmp_path / "published")}
    with served(Hub(commits, {"main": MAIN}, id=path), tmp_path / "cache", monkeypatch) as hub:
        yield hub


@pytest.mark.parametrize(
    ("hub", "name"), [(name, name) for name in PUBLISHED], indirect=["hub"], ids=[*PUBLISHED]
)
def test_a_named_model_of_the_hub_is_trained(hub: Hub, name: str, lezo_run: Runner) -> None:
    ran = lezo_run(
        f"model={name}", "task=sst2", "data=sample", "optim=lezo", "train.steps=2", "save_model=true"
    )
    assert ran.code == 0, ran.err
    assert ran.result["status"] == "finished" and all(row["g"] for row in ran.training())
    saved, card = AutoModelForCausalLM.from_pretrained("out/model"), ModelCard.load("out/model/README.md")
    assert weights_hash(saved) == ran.result["weights"]
    assert card.data.base_model == hub.id


@pytest.mark.parametrize("hub", ["llama-3.2-1b"], indirect=True)
def test_a_gated_model_says_where_its_licence_is(
    hub: Hub, lezo_run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "answer", lambda path: (403, {"X-Error-Code": "GatedRepo"}, b"{}"))
    ran = lezo_run("model=llama-3.2-1b", "task=sst2", "data=sample")
    ran.refused("meta-llama/Llama-3.2-1B", "licence", "HF_TOKEN")
