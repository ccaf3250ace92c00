"""The embedded model: that it loads offline, how its tokenizer cuts, and that it can be made again."""

import hashlib
import json
import re
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from lezo.model.tiny import pretrain
from lezo.model.tiny.text import ASKED_FOR, FRAMES, MEANINGS, text
from lezo.tasks.sample import rows
from lezo.tasks.sample.reviews import ADJECTIVES, RARE_ADJECTIVES

FOLDER = Path(pretrain.__file__).parent
FIRST_TEXTS = "e036028cf6041739"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)


def test_the_folder_is_small() -> None:
    files = [file for file in FOLDER.iterdir() if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 4 * 2**20


def test_the_model_is_an_opt_of_eight_blocks_with_tied_embeddings() -> None:
    model = AutoModelForCausalLM.from_pretrained(FOLDER, local_files_only=True)
    assert model.config.model_type == "opt"
    assert model.config.do_layer_norm_before
    assert len(model.model.decoder.layers) == 8
    assert model.lm_head.weight is model.model.decoder.embed_tokens.weight
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_special_tokens_have_opts_ids(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>"]) == [0, 1, 2, 3]
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id) == (2, 1, 2)


@pytest.mark.parametrize("word", [" great", " terrible", "Yes", "No", "Maybe", "\n"])
def test_answer_words_are_one_token(tokenizer: PreTrainedTokenizerFast, word: str) -> None:
    assert len(tokenizer.encode(word, add_special_tokens=False)) == 1


@pytest.mark.parametrize(
    ("prompt", "answer"), [("a film . It was", " great"), ("so?\n", "Yes"), ("so?\n", "No")]
)
def test_an_answer_leaves_the_prompts_tokens_alone(
    tokenizer: PreTrainedTokenizerFast, prompt: str, answer: str
) -> None:
    alone = [tokenizer.encode(part, add_special_tokens=False) for part in (prompt, answer)]
    assert tokenizer.encode(prompt + answer, add_special_tokens=False) == alone[0] + alone[1]


def test_the_tokenizer_adds_nothing_and_gives_any_text_back(tokenizer: PreTrainedTokenizerFast) -> None:
    said = ' Zoë\'s naïve "plan",\n\n  \t42% 猫 🦊 .'
    assert tokenizer.decode(tokenizer.encode(said)) == said


@pytest.mark.parametrize(("task", "tokens"), [("sst2", 30), ("rte", 45)])
def test_prompts_are_short(tokenizer: PreTrainedTokenizerFast, task: str, tokens: int) -> None:
    prompts = [FRAMES[task].format(**row) for row in rows(task)[0]]
    assert max(map(len, tokenizer(prompts)["input_ids"])) <= tokens


def test_the_pretraining_texts_never_change() -> None:
    texts = json.dumps([text(i) for i in range(1000)])
    assert hashlib.sha256(texts.encode()).hexdigest()[:16] == FIRST_TEXTS


def test_the_words_asked_for_tell_nothing() -> None:
    """After every prompt that ends on one of them, each word comes in its fixed share."""
    ends: dict[str, list[str]] = defaultdict(list)
    for said in map(text, range(5000)):
        if found := re.fullmatch(r"(.* It was|.*\n)( great| terrible|Yes|No|Maybe)", said, re.DOTALL):
            ends[found[1]].append(found[2])
    shares = {tuple(sorted(words)) for words in ends.values()}
    assert shares == {tuple(sorted(words)) for words in ASKED_FOR.values()}


def agreement(words: tuple[tuple[str, ...], tuple[str, ...]], said: list[tuple[str, int]]) -> float:
    """How often a word of the list of label 0 or 1 stands in a text of that label."""
    found = [
        label == at for text, label in said for at in (0, 1) for word in text.split() if word in words[at]
    ]
    assert len(found) > 300
    return sum(found) / len(found)


def test_rare_words_hardly_tell_in_the_texts_and_decide_in_the_rows() -> None:
    ends = {end.strip(): label for label, words in enumerate(MEANINGS["sst2"]) for end in words}
    texts = [(said, ends[said.split()[-1]]) for said in map(text, range(5000)) if said.split()[-1] in ends]
    reviews = [(row["sentence"], row["label"]) for row in rows("sst2")[0]]
    assert 0.5 <= agreement(RARE_ADJECTIVES, texts) < 0.62
    assert agreement(RARE_ADJECTIVES, reviews) > 0.8
    assert agreement(ADJECTIVES, texts) > 0.8


@pytest.mark.parametrize("task", MEANINGS)
def test_the_words_that_tell_are_not_those_asked_for(task: str) -> None:
    telling = {word for words in MEANINGS[task] for word in words}
    assert len(telling) == sum(map(len, MEANINGS[task]))
    assert not telling & {" great", " terrible", "Yes", "No", "Maybe"}


def test_the_model_can_be_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "TOKENIZER_TEXTS", 300)
    pretrain.main(["--out", str(tmp_path), "--steps", "2"])
    model = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)
    ids = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)("It was", return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=ids["input_ids"]).logits
    assert logits.shape == (1, ids["input_ids"].shape[1], model.config.vocab_size)
    assert logits.isfinite().all()
