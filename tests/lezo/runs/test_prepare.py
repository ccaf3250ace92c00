"""What stands around a text and fills up a batch, for tokenizers and configurations of every kind."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedConfig

from lezo.data.encode import MAX_NEW_TOKENS
from lezo.model.forward import Network
from lezo.model.load import TINY, ModelError
from lezo.runs.build import make_evaluator
from lezo.runs.plan import Plan, make_plan
from tests.lezo.refusals import refused
from tests.lezo.small_models import llama_like, opt_config
from tests.lezo.whole_runs import Runner, config_of

TEMPLATES = {
    "nothing": "$A",
    "one before": "<s> $A",
    "another than its bos": "<unk> $A",
    "two before": "<s> <pad> $A",
    "after": "$A </s>",
    "around": "<s> $A </s> <pad>",
}
SIZES = ["task.num_train=6", "task.num_dev=4", "task.num_test=6", "model.device=cpu", "data=sample"]
Make = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Make:
    """A model's folder without weights: the embedded tokenizer with another template, and a configuration."""

    def make(template: str = "$A", config: PreTrainedConfig | None = None, **changes: Any) -> Path:
        tokenizer = AutoTokenizer.from_pretrained(TINY)
        special = [
            (token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "<pad>", "</s>", "<unk>")
        ]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=template, special_tokens=special
        )
        tokenizer.save_pretrained(tmp_path)
        config = copy.deepcopy(config) if config else llama_like(LlamaConfig)
        config.vocab_size, config.max_position_embeddings = 1024, 512
        config.save_pretrained(tmp_path)
        content = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**content, **changes}))
        return tmp_path

    return make


def planned(path: Path, *overrides: str) -> Plan:
    config = config_of(*SIZES, "optim=none", "model=hf", "model.path=.", *overrides)
    config.model.path = str(path)
    return make_plan(config)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_text_is_encoded_as_its_tokenizer_does_and_only_its_answer_scored(kind: str, folder: Make) -> None:
    plan = planned(folder(TEMPLATES[kind]), "task=copa")
    tokenizer, examples = plan.parts.tokenizer, plan.parts.splits.test
    for example, encoded in zip(examples, plan.test.scored, strict=True):
        for answer, ids, size in zip(example.answers, encoded.input_ids, encoded.answer_lens, strict=True):
            whole = tokenizer((example.prompt + answer).strip(" "))["input_ids"]
            assert [*ids, *encoded.after] == whole
            assert size == len(whole) - len(tokenizer(example.prompt.strip(" "))["input_ids"])
            assert tokenizer.decode(ids[-size:]) == " " + answer.strip()


@pytest.mark.parametrize("kind", ["two before", "around"])
def test_a_prompt_to_continue_has_nothing_after_it(kind: str, folder: Make) -> None:
    plan = planned(folder(TEMPLATES[kind]), "task=squad")
    before, after = plan.parts.encoder.before, plan.parts.encoder.after
    for example, encoded in zip(plan.parts.splits.test, plan.test.prompts, strict=True):
        whole = plan.parts.tokenizer(example.prompt.strip(" "))["input_ids"]
        (ids,) = encoded.input_ids
        assert (*ids, *after) == tuple(whole) and ids[: len(before)] == before and encoded.after == ()


def test_what_stands_before_is_kept_where_a_text_is_cut(
    folder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lezo.runs.prepare.MAX_LENGTH", 20 + MAX_NEW_TOKENS)
    (prompt, *_) = planned(folder("<s> <pad> $A </s>"), "task=squad").test.prompts
    assert prompt.truncated and len(prompt.input_ids[0]) == 20 and prompt.input_ids[0][:2] == (0, 1)


def test_model_bos_and_opt_say_themselves_what_stands_before(folder: Make) -> None:
    path = folder("<unk> <pad> $A </s>")
    assert planned(path, "model.bos=9").parts.encoder.before == (9,)
    assert planned(path, "model.bos=9").parts.encoder.after == (2,)
    with refused(ModelError, "model.bos=1024: "):
        planned(path, "model.bos=1024")
    opt = folder("</s> $A", opt_config())
    assert planned(opt).parts.encoder.before == (0,)
    assert planned(opt, "model.bos=9").parts.encoder.before == (9,)


class Mixing:
    """A tokenizer whose tokens of a text are other ones when it adds its special ones."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def __call__(self, text: Any, add_special_tokens: bool = True, **given: Any) -> Any:
        found = self.real(text, add_special_tokens=add_special_tokens, **given)
        return {"input_ids": [0, *reversed(found["input_ids"])]} if add_special_tokens else found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def test_a_tokenizer_whose_own_tokens_cannot_be_told_apart_is_refused(
    folder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixing = Mixing(AutoTokenizer.from_pretrained(TINY))
    monkeypatch.setattr("lezo.runs.prepare.load_tokenizer", lambda *_: mixing)
    path = folder()
    with refused(ModelError, "model.bos=ID"):
        planned(path)
    encoder = planned(path, "model.bos=5").parts.encoder
    assert (encoder.before, encoder.after) == ((5,), ())


@pytest.mark.parametrize(
    ("pad", "config"),
    [(-1, opt_config()), (1024, llama_like(LlamaConfig)), (99999, opt_config()), (None, opt_config())],
)
def test_any_pad_id_pads(pad: int | None, config: PreTrainedConfig, folder: Make) -> None:
    path = folder("$A", config, pad_token_id=pad)
    settings = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": None}))
    plan = planned(path, "task=squad")
    assert plan.parts.tokenizer.pad_token_id is None
    assert 0 <= plan.parts.pad < 1024
    assert plan.parts.model_config.pad_token_id in (None, -1)  # transformers builds no model with one beyond


class Strict(Mixing):
    """A tokenizer that knows its own ids only."""

    def decode(self, ids: Any, **given: Any) -> str:
        assert all(i < 1024 for i in ids)
        return str(self.real.decode(ids, **given))


def test_ids_of_the_model_that_the_tokenizer_lacks_are_no_text(folder: Make) -> None:
    plan = planned(folder(), "task=sst2")
    object.__setattr__(plan.parts, "tokenizer", Strict(plan.parts.tokenizer))
    model = AutoModelForCausalLM.from_config(plan.parts.model_config)
    ids = plan.parts.tokenizer("great", add_special_tokens=False)["input_ids"]
    assert make_evaluator(plan, Network(model), 4).decode([1024, *ids, 99999]) == "great"


@torch.no_grad()
def test_a_run_scores_what_plain_forwards_do_behind_two_tokens_and_before_an_end(
    folder: Make, lezo_run: Runner
) -> None:
    path = folder("<s> <pad> $A </s>")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(planned(path).parts.model_config).eval()
    model.save_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    ran = lezo_run("optim=none", "task=sst2", "data=sample", "model=hf", f"model.path={path}")
    assert "; <s><pad> before each text, </s> after it" in ran.out
    examples = planned(path, "task=sst2", "task.num_test=8").parts.splits.test
    for example, row in zip(examples, ran.rows("predictions.jsonl"), strict=True):
        for answer, score in zip(example.answers, row["scores"], strict=True):
            ids = tokenizer((example.prompt + answer).strip(" "))["input_ids"]
            size = len(ids) - len(tokenizer(example.prompt.strip(" "))["input_ids"])
            said = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            places = range(len(ids) - 1 - size, len(ids) - 1)  # the last is the end token
            plain = sum(said[place - 1, ids[place]].item() for place in places) / size
            assert score == pytest.approx(plain, abs=2e-5)
