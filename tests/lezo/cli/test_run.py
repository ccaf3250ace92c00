"""lezo-run from its command line to its exit code, its words and its run folder."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from lezo import __version__
from lezo.cli import bench, replay, report, run, show
from lezo.config.methods import METHODS
from lezo.model.load import TINY
from lezo.runs.prepare import prepare
from lezo.tasks import TASKS
from tests.lezo.arranged import best_is, ctrl_c_in_step
from tests.lezo.sweeps.forked import Forked
from tests.lezo.whole_runs import SMALL, Runner, config_of, timeless, typed

RESULT = (
    "task data metric model optim sparsity lr eps steps seed test dev zero_shot best_step seconds peak_memory_bytes "
    "skipped_steps rows truncated status error title name notes dequantised synthetic weight_decay blocks data_seed dev_loss "
    "command weights origin peft objective examples memory_bytes prompts_at_once diverged zero_shot_from"
)


def process(*overrides: str, cwd: Path) -> subprocess.Popen[str]:
    """lezo-run as a process of its own, which takes signals as from a terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", "lezo.cli.run", *overrides],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_a_run_leaves_its_whole_folder(lezo_run: Runner) -> None:
    ran = lezo_run.once("task=sst2", "seed=3")
    result, steps = ran.result, [row["step"] for row in ran.training()]
    assert ran.code == 0
    assert {file.name for file in ran.folder.iterdir()} == {
        *("config.yaml", "environment.json", "metrics.jsonl", "predictions.jsonl", "result.json"),
        *("journal.bin", ".lock"),
    }
    assert set(result) == set(RESULT.split())
    assert (result["status"], result["error"], result["steps"]) == ("finished", None, 4)
    assert (result["diverged"], result["zero_shot_from"]) == (False, None)
    assert (result["title"], result["synthetic"], result["metric"]) == ("sst2 (sample)", True, "accuracy")
    phases = {"forward", "perturb", "update", "data"}
    assert set(result["seconds"]) == {"total", "train", "eval", "step_median", *phases}
    assert sum(result["seconds"][phase] for phase in phases) == pytest.approx(result["seconds"]["train"])
    assert all(result["seconds"][phase] > 0 for phase in phases)
    assert set(result["peak_memory_bytes"]) == {"device", "host"}
    assert 2**20 < result["peak_memory_bytes"]["host"] < 2**40
    assert all(0 <= result[score] <= 1 for score in ("test", "dev", "zero_shot"))
    assert re.fullmatch(r"\d+ of \d+ blocks skipped each step", result["blocks"])
    assert steps == [1, 2, 3, 4]
    assert set(ran.training()[0]) >= {"step", "seconds", "loss", "g", "lr", "memory"}
    assert not any("dev_loss" in row or "dev_score" in row for row in ran.training())
    columns = {"step", "seconds", "dev_loss", "dev_score", "eval_seconds"}
    assert [set(row) for row in ran.evaluations()] == [columns] * 3
    (before,) = [row for row in ran.rows("metrics.jsonl") if "test_score" in row]
    assert (before["step"], before["test_score"]) == (0, result["zero_shot"])
    predictions = ran.rows("predictions.jsonl")
    assert [row["index"] for row in predictions] == list(range(8))
    measured = {"index", "scores", "prediction", "gold"}
    assert all(set(row) == measured | {"prompt", "candidates", *TEXTS} for row in predictions)
    assert all(row["candidates"][row["gold"]] == row["gold_text"] for row in predictions)
    assert all(row["candidates"][row["prediction"]] == row["prediction_text"] for row in predictions)
    examples = prepare(config_of(*SMALL, "task=sst2", "seed=3"), training=True).splits.test
    assert [row["prompt"] for row in predictions] == [example.prompt for example in examples]
    assert result["test"] == sum(row["prediction"] == row["gold"] for row in predictions) / 8
    assert yaml.safe_load((ran.folder / "config.yaml").read_text())["train"]["steps"] == 4


def test_the_result_has_the_dev_scores_of_the_best_step_and_the_last_step_is_evaluated(
    lezo_run: Runner,
) -> None:
    ran = lezo_run.once()
    rows = ran.evaluations()
    best = min(rows[1:], key=lambda row: row["dev_loss"])
    assert [row["step"] for row in rows] == [0, 3, 4]
    assert (ran.result["best_step"], ran.result["dev_loss"]) == (best["step"], best["dev_loss"])
    assert ran.result["dev"] == best["dev_score"]


