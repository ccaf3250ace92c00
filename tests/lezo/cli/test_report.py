"""lezo-report as its user types it."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lezo.cli import report
from tests.lezo.run_folders import config, finished, rows, write
from tests.lezo.whole_runs import imported_by, typed

Report = Callable[..., tuple[int, str, str]]


@pytest.fixture
def lezo_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Report:
    """The command in an empty folder; it draws nothing, as the plots have tests of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lezo.report.write.plots", lambda groups, files: [])
    return typed("lezo-report", report.main, monkeypatch, capsys)


def test_runs_in_the_working_folder_are_reported_there_without_torch(tmp_path: Path) -> None:
    finished(tmp_path / "runs" / "rte" / "a")
    write(tmp_path / "runs" / "sst2" / "b", config(task__name="sst2"), [])
    code = imported_by("lezo.cli.report", "torch", "transformers")
    environment = os.environ | {"PYTHONPATH": str(Path(report.__file__).parents[2])}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    files = ["report.html", "results.md", "results.csv"]
    drawn = len([*(tmp_path / "figures").iterdir()])
    folders = (f"figures/ ({drawn} files)", "tables/ (10 files)")
    wrote = [f"wrote {name}" for name in (*files, "results.parquet", *folders)]
    assert done.stdout.splitlines() == [*wrote, "2 runs: 1 finished, 1 unfinished", "[]"] and drawn > 10
    assert all("sst2" in (tmp_path / name).read_text() for name in files)
    assert "runs/sst2/b" in (tmp_path / "report.html").read_text()
    page = (tmp_path / "report.html").read_text()
    links = re.findall(r'href="(figures/[^"]*|runs/[^"]*)"', page)
    assert (
        "<figure" in page and len({*links}) == drawn + 2 and all((tmp_path / link).exists() for link in links)
    )


def test_folders_and_options_mix(lezo_report: Report, tmp_path: Path) -> None:
    finished(tmp_path / "one")
    finished(tmp_path / "report.old", seed=1)
    code, out, _ = lezo_report("one", "report.out=deep/er", "report.old", "report.target_score=0.65")
    assert code == 0 and "2 runs: 2 finished" in out
    assert "a dev score of 65 %" in Path("deep/er/results.md").read_text()
    code, _, err = lezo_report("one", "report.target_score=90")
    assert code == 2 and err.startswith("error: report.target_score=90: no run's scores are perplexities")
    files = sorted(file.name for file in Path("deep/er").iterdir())
    assert files == ["report.html", "results.csv", "results.md", "results.parquet", "tables"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere"], 2, "nowhere: no such folder"),
        (["report.style=x"], 2, "report.style=x: unknown option; expected one value for one of report.out"),
        (["report.watch=perhaps"], 2, "report.watch=perhaps: expected true or false"),
        (
            ["report.target_score=-1"],
            2,
            "report.target_score=-1.0: expected a fraction from 0 to 1, or a perplexity",
        ),
        (["report.target_score=0.9", "report.target_loss=0.1"], 2, "expected one target"),
        (["report.every=0"], 2, "report.every=0: expected at least 1 second"),
        (["."], 1, ".: no run below; expected folders with config.yaml"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    lezo_report: Report, arguments: list[str], code: int, said: str
) -> None:
    found = lezo_report(*arguments)
    assert found[0] == code and found[1] == ""
    assert found[2].startswith("error: ") and said in found[2] and found[2].count("\n") == 1


def test_a_place_that_cannot_be_written_to_is_named(lezo_report: Report, tmp_path: Path) -> None:
    finished(tmp_path / "runs")
    Path("file").write_text("")
    code, _, err = lezo_report("report.out=file")
    assert code == 1 and err.startswith("error: file") and "report.out=DIR" in err


def test_help_says_every_option(lezo_report: Report) -> None:
    from dataclasses import fields

    from lezo.config.schema import ReportConfig

    code, out, _ = lezo_report("--help")
    assert code == 0 and all(f"report.{field.name}" in out for field in fields(ReportConfig))


def test_watching_follows_runs_until_ctrl_c(
    lezo_report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "runs" / "a", config(), rows((0.7,)))
    seen: list[tuple[str, bool]] = []

    def waited(seconds: float) -> None:
        """While it waits: look at the page; first the run ends, then nothing happens, then its user types Ctrl-C."""
        page = Path("report.html")
        text = page.read_text()
        seen.append((str(page.stat().st_mtime_ns), 'http-equiv="refresh" content="1"' in text))
        if len(seen) == 1:
            assert "1 run: 1 unfinished" in text
            finished(tmp_path / "runs" / "a")
        if len(seen) == 3:
            assert "1 run: 1 finished" in text
            raise KeyboardInterrupt

    monkeypatch.setattr("lezo.report.write.time.sleep", waited)
    code, out, _ = lezo_report("report.watch=true", "report.every=1")
    assert code == 0 and out.splitlines()[-1] == "1 run: 1 finished"
    assert [reloads for _, reloads in seen] == [True] * 3 and seen[0] != seen[1] == seen[2]
    assert 'http-equiv="refresh"' not in Path("report.html").read_text()
