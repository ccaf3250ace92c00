"""SIGKILL at random moments, then resume=auto: the end is bit for bit that of a run never killed.

The tests kill a run of LeZO twice; `pytest -m slow` kills each optimizer's twenty times.
"""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killing.py")


def kill(folder: Path, optim: str, kills: int) -> None:
    command = [sys.executable, str(SCRIPT), str(folder), optim, str(kills), "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{optim}: {kills} kills, every end the same" in done.stdout


def test_two_kills_change_nothing(tmp_path: Path) -> None:
    kill(tmp_path, "lezo", 2)


@pytest.mark.slow
@pytest.mark.parametrize("optim", ["lezo", "lezo-disk", "mezo", "fo-sgd", "fo-adamw"])
def test_twenty_kills_change_nothing(optim: str, tmp_path: Path) -> None:
    kill(tmp_path, optim, 20)
