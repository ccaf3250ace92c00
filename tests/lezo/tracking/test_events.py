"""TensorBoard reads a run's rows, each step once."""

from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from lezo.config.compose import compose
from lezo.config.schema import ConfigError
from lezo.records.rows import DevRow, TestRow, TrainRow
from lezo.tracking.events import EVENTS, EventFiles
from tests.lezo.refusals import refused
from tests.lezo.whole_runs import Runner

pytest.importorskip("tensorboard", reason="pip install 'lezo[tensorboard]'")
WARNS = "ignore::DeprecationWarning"


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: each name's steps and values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / EVENTS)).Reload()
    return {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


@pytest.mark.filterwarnings(WARNS)
def test_rows_come_under_the_names_of_wandb_at_their_steps(tmp_path: Path) -> None:
    files = EventFiles(tmp_path, [], pytest.fail)
    files.tested(TestRow(0, 0.0, 0.7, 0.25))
    for step in (1, 2):
        files.trained(TrainRow(step, 0.5, 0.5 * step, {"g": 2.0, "lr": 0.25}, False, {"forward": 0.125}))
    files.evaluated(DevRow(2, 0.5, 0.5, 0.75))
    files.close()
    found = read(tmp_path)
    assert found["train/loss"] == [(1, 0.5), (2, 1.0)] and found["time/forward"] == [(1, 0.125), (2, 0.125)]
    assert found["dev/score"] == [(2, 0.75)] and found["test/score"] == [(0, 0.25)]
    assert not {"step", "seconds", "forwards"} & set(found)


@pytest.mark.filterwarnings(WARNS)
def test_what_an_earlier_session_wrote_is_written_anew_as_far_as_it_lasts(tmp_path: Path) -> None:
    rows = [TrainRow(step, 0.5, float(step)) for step in (1, 2, 3)]
    killed = EventFiles(tmp_path, [], pytest.fail)
    for row in rows:  # the third step was made, and its record lost
        killed.trained(row)
    killed.close()
    again = EventFiles(tmp_path, rows[:2], pytest.fail)
    again.trained(TrainRow(3, 0.5, 30.0))
    again.close()
    assert read(tmp_path)["train/loss"] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert len(list((tmp_path / EVENTS).iterdir())) == 1


@pytest.mark.filterwarnings(WARNS)
def test_files_that_cannot_be_written_are_said_once_and_the_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / EVENTS).write_text("in the way")
    said: list[str] = []
    files = EventFiles(tmp_path, [TrainRow(1, 0.5, 1.0)], said.append)
    files.trained(TrainRow(2, 0.5, 1.0))
    files.close()
    (line,) = said
    assert line.startswith("TensorBoard's files end here (") and line.endswith(
        "the run folder has everything"
    )


@pytest.mark.filterwarnings(WARNS)
def test_a_run_that_goes_on_has_each_step_once(lezo_run: Runner) -> None:
    words = ["log.tensorboard=true", "train.eval_every=2"]
    assert lezo_run(*words, "train.steps=2").code == 0
    ran = lezo_run(*words, "train.steps=4", "resume=auto")
    found, result = read(ran.folder), ran.result
    assert found["train/loss"] == [(row["step"], pytest.approx(row["loss"])) for row in ran.training()]
    assert [step for step, _ in found["dev/loss"]] == [0, 2, 4]
    tests = [(0, result["zero_shot"]), (result["best_step"], result["test"])]
    assert found["test/score"] == [(step, pytest.approx(score)) for step, score in tests]


@pytest.mark.parametrize("spec", [None, ModuleSpec("tensorboard", None)])
def test_without_the_package_the_way_to_it_is_said(spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a folder of that name lies in Python's path."""
    monkeypatch.setattr("lezo.config.checks.find_spec", lambda name: spec)
    with refused(ConfigError, "log.tensorboard=true: ", "pip install 'lezo[tensorboard]'"):
        compose(["log=tensorboard"])
