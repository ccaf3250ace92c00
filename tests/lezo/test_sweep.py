"""lezo-run -m: every combination as a process of its own, and a table at the end."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lezo.config import ConfigError
from lezo.sweep import jobs, sweep

SCORE = ["optim=none", "task=sst2", "data=local", "task.num_dev=2"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def table(out: str) -> dict[str, list[str]]:
    """The printed table: job -> its other cells."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    return {row[0]: row[1:] for row in rows}


def saved(folder: str = "out") -> list[dict[str, Any]]:
    return json.loads(Path(folder, "sweep.json").read_text())  # type: ignore[no-any-return]


def test_a_failing_job_shows_its_end_and_the_others_finish(capsys: pytest.CaptureFixture[str]) -> None:
    for name, last in (("good", '{"sentence": "dull", "label": 0}'), ("bad", '{"sentence": ')):
        folder = Path(name, "sst2")
        folder.mkdir(parents=True)
        (folder / "train.jsonl").write_text('{"sentence": "fine", "label": 1}\n' * 5 + last + "\n")
        (folder / "val.jsonl").write_text('{"sentence": "fine", "label": 1}\n')
    assert sweep([*SCORE, "data.path=bad,good", "hydra.sweep.dir=out"]) == 1
    out = capsys.readouterr().out
    assert "sweep of 2 jobs in out\n[1/2] data.path=bad\n    FAILED; the end of out/0/console.log:\n" in out
    assert "    | error: bad/sst2/train.jsonl, line 6: not valid JSON" in out
    assert out.index("[2/2] data.path=good") > out.index("FAILED")
    shown, rows = table(out), saved()
    assert (
        [row["status"] for row in rows] == [shown[row["job"]][-1] for row in rows] == ["failed", "finished"]
    )
    assert [row["job"] for row in rows] == ["data.path=bad", "data.path=good"]
    assert set(rows[1]) == {"job", "metric", "dev", "test", "seconds", "memory", "status", "folder"}
    result = json.loads(Path("out/1/result.json").read_text())
    assert (rows[1]["dev"], rows[1]["test"]) == (result["dev"], result["test"])
    assert shown["data.path=good"][:3] == ["accuracy", f"{result['dev']:.4f}", f"{result['test']:.4f}"]
    assert shown["data.path=bad"][1:3] == ["-", "-"]


def test_a_job_that_dies_without_a_result_is_told_by_its_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import sys; [print('line', i) for i in range(30)]; sys.exit(7)"
    monkeypatch.setattr("lezo.sweep._command", lambda job, _: [sys.executable, "-c", code])
    assert sweep(["seed=1", "hydra.sweep.dir='with space'"]) == 1
    out = capsys.readouterr().out
    assert table(out) == {"single": ["-", "-", "-", "-", "-", "failed (exit code 7)"]}
    assert "| line 29\n" in out and "| line 5\n" not in out
    assert saved("with space")[0]["status"] == "failed (exit code 7)"


def test_jobs_are_labelled_by_what_differs_and_numbered_into_one_folder() -> None:
    found = jobs(["task=rte", "optim=mezo,lezo", "optim.lr=1e-6,1e-7", "seed=range(2)"])
    assert len(found) == 8
    assert found[0].label == "optim=mezo optim.lr=1e-06 seed=0"  # as Hydra writes the number
    assert found[0].overrides[0] == "task=rte"
    assert [job.folder.name for job in found] == [str(job.number) for job in found] == list("01234567")
    (folder,) = {job.folder.parent for job in found}
    assert folder.parent == Path("runs/sweeps")


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["seed=0,-1", "train.steps=0,5"], "job 0 (seed=0 train.steps=0): train.steps=0: expected"),
        (["optim=lezo,lezzo"], "job 1 (optim=lezzo): optim=lezzo: unknown; did you mean lezo?"),
        (["optim=mezo,lezo", "optim.sparsity=0.5"], "job 0 (optim=mezo): optim.sparsity=0.5: unknown key"),
        (["optim.lr=interval(0,1)"], "optim.lr=interval(0,1): expected values with commas between"),
        (["task=glob(*)"], "task=glob(*): expected values with commas between"),
        (["optim.lr=1,[2"], "optim.lr=1,[2: expected key=value"),
    ],
)
def test_one_bad_job_stops_the_sweep_before_anything_runs(
    overrides: list[str], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        sweep([*overrides, "hydra.sweep.dir=out"])
    assert str(caught.value).startswith(problem)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("taken", ["out/sweep.json", "out/1/config.yaml"])
def test_a_folder_that_holds_runs_is_refused(taken: str) -> None:
    Path(taken).parent.mkdir(parents=True)
    Path(taken).touch()
    with pytest.raises(
        ConfigError, match="already holds runs; choose another folder with hydra.sweep.dir=DIR"
    ):
        sweep(["seed=1,2", "hydra.sweep.dir=out"])


def test_a_folder_that_cannot_be_written_is_refused() -> None:
    Path("out").touch()
    with pytest.raises(ConfigError, match="out: cannot write there"):
        sweep(["seed=1,2", "hydra.sweep.dir=out"])


def test_ctrl_c_ends_the_running_job_and_prints_the_table() -> None:
    small = ["task.num_train=32", "task.num_dev=8", "task.num_test=8", "train.steps=1000000"]
    running = subprocess.Popen(
        [sys.executable, "-m", "lezo.run", "-m", *small, "seed=0,1", "hydra.sweep.dir=out"],
        env=os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        start_new_session=True,
    )
    metrics = Path("out/0/metrics.jsonl")
    while not (metrics.exists() and metrics.stat().st_size):
        assert running.poll() is None
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to everyone in the foreground
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "interrupted; 2 of 2 jobs did not finish" in out
    assert {job: cells[-1] for job, cells in table(out).items()} == {
        "seed=0": "interrupted",
        "seed=1": "not started",
    }
    assert [row["status"] for row in saved()] == ["interrupted", "not started"]
    assert json.loads(Path("out/0/result.json").read_text())["status"] == "interrupted"
    assert Path("out/0/console.log").read_text().count("interrupted: stopped at step") == 1
    assert not Path("out/1").exists()
