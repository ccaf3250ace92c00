"""Greedy continuations equal those of plain unpadded forwards, whatever the model and the settings beside it."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BartConfig,
    GenerationConfig,
    LlamaConfig,
    MambaConfig,
    RwkvConfig,
)

from lezo.data.dataset import EvalSet
from lezo.data.encode import Encoded
from lezo.model.adapter import Adapter, attach
from lezo.model.evaluate import Evaluator
from lezo.model.generation import GenerationMode, continued, widest_mode
from lezo.model.load import TINY
from lezo.runs.build import end_tokens
from tests.lezo.small_models import CPU, VOCABULARY, llama_like, small_model

PROMPTS = [[5, 9, 13, 1, 7, 3, 22], [7, 8, 9], [4, 5, 40, 50, 33], [30, 31, 32], [1, 1, 44]]
END = 2


LIMIT = 8


def never(_: Sequence[int]) -> bool:
    return False


@torch.no_grad()
def plain(model: Any, prompt: Sequence[int], count: int = LIMIT, *, end: int | None = None) -> list[int]:
    """One unpadded forward an id, greedy by argmax."""
    ids = list(prompt)
    while len(ids) < len(prompt) + count and (len(ids) == len(prompt) or ids[-1] != end):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def random_model(config: Any) -> Any:
    """Random weights wide enough to say something else after each token."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for theta in model.parameters():
        if theta.dim() > 1:
            torch.nn.init.normal_(theta, std=0.3)
    return model.double()


SETTINGS: dict[str, dict[str, Any]] = {
    "penalties": {"repetition_penalty": 1.8, "no_repeat_ngram_size": 1, "exponential_decay_length_penalty": (1, 9.0)},
    "sampling": {"do_sample": True, "temperature": 5.0, "top_k": 3, "top_p": 0.5},
    "beams": {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 2.0},
    "lengths": {"min_new_tokens": 60, "max_length": 4, "max_new_tokens": 3, "max_time": 1e-9},
    "tokens": {"suppress_tokens": list(range(30)), "bad_words_ids": [[40]], "forced_eos_token_id": 5, "sequence_bias": [[[9], 50.0]]},
    "guidance": {"guidance_scale": 4.0},
    "ends": {"eos_token_id": list(range(VOCABULARY)), "pad_token_id": 7},
    "cache": {"cache_implementation": "static", "prefill_chunk_size": 2},
    "assistant": {"prompt_lookup_num_tokens": 3},
    "outputs": {"output_scores": True, "output_attentions": True, "return_dict_in_generate": False},
}  # fmt: skip


@pytest.fixture(scope="module")
def llama() -> Any:
    return random_model(llama_like(LlamaConfig))


