"""One row a run: what its columns are called and hold."""

import csv
import io
import json
import re
from pathlib import Path

from pyarrow import parquet

from lezo.records.reader import Reader
from lezo.report.runs_table import as_csv, as_parquet, rows_of_runs
from tests.lezo.run_folders import config, finished, result, rows, write


def read(folder: Path) -> tuple[list[dict[str, str]], list[dict[str, object]]]:
    """As CSV and as Parquet."""
    made = rows_of_runs(Reader().runs([folder]), lambda run: "runs")
    text = [*csv.DictReader(io.StringIO(as_csv(made)))]
    return text, parquet.read_table(io.BytesIO(as_parquet(made))).to_pylist()


def test_a_column_a_setting_whatever_the_method(tmp_path: Path) -> None:
    changes = {
        "optim__schedule": "linear",
        "data__path": "a, b.csv",
        "task__words": {"froh": "gut", "\u597d": "great"},
    }
    folder = finished(tmp_path / "a", **changes)
    write(tmp_path / "b", config(optim__name="fo-sgd", optim__momentum=0.9, seed=1), rows((0.7,)))
    ran_on = {"device": "AMD EPYC", "git_commit": "abc", "packages": {"torch": "2.13.0"}, "cpu_threads": 2}
    (folder / "environment.json").write_text(json.dumps(ran_on))
    text, typed = read(tmp_path)
    first, second = text
    assert all(re.fullmatch("[a-z][a-z0-9_]*", name) for name in first)
    assert (first["lr"], first["eps"], first["sparsity"], first["optim_schedule"]) == (
        "0.001",
        "0.001",
        "0.75",
        "linear",
    )
    assert (first["data_path"], json.loads(first["task_words"])["\u597d"]) == ("a, b.csv", "great")
    assert (first["commit"], first["device"], first["torch"], first["root"]) == (
        "abc",
        "AMD EPYC",
        "2.13.0",
        "runs",
    )
    assert (second["eps"], second["test"], second["optim_schedule"]) == ("", "", "")
    assert (second["optim_momentum"], second["status"]) == ("0.9", "unfinished")
    assert [row["eps"] for row in typed] == [0.001, None] and typed[0]["seed"] == 0
    assert typed[0]["model_random_weights"] is False and first["model_random_weights"] == "FALSE"
    assert typed[0]["peak_host_bytes"] == 2**30 and typed[0]["folder"] == str(folder)


def test_names_and_notes_are_the_results(tmp_path: Path) -> None:
    ended = result(name="rte-tiny-lezo-seed0", notes="smaller eps")
    write(tmp_path / "a", config(), rows(), ended)
    write(tmp_path / "b", config(), rows(), result(status="failed", diverged=True))
    (first, second), _ = read(tmp_path)
    assert (first["name"], first["notes"], first["status"]) == (
        "rte-tiny-lezo-seed0",
        "smaller eps",
        "finished",
    )
    assert (second["name"], second["notes"], second["status"]) == ("", "", "diverged")


def test_what_is_in_no_cell_is_missing_and_no_cell_is_a_formula(tmp_path: Path) -> None:
    folder = finished(tmp_path, model__name="hf", model__path="=evil()")
    (folder / "result.json").write_text(json.dumps({"status": "finished", "test": 1.0, "origin": None}))
    ((text,), (typed,)) = read(tmp_path)
    assert (text["model"], typed["model"]) == ("'=evil()", "=evil()")
    assert (text["weights_hash"], typed["weights_hash"], typed["error"], typed["test"]) == (
        "",
        None,
        None,
        1.0,
    )


def test_a_column_of_several_kinds_is_text_and_whole_numbers_stay_whole(tmp_path: Path) -> None:
    finished(tmp_path / "a", optim__lr=1, optim__clip="none", train__steps=10)
    finished(tmp_path / "b", optim__lr=0.5, optim__clip=2)
    _, (first, second) = read(tmp_path)
    assert (first["lr"], second["lr"]) == (1.0, 0.5)
    assert (first["optim_clip"], second["optim_clip"]) == ("none", "2")
    assert (first["steps"], second["steps"]) == (10, 20000)


def test_a_name_that_is_no_text_and_a_number_beyond_all_are_kept_as_far_as_they_go(tmp_path: Path) -> None:
    finished(tmp_path / "a\udcff", train__steps=10**30)
    ((text,), (typed,)) = read(tmp_path)
    assert (typed["steps"], text["steps"]) == (str(10**30), str(10**30))
    assert str(typed["folder"]).endswith("a?") and text["folder"].endswith("a\ufffd")
