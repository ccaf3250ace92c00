"""lezo-eval as its user types it: every kind of run has its own numbers again, and other rows have theirs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from lezo.cli import evaluate
from lezo.model.load import TINY
from tests.lezo.quantised_folders import needs_bitsandbytes
from tests.lezo.refusals import names
from tests.lezo.whole_runs import Ran, Runner, little_model, typed
from tests.test_before import BEFORE, RUNS

Eval = Callable[..., tuple[int, str, str]]
CHAT = ("task=chat", "task.num_train=16", "task.num_dev=4", "task.num_test=4", "train.batch_size=4")
FILM = ("task=prompt", "task.template='{{ Text }} It was'", "task.label_column=Class")
WORDS = "task.words={pos: great, neg: terrible}"
ROWS = ("data=local", "data.path=rows.csv")


@pytest.fixture
def lezo_eval(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Eval:
    call = typed("lezo-eval", evaluate.main, monkeypatch, capsys)
    return lambda *words: call(*words, *(["model.device=cpu"] if words else []))


def records(lezo_eval: Eval, *words: str) -> list[dict[str, Any]]:
    code, out, err = lezo_eval(*words, "eval.json=true")
    assert code == 0, err
    return json.loads(out)  # type: ignore[no-any-return]


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(file): (file.stat().st_mtime_ns, file.read_bytes())
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def films(name: str, count: int = 48) -> None:
    """Rows of one's own."""
    lines = [f"film {i} is {'fine' if i % 2 else 'dull'},{['neg', 'pos'][i % 2]}" for i in range(count)]
    Path(name).write_text("\n".join(["Text,Class", *lines]) + "\n")


