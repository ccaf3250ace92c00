"""Runs on conversations: every way to train, going on, replay; what is shown of a perplexity, and what is refused."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lezo.cli import replay, report, show
from lezo.runs.prepare import prepare
from tests.lezo.whole_runs import Ran, Runner, config_of, little_model, timeless, typed

CHAT = ("task=chat", "task.num_train=16", "task.num_dev=4", "task.num_test=4", "train.batch_size=4")


@pytest.mark.parametrize(
    "method",
    [
        ("optim=lezo",),
        ("optim=exzo",),
        ("optim=fo-adamw",),
        ("optim=lozo", "peft=none"),
        ("optim=mezo", "peft=lora"),
        ("optim=mezo", "peft=prefix"),
    ],
    ids=lambda method: " ".join(method),
)
def test_every_method_learns_from_conversations(method: tuple[str, ...], lezo_run: Runner) -> None:
    ran = lezo_run(*CHAT, *method)
    assert ran.code == 0, ran.err
    assert (ran.result["metric"], ran.result["rows"]) == ("perplexity", "packed")
    first, *_ = ran.evaluations()
    assert first["dev_score"] == pytest.approx(math.exp(first["dev_loss"]))
    losses = [(row["loss"], row["tokens"]) for row in ran.rows("predictions.jsonl")]
    mean = sum(loss * tokens for loss, tokens in losses) / sum(tokens for _, tokens in losses)
    assert ran.result["test"] == pytest.approx(math.exp(mean))


def test_the_console_says_perplexities_and_two_replies(lezo_run: Runner) -> None:
    ran = lezo_run.once(*CHAT, "task.generate=3", "task.turns=last")
    assert "; perplexity; synthetic rows" in ran.out and "%" not in ran.out
    assert (
        "chat       template plain; the assistant's last turn is learnt from; 3 test replies written"
        in ran.out
    )
    assert f"test perplexity  {ran.result['test']:.4f}  (zero-shot {ran.result['zero_shot']:.4f})" in ran.out
    records = ran.rows("predictions.jsonl")
    assert [sorted(record) for record in records] == [
        *[["index", "loss", "messages", "prompt", "reference", "reply", "tokens"]] * 3,
        ["index", "loss", "messages", "tokens"],
    ]  # fmt: skip
    assert records[0]["messages"][-1] == {"role": "assistant", "content": records[0]["reference"]}
    assert records[0]["prompt"].endswith("\nAssistant:")
    shown = [line for line in ran.out.splitlines() if line.startswith(("  asked ", "  reply "))]
    assert [line.split()[:2] for line in shown] == [
        ["asked", "0"],
        ["reply", "0"],
        ["asked", "1"],
        ["reply", "1"],
    ]
    assert "\\nAssistant:" in shown[0]


def test_a_stopped_run_goes_on_to_the_same_bits_and_replays(
    lezo_run: Runner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = lezo_run(*CHAT, "optim=exzo", "save_model=true")
    part = lezo_run(*CHAT, "optim=exzo", "save_model=true", "train.steps=2", folder="part")
    more = lezo_run(*CHAT, "optim=exzo", "save_model=true", "resume=auto", folder="part")
    assert (part.code, more.code) == (0, 0), more.err
    assert more.result["weights"] == whole.result["weights"]
    assert list(map(timeless, more.training())) == list(map(timeless, whole.training()))
    code, out, err = typed("lezo-replay", replay.main, monkeypatch, capsys)("out", "replay.verify=true")
    assert (code, err) == (0, ""), out
    assert "everything is right" in out
    assert typed("lezo-replay", replay.main, monkeypatch, capsys)("out", "replay.out=again")[0] == 0
    parts = prepare(config_of(*CHAT), training=False)
    (read,) = parts.encoder.candidates(parts.splits.test[:1])
    for model in (whole.folder / "model", Path("again")):
        messages = [{"role": turn.role, "content": turn.content} for turn in parts.splits.test[0].turns]
        ids = AutoTokenizer.from_pretrained(model).apply_chat_template(messages)["input_ids"]
        assert tuple(ids[: len(read.input_ids[0])]) == read.input_ids[0]  # what stands before it too
        assert (
            (model / "chat_template.jinja").read_text().startswith("{{ '<s>' }}{% for message in messages %}")
        )
    refused = lezo_run(*CHAT, "optim=exzo", "save_model=true", "resume=auto", "task.turns=last")
    refused.refused("task.turns was all and is last")


def written(folder: Path, rows: list[Any], others: list[Any] | None = None) -> None:
    (folder / "chat").mkdir(parents=True, exist_ok=True)
    for part, given in (("train", rows), ("val", others or rows)):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in given]
        (folder / "chat" / f"{part}.jsonl").write_text("\n".join(lines))


GOOD = {"prompt": "Who?", "completion": "Anna."}
LONG = {"messages": [{"role": role, "content": words} for _ in range(40) for role, words in (("user", "Who is it?"), ("assistant", "It is Anna."))]}  # fmt: skip
LOCAL = ("task=chat", "task.num_train=null", "task.num_dev=null", "data=local", "data.path=mine")


def test_long_conversations_of_ones_own_are_cut_by_turns_and_counted(
    lezo_run: Runner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written(Path("mine"), [GOOD, LONG, {"prompt": "x " * 600, "completion": "y"}], [LONG, GOOD])
    ran = lezo_run(*LOCAL, "dry_run=true")
    assert "; 2 longer than 512 cut by their oldest turns; 1 longer than 512 cut from the left" in ran.out
    code, out, _ = typed("lezo-inspect", show.main, monkeypatch, capsys)(*LOCAL)
    assert code == 0 and "oldest turns left out)" in out and "(cut from the left)" in out
    assert "\nAssistant:« It»« is»" in out and "«</s>»\nUser: Who is it?" in out


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("[1]", "mine/chat/train.jsonl, line 2: expected a JSON object, found [1]"),
        ({"text": "x"}, "mine/chat/train.jsonl, line 2: no conversation in the row's columns ('text'); expected messages "),
        ({"messages": [{"role": "user", "content": "x"}]}, "mine/chat/train.jsonl, line 2: no turn is the assistant's; expected one to learn from"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_by_file_and_line(row: Any, message: str, lezo_run: Runner) -> None:
    written(Path("mine"), [GOOD, row])
    ran = lezo_run(*LOCAL)
    assert ran.code == 1
    assert ran.err.startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["optim=mezo", "optim.objective=metric"], "optim.objective=metric: 1 - perplexity is no objective, and a lower loss is a lower perplexity; leave it out"),
        (["optim=lp"], "optim=lp: fits the head to one-word answers, and a conversation has none; expected another method"),
        (["task.demos=2"], "task.demos=2: a conversation has no demonstrations; put them into its turns, or task.system"),
        (["eval.calibration=sfc"], "eval.calibration=sfc: conversations have no candidates to calibrate; leave it out"),
        (["task.system=' '"], "task.system: is empty; expected a message, or leave it out"),
        (["task.chat_template=mine.jinja"], "task.chat_template=mine.jinja: no such file; expected a file with a Jinja template, or plain"),
        (["task.turns=first"], "task.turns=first: expected one of all, last"),
        (["data=hub"], "data=hub: task=chat is on no hub; add data=local data.path=DIR"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_conversations_is_refused(
    given: list[str], message: str, lezo_run: Runner
) -> None:
    ran = lezo_run("task=chat", *given)
    assert (ran.code, ran.err.splitlines()[0]) == (1 if given == ["data=hub"] else 2, f"error: {message}")


def test_a_model_without_a_template_says_the_ways_out_and_takes_the_plain_one(lezo_run: Runner) -> None:
    little_model("model")
    mine = (*CHAT, "data=sample", "model=hf", "model.path=model", "optim.lr=1e-4")
    refused = lezo_run(*mine)
    refused.refused(
        "model: the tokenizer has no chat template", "task.chat_template=FILE", "task.chat_template=plain"
    )
    assert lezo_run(*mine, "task.chat_template=plain", folder="plain").code == 0
    Path("mine.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{% endfor %}{{ raise_exception('No.') }}"
    )
    lezo_run(*mine, "task.chat_template=mine.jinja").refused("example 0", "TemplateError: No.")


@pytest.fixture
def lezo_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    return typed("lezo-report", report.main, monkeypatch, capsys)


@pytest.mark.slow
def test_a_report_shows_perplexities_beside_fractions(
    lezo_run: Runner, lezo_report: Callable[..., tuple[int, str, str]]
) -> None:
    ran: Ran = lezo_run.once(*CHAT, "task.generate=3", "task.turns=last", folder="runs/chat")
    assert lezo_report("runs", "report.target_score=1e6")[0] == 0
    alone = Path("results.md").read_text()
    assert "test perplexity | seeds" in alone and "test %" not in alone
    assert f"| {ran.result['test']:.2f} |" in alone
    assert "the target is a dev perplexity of at most 1e+06 (report.target\\_score)" in alone
    lezo_run.once("task=rte", folder="runs/rte")
    assert lezo_report("runs")[0] == 0
    both = Path("results.md").read_text()
    assert "| test % | test perplexity |" in both
    page = Path("report.html").read_text()
    assert "dev perplexity against step" in page and "dev score against step" in page
