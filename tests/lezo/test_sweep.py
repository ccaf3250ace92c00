"""lezo-run -m: jobs of their own, a failure that stops nobody, a table, an exit code."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from lezo.config import ConfigError
from lezo.sweep import jobs

SMALL = ["task.num_train=16", "task.num_dev=4", "task.num_test=4", "train.steps=2"]


def lezo_run(*arguments, cwd):
    command = [sys.executable, "-m", "lezo.run", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=cwd, env=os.environ | {"HF_HUB_OFFLINE": "1"}, **pipes)


def test_a_failing_job_is_shown_and_the_others_finish(tmp_path, shared):
    """rte cannot be read from a folder that holds sst2 only."""
    (tmp_path / "data" / "sst2").mkdir(parents=True)
    for part in ("train", "val"):
        lines = (shared / "data" / "sst2" / f"{part}.jsonl").read_text().splitlines(keepends=True)[:30]
        (tmp_path / "data" / "sst2" / f"{part}.jsonl").write_text("".join(lines))
    process = lezo_run(
        "-m", "task=rte,sst2", "data=local", "data.path=data", *SMALL, "hydra.sweep.dir=out", cwd=tmp_path
    )
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "FAILED; the end of out/0/console.log" in out
    assert "| error: data/rte/train.jsonl: No such file" in out
    rows = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [(row["job"], row["status"]) for row in rows] == [
        ("task=rte", "failed"),
        ("task=sst2", "finished"),
    ]
    assert json.loads((tmp_path / "out" / "1" / "result.json").read_text())["status"] == "finished"
    assert out.rindex("task=sst2") > out.rindex("task=rte") > out.rindex("seconds")  # the table comes last


def test_jobs_are_every_combination_labelled_by_what_was_swept():
    found = jobs(["optim=mezo,lezo", "seed=0,1", "train.steps=2", "hydra.sweep.dir=out"])
    assert [job.label for job in found] == [f"optim={o} seed={s}" for o in ("mezo", "lezo") for s in (0, 1)]
    assert [str(job.folder) for job in found] == [f"out/{number}" for number in range(4)]


def test_any_bad_job_stops_the_sweep_before_it_starts():
    with pytest.raises(ConfigError, match=r"job 1 \(optim.sparsity=1.5\): optim.sparsity=1.5: expected"):
        jobs(["optim.sparsity=0.5,1.5"])


def test_ctrl_c_ends_the_job_cleanly_and_the_table_says_so(tmp_path):
    process = lezo_run(
        "-m", "seed=0,1", "train.steps=100000", *SMALL[:3], "hydra.sweep.dir=out", cwd=tmp_path
    )
    metrics, deadline = tmp_path / "out" / "0" / "metrics.jsonl", time.monotonic() + 60
    while not (metrics.exists() and metrics.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "2 of 2 jobs did not finish" in out
    assert "Traceback" not in out
    rows = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [row["status"] for row in rows] == ["interrupted", "not started"]
