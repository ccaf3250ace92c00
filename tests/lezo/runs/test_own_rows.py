"""A run on rows of one's own: what it says of them, and that it goes on with these and with no others."""

import shutil
from pathlib import Path

import pytest

from tests.lezo.whole_runs import Runner

OWN = ["task=sst2", "data=local", "data.path=rows.csv", "data.columns={sentence: Text, label: Class}"]
SAID = "train and dev from rows.csv (60 rows), test from 12 of them, drawn (data.test_share=0.2)"


@pytest.fixture(autouse=True)
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [f"It is number {number},{('negative', 'positive')[number % 2]}" for number in range(60)]
    Path("rows.csv").write_text("\n".join(["Text,Class", *lines]))


def test_a_run_on_a_csv_goes_on_wherever_it_lies_and_not_on_other_rows(lezo_run: Runner) -> None:
    ran = lezo_run(*OWN)
    assert ran.code == 0 and f"  rows       {SAID}\n" in ran.out
    assert ran.result["title"] == "sst2 (local)" and ran.result["examples"] == {
        "train": 32,
        "dev": 8,
        "test": 8,
    }
    moved = [*OWN[:2], "data.path=moved/*.csv", OWN[3], "train.steps=5", "resume=auto"]
    Path("moved").mkdir()
    shutil.move("rows.csv", "moved/rows.csv")
    assert lezo_run(*moved).result["steps"] == 5
    content = Path("moved/rows.csv").read_text().replace("number", "figure")
    Path("moved/rows.csv").write_text(content)
    lezo_run(*moved, "train.steps=6").refused(
        "data (rows, prompts or their tokens): ", "in the run and", "here"
    )
    lezo_run(*moved, "data.test_share=0.3").refused("data.test_share was 0.2 and is 0.3")


def test_rows_that_cannot_be_read_end_the_run_in_one_line(lezo_run: Runner) -> None:
    with Path("rows.csv").open("a") as file:
        file.write("\nodd, one,positive\n")
    lezo_run(*OWN).refused("rows.csv, line 62: 3 cells, expected 2")
    lezo_run(*OWN[:2], "data.path=no.csv").refused("data.path=no.csv: no such file or folder", code=2)
    lezo_run(*OWN[:2], "data.path='*.tsv'").refused("data.path=*.tsv: matches no file")
