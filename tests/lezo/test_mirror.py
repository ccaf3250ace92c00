"""wandb sees what the files hold, and can neither stall nor end a run."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from lezo import mirror
from lezo.evaluate import Evaluation
from lezo.optim import StepReport

SETTINGS = {"config": {"seed": 3}, "project": "p", "group": "sweep-1", "tags": ["rte"], "mode": "offline"}


def mirrored(folder: Path, said: list[str]) -> mirror.WandbMirror:
    return mirror.WandbMirror(folder, **SETTINGS, warn=said.append)


def write(to: mirror.WandbMirror) -> None:
    to.evaluated(0, 0.0, Evaluation(0.7, 0.5))
    to.trained(1, 0.5, StepReport(0.6, True, {"g": 2.0}))
    to.close({"test": 0.9})


def test_an_offline_run_reads_back_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    said: list[str] = []
    write(mirrored(tmp_path, said))
    assert said == []
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    leet = [Path(sys.executable).parent / "wandb", "leet", "inspect", "--json", run]
    text = subprocess.run(leet, capture_output=True, text=True, check=True, timeout=60).stdout
    for key in ("train/loss", "train/g", "train/memory", "dev/loss", "dev/score", "step", "seconds"):
        assert f'"{key}"' in text, key
    for value in ("sweep-1", "rte", "seed", "test"):
        assert f'"{value}"' in text, value
    assert all(json.loads(line) for line in text.splitlines())


def test_a_wandb_that_fails_is_said_once_and_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(**_: object) -> None:
        raise RuntimeError("no route to host")

    fake = SimpleNamespace(Settings=lambda **_: None, init=refuse)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    said: list[str] = []
    write(mirrored(tmp_path, said))
    assert len(said) == 1
    assert "no route to host" in said[0]


def test_a_wandb_that_hangs_does_not_stall_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake = SimpleNamespace(Settings=lambda **_: None, init=lambda **_: time.sleep(20))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(mirror, "_CLOSE_SECONDS", 0.2)
    said: list[str] = []
    start = time.monotonic()
    write(mirrored(tmp_path, said))
    assert time.monotonic() - start < 5
    assert "did not finish" in said[0]
