"""Sweeps by one of Hydra's own launchers, which may run the jobs in processes of its own."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from lezo import run
from lezo.launched import LaunchedRun

CODE = """
import pickle, sys
from omegaconf import OmegaConf
task = pickle.loads(sys.stdin.buffer.read())
assert callable(task) and OmegaConf.has_resolver("lezo_job")
"""


def test_a_launchers_process_knows_how_jobs_are_named() -> None:
    subprocess.run([sys.executable, "-c", CODE], input=pickle.dumps(LaunchedRun()), check=True)


@pytest.mark.parametrize(
    ("given", "handed_over"), [([], ["resume=auto"]), (["resume=off"], []), (["+resume=auto"], [])]
)
def test_its_jobs_go_on_too(
    given: list[str], handed_over: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["lezo-run", "-m", "hydra/launcher=basic", "seed=0,1", *given]
    monkeypatch.setattr(sys, "argv", [*arguments])
    monkeypatch.setattr("lezo.launched.hand_over", lambda: None)
    with pytest.raises(SystemExit) as ended:
        run.main()
    assert ended.value.code == (2 if given == ["+resume=auto"] else 0)
    assert sys.argv == [*arguments, *handed_over]
    assert not os.listdir(tmp_path)
