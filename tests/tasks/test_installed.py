"""module:Name of a setting: found where pip installs, and nowhere else."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lezo.tasks.installed import installed
from lezo.tasks.metrics import MetricError, installed_metric
from lezo.tasks.task import TaskError

MODULE = """
def right(predictions, references):
    return sum(p in r for p, r in zip(predictions, references)) / len(predictions)

def percent(predictions, references):
    return 100 * right(predictions, references)

def broken(predictions, references):
    return {}["key"]

number = 7
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where packages are installed, beside a working folder."""
    (folder := tmp_path / "site").mkdir()
    (work := tmp_path / "work").mkdir()
    monkeypatch.chdir(work)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr("lezo.tasks.installed.site.getsitepackages", lambda: [str(folder)])
    (folder / "mine_own.py").write_text(MODULE)
    yield folder
    installed_metric.cache_clear()
    for name in [name for name in sys.modules if name.startswith("mine_")]:
        del sys.modules[name]


def test_what_is_installed_is_found(site: Path) -> None:
    assert installed("task.metric", "mine_own:number") == 7


def test_a_folder_that_pip_installed_as_it_stands_counts(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "mine_edited.py").write_text("number = 8")
    monkeypatch.syspath_prepend(tmp_path / "src")
    with pytest.raises(TaskError, match="not installed"):
        installed("task.class", "mine_edited:number")
    (about := site / "mine-1.0.dist-info").mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    where = {"url": tmp_path.joinpath("src").as_uri(), "dir_info": {"editable": True}}
    (about / "direct_url.json").write_text(json.dumps(where))
    assert installed("task.class", "mine_edited:number") == 8
    (about / "direct_url.json").unlink()
    (site / "mine.pth").write_text(f"# theirs\n{tmp_path / 'src'}\n")
    assert installed("task.class", "mine_edited:number") == 8


def test_the_working_folder_hides_nothing_that_is_installed(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mine_own.py").write_text("raise SystemExit('run')")
    monkeypatch.syspath_prepend(Path.cwd())
    monkeypatch.syspath_prepend("")
    assert installed("task.metric", "mine_own:number") == 7
    assert sys.path[0] == ""


REFUSED = {
    "mine_own": "task.class=mine_own: expected module:Name, as mypackage.mymodule:MyTask",
    "../rows/mine:Task": "task.class=../rows/mine:Task: expected module:Name, as mypackage.mymodule:MyTask",
    "mine_nowhere:Task": "task.class=mine_nowhere:Task: no package mine_nowhere is installed; pip install the one it is in",
    "mine_own:Task": "task.class=mine_own:Task: module 'mine_own' has no attribute 'Task'",
    "mine_bad:Task": "task.class=mine_bad:Task: cannot be imported (ZeroDivisionError: division by zero)",
    "mine_own.deeper:Task": "task.class=mine_own.deeper:Task: cannot be imported (ModuleNotFoundError: No module named "
    "'mine_own.deeper'; 'mine_own' is not a package)",
    "shutil:rmtree": "task.class=shutil:rmtree: is a part of Python itself; expected module:Name of an installed package",
    "builtins:eval": "task.class=builtins:eval: is a part of Python itself; expected module:Name of an installed package",
    "os:getcwd": "task.class=os:getcwd: is a part of Python itself; expected module:Name of an installed package",
}


@pytest.mark.parametrize("spec", REFUSED)
def test_all_else_is_refused_with_the_reason(spec: str, site: Path) -> None:
    (site / "mine_bad.py").write_text("1 / 0")
    with pytest.raises(TaskError) as refused:
        installed("task.class", spec)
    assert str(refused.value) == REFUSED[spec]


@pytest.mark.parametrize("where", ["work", "rows"])
def test_nothing_beside_a_command_or_its_data_is_run(
    where: str, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows").mkdir(exist_ok=True)
    (tmp_path / where / "mine_near.py").write_text("raise SystemExit('run')")
    (tmp_path / where / "mine_space").mkdir()
    monkeypatch.syspath_prepend(tmp_path / where)
    for spec in ("mine_near:Task", "mine_space:Task"):
        with pytest.raises(TaskError, match="installed|no module with a file"):
            installed("task.class", spec)


def test_a_metric_of_a_package_gives_a_number_from_all_answers(site: Path) -> None:
    assert installed_metric("mine_own:right")(["a", "b"], [("a", "c"), ("c",)]) == 0.5
    with pytest.raises(TaskError, match="expected a function of predictions and references"):
        installed_metric("mine_own:number")
    with pytest.raises(MetricError) as refused:
        installed_metric("mine_own:percent")(["a"], [("a",)])
    assert str(refused.value) == (
        "task.metric=mine_own:percent: gave 100, expected a number from -1 to 1, higher is better (0.85, not 85)"
    )
    with pytest.raises(MetricError, match="task.metric=mine_own:broken: KeyError: 'key'"):
        installed_metric("mine_own:broken")(["a"], [("a",)])
