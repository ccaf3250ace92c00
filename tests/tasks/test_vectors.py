"""The published code's token ids for the first rows of three tasks."""

import json

import pytest

from lezo.data.sampling import split
from lezo.data.source import load
from lezo.tasks import TASKS

BOS = 0  # the published code's override; the tokenizer of transformers would put 2


@pytest.fixture(scope="module")
def encode(shared):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers/opt")

    def encode(text):
        return [BOS, *tokenizer(text.strip(" "), add_special_tokens=False)["input_ids"]]

    return encode


def encoded(example, encode, generates, part):
    """The example as vectors.json has it: a generated answer is no part of a test row."""
    prompt = encode(example.prompt)
    if generates and part == "test":
        rows, lengths = [prompt], [0]
    else:
        rows = [encode(example.prompt + answer) for answer in example.answers]
        lengths = [len(row) - len(prompt) for row in rows]
    gold = list(example.references) if generates else example.gold[0]
    return {"input_ids": rows, "option_lens": lengths, "gold": gold}


@pytest.mark.parametrize("task, num_dev", [("rte", 500), ("copa", 100), ("squad", 500)])
def test_token_ids_are_the_published_ones(task, num_dev, encode, shared):
    vectors = json.loads((shared / "spec/vectors.json").read_text("utf-8"))[task]
    assert [(row.pop("split"), row.pop("index")) for row in vectors] == [
        (part, index) for part in ("train", "dev", "test") for index in range(6)
    ]
    pools = load(TASKS[task], "local", path=str(shared / "data"))
    found = split(pools.train, pools.val, num_train=1000, num_dev=num_dev, num_test=1000, data_seed=0)
    generates = TASKS[task].generates
    assert [
        encoded(example, encode, generates, part)
        for part in ("train", "dev", "test")
        for example in getattr(found, part)[:6]
    ] == vectors
