"""Weights & Biases sees a run, and can neither stall nor end it."""

import json
import os
import subprocess
import sys
import threading
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lezo.evaluate import Evaluation
from lezo.mirror import WandbMirror
from lezo.mirror_keys import AXES, KEYS, NAMESPACES, dev_keys, result_keys, train_keys
from lezo.optim import StepReport
from tests.lezo.runs import Runner

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
    module = SimpleNamespace(Settings=dict, init=init, Table=dict, __spec__=ModuleSpec("wandb", None))
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
    small += ["model.device=cpu"]
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
    assert (run["run_group"], run["job_type"]) == ("mine", "lezo")
    assert set(run["tags"]) == {"rte (sample)", "lezo", "tiny", "extra"}
    assert run["config"]["update"]["train"]["steps"] == 2
    metrics = [record["metric"] for record in records if record["type"] == "metric"]
    axes = {metric["glob_name"]: metric["step_metric"] for metric in metrics if "glob_name" in metric}
    assert axes == {f"{namespace}/*": axis for namespace, axis in NAMESPACES.items()}
    kept = {metric["name"]: metric["summary"] for metric in metrics if "summary" in metric}
    assert kept == {"dev/loss": {"min": True, "last": True}, "dev/score": {"max": True, "last": True}}
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    mirrored = [item for item in history if {"train/loss", "dev/loss"} & set(item)]
    assert [
        _named_for_wandb(row).items() <= item.items()
        for row, item in zip([row for row in rows if "test_score" not in row], mirrored, strict=True)
    ] == [True] * 5
    assert [item["memory/peak_gib"] > 0 for item in mirrored if "train/loss" in item] == [True] * 2
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    tests = [(item["step"], item["test/score"]) for item in history if "test/score" in item]
    assert tests == [(0, result["zero_shot"]), (result["best_step"], result["test"])]
    summary: dict[str, Any] = {}
    for record in records:
        summary |= record.get("summary", {}).get("update", {})
    assert result_keys(result).items() <= summary.items()
    assert summary["seconds"] == mirrored[-1]["seconds"]  # the axis is what the result has no say in
    found = {name.partition(".")[0] for name in set(summary).union(*history)}
    assert {key.name for key in KEYS if key.of in ("every", "trained", "zeroth-order")} <= found
    (table,) = (tmp_path / "out" / "wandb").rglob("*.table.json")
    predictions = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    _same_table(json.loads(table.read_text()), [json.loads(line) for line in predictions])


def _named_for_wandb(row: dict[str, Any]) -> dict[str, Any]:
    """A row of metrics.jsonl under wandb's names; memory, which is measured anew, left out."""
    named = dev_keys(row) if "dev_loss" in row else train_keys(row)
    return {name: value for name, value in named.items() if name != "memory/peak_gib"}


def _same_table(table: dict[str, Any], predictions: list[dict[str, Any]]) -> None:
    assert table["columns"] == ["index", "scores", "prediction", "gold", "correct"]
    assert [(row[0], row[2], row[3]) for row in table["data"]] == [
        (record["index"], record["prediction"], record["gold"]) for record in predictions
    ]


@pytest.mark.parametrize(
    ("optim", "of"), [("fo-adamw", ("every", "trained", "first-order")), ("none", ("every",))]
)
def test_other_runs_have_the_keys_that_are_theirs(
    optim: str,
    of: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: dict[str, Any] = {}
    fake(monkeypatch, init=lambda **given: _recorder(seen, given))
    monkeypatch.chdir(tmp_path)
    ran = Runner(monkeypatch, capsys)(f"optim={optim}", "log=wandb", "train.steps=2", "train.eval_every=1")
    assert ran.code == 0 and "warning" not in ran.out
    mine = {key.name for key in KEYS if key.of in of}
    assert mine <= set(seen)
    others = {name for name in set(seen) - mine - {"job_type", *AXES} if not name.startswith("result/")}
    assert others <= {"time/eval"}
    assert seen["job_type"] == optim


def _recorder(seen: dict[str, Any], given: dict[str, Any]) -> SimpleNamespace:
    """A run of wandb's that keeps the last of everything."""
    seen["job_type"] = given["job_type"]
    return SimpleNamespace(
        log=seen.update, summary=seen, define_metric=lambda *_, **__: None, finish=lambda: None
    )
