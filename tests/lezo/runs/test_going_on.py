"""Whole runs that stop and go on: the end is that of a run that never stopped, and other runs are refused."""

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lezo.model.load import TINY
from tests.lezo.arranged import best_is, ctrl_c_in_evaluation, ctrl_c_in_step, when_evaluated
from tests.lezo.runs.killing import end
from tests.lezo.whole_runs import Ran, Runner, limited, little_model

MORE = ["train.steps=6", "resume=auto"]
OTHER_MODEL = ["model=hf", "optim.lr=1e-4"]
HELD = "out: already holds a run"


def files(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file() and file.name != ".lock"}


@pytest.mark.parametrize(
    "options",
    [
        ["optim=mezo", "model.dtype=bfloat16", "optim.rounding=stochastic", "train.checkpoint_every=2"],
        ["optim=lezo", "peft=prefix", "model.dtype=bfloat16"],
        ["optim=fo-adamw", "peft=lora", "optim.schedule=linear"],
    ],
    ids=" ".join,
)
def test_a_run_stopped_by_ctrl_c_goes_on_to_the_same_end(
    options: list[str], lezo_run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    little_model("one")
    options = [*OTHER_MODEL, "model.path=one", "data=sample", *MORE, *options]
    whole = lezo_run(*options, folder="whole")
    with monkeypatch.context() as patch:
        ctrl_c_in_step(patch, 5)
        stopped = lezo_run(*options, folder="stopped")
    assert (stopped.code, stopped.result["status"], stopped.result["steps"]) == (130, "interrupted", 5)
    assert stopped.result["weights"] is None
    assert "to resume  lezo-run" in stopped.out and "resume=auto hydra.run.dir=stopped\n" in stopped.out
    again = lezo_run(*options, folder="stopped")
    assert "resuming this run after step 5 of 6" in again.out and "test zero-shot" not in again.out
    ended, expected = end(again.folder), end(whole.folder)
    if (
        "optim=fo-adamw" in options
    ):  # the step it stopped at has a checkpoint of its own, in place of an older one
        for left in (ended, expected):
            left["files"] = {
                n: f for n, f in left["files"].items() if "step-5" not in n and "step-3" not in n
            }
    assert ended == expected
    sessions = json.loads((again.folder / "environment.json").read_text())
    assert (sessions["from_step"], [s["from_step"] for s in sessions["earlier"]]) == (5, [0])


def test_ctrl_c_in_an_evaluation_does_not_wait(lezo_run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        ctrl_c_in_evaluation(patch, 1)
        assert lezo_run("resume=auto").result["error"] == "stopped at step 0"
    again = lezo_run("resume=auto")
    assert (again.code, again.result["status"]) == (0, "finished")
    assert end(again.folder)["rows"] == end(lezo_run.once(folder="whole").folder)["rows"]


def test_a_finished_run_says_its_summary_and_is_left_alone(lezo_run: Runner) -> None:
    first = lezo_run.once()
    before = files(first.folder)
    again = lezo_run("resume=auto", "log.project=other", "hydra.verbose=true")
    assert again.code == 0
    assert "this run has finished already" in again.out
    assert f"test accuracy  {first.result['test']:.4f}" in again.out and "dev_loss" not in again.out
    assert files(first.folder) == before


@pytest.mark.parametrize("options", [[], ["optim=fo-sgd"]], ids=" ".join)
def test_a_finished_run_goes_on_to_more_steps_as_if_they_had_been_asked_for_at_once(
    options: list[str], lezo_run: Runner
) -> None:
    lezo_run.once(*options)  # of four steps, evaluated at 0, 3 and, as the last, at 4
    more = lezo_run(*options, *MORE)
    whole = lezo_run.once(*options, *MORE, folder="whole")
    assert "resuming this run after step 4 of 6" in more.out
    assert [row["step"] for row in more.evaluations()] == [0, 3, 6]
    ended, expected = end(more.folder), end(whole.folder)
    for part in ("files", "left"):
        ended.pop(part), expected.pop(part)
    assert ended == expected


def test_another_configuration_is_refused_with_what_differs(lezo_run: Runner) -> None:
    first = lezo_run.once()
    before = files(first.folder)
    again = lezo_run("seed=1", "resume=auto")
    assert (again.code, again.err) == (
        1,
        "error: out: cannot resume this run: seed was 0 and is 1; "
        "set it back, or start anew in another folder with hydra.run.dir=DIR\n",
    )
    changes = ["train.steps=2", "optim.eps=0.01", "optim.lr=1e-4", "task.num_train=16"]
    again = lezo_run(*changes, "resume=auto")
    again.refused("out: ", *(f"{change.partition('=')[0]} was " for change in changes))
    assert files(first.folder) == before


def test_the_way_out_of_memory_is_no_other_run(lezo_run: Runner) -> None:
    lezo_run.once()
    again = lezo_run("train.steps=5", "resume=auto", "train.micro_batch_size=4", "eval.batch_size=4")
    assert (again.code, again.result["status"]) == (0, "finished")
    assert "resuming this run after step 4" in again.out


def unfinished(ran: Ran) -> Ran:
    """A finished run as if it had been killed before it wrote its result."""
    (ran.folder / "result.json").unlink()
    return ran


def heavier(folder: str) -> None:
    """The model there gets other weights; a file that is read keeps what it holds."""
    file = Path(folder, "model.safetensors")
    weights = load_file(file)
    weights[min(weights)] = weights[min(weights)] + 1e-3
    save_file(weights, f"{file}.new", metadata={"format": "pt"})
    os.replace(f"{file}.new", file)


def sentences(folder: Path, train: list[str], val: list[str]) -> None:
    """Rows of one's own for sst2, half of them good."""
    (folder / "sst2").mkdir(parents=True, exist_ok=True)
    for name, words in (("train", train), ("val", val)):
        rows = [{"sentence": f"{w} is {('bad', 'good')[i % 2]}", "label": i % 2} for i, w in enumerate(words)]
        (folder / "sst2" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize("finished", [True, False])
def test_another_base_model_and_other_data_are_refused(finished: bool, lezo_run: Runner) -> None:
    little_model("one")
    shutil.copytree("one", "other")
    heavier("other")
    words = [f"word {i}" for i in range(50)]
    sentences(Path("rows"), words, words[:9])
    own = [*OTHER_MODEL, "task=sst2", "data=local", "data.path=rows", "resume=auto"]
    ran = lezo_run(*own, "model.path=one")
    if not finished:
        unfinished(ran)
    before, named = files(ran.folder), "out: " if finished else "out/journal.bin: "
    lezo_run(*own, "model.path=other").refused(named, ": base weights: ")
    sentences(Path("rows"), words, words[1:10])
    lezo_run(*own, "model.path=one").refused(named, ": data (rows, prompts or their tokens): ")
    assert files(ran.folder) == before
    sentences(Path("rows"), words, words[:9])
    Path("one").rename("elsewhere")  # where the same weights lie does not matter
    assert lezo_run(*own, "model.path=elsewhere").code == 0


def test_base_weights_that_change_under_the_run_are_not_taken_for_the_best_steps(
    lezo_run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    little_model("one")
    best_is(monkeypatch, "first")
    when_evaluated(monkeypatch, lambda: heavier("one"))
    ran = lezo_run(*OTHER_MODEL, "model.path=one", "data=sample")
    ran.refused("one: ", "base weights")


def test_a_journal_of_another_run_is_refused(lezo_run: Runner) -> None:
    other, ran = lezo_run.once("seed=1", folder="other"), unfinished(lezo_run.once())
    shutil.copy(other.folder / "journal.bin", ran.folder)
    before = files(ran.folder)
    again = lezo_run("resume=auto")
    again.refused("out/journal.bin: ", "seed: 1 in the run and 0 here")
    assert files(ran.folder) == before


def test_a_journal_damaged_in_the_middle_is_refused_with_the_offset(lezo_run: Runner) -> None:
    ran = unfinished(lezo_run.once())
    file = ran.folder / "journal.bin"
    content = bytearray(file.read_bytes())
    content[-30] ^= 1
    file.write_bytes(content)
    again = lezo_run("resume=auto")
    again.refused(f"out/journal.bin: damaged at byte {len(content) - 40}: ", "a record's checksum")
    assert file.read_bytes() == content


def test_a_diverged_run_ends_as_before(lezo_run: Runner) -> None:
    bad = ["optim.lr=1e30", "train.max_bad_steps=2", "resume=auto"]
    first, again = lezo_run(*bad), lezo_run(*bad)
    assert (first.code, again.code) == (1, 1)
    assert again.result["steps"] == first.result["steps"] == len(again.training())
    assert again.result["error"].split(" (")[0] == first.result["error"].split(" (")[0]


def test_scoring_alone_starts_over(lezo_run: Runner) -> None:
    ran = unfinished(lezo_run.once("optim=none"))
    (ran.folder / "traceback.txt").write_text("of a bug behind the last evaluation\n")
    again = lezo_run("optim=none", "resume=auto")
    assert (again.code, again.result["status"], len(again.evaluations())) == (0, "finished", 1)
    assert not (again.folder / "traceback.txt").exists()


def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(lezo_run: Runner) -> None:
    long = ["train.steps=9", "resume=auto"]
    with limited(2048):
        full = lezo_run(*long)
    full.refused("out/metrics.jsonl: ", "(No space left on device)", "what was written before stays")
    assert full.result["status"] == "failed" and 3 <= full.result["steps"] < 9
    again = lezo_run(*long)
    assert (again.code, again.result["status"]) == (0, "finished")
    assert [row["step"] for row in again.training()] == [*range(1, 10)]


def killed_at_the_result(file: Path, missing_ok: bool = False) -> None:
    if file.name == "result.json":
        raise KeyboardInterrupt
    os.unlink(file) if file.exists() else None


def test_the_model_of_an_earlier_end_goes_before_anything_else_does(
    lezo_run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    best_is(monkeypatch, "last")  # the best step of a longer run is another one
    first = lezo_run("save_model=true")
    assert (first.folder / "model").is_dir()
    with monkeypatch.context() as patch:  # as if it were killed right there
        patch.setattr(Path, "unlink", killed_at_the_result)
        assert lezo_run(*MORE).code == 130
    assert not (first.folder / "model").exists() and first.result["best_step"] == 4
    (first.folder / "model").mkdir()  # somebody replays what the result is about, while the run goes on
    more = lezo_run(*MORE)
    assert more.result["best_step"] == 6 and not (more.folder / "model").exists()
    assert not list(more.folder.glob(".model*"))


@pytest.mark.parametrize("options", [[], ["optim=fo-sgd", "peft=lora"], ["optim=lp"]], ids=" ".join)
def test_a_finished_run_is_given_its_model_without_a_step(
    options: list[str], lezo_run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = lezo_run.once(*options, "save_model=true")
    before = files(ran.folder)
    shutil.rmtree(ran.folder / "model")
    with monkeypatch.context() as patch:
        patch.setattr("lezo.model.evaluate.Evaluator.__call__", None)  # nothing is evaluated
        again = lezo_run(*options, "save_model=true", "resume=auto")
    assert again.code == 0 and "this run has finished already; its model is now in out/model" in again.out
    assert files(ran.folder) == before and (ran.folder / "model").is_dir()
    if not options:
        assert "nothing is left to do" in lezo_run("save_model=true", "resume=auto").out


def test_weights_that_are_not_the_results_are_not_saved(lezo_run: Runner) -> None:
    ran = lezo_run.once()
    (ran.folder / "result.json").write_text(json.dumps(ran.result | {"weights": "0" * 64}))
    again = lezo_run("save_model=true", "resume=auto")
    again.refused("out: cannot write the model of this run: ", "sha256 ")
    assert not (ran.folder / "model").exists()


def test_a_folder_that_holds_a_model_of_somebodys_is_left_alone(lezo_run: Runner) -> None:
    shutil.copytree(TINY, "out/model")
    before = files(Path("out"))
    for more in ([], ["model=hf", "model.path=out/model", "optim.lr=1e-4", "data=sample"]):
        ran = lezo_run("save_model=true", *more)
        assert ran.code in (1, 2) and "out/model" in ran.err
    assert files(Path("out")) == before


def own_rows(rows: int) -> list[str]:
    """Data of one's own, and no sizes given."""
    words = [f"word {i}" for i in range(rows)]
    sentences(Path("few"), words, words[:9])
    return ["task=sst2", "data=local", "data.path=few", "task.num_train=null", "task.num_dev=null"]


def test_few_rows_of_ones_own_are_enough_and_a_try_that_came_to_nothing_blocks_no_other(
    lezo_run: Runner,
) -> None:
    own = own_rows(30)
    failed = lezo_run(*own, "task.num_dev=500")
    failed.refused("30 train rows", "task.num_dev=500", "task.demos=0", "leave none to train on")
    assert failed.result["steps"] == 0 and "to resume" not in failed.out
    ran = lezo_run(*own)  # neither another setting nor resume=off is in the way
    assert (ran.code, ran.result["examples"]) == (0, {"train": 20, "dev": 10, "test": 8})
    assert (
        "train and dev from train.jsonl, test from val.jsonl; few rows: 10 of them are dev, not 500"
        in ran.out
    )
    assert json.loads((ran.folder / "environment.json").read_text())["earlier"] == []
    lezo_run(*own).refused(HELD)  # that one made steps


def test_a_try_that_came_to_nothing_goes_on_with_other_data(
    lezo_run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [*own_rows(30), "resume=auto"]
    with monkeypatch.context() as patch:
        ctrl_c_in_evaluation(patch, 2)
        stopped = lezo_run(*own)
    assert stopped.code == 130 and (stopped.folder / "journal.bin").exists()
    own_rows(36)
    again = lezo_run(*own)
    assert (again.code, again.result["examples"]["dev"]) == (0, 12)


def test_a_try_that_came_to_nothing_leaves_no_prefix_to_a_run_on_other_weights(
    lezo_run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    little_model("one")
    own = [*OTHER_MODEL, "peft=prefix", "data=sample"]
    shutil.copytree("one", "other")
    heavier("other")
    with monkeypatch.context() as patch:
        ctrl_c_in_evaluation(patch, 2)
        assert lezo_run(*own, "model.path=one").code == 130
    again = lezo_run(*own, "model.path=other", "resume=auto")
    fresh = lezo_run(*own, "model.path=other", folder="fresh")
    assert (again.code, again.result["weights"]) == (0, fresh.result["weights"])


def test_a_run_whose_journal_alone_knows_of_its_steps_is_never_replaced(lezo_run: Runner) -> None:
    ran = unfinished(lezo_run.once())
    (ran.folder / "metrics.jsonl").write_text("")
    lezo_run("seed=1").refused(HELD)


def test_a_scored_run_and_a_benchmark_are_never_replaced(lezo_run: Runner) -> None:
    lezo_run.once("optim=none")
    lezo_run("optim=none", "seed=1").refused(HELD)
    Path("bench").mkdir()
    Path("bench/config.yaml").write_text("seed: 0\n")
    Path("bench/metrics.jsonl").write_text('{"round": 1, "seconds": 2.0}\n')
    lezo_run(folder="bench").refused("bench: ", "resume=auto")


def test_a_run_that_had_its_sizes_said_keeps_them(lezo_run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """As all did before sizes could be left open: more rows than dev takes, and fewer than three times as many."""
    best_is(monkeypatch, "last", scored=False)  # 500 rows take their time
    own = own_rows(510)
    sizes = ["task.num_train=1000", "task.num_dev=500"]
    lezo_run(*own, *sizes)
    assert "10 train, 500 dev" in lezo_run(*own, *MORE, "dry_run=true").out
    more = lezo_run(*own, *MORE)
    assert more.code == 0 and more.result["examples"]["dev"] == 500
    assert "num_dev: 500" in (more.folder / "config.yaml").read_text()


def test_a_resumed_run_keeps_its_name_and_notes_unless_told_others(lezo_run: Runner) -> None:
    words = ("train.steps=2", "resume=auto")
    lezo_run(*words, "log.name=first", "log.notes=why, and how")
    kept = lezo_run("train.steps=3", "resume=auto")
    assert (kept.result["name"], kept.result["notes"]) == ("first", "why, and how")
    other = lezo_run("train.steps=4", "resume=auto", "log.name=second")
    assert (other.result["name"], other.result["notes"]) == ("second", "why, and how")
    gone = lezo_run("train.steps=5", "resume=auto", "log.notes=null")
    assert (gone.result["name"], gone.result["notes"]) == ("second", None)
