"""Several folders of runs side by side."""

import json
from pathlib import Path

import pytest

from lezo.records.reader import Reader
from lezo.report.cells import Table
from lezo.report.condensed import condensed
from lezo.report.groups import group_runs
from lezo.report.roots import naming, root_names, side_by_side
from tests.lezo.run_folders import finished


def beside(*roots: Path) -> list[Table]:
    return side_by_side(Reader().runs(roots), naming(roots), [*root_names(roots).values()])


def told(table: Table) -> list[dict[str, str]]:
    return [dict(zip(table.columns, (cell.text for cell in row), strict=True)) for row in table.rows]


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, Path]:
    """Three seeds of lezo in the old folder and two of them, better, in the new one, where mezo is besides."""
    for seed, test in enumerate((0.5, 0.6, 0.7)):
        finished(tmp_path / "old" / str(seed), seed=seed, test=test)
    for seed, test in enumerate((0.6, 0.8)):
        finished(tmp_path / "new" / str(seed), seed=seed, test=test)
    finished(tmp_path / "new" / "mezo", optim__name="mezo", test=0.9)
    return tmp_path / "old", tmp_path / "new"


def test_roots_go_by_the_parts_that_tell_them_apart() -> None:
    assert [*root_names([Path("/a/old"), Path("/a/new/")]).values()] == ["old", "new"]
    assert [*root_names([Path("/a/runs"), Path("/b/runs")]).values()] == ["a/runs", "b/runs"]


def test_the_difference_is_of_the_seeds_that_both_have(roots: tuple[Path, Path]) -> None:
    (table,) = beside(*roots)
    lezo, mezo = told(table)
    assert table.title == "new beside old"
    assert [row["method"] for row in table.about] == ["lezo", "mezo"]
    assert (lezo["test % in old"], lezo["test % in new"]) == ("60.0 ± 10.0", "70.0 ± 14.1")
    assert (lezo["difference"], lezo["paired seeds"], lezo["p"]) == ("+15.0 ± 7.1", "2", "0.2")
    assert (lezo["seeds in old"], lezo["seeds in new"], lezo["settings that differ"]) == ("3", "2", "-")
    assert (mezo["difference"], mezo["test % in old"], mezo["test % in new"]) == ("-", "-", "90.0")


def test_settings_that_differ_as_a_whole_are_named_and_others_tell_rows_apart(tmp_path: Path) -> None:
    for root, steps in (("old", 100), ("new", 200)):
        for rate in (0.1, 0.2):
            finished(
                tmp_path / root / str(rate), optim__lr=rate, train__steps=steps, test=rate + steps / 1000
            )
    (table,) = beside(tmp_path / "old", tmp_path / "new")
    assert [row["difference"] for row in told(table)] == ["+10.0", "+10.0"]
    assert [row["setting"] for row in told(condensed(table))] == ["lr 0.1", "lr 0.2"]
    assert "settings that differ train.steps 100 \u2192 200" in condensed(table).above


def test_what_made_them_is_named_where_it_differs(roots: tuple[Path, Path]) -> None:
    for root, commit in zip(roots, ("abc", "def"), strict=True):
        for folder in root.iterdir():
            ran_on = {"git_commit": commit, "device": "AMD EPYC", "packages": {"torch": "2.13.0"}}
            (folder / "environment.json").write_text(json.dumps(ran_on))
    (table,) = beside(*roots)
    assert [*table.notes][1:] == ["Commit: abc in old; def in new."]


def test_one_folder_or_folders_of_other_runs_have_no_such_table(tmp_path: Path) -> None:
    finished(tmp_path / "old" / "a")
    finished(tmp_path / "new" / "a", task__name="sst2")
    assert beside(tmp_path / "old") == [] and beside(tmp_path / "old", tmp_path / "new") == []


def test_a_seed_in_both_folders_is_no_repetition_and_other_seeds_are_samples(
    roots: tuple[Path, Path],
) -> None:
    groups = group_runs(Reader().runs(roots), naming(roots))
    lezo = [group for group in groups if group.method == "lezo"]
    assert [(group.said["root"], len(group.finished)) for group in lezo] == [("new", 2), ("old", 3)]
    finished(roots[0].parent / "more" / "3", seed=3)
    apart = (roots[0], roots[0].parent / "more")
    (one,) = group_runs(Reader().runs(apart), naming(apart))
    assert len(one.finished) == 4 and "root" not in one.said
