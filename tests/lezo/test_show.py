"""lezo-inspect: what it prints for people and for programs."""

import json
import sys

import pytest

from lezo import show


@pytest.fixture
def inspected(monkeypatch, capsys):
    """Runs lezo-inspect in this process: (exit code, standard output, standard error)."""

    def run(*overrides):
        monkeypatch.setattr(sys, "argv", ["lezo-inspect", *overrides])
        try:
            show.main()
            code = 0
        except SystemExit as ended:
            code = ended.code
        return (code, *capsys.readouterr())

    return run


def records(out):
    return [json.loads(line) for line in out.splitlines()]


def test_json_lines_and_nothing_else(inspected):
    code, out, err = inspected("inspect.json=true", "inspect.n=2")
    rows = records(out)
    assert (code, err) == (0, "")
    assert [(row["split"], row["index"]) for row in rows] == [
        (split, i) for split in ("train", "dev", "test") for i in range(2)
    ]
    for row in rows:
        assert set(row) == {"split", "index", "demos", "input_ids", "option_lens", "gold"}
        assert (len(row["input_ids"]), row["option_lens"], row["demos"]) == (2, [1, 1], 0)
        assert all(ids[0] == 0 for ids in row["input_ids"])  # OPT's BOS, as published
        assert row["gold"] in (0, 1)


def test_generation_shows_the_gold_sequence_and_for_test_the_prompt(inspected):
    _, out, _ = inspected("task=squad", "inspect.json=true", "inspect.n=1", "task.num_dev=20")
    train, dev, test = records(out)
    assert train["option_lens"][0] > 0 < dev["option_lens"][0]
    assert test["option_lens"] == [0]
    assert isinstance(test["gold"][0], str)


def test_demonstrations_are_in_every_prompt(inspected):
    _, bare, _ = inspected("inspect.json=true", "inspect.n=1")
    _, shown, _ = inspected("inspect.json=true", "inspect.n=1", "task.demos=2")
    for before, after in zip(records(bare)[1:], records(shown)[1:], strict=True):
        assert after["demos"] == 2
        assert after["input_ids"][0][-20:] == before["input_ids"][0][-20:]
        assert len(after["input_ids"][0]) > 2 * len(before["input_ids"][0])


def test_text_marks_the_scored_tokens(inspected):
    _, out, _ = inspected("inspect.n=1", "task=sst2")
    assert out.count("« great»") == out.count("« terrible»") == 3
    assert "It was« terrible»" in out


def test_a_folder_with_tokenizer_and_configuration_suffices(inspected, shared):
    code, out, _ = inspected(
        "model=hf", f"model.path={shared / 'tokenizers' / 'opt'}", "data=local", f"data.path={shared / 'data'}",
        "task=copa", "inspect.json=true", "inspect.n=1",
    )  # fmt: skip
    assert code == 0
    assert [row["option_lens"] for row in records(out)] == [[5, 4], [8, 10], [7, 10]]


def test_bad_configuration_and_unreadable_data(inspected, tmp_path):
    code, out, err = inspected("task=rtee")
    assert (code, out) == (2, "")
    assert "did you mean rte?" in err
    code, out, err = inspected("data=local", f"data.path={tmp_path}")
    assert (code, out) == (1, "")
    assert "train.jsonl" in err


def test_help(inspected):
    assert "lezo-inspect task=copa" in inspected("--help")[1]
