"""lezo-dashboard as its user types it."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from lezo.cli import dashboard
from lezo.config.schema import BoardConfig
from lezo.tracking.workspace import SECTIONS, WorkspaceError
from tests.lezo.whole_runs import imported_by, typed

Dashboard = Callable[..., tuple[int, str, str]]


@pytest.fixture
def lezo_dashboard(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Dashboard:
    return typed("lezo-dashboard", dashboard.main, monkeypatch, capsys)


def test_a_dry_run_prints_every_panel_and_imports_no_wandb() -> None:
    words = ["board.dry_run=true", "board.project=mine"]
    code = imported_by("lezo.cli.dashboard", "wandb", "torch")
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == 'workspace "lezo" of project mine: 22 panels in 6 sections' and lines[-1] == "[]"
    assert all(any(panel.title in line for line in lines) for some in SECTIONS.values() for panel in some)


def test_what_was_made_is_said_by_its_address(
    lezo_dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lezo.tracking.workspace.save", lambda *given: f"https://w.b/{given}")
    assert lezo_dashboard("board.entity=me", "board.project=p") == (
        0,
        "https://w.b/('lezo', 'me', 'p')\n",
        "",
    )


def test_the_place_is_the_one_that_wandb_has_been_told(
    lezo_dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lezo.tracking.workspace.save", lambda *given: str(given))
    monkeypatch.setenv("WANDB_ENTITY", "team")
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    assert lezo_dashboard()[1] == "('lezo', 'team', 'theirs')\n"
    assert lezo_dashboard("board.project=p", "board.entity=me")[1] == "('lezo', 'me', 'p')\n"
    for name in ("WANDB_ENTITY", "WANDB_PROJECT"):
        monkeypatch.delenv(name)
    assert lezo_dashboard()[1] == "('lezo', None, 'lezo')\n"


def test_what_could_not_be_made_is_said_in_a_line(
    lezo_dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> str:
        raise WorkspaceError("me/p: no workspace made")

    monkeypatch.setattr("lezo.tracking.workspace.save", fails)
    assert lezo_dashboard() == (1, "", "error: me/p: no workspace made\n")


def test_without_an_account_the_way_to_one_is_said(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    done = subprocess.run(
        [sys.executable, "-m", "lezo.cli.dashboard", "board.entity=me"],
        env={**environment, "HOME": str(tmp_path), "NETRC": str(tmp_path / "none")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: me/lezo: no workspace made (No API key configured")
    assert "wandb login" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("wrong", ["board.style=x", "board.dry_run=perhaps", "lezo"])
def test_a_word_that_is_no_option_is_refused(lezo_dashboard: Dashboard, wrong: str) -> None:
    code, out, err = lezo_dashboard(wrong)
    assert (code, out) == (2, "") and err.startswith(f"error: {wrong}: ")


def test_help_says_every_option(lezo_dashboard: Dashboard) -> None:
    code, out, _ = lezo_dashboard("--help")
    assert code == 0 and all(f"board.{field.name}" in out for field in fields(BoardConfig))