KINDS: dict[str, tuple[str, ...]] = {
    "mezo in bfloat16": ("optim=mezo", "model.dtype=bfloat16", "optim.weight_decay=0.1"),
    "lezo, calibrated": ("task=copa", "eval.calibration=sfc"),
    "fo-adamw": ("optim=fo-adamw",),
    "lora": ("optim=mezo", "peft=lora"),
    "prefix": ("optim=mezo", "peft=prefix"),
    "head": ("optim=mezo", "peft=head"),
    "generation": ("optim=mezo", "task=squad"),
    "chat": (*CHAT, "task.generate=2"),
    "chat of a lora": (*CHAT, "optim=mezo", "peft=lora"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_and_its_saved_model_have_the_numbers_of_the_run(
    kind: str, lezo_run: Runner, lezo_eval: Eval
) -> None:
    """From journal or checkpoint, and from the model alone, wherever it lies: scores, loss and predictions."""
    ran = lezo_run.once(*KINDS[kind], "save_model=true")
    assert ran.code == 0, ran.err
    shutil.move(ran.folder / "model", "alone")
    before, result = files(ran.folder), ran.result
    tested = records(lezo_eval, "out", "alone", "eval.predictions=said")
    assert [row["score"] for row in tested] == [result["test"]] * 2
    assert [row["step"] for row in tested] == [result["best_step"]] * 2
    assert [row["weights"] for row in tested] == [result["weights"]] * 2
    assert (tested[0]["run_score"], tested[0]["zero_shot"]) == (result["test"], result["zero_shot"])
    for name in ("out", "alone"):
        assert Path(f"said/{name}.jsonl").read_bytes() == (ran.folder / "predictions.jsonl").read_bytes()
    (dev,) = records(lezo_eval, "out", "split=dev")
    assert (dev["score"], dev["loss"]) == (result["dev"], result["dev_loss"])
    assert files(ran.folder) == before


@pytest.mark.parametrize(
    "words",
    [
        ("optim=none",),
        ("optim=none", "task.demos=2"),
        ("optim=icl", "task.demos=3"),
        ("optim=lp", "task=sst2"),
    ],
    ids=" ".join,
)
def test_a_run_without_steps_has_its_numbers_again(
    words: tuple[str, ...], lezo_run: Runner, lezo_eval: Eval
) -> None:
    ran = lezo_run.once(*words)
    (tested,) = records(lezo_eval, "out", "eval.predictions=said")
    assert (tested["score"], tested["weights"]) == (ran.result["test"], ran.result["weights"])
    assert Path("said/out.jsonl").read_bytes() == (ran.folder / "predictions.jsonl").read_bytes()
    if "optim=icl" in words:
        code, _, err = lezo_eval("out", "split=train")
        assert code == 1
        names(err, "out: split=train", "task.demo_sets=each")


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_before_has_its_numbers_again(name: str, lezo_run: Runner, lezo_eval: Eval) -> None:
    shutil.copytree(BEFORE / name, "out")
    if name == "fo-adamw-lora":  # of which one checkpoint alone was kept, of another step
        assert "out: has no checkpoint of step 12" in lezo_eval("out")[2]
        return
    (tested,) = records(lezo_eval, "out")
    result = json.loads((BEFORE / name / "result.json").read_text())
    assert (tested["score"], tested["weights"]) == (result["test"], result["weights"])


@pytest.mark.slow
def test_a_run_on_rows_of_ones_own_and_its_model_elsewhere(lezo_run: Runner, lezo_eval: Eval) -> None:
    films("rows.csv")
    ran = lezo_run(*FILM, WORDS, *ROWS, "save_model=true")
    shutil.copytree("out/model", "alone")
    in_run, told, alone = (
        *records(lezo_eval, "out", "out/model"),
        *records(lezo_eval, "alone", *ROWS),
    )
    assert [row["score"] for row in (in_run, told, alone)] == [ran.result["test"]] * 3
    assert in_run["loss"] == told["loss"] == alone["loss"]
    assert str(Path.cwd()) not in Path("alone/lezo.json").read_text()
    code, _, err = lezo_eval("alone")
    assert code == 2
    names(err, "data=local", "data.path=FILE")
    films("other.csv", 60)
    (other,) = records(lezo_eval, "out", "data.path=other.csv", "split=train")
    assert other["rows"] == 32 and other["zero_shot"] is None and other["run_score"] is None
    films("rows.csv", 47)
    assert "no longer those of the run" in _moved(lezo_eval)


def _moved(lezo_eval: Eval) -> str:
    shutil.rmtree("out/model")
    code, out, _ = lezo_eval("out")
    assert code == 0
    return out


@pytest.mark.slow
def test_several_models_on_another_task_make_a_table(lezo_run: Runner, lezo_eval: Eval) -> None:
    lezo_run.once("optim=mezo", "save_model=true")
    code, out, err = lezo_eval(
        "tiny", "out", "out/model", "task=copa", "data=sample", "task.num_test=8", "task.data_seed=3"
    )
    assert (code, err) == (0, "")
    title, head, *rows = out.partition("\n\n")[2].splitlines()
    assert title == "copa (sample), split test" and head.split() == [
        "model",
        "step",
        "accuracy",
        "loss",
        "rows",
        "zero-shot",
    ]
    assert [row.split()[0] for row in rows] == ["tiny", "out", "out/model"]
    assert rows[1].split()[1:] == rows[2].split()[1:]
    scored = lezo_run("optim=none", "task=copa", "task.data_seed=3", folder="scored")
    tiny, _, _ = records(
        lezo_eval,
        "tiny",
        "out",
        "out/model",
        "task=copa",
        "data=sample",
        "task.num_test=8",
        "task.data_seed=3",
    )
    assert tiny["score"] == tiny["zero_shot"] == scored.result["test"]
    code, out, _ = lezo_eval("out", "eval.calibration=sfc", "eval.out=table.json")
    (calibrated,) = json.loads(Path("table.json").read_text())
    assert calibrated["calibration"] == "sfc" and calibrated["run_score"] is None
    assert "split test, calibrated (sfc)" in out and "calibration" not in out
    title, head, *rows = table_of_two(lezo_run, lezo_eval)
    assert "calibrated" not in title and head.split()[:3] == ["model", "calibration", "step"]
    assert [row.split()[:2] for row in rows] == [["out", "none"], ["sfc", "sfc"]]
    code, _, err = lezo_eval("out", "eval.out=out/table.json")
    assert code == 2
    names(err, "eval.out=out/table.json", "folder of a run")


def table_of_two(lezo_run: Runner, lezo_eval: Eval) -> list[str]:
    """Of ``out``, which is not calibrated, and of a run that is."""
    lezo_run("optim=none", "eval.calibration=sfc", folder="sfc")
    return lezo_eval("out", "sfc")[1].partition("\n\n")[2].splitlines()


def test_a_runs_own_task_is_no_other_task(lezo_run: Runner, lezo_eval: Eval) -> None:
    ran = lezo_run("optim=none", "task=copa")
    (named,) = records(lezo_eval, "out", "task=copa")
    assert named["rows"] == ran.result["examples"]["test"] and named["run_score"] == ran.result["test"]
    (more,) = records(lezo_eval, "out", "task=copa", "task.num_test=12")
    assert (more["rows"], more["run_score"]) == (12, None)
    assert records(lezo_eval, "out", "task=rte", "task.num_test=9")[0]["title"] == "rte (sample)"


def test_a_journal_alone_is_scored_on_the_task_of_the_words(lezo_run: Runner, lezo_eval: Eval) -> None:
    ran = lezo_run.once("optim=mezo", "peft=lora", "save_model=true")
    shutil.copy("out/journal.bin", "shared.bin")
    sizes = ("task.num_train=32", "task.num_dev=8", "task.num_test=8")
    alone, beside = (
        *records(lezo_eval, "shared.bin", "task=rte", *sizes),
        *records(lezo_eval, "out/journal.bin"),
    )
    assert alone["score"] == beside["score"] == ran.result["test"]
    assert alone["weights"] == beside["weights"] == ran.result["weights"]
    code, _, err = lezo_eval("shared.bin")
    assert code == 2
    names(err, "shared.bin: ", "task=sst2")


@pytest.fixture
def trained(lezo_run: Runner) -> Ran:
    return lezo_run.once("optim=mezo", "peft=lora", "save_model=true")


def test_a_foreign_folder_is_what_the_words_say(trained: Ran, lezo_eval: Eval) -> None:
    words = ("task=rte", "data=sample", "task.num_train=32", "task.num_dev=8", "task.num_test=8")
    (Path("out/model") / "lezo.json").unlink()
    shutil.move("out/model", "adapter")
    little_model("base")
    mine, other = records(lezo_eval, "adapter", "base", *words)
    assert (mine["kind"], mine["score"]) == ("adapter", trained.result["test"]) and other["kind"] == "base"
    code, _, err = lezo_eval("adapter")
    assert code == 2
    names(err, "adapter: ", "add task=sst2")
    code, _, err = lezo_eval("adapter", "model.path=base", *words)
    assert code == 1
    names(err, "adapter/adapter_model.safetensors", "does not fit the base model")


def test_an_adapter_that_is_no_plain_one_is_refused(trained: Ran, lezo_eval: Eval) -> None:
    file = Path("out/model/adapter_config.json")
    told = json.loads(file.read_text())
    for changes, said in (
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"target_modules": ".*proj"}, "target_modules"),
        ({"r": None}, "not what peft writes"),
    ):
        file.write_text(json.dumps(told | changes))
        code, _, err = lezo_eval("out/model")
        assert code == 1
        names(err, "out/model", said)
    file.write_text(json.dumps(told))
    values = load_file(file.with_name("adapter_model.safetensors"))
    values.pop(min(values))
    save_file(values, file.with_name("adapter_model.safetensors"))
    code, _, err = lezo_eval("out/model")
    assert code == 1 and "does not fit" in err


