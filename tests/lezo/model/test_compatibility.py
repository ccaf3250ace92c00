"""A saved folder says to transformers 4 what it says to 5."""

import json
import os
import subprocess
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from lezo.model.compatibility import readers, with_older_names, write_for_version_4
from lezo.model.load import TINY, save_model
from tests.lezo.zoo import FAMILIES, drawn, known, small_config

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "factor": 8.0}
LONG = {"short_factor": [1.5] * 4, "long_factor": [3.0] * 4}
BOTH = {"full_attention": {"rope_theta": 777.0, **LINEAR}, "sliding_attention": {"rope_theta": 333.0}}
NEOX = {"rope_type": "default", "rope_theta": 777.0, "partial_rotary_factor": 0.5}


def flat(scaling: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 777.0, **scaling}, **others}


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", flat({"rope_type": "default"}), {"rope_theta": 777.0}),
    "llama3": ("llama", flat(LLAMA3), {"rope_theta": 777.0, "rope_scaling": LLAMA3}),
    "dynamic": ("llama", flat({**LINEAR, "rope_type": "dynamic"}), {"rope_theta": 777.0}),
    "mistral": ("mistral", flat({"rope_type": "default"}), {"rope_theta": 777.0}),
    "qwen3-yarn": ("qwen3", flat(YARN), {"rope_theta": 777.0, "rope_scaling": YARN}),
    "gemma3": (
        "gemma3_text",
        {"rope_parameters": BOTH},
        {"rope_theta": 777.0, "rope_local_base_freq": 333.0, "rope_scaling": LINEAR},
    ),
    "gpt_neox": ("gpt_neox", {"rope_parameters": NEOX}, {"rotary_emb_base": 777.0, "rotary_pct": 0.5}),
    "phi3": (
        "phi3",
        flat({"rope_type": "longrope", **LONG}, original_max_position_embeddings=32),
        {"rope_theta": 777.0, "partial_rotary_factor": 1.0, "rope_scaling": {"type": "longrope", **LONG}},
    ),
    "qwen3_moe": ("qwen3_moe", flat({"rope_type": "default"}), {"rope_theta": 777.0, "num_experts": 4}),
    "opt": ("opt", {}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_configuration_has_the_older_names_and_version_5_reads_it_as_before(
    case: str, tmp_path: Path
) -> None:
    family, given, older = CASES[case]
    config = small_config(family, **deepcopy(given))
    config.save_pretrained(tmp_path)
    before = json.loads((tmp_path / "config.json").read_text())
    write_for_version_4(tmp_path)
    both = json.loads((tmp_path / "config.json").read_text())
    assert before.items() <= both.items() and older.items() <= both.items()
    assert ("rope_theta" in older) == ("rope_theta" in both)
    read, written = AutoConfig.from_pretrained(tmp_path).to_dict(), config.to_dict()
    rope, parts = read.pop("rope_parameters", {}), written.pop("rope_parameters", {})
    assert parts.items() <= rope.items()
    unsaid = {"_name_or_path", "dtype", "architectures"}
    assert {key: read[key] for key in written if key not in unsaid} == {
        key: value for key, value in written.items() if key not in unsaid
    }


def test_configurations_within_a_configuration_have_them_too() -> None:
    text = {"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 777.0}}
    both = with_older_names({"model_type": "llava", "text_config": text})
    assert both == {"model_type": "llava", "text_config": {**text, "rope_theta": 777.0}}


def test_a_tokenizer_of_no_class_of_its_own_has_one_that_both_versions_know(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    save_model(lambda folder: None, tokenizer, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["additional_special_tokens"] == ["<|user|>"] and "extra_special_tokens" not in config
    again = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert type(again) is type(tokenizer) and "<|user|>" in again.all_special_tokens
    assert again("a <|user|> b")["input_ids"] == tokenizer("a <|user|> b")["input_ids"]


def test_what_was_not_compared_is_not_promised() -> None:
    assert readers("llama") == "4.57 and newer"
    assert readers("nanochat").startswith("5 and newer")


READ = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sorted(Path(sys.argv[1]).iterdir()):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        found = model(input_ids=torch.load(folder / "ids.pt"), use_cache=False).logits
    off = float((found - torch.load(folder / "logits.pt")).abs().max())
    ids = tokenizer("the film was a delight .")["input_ids"]
    print(folder.name, "right" if off < 1e-4 and ids == torch.load(folder / "words.pt") else f"off by {off}")
"""


def models() -> dict[str, Any]:
    """A configuration of every kind that is said to be read alike, with bases that are no defaults, and of the cases."""
    made = {name: small_config(family, **deepcopy(given)) for name, (family, given, _) in CASES.items()}
    for family in filter(known, FAMILIES):
        config = small_config(family)
        if readers(config.model_type) == "4.57 and newer":
            _move(getattr(config, "rope_parameters", None) or {})
            made[f"kind-{family}"] = config
    return made


def _move(rope: dict[str, Any]) -> None:
    parts = [part for part in rope.values() if isinstance(part, dict)] or [rope]
    for part in parts:
        part |= {"rope_theta": 777.0} if "rope_theta" in part else {}


@pytest.mark.filterwarnings("ignore")  # transformers has something to say of many small configurations
def test_transformers_4_computes_the_same_logits(tmp_path: Path) -> None:
    python = os.environ.get("TRANSFORMERS_4")
    if python is None:
        pytest.skip(
            "TRANSFORMERS_4 names no python that has transformers 4.57: written keys alone were checked"
        )
    tokenizer, ids = (
        AutoTokenizer.from_pretrained(TINY),
        torch.tensor([[(7 * i * i + 5) % 61 for i in range(24)]]),
    )
    for name, config in models().items():
        model, folder = drawn(config), tmp_path / name
        save_model(model.save_pretrained, tokenizer, folder)
        torch.save(ids, folder / "ids.pt")
        torch.save(tokenizer("the film was a delight .")["input_ids"], folder / "words.pt")
        with torch.no_grad():
            torch.save(model(input_ids=ids, use_cache=False).logits, folder / "logits.pt")
    said = subprocess.run([python, "-c", READ, str(tmp_path)], capture_output=True, text=True, check=True)
    lines = said.stdout.splitlines()
    assert [line for line in lines if not line.endswith(" right")] == [] and len(lines) > 60