@pytest.fixture(scope="module")
def expected(llama: Any) -> list[list[int]]:
    return [plain(llama, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("kind", SETTINGS)
def test_settings_beside_the_weights_change_nothing_and_stay(
    kind: str, llama: Any, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = GenerationConfig()
    for name, value in SETTINGS[kind].items():
        setattr(theirs, name, value)
    monkeypatch.setattr(llama, "generation_config", theirs)
    assert continued(llama, PROMPTS, pad=0, ends=never, most=LIMIT) == expected
    assert llama.generation_config is theirs
    assert {name: getattr(theirs, name) for name in SETTINGS[kind]} == SETTINGS[kind]


def test_the_settings_come_back_after_an_error(llama: Any) -> None:
    theirs = llama.generation_config
    with pytest.raises(RuntimeError, match="no more"):
        continued(llama, PROMPTS, pad=0, ends=lambda _: (_ for _ in ()).throw(RuntimeError("no more")))
    assert llama.generation_config is theirs


BART = BartConfig(
    vocab_size=VOCABULARY,
    d_model=16,
    decoder_layers=2,
    decoder_ffn_dim=32,
    decoder_attention_heads=2,
    max_position_embeddings=64,
    is_decoder=True,
    is_encoder_decoder=False,
    scale_embedding=False,
)
RWKV = RwkvConfig(
    vocab_size=VOCABULARY, hidden_size=16, attention_hidden_size=16, num_hidden_layers=2, context_length=64
)
MAMBA = MambaConfig(vocab_size=VOCABULARY, hidden_size=16, state_size=4, num_hidden_layers=2)
MODES = {
    "llama": (llama_like(LlamaConfig), GenerationMode()),
    "positions by column": (BART, GenerationMode(padded=False)),
    "states of several rows mixed up": (RWKV, GenerationMode(padded=False, together=False)),
    "recurrent": (MAMBA, GenerationMode()),
}


def evaluator(model: Any, mode: GenerationMode, **changes: Any) -> Evaluator:
    settings: dict[str, Any] = {
        "network": SimpleNamespace(model=model),
        "loss": "lm",
        "metric": "f1",
        "batch_size": 4,
        "pad": 1,
        "device": CPU,
        "decode": lambda ids: "".join(f" t{i}" for i in ids),
        "stop": {END},
        "max_new_tokens": LIMIT,
    }
    return Evaluator(**settings | changes, mode=mode)


def texts(judge: Evaluator, prompts: Sequence[Sequence[int]]) -> list[str]:
    split = EvalSet((), [Encoded(i, (tuple(ids),), (0,), (0,), ("t5",)) for i, ids in enumerate(prompts)])
    return [record["text"] for record in judge(split).predictions]


@pytest.mark.parametrize("kind", MODES)
def test_the_widest_mode_that_is_right_is_found_and_says_what_plain_forwards_say(kind: str) -> None:
    config, mode = MODES[kind]
    model = random_model(config)
    assert widest_mode(model, pad=1) == mode
    judge = evaluator(model, mode)
    rows = [plain(model, prompt, end=END) for prompt in PROMPTS]
    assert texts(judge, PROMPTS) == [judge.decode([i for i in row if i != END]) for row in rows]


def test_a_model_that_must_not_be_padded_is_not(llama: Any) -> None:
    assert widest_mode(llama, pad=1, padded=False) == GenerationMode(padded=False)


def test_a_cache_that_changes_the_numbers_is_left_out(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = type(llama).forward

    def forward(self: Any, *args: Any, **given: Any) -> Any:
        out = real(self, *args, **given)
        out.logits = (
            out.logits.flip(-1) if given["use_cache"] and len(given["input_ids"][0]) == 1 else out.logits
        )
        return out

    monkeypatch.setattr(type(llama), "forward", forward)
    mode = widest_mode(llama, pad=1)
    assert mode == GenerationMode(False, False, False)
    assert continued(llama, PROMPTS[:1], pad=1, ends=never, cached=False, most=LIMIT) == [
        plain(llama, PROMPTS[0])
    ]


@pytest.mark.parametrize("mode", [GenerationMode(), GenerationMode(False), GenerationMode(False, False)])
def test_no_mode_changes_what_an_adapted_model_says(mode: GenerationMode) -> None:
    model = small_model("llama", dtype=torch.float64)
    attach(model, Adapter("prefix", tokens=3))
    draw = torch.Generator().manual_seed(1)
    for name, theta in model.named_parameters():
        if "prefix" in name:
            theta.data = torch.randn(theta.shape, generator=draw)
    assert widest_mode(model, pad=1) == GenerationMode()
    judge = evaluator(model, mode)
    rows = [plain(model, prompt, end=END) for prompt in PROMPTS]
    assert texts(judge, PROMPTS) == [judge.decode([i for i in row if i != END]) for row in rows]


# -- where a text ends ------------------------------------------------------------------------


def scripted(follows: dict[int, int]) -> Any:
    """A model that says ``follows[id]`` after each id, and counts its forwards."""
    config = llama_like(LlamaConfig, tie_word_embeddings=False)
    config.hidden_size, config.head_dim = 64, 32
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_(), layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(VOCABULARY, 64))
        model.lm_head.weight.zero_()
        for token, following in follows.items():
            model.lm_head.weight[following, token] = 1
    model.forwards = 0
    model.register_forward_pre_hook(lambda *_: setattr(model, "forwards", model.forwards + 1))
    return model


WORDS = {10: " one", 11: " two", 12: ".\n", 13: "\n", 14: "\n\nthree", 15: " four"}


def said(follows: dict[int, int], first: Sequence[int]) -> tuple[list[str], int]:
    """The texts after prompts of these last ids, and how many forwards they took."""
    model = scripted(follows)
    judge = evaluator(model, GenerationMode(), decode=lambda ids: "".join(WORDS.get(i, "") for i in ids))
    found = texts(judge, [[5] * (3 + i) + [token] for i, token in enumerate(first)])
    return found, model.forwards


@pytest.mark.parametrize(("newline", "line"), [(12, " two.\n"), (13, " two\n"), (14, " two\n")])
def test_a_text_ends_with_its_first_newline_also_within_a_token(newline: int, line: str) -> None:
    """And no forward is made after it."""
    script = {4: 10, 10: 11, 11: newline, newline: 15, 15: 15}
    assert said(script, [4, 10]) == ([" one" + line, line], 3)


def test_a_text_that_begins_with_a_newline_is_empty() -> None:
    assert said({4: 13, 13: 15, 15: 15}, [4]) == (["\n"], 1)


def test_a_text_ends_before_an_end_token_and_nothing_of_the_filling_is_in_it() -> None:
    """A row that is done waits for the others; 1 pads and is a word here."""
    model = scripted({4: 10, 10: END, END: 15, 5: 11, 11: 11})
    words = {**WORDS, 1: " padding", END: "<|end|>"}
    judge = evaluator(model, GenerationMode(), decode=lambda ids: "".join(words.get(i, "") for i in ids))
    assert texts(judge, [[5, 4], [5, 5, 5]]) == [" one", " two" * LIMIT]


def test_all_of_a_models_end_tokens_count(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    monkeypatch.setattr(llama, "generation_config", GenerationConfig(eos_token_id=[9, 8]))
    monkeypatch.setattr(llama.config, "eos_token_id", 7)
    assert end_tokens(llama, tokenizer) == {9, 8, 7, tokenizer.eos_token_id}
    monkeypatch.setattr(llama.config, "eos_token_id", None)
    llama.generation_config.eos_token_id = None
    assert end_tokens(llama, tokenizer) == {tokenizer.eos_token_id}
    tokenizer.add_special_tokens({"additional_special_tokens": ["\n"]})
    newline = tokenizer.convert_tokens_to_ids("\n")
    assert end_tokens(llama, tokenizer) == {tokenizer.eos_token_id, newline}