def test_the_best_weights_are_restored_for_the_test(
    lezo_run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = ["train.steps=1"], ["train.steps=2", "train.eval_every=1"]
    shorter = lezo_run(*one, folder="shorter")
    with monkeypatch.context() as patch:
        best_is(patch, "last")
        last = lezo_run(*two, folder="last")
    best_is(monkeypatch, "first")
    first = lezo_run(*two, folder="first")
    assert (first.result["best_step"], first.result["steps"], last.result["best_step"]) == (1, 2, 2)
    assert "restored the weights of step 1 in" in first.out
    assert first.result["weights"] == shorter.result["weights"] != last.result["weights"]
    assert first.rows("predictions.jsonl") == shorter.rows("predictions.jsonl")
    assert first.rows("predictions.jsonl") != last.rows("predictions.jsonl")


def test_a_run_repeats_itself(lezo_run: Runner) -> None:
    first, again = lezo_run.once(folder="one"), lezo_run(folder="two")
    assert [timeless(row) for row in first.rows("metrics.jsonl")] == [
        timeless(row) for row in again.rows("metrics.jsonl")
    ]
    assert first.result["weights"] == again.result["weights"]
    assert first.rows("predictions.jsonl") == again.rows("predictions.jsonl")
    assert first.result["command"] == again.result["command"]
    assert lezo_run.once("seed=1", folder="three").training()[0]["g"] != first.training()[0]["g"]


@pytest.mark.parametrize("optim", ["fo-sgd", "mezo"])
def test_every_optimizer_trains(lezo_run: Runner, optim: str) -> None:
    ran = lezo_run.once(f"optim={optim}")
    assert (ran.code, ran.result["optim"], ran.result["status"]) == (0, optim, "finished")
    assert ran.result["sparsity"] == (0.0 if optim == "mezo" else None)
    assert all(row["loss"] > 0 and not row["skipped"] for row in ran.training())


def test_scoring_alone_trains_nothing_and_memory_is_of_one_kind(lezo_run: Runner) -> None:
    ran = lezo_run("optim=none", "task.num_train=0", "task.demos=0", "train.steps=5")
    result = ran.result
    assert (result["steps"], result["best_step"], result["lr"], result["blocks"]) == (0, None, None, None)
    assert result["test"] == result["zero_shot"] is not None
    (dev,) = ran.evaluations()
    assert dev["step"] == 0 and result["seconds"]["eval"] >= dev["eval_seconds"] > 0
    assert ran.training() == []
    assert "none: optim=none takes no step, and train.* has no effect" in ran.out
    used, whole = result["memory_bytes"], result["peak_memory_bytes"]["host"]
    # Python and torch are not in what is used.
    assert 0 < used["expected"] < 2**25 and 0 <= used["used"] < whole - 2**27
    assert " since the model was loaded, with the libraries' code in use; about" in ran.out


TEXTS = ("prediction_text", "gold_text")


@pytest.mark.parametrize("task", ["squad", "copa"])
def test_language_model_losses_train_and_answers_are_judged(lezo_run: Runner, task: str) -> None:
    ran = lezo_run(f"task={task}", "train.steps=1")
    predictions = ran.rows("predictions.jsonl")
    assert (ran.code, len(predictions)) == (0, 8)
    assert all(row["dev_loss"] > 0 for row in ran.evaluations())
    answer = {"text", "score"} if task == "squad" else {"scores", "candidates", *TEXTS}
    assert all(set(row) == {"index", "prompt", "prediction", "gold"} | answer for row in predictions)


def test_micro_batches_leave_the_losses_alone(lezo_run: Runner) -> None:
    whole = lezo_run.once(folder="one")
    parts = lezo_run("train.micro_batch_size=5", "train.steps=2", folder="two")
    losses = [[row["loss"] for row in ran.training()[:2]] for ran in (whole, parts)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def test_a_dry_run_says_its_plan_and_writes_nothing(lezo_run: Runner, tmp_path: Path) -> None:
    ran = lezo_run("dry_run=true")
    assert ran.code == 0
    assert not list(tmp_path.iterdir())
    for word in (
        "32 train, 8 dev, 8 test",
        "blocks skipped each step",
        "expected (weights",
        "8 training",
        "dry_run",
    ):
        assert word in ran.out


def test_the_banner_says_what_runs_and_the_summary_how_it_went(lezo_run: Runner) -> None:
    ran = lezo_run.once("task=sst2", "seed=3")
    for word in ("sst2 (sample)", "synthetic", "4 steps of 16 examples", "seed 3", "float32 on"):
        assert word in ran.out
    summary = ran.out.split("\n  status ")[1]
    for word in ("finished", "test accuracy", "zero-shot", "peak memory", "lezo-run task.num_train=32"):
        assert word in summary
    assert f"{ran.result['test']:.4f}" in summary
    assert ran.err == ""


def test_a_saved_model_loads_without_lezo(lezo_run: Runner) -> None:
    folder = lezo_run("save_model=true", "optim=fo-sgd", "train.steps=1").folder / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    before = AutoModelForCausalLM.from_pretrained(TINY)
    changed = [not torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True)]
    assert any(changed)
    assert model(**tokenizer("It was great", return_tensors="pt")).logits.isfinite().all()


def test_max_seconds_ends_training_with_an_evaluation_after_one_step_at_least(lezo_run: Runner) -> None:
    ran = lezo_run("train.steps=1000", "train.eval_every=1000", "train.max_seconds=1e-9")
    assert [row["step"] for row in ran.evaluations()] == [0, 1]
    assert (ran.code, ran.result["status"], ran.result["best_step"]) == (0, "finished", 1)


def test_a_broken_data_file_fails_with_file_and_line(lezo_run: Runner, tmp_path: Path) -> None:
    folder = tmp_path / "my data" / "sst2"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text('{"sentence": "good", "label": 1}\n{"sentence": "bad"}\n')
    (folder / "val.jsonl").write_text('{"sentence": "good", "label": 1}\n')
    ran = lezo_run("task=sst2", "data=local", "data.path='my data'")
    ran.refused("my data/sst2/train.jsonl, line 2: column 'label' ")
    assert ran.result["status"] == "failed"
    assert ran.err == f"error: {ran.result['error']}\n"


def test_a_bug_leaves_its_traceback(lezo_run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lezo.model.evaluate.Evaluator.__call__", lambda *_: 1 / 0)
    ran = lezo_run()
    assert (ran.code, ran.result["error"]) == (1, "ZeroDivisionError('division by zero')")
    assert "lambda *_: 1 / 0" in (ran.folder / "traceback.txt").read_text()
    assert "Traceback" in ran.err


def test_a_folder_that_holds_a_run_is_refused_and_left_alone(lezo_run: Runner) -> None:
    first = lezo_run.once()
    before = {file: file.read_bytes() for file in first.folder.iterdir()}
    again = lezo_run("seed=1")
    again.refused("out: ", "resume=auto")
    assert "out: already holds a run; resume=auto goes on with it, hydra.run.dir=DIR chooses" in again.err
    assert {file: file.read_bytes() for file in first.folder.iterdir()} == before


def test_a_folder_that_cannot_be_written_is_refused(lezo_run: Runner, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ran = lezo_run(folder="file/out")
    ran.refused("file/out: ", "(Not a directory)")


def test_an_interrupted_run_leaves_its_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a fork of this process, which has imported everything."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lezo-run", *SMALL, "train.steps=1000000", "hydra.run.dir=out"])
    running = Forked(commanded)
    metrics = tmp_path / "out" / "metrics.jsonl"
    while not (metrics.exists() and '"dev_loss"' in metrics.read_text()):
        assert os.waitpid(running.pid, os.WNOHANG)[0] == 0
        time.sleep(0.05)
    os.kill(running.pid, signal.SIGINT)
    code, out = running.ended()
    assert code == 130
    stopping = "\nstopping after this step; Ctrl-C again stops at once\n"
    assert_interrupted(json.loads((tmp_path / "out" / "result.json").read_text()), out.replace(stopping, ""))
    assert "Traceback" not in out


def commanded() -> Any:
    """lezo-run's exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run.main()
    except SystemExit as ended:
        return ended.code


def test_sigterm_is_as_ctrl_c(lezo_run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    ctrl_c_in_step(monkeypatch, 2, signal.SIGTERM)
    ran = lezo_run()
    assert (ran.code, ran.result["steps"], ran.err) == (130, 2, "")
    assert_interrupted(ran.result, ran.out)


def assert_interrupted(result: dict[str, Any], out: str) -> None:
    assert (result["status"], result["error"]) == ("interrupted", f"stopped at step {result['steps']}")
    assert result["zero_shot"] is not None and result["test"] is None
    assert "interrupted: stopped at step" in out
    assert out.endswith("resume=auto hydra.run.dir=out\n")


def test_a_run_whose_reader_goes_away_goes_on_to_its_end(tmp_path: Path) -> None:
    with process(*SMALL, "hydra.run.dir=out", cwd=tmp_path) as running:
        assert running.stdout is not None and running.stderr is not None
        running.stdout.readline()
        running.stdout.close()
        assert (running.wait(timeout=200), running.stderr.read()) == (0, "")
    assert json.loads((tmp_path / "out" / "result.json").read_text())["status"] == "finished"
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 8


INTERRUPTED = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, *_):
        if name == {library!r}:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupt())
sys.argv = ["the command"]
from {module} import main
main()
"""


SECONDS = [pytest.mark.slow]  # the same `try` as around the libraries before and after


@pytest.mark.parametrize(
    ("module", "library"),
    [
        ("lezo.cli.run", "lezo.config.compose"),
        pytest.param("lezo.cli.run", "hydra", marks=SECONDS),
        pytest.param("lezo.cli.run", "omegaconf", marks=SECONDS),
        pytest.param("lezo.cli.run", "torch", marks=SECONDS),
        ("lezo.cli.run", "transformers"),
        ("lezo.cli.show", "lezo.config.compose"),
        pytest.param("lezo.cli.show", "hydra", marks=SECONDS),
        pytest.param("lezo.cli.show", "omegaconf", marks=SECONDS),
        ("lezo.cli.show", "torch"),
        pytest.param("lezo.cli.show", "transformers", marks=SECONDS),
    ],
)
def test_an_interrupt_while_importing_is_quiet(module: str, library: str, tmp_path: Path) -> None:
    code = INTERRUPTED.format(module=module, library=library)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
    assert not list(tmp_path.iterdir())


PROBE = """
import contextlib, io, json, os, sys, time
from lezo.cli.run import main
answers = []
for words, environment in json.loads(sys.argv[1]):
    os.environ.update(environment)
    sys.argv[:] = ["lezo-run", *words]
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2)]
    start = time.process_time()
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
    seconds = time.process_time() - start
    said = [stream.seek(0) or stream.read() for stream in streams]
    answers.append([code, *said, seconds, sorted({"torch", "transformers", "datasets", "wandb"} & set(sys.modules))])
print(json.dumps(answers))
"""


class Answer(NamedTuple):
    code: int
    out: str
    err: str
    seconds: float
    """of CPU"""
    heavy: list[str]
    """Those large libraries that were imported by then."""


BAD = {
    "optim.sparsity=1.5 train.steps=-3": ["optim.sparsity=1.5: expected", "train.steps=-3: expected"],
    "model.dtype=int8": ["model.dtype=int8: expected one of auto"],
    "-m train.batch_size=0,4": ["job 0 (train.batch_size=0): train.batch_size=0: expected"],
    "-m hydra/launcher=basic seed=0,-1": ["job 1 (seed=-1): seed=-1: expected"],
    "seed=-1 -m task=cb,rte": ["job 0 (task=cb): seed=-1: expected"],
    "-cn other": ["--config-dir DIR adds to it"],
}
COMPLETED = {
    "lezo-run task=s": "task=squad task=sst2",
    "lezo-run train.max_": "train.max_bad_steps= train.max_seconds=",
}


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Answer]:
    """What lezo-run answers to words, or to Tab behind them; all in one process, where torch has no part."""
    folder = tmp_path_factory.mktemp("light")
    words = {said: (said.split(), {}) for said in ("--help", "--cfg job task=cb", "--version", *BAD)}
    tab = {
        line: (["-sc", "query=bash"], {"COMP_LINE": line, "COMP_POINT": str(len(line))}) for line in COMPLETED
    }
    asked = json.dumps([*(words | tab).values()])
    done = subprocess.run(
        [sys.executable, "-c", PROBE, asked], cwd=folder, capture_output=True, text=True, check=True
    )
    assert not (folder / "runs").exists() and done.stderr == ""
    answers = [Answer(*answer) for answer in json.loads(done.stdout)]
    return dict(zip(words | tab, answers, strict=True)).__getitem__


