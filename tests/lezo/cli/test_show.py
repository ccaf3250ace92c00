"""lezo-inspect: what the model will see, as text and as JSON lines."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from lezo import __version__
from lezo.cli import show
from lezo.model.load import TINY
from tests.lezo.refusals import names

KEYS = ["split", "index", "demos", "input_ids", "option_lens", "gold"]


def inspected(*overrides: str, patch: pytest.MonkeyPatch, code: int = 0) -> None:
    """Run lezo-inspect; it ends with ``code``."""
    patch.setattr(sys, "argv", ["lezo-inspect", "task.num_train=20", "task.num_dev=8", *overrides])
    with pytest.raises(SystemExit) as ended:
        show.main()
    assert ended.value.code == code


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The JSON lines of lezo-inspect, which are all it writes."""

    def read(*overrides: str) -> list[dict[str, Any]]:
        inspected(*overrides, "inspect.json=true", patch=monkeypatch)
        out, err = capsys.readouterr()
        assert err == ""
        return [json.loads(line) for line in out.splitlines()]

    return read


def test_json_lines_hold_n_examples_of_each_split_in_order(records: Any) -> None:
    rows = records("task=rte", "inspect.n=2")
    assert [list(row) for row in rows] == [KEYS] * 6
    assert [(row["split"], row["index"]) for row in rows] == [
        (split, index) for split in ("train", "dev", "test") for index in (0, 1)
    ]
    assert {row["demos"] for row in rows} == {0}
    assert {row["gold"] for row in rows} <= {0, 1}


