"""Weights & Biases sees a run, and can neither stall nor end it."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lezo.evaluate import Evaluation
from lezo.mirror import WandbMirror
from lezo.optim import StepReport

SECRET = "0123456789abcdef0123456789abcdef01234567"


def mirrored(folder: Path, *, patience: float = 30.0) -> tuple[list[str], float]:
    """Mirror a short run; the warnings and the seconds it took."""
    start, warnings = time.monotonic(), []  # type: tuple[float, list[str]]
    mirror = WandbMirror(
        folder,
        config={"seed": 0},
        project="lezo",
        group="a group",
        tags=["rte (sample)", "lezo"],
        mode="offline",
        run_id="0123abcd",
        warn=warnings.append,
        patience=patience,
    )
    mirror.evaluated(0, 0.0, Evaluation(0.7, 0.5))
    mirror.trained(1, 0.5, StepReport(0.6, True, {"g": 2.0, "lr": 0.1}))
    mirror.close({"test": 0.75, "seconds": {"total": 3.0}})
    return warnings, time.monotonic() - start


def fake(patch: pytest.MonkeyPatch, **does: Any) -> None:
    """A wandb that does nothing, except what it is given."""
    doings = {name: lambda *_, **__: None for name in ("define_metric", "log", "finish")} | does
    init = doings.pop("init", lambda **_: SimpleNamespace(**doings, summary={}))
    module = SimpleNamespace(Settings=dict, init=init, api=SimpleNamespace(api_key=None))
    patch.setitem(sys.modules, "wandb", module)  # type: ignore[arg-type]


def test_rows_that_wandb_cannot_keep_up_with_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    fake(monkeypatch, init=lambda **_: released.wait())
    monkeypatch.setattr("lezo.mirror._QUEUE_ROWS", 1)
    warnings, _ = mirrored(tmp_path, patience=0.2)
    released.set()
    assert warnings[1] == "wandb fell behind: 1 rows not mirrored; the run folder has them"


def fails(*_: Any, **__: Any) -> None:
    raise RuntimeError("no such luck\nsecond line")


@pytest.mark.parametrize("where", ["init", "define_metric", "log", "finish"])
def test_a_wandb_that_raises_is_said_once_and_dropped(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch, **{where: fails})
    monkeypatch.setattr("lezo.mirror._QUEUE_ROWS", 1)  # what waits for a dead thread was not "behind"
    warnings, seconds = mirrored(tmp_path)
    assert warnings == ["wandb stopped mirroring (no such luck); the run folder has everything"]
    assert seconds < 10


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_wandb_that_hangs_is_left_behind(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    fake(monkeypatch, **{where: lambda *_, **__: released.wait()})
    warnings, seconds = mirrored(tmp_path, patience=0.2)
    released.set()
    assert warnings == ["wandb did not finish within 0.2 s; the run folder has everything"]
    assert seconds < 10


def test_an_offline_run_can_be_read_back_and_holds_no_secret(tmp_path: Path) -> None:
    small = ["task.num_train=32", "task.num_dev=8", "task.num_test=8", "train.steps=2", "train.eval_every=1"]
    logged = ["log=wandb", "log.mode=offline", "log.group=mine", "log.tags=[extra]"]
    subprocess.run(
        [sys.executable, "-m", "lezo.run", *small, *logged, "hydra.run.dir=out"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "WANDB_API_KEY": SECRET},
        check=True,
        capture_output=True,
    )
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert not [file for file in files if SECRET.encode() in file.read_bytes()]
    (offline,) = (tmp_path / "out" / "wandb").glob("offline-run-*")
    text = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(offline)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    records = [json.loads(line) for line in text.splitlines()]
    (run,) = (record["run"] for record in records if record["type"] == "run")
    assert run["run_group"] == "mine"
    assert set(run["tags"]) == {"rte (sample)", "lezo", "tiny", "extra"}
    assert run["config"]["update"]["train"]["steps"] == 2
    metrics = [record["metric"] for record in records if record["type"] == "metric"]
    assert {metric["glob_name"]: metric["step_metric"] for metric in metrics if "glob_name" in metric} == {
        "train/*": "step",
        "time/*": "step",
        "dev/*": "seconds",
    }
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "test_score" not in row]  # the score before training is in the summary
    assert [
        _named_for_wandb(row).items() <= item.items() for row, item in zip(rows, history, strict=True)
    ] == [True] * 5
    assert [item["train/memory"] > 0 for item in history if "train/loss" in item] == [True] * 2
    summary: dict[str, Any] = {}
    for record in records:
        summary |= record.get("summary", {}).get("update", {})
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result.items() <= summary.items()


def _named_for_wandb(row: dict[str, Any]) -> dict[str, Any]:
    """A row of metrics.jsonl under wandb's names; memory, which is measured anew, left out."""
    prefix = "dev" if "dev_loss" in row else "train"
    kept = {k.removeprefix("dev_"): v for k, v in row.items() if k not in ("memory", "phases")}
    phases = {f"time/{phase}": spent for phase, spent in row.get("phases", {}).items()}
    return phases | {k if k in ("step", "seconds") else f"{prefix}/{k}": v for k, v in kept.items()}
