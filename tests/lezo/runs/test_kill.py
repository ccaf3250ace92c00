"""SIGKILL at random moments, then resume=auto: the end is bit for bit that of a run never killed.

The tests kill a run of LeZO twice; `pytest -m slow` kills each optimizer's twenty times.
"""

from pathlib import Path

import pytest

from tests.lezo.runs import killing
from tests.lezo.sweeps.forked import Forked


def kill(folder: Path, optim: str, kills: int) -> None:
    code, out = Forked(lambda: killing.main(folder, optim, kills, 1) or 0).ended(600)
    assert code == 0, out
    assert f"{optim}: {kills} kills, every end the same" in out


def test_two_kills_change_nothing(tmp_path: Path) -> None:
    kill(tmp_path, "lezo", 2)


@pytest.mark.slow
@pytest.mark.parametrize("optim", ["lezo", "over-two", "lezo-disk", "mezo", "fo-sgd", "fo-adamw"])
def test_twenty_kills_change_nothing(optim: str, tmp_path: Path) -> None:
    kill(tmp_path, optim, 20)