def test_a_choice_task_shows_every_candidate(records: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    for row in records("task=rte", "inspect.n=1"):
        answers = [
            tokenizer.decode(ids[-size:])
            for ids, size in zip(row["input_ids"], row["option_lens"], strict=True)
        ]
        assert [answer.strip() for answer in answers] == ["Yes", "No"]
        assert {ids[0] for ids in row["input_ids"]} == {0}  # OPT's BOS, as published


def test_a_generated_answer_is_shown_in_train_and_dev_and_asked_for_in_test(records: Any) -> None:
    rows = records("task=squad", "inspect.n=2")
    assert all(len(row["input_ids"]) == 1 for row in rows)
    assert all(row["option_lens"] == [0] for row in rows if row["split"] == "test")
    assert all(row["option_lens"][0] > 0 for row in rows if row["split"] != "test")
    assert all(isinstance(text, str) for row in rows for text in row["gold"])


def test_demonstrations_stand_before_every_prompt(records: Any) -> None:
    without, with_two = records("task=sst2"), records("task=sst2", "task.demos=2")
    assert {row["demos"] for row in with_two} == {2}
    bare, solved = ([row for row in rows if row["split"] == "test"][0] for rows in (without, with_two))
    prompt = bare["input_ids"][0][1:]
    assert solved["input_ids"][0][-len(prompt) + 1 :] == prompt[1:]  # the first token loses its line start
    assert len(solved["input_ids"][0]) > 2 * len(prompt)
    assert solved["option_lens"] == bare["option_lens"]


def test_the_text_marks_the_scored_tokens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inspected("task=rte", "inspect.n=1", patch=monkeypatch)
    out = capsys.readouterr().out
    assert [line[:9] for line in out.splitlines() if line.startswith("---")] == [
        "--- train",
        "--- dev 0",
        "--- test ",
    ]
    assert out.count("«Yes»") == out.count("«No»") == 3
    assert out.count("1 scored]") == out.count("1 scored, right]") == 3


def test_a_tokenizer_and_a_configuration_are_enough(records: Any, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, tmp_path / name)
    folder = ["task=rte", "inspect.n=1", "data=sample"]
    assert records(*folder, "model=hf", f"model.path={tmp_path}") == records(*folder)


def test_what_the_tokenizer_puts_around_a_text_is_shown(
    records: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(TINY / "config.json", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    template = TemplateProcessing(single="$A </s> <pad>", special_tokens=[("</s>", 2), ("<pad>", 1)])
    tokenizer.backend_tokenizer.post_processor = template
    tokenizer.save_pretrained(tmp_path)
    model = ["task=squad", "inspect.n=1", "data=sample", "model=hf", f"model.path={tmp_path}"]
    train, _, test = records(*model)
    assert list(train) == [*KEYS, "after"] and list(test) == KEYS
    (ids,), (size,) = train["input_ids"], train["option_lens"]
    assert (ids[-2:], train["after"]) == ([2, 1], [2, 1]) and test["input_ids"][0][-2:] != [2, 1]
    assert tokenizer.decode(ids[-2 - size : -2]).strip() in train["gold"]
    inspected(*model, patch=monkeypatch)
    assert capsys.readouterr().out.count("»</s><pad>  [") == 2  # train and dev


def test_truncation_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    inspected("task=squad", "inspect.n=1", "task.demos=18", patch=monkeypatch)
    assert "(cut from the left)" in capsys.readouterr().out


SUMMARY = """\
rows: train and dev from rows.csv (60 rows), test from 15 of them, drawn (data.test_share=0.25)
train
  examples  20
  tokens    median 13, 90 % up to 13, longest 13
  scored    median 1, 90 % up to 1, longest 1
  cut       none
  right     'terrible' 60%, 'great' 40%
dev
  examples  8
  tokens    median 13, 90 % up to 1053, longest 1053
  scored    median 1, 90 % up to 1, longest 1
  cut       1 of 8, up to 541 tokens
  right     'great' 75%, 'terrible' 25%
test
  examples  15
  tokens    median 13, 90 % up to 13, longest 13
  scored    median 1, 90 % up to 1, longest 1
  cut       none
  right     'terrible' 87%, 'great' 13%
  again     2 have the prompt of a train or dev row
"""


def test_what_all_examples_are_like_stands_first(
    records: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [f"It is number {10 + number % 50}" for number in range(60)]
    words[7] = "owls hunt " * 150
    lines = [f"{text},{int(number % 3 == 0)}" for number, text in enumerate(words)]
    Path("rows.csv").write_text("Text,Class\n" + "\n".join(lines))
    own = ["task=sst2", "data=local", "data.path=rows.csv", "data.columns={sentence: Text, label: Class}"]
    own += ["data.test_share=0.25", "inspect.n=1"]
    inspected(*own, patch=monkeypatch)
    out = capsys.readouterr().out
    assert out.startswith(SUMMARY), out
    inspected(*own, "inspect.summary=false", patch=monkeypatch)
    assert out == f"{SUMMARY}\n{capsys.readouterr().out}"
    assert [row.get("summary") for row in records(*own)] == [None] * 3
    first, *_ = rows = records(*own, "inspect.summary=true")
    assert [row.get("summary") for row in rows] == [True] * 3 + [None] * 3
    assert first["tokens"] == {"median": 13, "ninth_decile": 13, "longest": 13} and first["from"] in SUMMARY


def test_the_tokens_of_very_many_rows_are_not_all_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lezo.data.summary.MOST", 5)
    inspected("task=squad", "inspect.n=1", patch=monkeypatch)
    out = capsys.readouterr().out
    assert "  examples  8; the first 5 counted\n" in out and "  right     2 tokens 100%\n" in out


@pytest.mark.parametrize(
    ("overrides", "code", "named"),
    [
        (["inspect.n=0"], 2, "inspect.n=0: "),
        (
            ["data=local", "data.path=."],
            1,
            "no rows in it; expected rte/train.jsonl and val.jsonl, or tables: ",
        ),
        (["model=hf", "model.path=.", "data=sample"], 1, "the configuration of ."),
    ],
)
def test_errors_go_to_stderr(
    overrides: list[str],
    code: int,
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    inspected(*overrides, patch=monkeypatch, code=code)
    out, err = capsys.readouterr()
    assert out == ""
    names(err, "error: ", named)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["-m"], "--multirun"),
        (["--cfg", "job"], "--cfg"),
        (["-cn", "other", "--resolve"], "--resolve, --config-name"),
    ],
)
def test_flags_of_lezo_run_are_refused(
    flags: list[str], named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inspected("task=rte", *flags, patch=monkeypatch, code=2)
    out, err = capsys.readouterr()
    assert out == ""
    names(err, f"error: {named}: ", "key=value")


def test_the_version_is_lezos(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    inspected("--version", patch=monkeypatch)
    assert capsys.readouterr().out == f"lezo {__version__}\n"


def test_help_names_its_own_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inspected("--help", patch=monkeypatch)
    out = capsys.readouterr().out
    assert "inspect.n=3" in out and "inspect.json=false" in out


def test_conversations_are_there_again_by_what_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for file, asked in (("other.jsonl", range(20)), ("same.jsonl", [7] * 20)):
        rows = [json.dumps({"prompt": f"{number}?", "completion": "Yes."}) for number in asked]
        Path(file).write_text("\n".join(rows))
        inspected("task=chat", "data=local", f"data.path={file}", "inspect.n=1", patch=monkeypatch)
        again = 0 if file == "other.jsonl" else 4
        assert f"again     {again} have the prompt of a train or dev row" in capsys.readouterr().out