def test_a_quantised_base_with_its_adapter(lezo_run: Runner, lezo_eval: Eval) -> None:
    needs_bitsandbytes()
    ran = lezo_run("optim=mezo", "peft=lora", "model.quantization=4bit", "save_model=true")
    shutil.move("out/model", "alone")
    rows = records(lezo_eval, "out", "alone")
    assert [row["score"] for row in rows] == [ran.result["test"]] * 2
    assert rows[0]["weights"] == rows[1]["weights"] == ran.result["weights"]


def test_a_base_that_is_not_the_runs_is_refused(lezo_run: Runner, lezo_eval: Eval) -> None:
    little_model("base")
    lezo_run("model=hf", "model.path=base", "data=sample", "optim.lr=1e-3")
    shutil.move("base", "moved")
    code, _, err = lezo_eval("out")
    assert code == 1
    names(err, "out: ", "base")
    assert lezo_eval("out", "model.path=moved")[0] == 0
    shutil.copytree(TINY, "other", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    code, _, err = lezo_eval("out", "model.path=other")
    assert code == 1
    names(err, "other: not the base weights of out", "model.path=DIR")


def test_a_killed_run_is_scored_at_its_best_step_so_far(lezo_run: Runner, lezo_eval: Eval) -> None:
    ran = lezo_run.once("optim=fo-adamw", "save_model=true")
    for name in ("result.json", "predictions.jsonl"):
        (ran.folder / name).unlink()
    shutil.rmtree(ran.folder / "model")
    (row,) = records(lezo_eval, "out", "split=dev")
    best = min((dev for dev in ran.evaluations() if dev["step"]), key=lambda dev: dev["dev_loss"])
    assert (row["step"], row["loss"], row["run_score"]) == (best["step"], best["dev_loss"], None)
    shutil.rmtree(ran.folder / "checkpoints")
    code, _, err = lezo_eval("out")
    assert code == 1
    names(err, "out: has no checkpoint")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("nowhere/at/all",), 1, ["nowhere/at/all: no such folder or file", "opt-13b"]),
        (("nowhere",), 2, ["nowhere: no such folder or file here; ", "id on the hub, add task=sst2"]),
        (("runs/nope",), 2, ["runs/nope: no such folder or file here; ", "id on the hub, add task=sst2"]),
        (("tiny",), 2, ["tiny: tells of no task", "add task=sst2"]),
        (("notes.txt",), 1, ["notes.txt: neither a journal nor a .gguf file", "journal.bin"]),
        (("empty",), 1, ["empty: neither a run nor a model", "config.yaml"]),
        (("out", "optim=mezo"), 2, ["optim=mezo: has no effect on an evaluation"]),
        (("out", "model=opt-1.3b"), 2, ["model=opt-1.3b", "lezo-eval opt-1.3b"]),
        (("out", "split=all"), 2, ["eval.split=all", "test"]),
        (("out", "task=nothing"), 2, ["task=nothing", "sst2"]),
        (("split=dev",), 2, ["no RUN or MODEL"]),
        (("out", "split=train", "task.num_train=0"), 1, ["split=train", "task.num_train=N"]),
        (("tiny", "task=record", "task.demos=2000"), 2, ["task.demos=2000"]),
        (("out", "eval.calibration=sfc", "task=squad"), 2, ["eval.calibration=sfc", "squad"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_cannot_be_scored_is_said_in_a_line(
    words: tuple[str, ...], code: int, said: list[str], lezo_run: Runner, lezo_eval: Eval
) -> None:
    lezo_run.once("optim=none")
    Path("empty").mkdir()
    Path("notes.txt").write_text("a text")
    done, _, err = lezo_eval(*words)
    assert done == code, err
    assert err.startswith("error: ")
    names(err, *said)


def test_one_that_fails_does_not_keep_the_others_from_their_scores(lezo_run: Runner, lezo_eval: Eval) -> None:
    lezo_run.once("optim=none")
    code, out, err = lezo_eval("gone/x/y", "out")
    assert code == 1 and "gone/x/y: no such folder" in err and "  out " in out


def test_no_file_starts_code_by_itself(lezo_run: Runner, lezo_eval: Eval) -> None:
    films("rows.csv")
    text = (
        Path("rows.csv")
        .read_text()
        .replace("Text,Class", "sentence,label")
        .replace("neg", "0")
        .replace("pos", "1")
    )
    Path("rows.csv").write_text(text)
    ran = lezo_run("optim=none", "task=python", "task.class=lezo.tasks.sst2:SST2", *ROWS)
    assert ran.code == 0, ran.err
    code, _, err = lezo_eval("out")
    assert code == 2
    names(err, "task.class=lezo.tasks.sst2:SST2", "add the word")
    (row,) = records(lezo_eval, "out", "task.class=lezo.tasks.sst2:SST2")
    assert row["score"] == ran.result["test"]


def test_the_help_and_no_words(lezo_eval: Eval) -> None:
    assert lezo_eval("--help")[:2] == (0, evaluate.HELP)
    assert lezo_eval()[:2] == (2, evaluate.HELP)
