"""Tasks that settings describe, run as a user runs them: trained, scored, gone on with, replayed, refused."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lezo.cli import replay
from lezo.config.compose import compose
from lezo.config.schema import ConfigError
from lezo.tasks import TASKS
from tests.lezo.refusals import refused
from tests.lezo.whole_runs import Runner

LOCAL = ("data=local", "data.path=rows")
FILM = ("task=prompt", "task.template='{{ Text }} It was'", "task.label_column=Class", *LOCAL)
WORDS = "task.words={pos: great, neg: terrible}"
ASKED = ("task=prompt", r"task.template='Q: {{ q }}\nA:'", "task.answer_column=a", *LOCAL)
OWN = """
defaults: [prompt, _self_]
name: tickets
template: |
  {{ Text }}
  {# the newline at the end is the template's: answers stand on a line of their own #}
label_column: Class
words: {pos: great, neg: terrible}
metric: macro_f1
"""


@pytest.fixture(autouse=True)
def rows(lezo_run: Runner) -> None:
    """Rows of each kind of task, in the working folder."""
    films = [
        {"Text": f"film {i} is {'fine' if i % 2 else 'dull'}", "Class": ["neg", "pos"][i % 2]}
        for i in range(48)
    ]
    asked = [{"q": f"{i} + 1", "a": [f"{i + 1}", "more"], "long": f"{i}\nmore"} for i in range(48)]
    chosen = [{"q": f"Item {i} is", "choices": ["red", "green"], "right": "AB"[i % 2]} for i in range(48)]
    for name, made in (
        ("prompt", films),
        ("tickets", films),
        ("python", films),
        ("asked", asked),
        ("chosen", chosen),
    ):
        written(name, made)


def written(name: str, made: Sequence[dict[str, Any]]) -> None:
    (folder := Path("rows", name)).mkdir(parents=True, exist_ok=True)
    for part in ("train", "val"):
        (folder / f"{part}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in made))


def test_a_file_of_ones_own_is_a_task_by_name(
    lezo_run: Runner, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("conf", "task").mkdir(parents=True)
    Path("conf", "task", "tickets.yaml").write_text(OWN)
    words = ("--config-dir", "conf", "task=tickets", *LOCAL)
    ran = lezo_run(*words)
    assert ran.code == 0, ran.err
    assert (ran.result["task"], ran.result["title"], ran.result["metric"]) == (
        "tickets",
        "tickets (local)",
        "macro_f1",
    )
    assert "--config-dir conf" in ran.result["command"]
    lezo_run(*words, "resume=auto", "train.steps=5", "task.template='{{ Text }}'").refused(
        "task.template was {{ Text }}", "is {{ Text }};"
    )
    monkeypatch.setattr(sys, "argv", ["lezo-replay", "out", "replay.verify=true", "replay.device=cpu"])
    with pytest.raises(SystemExit) as ended:
        replay.main()
    assert ended.value.code == 0, capsys.readouterr()


@pytest.mark.parametrize("optim", ["lp", "icl", "none"])
def test_labels_are_scored_without_training_too(optim: str, lezo_run: Runner) -> None:
    more = {
        "lp": (),
        "icl": ("task.demos=2",),
        "none": ("eval.calibration=sfc", "task.blank_prompt='It was'"),
    }[optim]
    ran = lezo_run(*FILM, WORDS, f"optim={optim}", *more)
    assert ran.code == 0, ran.err
    assert {row["gold"] for row in ran.rows("predictions.jsonl")} == {0, 1}
    assert optim != "lp" or ran.result["test"] == 1.0


def test_the_metric_of_all_answers_is_an_objective(lezo_run: Runner) -> None:
    ran = lezo_run(
        *FILM,
        WORDS,
        "optim=mezo",
        "optim.objective=metric",
        "task.metric=macro_f1",
        "train.micro_batch_size=5",
    )
    assert ran.code == 0, ran.err
    assert "minimises 1 - macro_f1" in ran.out


def test_a_text_is_generated_and_trained_on_up_to_its_end(lezo_run: Runner) -> None:
    more = ("task.name=asked", "task.answer_column=long", "eval.max_new_tokens=3", "task.metric=rouge_l")
    ran = lezo_run(*ASKED, *more, "task.stop=[]")
    assert ran.code == 0, ran.err
    assert ran.result["metric"] == "rouge_l"
    assert {row["gold"][0].partition("\n")[2] for row in ran.rows("predictions.jsonl")} == {"more"}
    from lezo.runs.prepare import prepare

    parts = prepare(compose([*ASKED, *more, "task.stop=[]"]).config, training=True)
    ids, size = (getattr(parts.train()[0], name)[0] for name in ("input_ids", "answer_lens"))
    answer = ids[len(ids) - size :]
    assert answer[-1] == parts.tokenizer.eos_token_id
    assert parts.tokenizer.decode(answer[:-1]).endswith("\nmore")
    assert parts.encoder.max_length == 2048 - 3 or parts.encoder.max_length < 2048


def test_a_choice_is_scored_by_its_tokens(lezo_run: Runner) -> None:
    ran = lezo_run(
        "task=prompt",
        "task.name=chosen",
        "task.template='{{ q }}'",
        "task.choices_column=choices",
        "task.label_column=right",
        *LOCAL,
        "optim=none",
    )
    assert ran.code == 0, ran.err
    assert [len(row["scores"]) for row in ran.rows("predictions.jsonl")] == [2] * 8


def test_a_limit_of_length_cuts_prompts_from_the_left(lezo_run: Runner) -> None:
    ran = lezo_run(*FILM, WORDS, "model.max_length=8", "dry_run=true")
    assert ran.code == 0, ran.err
    assert "longest 8; 48 longer than 8 cut from the left" in ran.out
    lezo_run(*FILM, WORDS, "model.max_length=9999", "dry_run=true").refused(
        "model.max_length=9999", "positions"
    )
    lezo_run(*ASKED, "task.name=asked", "model.max_length=51", "dry_run=true").refused(
        "model.max_length=51", "eval.max_new_tokens"
    )


def test_a_task_of_a_package_is_run_and_one_beside_the_data_is_not(lezo_run: Runner) -> None:
    Path("nearby.py").write_text("raise SystemExit('run')")
    lezo_run("task=python", "task.class=nearby:Film", *LOCAL).refused(
        "task.class=nearby:Film", "nearby", code=2
    )
    lezo_run("task=python", *LOCAL).refused("task.class: expected module:Name", code=2)
    lezo_run("task=python", "task.class=lezo.tasks:TASKS", *LOCAL).refused("a lezo.tasks.Task", code=2)
    written("python", [{"sentence": f"film {i}", "label": i % 2} for i in range(48)])
    ran = lezo_run("task=python", "task.class=lezo.tasks.sst2:SST2", *LOCAL)
    assert ran.code == 0, ran.err
    assert (ran.result["task"], ran.result["metric"]) == ("python", "accuracy")


def test_a_template_needs_no_quotes_of_hydras() -> None:
    plain = compose(["task=prompt", "task.template={{ Text }}, it's: ", *FILM[2:], WORDS])
    both = compose(["task=prompt", r"task.template='{{ Text }}, it\'s: '", *FILM[2:], WORDS])
    assert plain.yaml == both.yaml


@pytest.mark.parametrize("key", ["task.template=x", "task.class=a:B", "task.system=x"])
def test_a_setting_of_another_task_names_that_one(key: str) -> None:
    owner = {"template": "prompt", "class": "python", "system": "chat"}[key[5:].partition("=")[0]]
    with refused(ConfigError, f"unknown key; it is one of task={owner}; the keys are task.num_train"):
        compose(["task=rte", key])


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("task.template='{{ Text'", "data.path=."), ("task.template: not a Jinja template (line 1, column 7: unexpected end",)),
        (("task.template='{{ text }}'",), ("rows/prompt/train.jsonl, line 1: column 'text' is missing; the row has Text",)),
        (("task.words={pos: great, good: terrible}",), ("line 1: column 'Class' is 'neg'", "labels of task.words: pos, good")),
        (("task.metric=nowhere:f",), ("task.metric=nowhere:f: no package nowhere is installed",)),
        (("task.metric=bleu",), ("task.metric=bleu: expected one of accuracy, macro_f1",)),
        (("task.name=rte",), ("task: name 'rte' is that of a task that lezo has",)),
        (("task.name=a/b",), ("task: name 'a/b' would be part of the run folder's path",)),
        (("task.labels=Class",), ("task.labels=Class: unknown key; did you mean task.label_column=Class?",)),
        (("task.words=great",), ("task.words=great: expected a word for each of two labels",)),
        (("task.stop=x",), ("task.stop=x: has no part in labels and words",)),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_line(
    words: Sequence[str], named: Sequence[str], lezo_run: Runner
) -> None:
    kept = [
        word for word in (*FILM, WORDS) if word.partition("=")[0] not in {w.partition("=")[0] for w in words}
    ]
    ran = lezo_run(*kept, *words, "dry_run=true")
    assert ran.code in (1, 2)
    ran.refused(*named, code=ran.code)


def test_a_packages_task_with_a_metric_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(TASKS["sst2"]), "metric", "bleu")
    with refused(ConfigError, "task=sst2: task.metric=bleu: expected one of accuracy"):
        compose(["task=sst2"])