@pytest.mark.parametrize("given", ["--help", "--cfg job task=cb", "--version", *BAD, *COMPLETED])
def test_what_needs_no_torch_is_answered_without_it(given: str, light: Callable[[str], Answer]) -> None:
    assert light(given).heavy == [] and light(given).seconds < 6


@pytest.mark.parametrize("given", BAD)
def test_a_bad_configuration_is_answered_at_once(given: str, light: Callable[[str], Answer]) -> None:
    answer, expected = light(given), BAD[given]
    problems = answer.err.splitlines()
    assert (answer.code, answer.out) == (2, "")
    assert len(problems) == len(expected)
    assert all(
        line.startswith("error: ") and words in line for line, words in zip(problems, expected, strict=True)
    )


def test_help_and_the_composed_configuration(light: Callable[[str], Answer]) -> None:
    help_, shown = light("--help"), light("--cfg job task=cb")
    assert (help_.code, shown.code) == (0, 0)
    assert "Commands to copy" in help_.out
    assert {*METHODS, *TASKS} <= {*re.split(r"[^\w-]+", help_.out)}  # each that there is
    assert 'eval "$(lezo-run -sc install=bash)"' in help_.out
    assert yaml.safe_load(shown.out)["task"]["name"] == "cb"


def test_the_version_is_lezos(light: Callable[[str], Answer]) -> None:
    assert light("--version")[:2] == (0, f"lezo {__version__}\n")


