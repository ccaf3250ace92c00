"""What is told of how runs were made: exactly the commands, in few lines, and each machine once."""

import json
from pathlib import Path

from lezo.records.reader import Reader, Run
from lezo.report.made import commands, machines
from tests.lezo.run_folders import finished


def runs_of(folder: Path, *environments: dict[str, object]) -> list[Run]:
    for number, environment in enumerate(environments):
        (finished(folder / f"{number:02}", seed=number) / "environment.json").write_text(
            json.dumps(environment)
        )
    return Reader().runs([folder])


def typed(folder: Path, *lines: str) -> list[str]:
    return commands(runs_of(folder, *({"command": line} for line in lines)))


def test_commands_that_differ_in_values_are_one_sweep(tmp_path: Path) -> None:
    each = [
        f"lezo-run task={task} seed={seed} sweep.best=True log.group=sweep-1"
        for task in ("rte", "cb")
        for seed in (0, 1)
    ]
    assert typed(tmp_path, *each) == ["lezo-run -m task=rte,cb seed=0,1"]


def test_no_command_is_told_that_nobody_gave(tmp_path: Path) -> None:
    found = typed(tmp_path, "lezo-run a=1 b=1", "lezo-run a=1 b=2", "lezo-run a=2 b=1")
    assert sorted(found) == ["lezo-run -m a=1 b=1,2", "lezo-run a=2 b=1"]


def test_values_that_a_sweep_would_take_apart_and_quotes_stay_as_they_are(tmp_path: Path) -> None:
    each = [
        "lezo-run 'task.words={a: great, b: bad}' seed=0",
        "lezo-run 'task.words={a: good, b: bad}' seed=0",
        "'",
    ]
    assert typed(tmp_path, *each) == each[:2]


def test_of_many_commands_the_first_are_told_and_how_many_more(tmp_path: Path) -> None:
    found = typed(tmp_path, *(f"lezo-run k{number}=1" for number in range(14)))
    assert len(found) == 13 and found[-1].startswith("# and 2 more")


def test_a_line_a_machine_with_its_runs_where_they_differ(tmp_path: Path) -> None:
    one = {
        "device": "H100",
        "packages": {"torch": "2.13.0"},
        "git_commit": "0123456789abcdef+changes",
        "cuda": "13",
    }
    line = "H100, CUDA 13, torch 2.13.0, commit 0123456789ab+changes"
    assert machines(runs_of(tmp_path / "same", one, one)) == [line]
    assert machines(runs_of(tmp_path / "two", one, one, {"device": "CPU"})) == [
        f"{line} (2 runs)",
        "CPU (1 run)",
    ]
    assert machines(runs_of(tmp_path / "damaged", {"packages": 3, "git_commit": None})) == ["unknown device"]
