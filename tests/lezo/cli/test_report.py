"""lezo-report as its user types it."""

import os
import signal
import subprocess
import sys
import time
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
    monkeypatch.chdir(tmp_path)
    return typed("lezo-report", report.main, monkeypatch, capsys)


def test_runs_in_the_working_folder_are_reported_there(lezo_report: Report, tmp_path: Path) -> None:
    finished(tmp_path / "runs" / "rte" / "a")
    write(tmp_path / "runs" / "sst2" / "b", config(task__name="sst2"), rows((0.7,)))
    code, out, err = lezo_report()
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "wrote report.html",
        "wrote results.md",
        "wrote results.csv",
        "2 runs: 1 finished, 1 unfinished",
    ]
    assert "sst2 (sample)" in Path("results.md").read_text()
    assert "sst2 (sample)" in Path("results.csv").read_text()
    assert "runs/sst2/b" in Path("report.html").read_text()


def test_folders_and_options_mix(lezo_report: Report, tmp_path: Path) -> None:
    finished(tmp_path / "one")
    finished(tmp_path / "report.old", seed=1)
    code, out, _ = lezo_report("one", "report.out=deep/er", "report.old", "report.target_score=0.65")
    assert code == 0 and "2 runs: 2 finished" in out
    assert "a dev score of 65 %" in Path("deep/er/results.md").read_text()
    assert sorted(file.name for file in Path("deep/er").iterdir()) == [
        "report.html",
        "results.csv",
        "results.md",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere"], 2, "nowhere: no such folder"),
        (["report.style=x"], 2, "report.style=x: unknown option; expected one value for one of report.out"),
        (["report.watch=perhaps"], 2, "report.watch=perhaps: expected true or false"),
        (["report.target_score=90"], 2, "report.target_score=90.0: expected a fraction from 0 to 1"),
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


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    finished(tmp_path / "runs" / "a")
    code = imported_by("lezo.cli.report", "torch", "transformers")
    environment = os.environ | {"PYTHONPATH": str(Path(report.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-2:] == ["1 run: 1 finished", "[]"]


def test_watching_follows_runs_until_ctrl_c(tmp_path: Path) -> None:
    write(tmp_path / "runs" / "a", config(), rows((0.7,)))
    command = [sys.executable, "-m", "lezo.cli.report", "report.watch=true", "report.every=1"]
    environment = os.environ | {"PYTHONPATH": str(Path(report.__file__).parents[2])}
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # as from a terminal
    )
    try:
        page = tmp_path / "report.html"
        _wait(lambda: page.exists() and "1 unfinished" in page.read_text())
        assert 'http-equiv="refresh"' in page.read_text()
        finished(tmp_path / "runs" / "a")
        _wait(lambda: "1 run: 1 finished" in page.read_text())
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0 and "1 run: 1 finished" in out
    assert 'http-equiv="refresh"' not in page.read_text()


def _wait(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < end, "not reached within a minute"
        time.sleep(0.1)