@pytest.mark.parametrize("line", COMPLETED)
def test_tab_completes_groups_and_keys(line: str, light: Callable[[str], Answer]) -> None:
    assert light(line).out.split() == COMPLETED[line].split()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["optim=icl", "task.demos=3", "eval.calibration=sfc"],
            [
                "3 solved examples in every prompt, other ones for each test example",
                "sfc: less the score after a",
            ],
        ),
        (["optim=lp"], ["logistic regression of the head's rows of the answers on 32 rows"]),
        (["optim=mezo", "optim.objective=metric", "task=squad", "train.steps=1"], ["minimises 1 - f1"]),
        (["optim=lezo", "optim.objective=metric", "train.steps=1"], ["minimises 1 - accuracy"]),
    ],
    ids=str,
)
def test_the_baselines_run_to_a_result(options: list[str], words: list[str], lezo_run: Runner) -> None:
    ran = lezo_run(*options)
    assert ran.code == 0 and all(part in " ".join(ran.out.split()) for part in words)
    assert ran.result["status"] == "finished" and 0 <= ran.result["test"] <= 1
    assert (ran.folder / "predictions.jsonl").exists()
    losses = [row["loss"] for row in ran.training()]
    assert len(losses) == ("train.steps=1" in options) and all(0 <= loss <= 1 for loss in losses)


