"""Settings that say the same in other words do not set runs apart, and those that say it of another dtype do."""

import json
from pathlib import Path
from typing import Any

import pytest

from lezo.records.reader import Reader
from lezo.report.groups import Group, group_runs
from tests.lezo.run_folders import config, result, rows, write


def run(folder: Path, *, origin: dict[str, str] | None = None, cuda: bool = False, **changes: Any) -> None:
    """A run of these settings, of the given origin if it has ended, on CUDA or on a CPU."""
    ended = None if origin is None else result(origin=origin)
    write(folder, config(**{"model__dtype": "auto", **changes}), rows(), ended)
    around = {"device": "a GPU", "cuda": "13.0"} if cuda else {"device": "a CPU"}
    (folder / "environment.json").write_text(json.dumps(around))


def read(folder: Path) -> list[Group]:
    return group_runs(Reader().runs([folder]))


def holds(weights: str = "w", data: str = "d", dtype: str = "float32") -> dict[str, str]:
    return {"weights": weights, "tokenizer": "t", "data": data, "dtype": dtype}


def test_runs_of_the_same_weights_and_rows_in_other_folders_are_samples_of_one_setting(
    tmp_path: Path,
) -> None:
    run(tmp_path / "a", origin=holds(), model__path="/server/model", data__path="/server/data")
    run(tmp_path / "b", origin=holds(), seed=1, model__path="model", data__path="data")
    run(tmp_path / "c", seed=2, model__path="model", data__path="data")  # not at its end: its folders tell
    (group,) = read(tmp_path)
    assert [seed for seed, _ in (one.seed for one in group.runs)] == ["0", "1", "2"]
    assert len(group.finished) == 2 and "path" not in group.setting


def test_places_that_hold_the_same_by_way_of_a_third_are_one(tmp_path: Path) -> None:
    run(tmp_path / "a", origin=holds(data="of seed 0"), data__path="x")
    run(tmp_path / "b", origin=holds(data="of seed 1"), data__path="y", task__data_seed=1)
    run(tmp_path / "c", origin=holds(data="of seed 1"), data__path="x", task__data_seed=1, seed=1)
    run(tmp_path / "d", origin=holds(data="of seed 2"), data__path="z", task__data_seed=2)
    assert sorted(len(group.runs) for group in read(tmp_path)) == [1, 3]


@pytest.mark.parametrize(
    ("other", "words"),
    [({"weights": "v"}, ["model.path a", "model.path b"]), ({"data": "e"}, ["data.path a", "data.path b"])],
)
def test_places_that_hold_something_else_set_runs_apart(
    other: dict[str, str], words: list[str], tmp_path: Path
) -> None:
    key = words[0].partition(" ")[0].replace(".", "__")
    run(tmp_path / "a", origin=holds(), **{key: "a"})
    run(tmp_path / "b", origin=holds(**other), **{key: "b"})
    assert [group.setting.partition("0.75, ")[2] for group in read(tmp_path)] == words


def test_the_same_hash_in_another_task_says_nothing_of_a_folder(tmp_path: Path) -> None:
    run(tmp_path / "a", origin=holds(), data__path="a", task__name="rte")
    run(tmp_path / "b", origin=holds(), data__path="b", task__name="rte")
    run(tmp_path / "c", origin=holds(data="e"), data__path="a", task__name="sst2")
    run(tmp_path / "d", origin=holds(data="f"), data__path="b", task__name="sst2")
    assert sorted(len(group.runs) for group in read(tmp_path)) == [1, 1, 2]


def test_the_same_weights_under_another_models_name_say_nothing_of_a_folder(tmp_path: Path) -> None:
    run(tmp_path / "a", origin=holds(), model__name="other", model__path="b")
    run(tmp_path / "b", origin=holds(), model__path="a")
    run(tmp_path / "c", origin=holds(weights="v"), model__path="b", seed=1)
    assert sorted(len(group.runs) for group in read(tmp_path)) == [1, 1, 1]


def test_a_dtype_left_open_is_the_one_that_the_weights_had(tmp_path: Path) -> None:
    run(tmp_path / "gpu", origin=holds("w16", dtype="float16"), cuda=True)
    run(tmp_path / "said", origin=holds("w16", dtype="float16"), seed=1, model__dtype="float16")
    run(tmp_path / "at work", cuda=True, seed=2)
    run(tmp_path / "cpu", origin=holds("w32"), seed=3)
    run(tmp_path / "cpu at work", seed=4)
    settings = {
        group.setting.rpartition(", ")[2]: [seed for seed, _ in (one.seed for one in group.runs)]
        for group in read(tmp_path)
    }
    assert settings == {"model.dtype float16": ["2", "0", "1"], "model.dtype float32": ["3", "4"]}


def test_gradients_at_work_on_cuda_have_weights_in_float32(tmp_path: Path) -> None:
    run(tmp_path / "a", origin=holds(), cuda=True, optim__name="fo-adamw")
    run(tmp_path / "b", cuda=True, optim__name="fo-adamw", seed=1)
    (group,) = read(tmp_path)
    assert group.settings["model.dtype"] == "float32"
