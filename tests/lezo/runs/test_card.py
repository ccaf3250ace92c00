"""What a saved model says of itself, and that what it says to do with it works."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from lezo.cli import replay
from lezo.config.compose import compose
from lezo.records.schema import Header, Provenance, ReplaySpec
from lezo.runs.card import Card, shown_command, shown_place
from lezo.runs.prepare import prepare
from tests.lezo.whole_runs import SMALL, Ran, Runner, typed

PEFT = "ignore:`?(is_gradient_checkpointing|past_key_values|Both `past_key_values`):FutureWarning"


def snippet(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the code of a model's card defines, run where the card lies."""
    found = re.search(r"^```python\n(.*?)^```", (folder / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert found
    names: dict[str, Any] = {"__name__": "__main__"}
    with patch.context() as there:
        there.chdir(folder)
        exec(found[1], names)
    return names


def likes_what_lezo_likes(ran: Ran, names: dict[str, Any], *overrides: str) -> None:
    """The card's code chooses, with the same scores, what the run wrote into predictions.jsonl."""
    tests = prepare(compose([*SMALL, *overrides]).config, training=True).splits.test
    rows = ran.rows("predictions.jsonl")
    assert len(rows) == len(tests) > 1
    for row, example in zip(rows, tests, strict=True):
        if "text" in row:
            assert names["answered"](example.prompt) == row["prediction"]
        else:
            scores = [names["score"](example.prompt, answer) for answer in example.answers]
            assert scores == pytest.approx(row["scores"], abs=1e-4)
            assert scores.index(max(scores)) == row["prediction"]


def test_a_run_and_its_replay_write_the_same_card(
    lezo_run: Runner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ran = lezo_run.once("task=copa", "save_model=true")
    file = ran.folder / "model" / "README.md"
    card, text, result = ModelCard.load(file), file.read_text(), ran.result
    assert (card.data.library_name, card.data.base_model) == ("transformers", None)
    assert card.data.tags == ["lezo", "zeroth-order"]
    (score,) = card.data.eval_results
    assert (score.metric_type, score.metric_value) == ("accuracy", result["test"])
    assert (score.dataset_name, score.dataset_type) == ("copa (sample)", "copa")
    assert "synthetic" in text and str(tmp_path) not in text and "lezo 0.1.0" in text
    assert "6 of 8 blocks skipped each step" in text and f"Step of these weights: {result['best_step']} of 4"
    for value in (result["weights"], *(result["origin"][name] for name in ("weights", "data", "tokenizer"))):
        assert f"`{value}`" in text
    assert f"zero-shot {result['zero_shot']:.4f}" in text and "Of: one run, with seed 0, and rows" in text
    assert "- Ids before every text (BOS): `[0]`" in text and "- Answers that it chose among: `[" in text
    assert "\nRead by: transformers 4.57 and newer.\n" in text and "(of a made-up row)" in text
    assert f"```bash\n{result['command']}\nlezo-replay RUN\n```" in text
    likes_what_lezo_likes(ran, snippet(ran.folder / "model", monkeypatch), "task=copa")
    lezo_replay = typed("lezo-replay", replay.main, monkeypatch, capsys)
    assert lezo_replay("out", "replay.out=again", "replay.device=cpu")[0] == 0
    assert Path("again/README.md").read_text() == text
    assert lezo_replay("out", "replay.step=1", "replay.device=cpu")[0] == 0
    other = Path("out/model-step-1/README.md").read_text()
    assert "accuracy" not in other and "Of these weights: not known; those of the run belong" in other
    assert "lezo-replay RUN replay.step=1\n" in other
    shutil.copy("out/journal.bin", "shared.bin")  # which knows neither task nor method
    assert lezo_replay("shared.bin", "replay.out=made", "replay.device=cpu")[0] == 0
    alone = Path("made/README.md").read_text()
    assert "Task: not known here" in alone and "fine-tuned with forward passes only" in alone
    assert f"`{result['weights']}`" in alone and "uniform (sparsity=0.75)" in alone


@pytest.mark.filterwarnings(PEFT)
@pytest.mark.parametrize(
    "words",
    [["peft=lora"], ["peft=prefix", "task=copa"], ["peft=head"], ["task=squad"]],
    ids=" ".join,
)
def test_the_code_of_a_card_says_what_lezo_says(
    words: list[str], lezo_run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["optim=mezo", *words]
    ran = lezo_run.once(*words, "save_model=true")
    likes_what_lezo_likes(ran, snippet(ran.folder / "model", monkeypatch), *words)
    data = ModelCard.load(ran.folder / "model" / "README.md").data
    adapter = ran.result["peft"] in ("lora", "prefix")
    assert data.library_name == ("peft" if adapter else "transformers")


def of_journal(**changes: Any) -> Header:
    origin = Provenance("w" * 64, "t" * 64, "d" * 64, "float16", 1, "c" * 64, "0.1.0 abc")
    recipe = ReplaySpec("hf", "facebook/opt-13b", "main", None, False, None, 0, 0.75, 0.0, "nearest")
    return Header(origin, replace(recipe, **changes))


RESULT = {"task": "sst2", "data": "hub", "optim": "mezo", "metric": "accuracy", "test": 0.5, "weights": "x"}


def test_what_is_on_the_hub_is_linked() -> None:
    card = Card(of_journal(), 3, "x", (2,), "opt", RESULT, {"data.revision": None})
    data = ModelCard(card.text()).data
    assert (data.base_model, data.datasets) == ("facebook/opt-13b", ["nyu-mll/glue"])
    (score,) = data.eval_results
    assert (score.dataset_config, score.dataset_split) == ("sst2", "validation")
    assert len(score.dataset_revision) == 40 and "revision `main`" in card.text()


def test_a_task_of_ones_own_is_shown_by_its_template_and_words() -> None:
    result = {**RESULT, "task": "tickets", "data": "local", "rows": "packed", "prompts_at_once": None}
    words = {"task.template": "{{ Text }} . It was", "task.words.pos": "great", "task.words.neg": "terrible"}
    text = Card(of_journal(), 3, "x", (2,), "opt", result, words).text()
    assert "prompt = '{{ Text }} . It was'  # with a row's columns put in\n" in text
    assert (
        "- Prompt: `'{{ Text }} . It was'`\n- Answers that it chose among: `[' great', ' terrible']`\n"
        in text
    )
    assert "answers = [' great', ' terrible']\n" in text
    asked = {"task.template": "{{ Text }} Q:", "task.stop": "END", "eval.max_new_tokens": 9}
    text = Card(of_journal(), 3, "x", (2,), "opt", {**result, "prompts_at_once": 4}, asked).text()
    assert "for stop in ['END']:" in text and "max_new_tokens=9" in text
    hub = {"task.turns": "all", "task.system": "Be kind", "data.path": "me/talks", "data.config": "en"}
    text = Card(of_journal(), 3, "x", (), "llama", {**result, "data": "hub"}, hub).text()
    assert "[{'role': 'system', 'content': 'Be kind'}, {'role': 'user'" in text
    assert "by a chat template, the tokenizer's own, which" in text
    assert ModelCard(text).data.datasets == ["me/talks"] and "configuration `en`" in text


def test_what_is_on_this_machine_is_shown_by_its_last_part(tmp_path: Path) -> None:
    header = of_journal(path=str(tmp_path / "small"), tokenizer=str(tmp_path / "words"))
    settings = {"data.path": str(tmp_path / "rows"), "data.name": "local"}
    command = f"lezo-run --config-dir {tmp_path}/mine model.path={tmp_path}/small data.path='{tmp_path}/rows'"
    result = {**RESULT, "data": "local", "command": command}
    text = Card(header, 3, "x", (2,), "opt", result, settings).text()
    assert str(tmp_path) not in text and ModelCard(text).data.base_model is None
    assert "`small`" in text and "`words`" in text and "`rows`" in text
    assert "lezo-run --config-dir mine model.path=small data.path=rows\n" in text


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("lezo-run task=rte model.path=facebook/opt-125m", None),
        (
            "lezo-run model=hf model.path=~/secret/m hydra.run.dir=/home/me/out",
            "model.path=m hydra.run.dir=out",
        ),
        ("lezo-run 'optim.lr=1e-3", None),
        ("lezo-run model=hf log=wandb 'log.notes=for me' log.name=x seed=1", "seed=1"),
        (
            "lezo-run model=hf 'data.splits={train: /home/me/a.csv, test: ~/b.csv}' task.chat_template=plain",
            "'data.splits={train: a.csv, test: b.csv}' task.chat_template=plain",
        ),
    ],
)
def test_a_command_is_shown_without_places(given: str, shown: str | None) -> None:
    assert shown_command(given) == (given if shown is None else f"lezo-run model=hf {shown}")


def test_a_folder_of_the_form_of_an_id_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown_place("models/small") == "models/small"
    Path("models/small").mkdir(parents=True)
    assert shown_place("models/small") == "small"