@pytest.mark.parametrize(
    ("main", "arguments", "meant"),
    [
        (run.main, ["--steps", "10"], "--steps: no such flag; did you mean train.steps=10? settings are key=value"),
        (run.main, ["--lr=1e-4", "task=rte"], "--lr=1e-4: no such flag; did you mean optim.lr=1e-4? "),
        (run.main, ["--batch-size", "4"], "did you mean train.batch_size=4 or eval.batch_size=4? "),
        (run.main, ["--nothing-like-it"], "--nothing-like-it: no such flag; settings are key=value"),
        (show.main, ["-task", "rte"], "-task: no such flag; did you mean task=rte? "),
        (bench.main, ["--steps", "3"], "--steps: no such flag; did you mean train.steps=3? "),
        (replay.main, ["RUN", "--out", "x"], "--out: no such flag; did you mean replay.out=x? "),
        (report.main, ["--watch"], "--watch: no such flag; did you mean report.watch? "),
    ],
)  # fmt: skip
def test_a_flag_that_there_is_not_is_answered_by_what_was_meant(
    main: Any, arguments: list[str], meant: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    code, out, err = typed("a-command", main, monkeypatch, capsys)(*arguments)
    assert (code, out) == (2, "") and meant in err and err.count("\n") == 1


@pytest.mark.parametrize("main", [run.main, show.main, bench.main, replay.main, report.main])
def test_a_working_folder_that_is_gone_is_named(
    main: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    code, _, err = typed("a-command", main, monkeypatch, capsys)("dry_run=true")
    monkeypatch.chdir(tmp_path)
    assert code == 2 and "the working folder is gone; cd to another one" in err and err.count("\n") == 1


@pytest.mark.parametrize("shows", [["--cfg", "job"], ["--help"], ["-m", "seed=1,2"], ["+experiment=x"]])
def test_a_config_dir_that_is_not_there_is_named(
    shows: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    code, _, err = typed("lezo-run", run.main, monkeypatch, capsys)("--config-dir", "no/where", *shows)
    assert (code, err) == (2, "error: --config-dir no/where: no such folder\n")
