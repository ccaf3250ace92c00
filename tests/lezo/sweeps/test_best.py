"""Which run is the best of its kind by dev loss."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lezo.config.schema import ConfigError
from lezo.sweeps.best import Ended, best_below, best_runs, best_text
from tests.lezo.refusals import refused

KNOWN = {
    "status": "finished",
    "title": "rte (sample)",
    "model": "tiny",
    "optim": "lezo",
    "metric": "accuracy",
}
KNOWN |= {"dev_loss": 0.5, "dev": 0.75, "test": 0.7, "lr": 1e-3, "seed": 0, "data_seed": 0}
KNOWN |= {"command": "lezo-run", "examples": {"dev": 8}}


def run(name: str, **changes: Any) -> Ended:
    """A finished run of LeZO in a folder of that name."""
    return Ended(Path(name), KNOWN | changes, name)


def chosen(*runs: Ended) -> list[str]:
    return [best.run.label for best in best_runs(runs)]


def test_the_lowest_dev_loss_is_best_whatever_the_scores_are() -> None:
    assert chosen(run("a"), run("b", dev_loss=0.4, dev=0.1, test=0.1), run("c", dev=1.0, test=1.0)) == ["b"]


def test_of_equals_it_is_the_first_and_that_is_said() -> None:
    assert chosen(run("a"), run("b")) == ["a"]
    assert "of 2 runs, the first of 2 equals" in best_text([run("a"), run("b")])


def test_each_task_model_and_method_has_its_own() -> None:
    others = [run("b", optim="mezo"), run("c", peft="lora"), run("d", model="x"), run("e", title="sst2")]
    assert chosen(run("a"), *others) == ["a", "b", "c", "d", "e"]


def test_without_a_dev_loss_the_dev_score_chooses_and_the_test_score_never() -> None:
    assert chosen(run("a", dev_loss=None), run("b", dev_loss=None, dev=0.8)) == ["b"]
    perplexities = {"a": 9.0, "b": math.inf, "c": 2.0}
    kind = {"dev_loss": None, "metric": "perplexity"}
    assert chosen(*(run(name, **kind, dev=dev) for name, dev in perplexities.items())) == ["c"]
    assert chosen(run("a", dev_loss=None), run("b", dev=0.1)) == ["b"]  # which has a loss
    assert chosen(run("a", dev_loss=None, dev=None)) == []
    assert best_text([run("a", dev_loss=None, dev=None)]).startswith("best: no run ")


def test_other_dev_rows_are_named() -> None:
    assert "whose dev rows differ" in best_text([run("a"), run("b", data_seed=1)])
    assert "whose dev rows differ" in best_text([run("a"), run("b", examples={"dev": 9})])
    assert "differ" not in best_text([run("a"), run("b", seed=1)])


def test_the_command_is_the_one_that_makes_its_model(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    text = best_text([run(str(folder), optim="fo-sgd")])
    assert "  model   lezo-run save_model=true resume=auto 'hydra.run.dir=" in text
    assert "nothing was trained" in best_text([run(str(folder), optim="none")])
    (folder / "journal.bin").touch()
    assert f"  model   lezo-replay '{folder}'" in best_text([run(str(folder))])
    (folder / "model").mkdir()
    assert f"{folder}/model (written already)" in best_text([run(str(folder))])


def write(*runs: Ended) -> None:
    for one in runs:
        one.folder.mkdir(parents=True)
        (one.folder / "result.json").write_text(json.dumps(one.result))


def test_the_best_below_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, failed = (str(tmp_path / "runs" / name) for name in "abc")
    write(run(a), run(b, dev_loss=0.4), run(failed, status="failed", dev_loss=0.1))
    assert best_below(tmp_path) == Path(b)
    assert "lr 0.001, seed 0 (of 2 runs)" in capsys.readouterr().out
    write(run(str(tmp_path / "mezo"), optim="mezo"))
    with refused(ConfigError, f"{tmp_path}: ", "runs of 2 ", "one of the commands above"):
        best_below(tmp_path)
    assert capsys.readouterr().out.count("  model   ") == 2


def test_folders_without_one_are_refused(tmp_path: Path) -> None:
    with refused(ConfigError, f"{tmp_path}/no: ", "no such folder", "sweep"):
        best_below(tmp_path / "no")
    with refused(ConfigError, f"{tmp_path}: ", "no finished run"):
        best_below(tmp_path)
    write(run(str(tmp_path / "a"), dev_loss=None, dev=None))
    with refused(ConfigError, f"{tmp_path}: ", "none of its 1 finished runs", "lezo-replay RUN"):
        best_below(tmp_path)
