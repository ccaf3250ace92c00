"""A job ends with its sweep, however the sweep ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lezo.sweeps.lifeline import Lifeline, end_with_the_sweep

JOB = """
import os, subprocess, sys, time
from lezo.sweeps.lifeline import end_with_the_sweep
end = int(os.environ["LEZO_SWEEP_PIPE"])
end_with_the_sweep()
assert "LEZO_SWEEP_PIPE" not in os.environ and not os.get_inheritable(end)
print("up", flush=True)
time.sleep(60)
"""

# lezo-run in the middle of importing torch
IMPORTING = """
import sys, time

class Slow:
    def find_spec(self, name, *_):
        if name == "torch":
            print("up", flush=True)
            time.sleep(60)

sys.meta_path.insert(0, Slow())
sys.argv = ["lezo-run"]
from lezo.cli.run import main
main()
"""


def child(code: str, lifeline: Lifeline, cwd: Path) -> "subprocess.Popen[str]":
    """A job that has said it is up."""
    job = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, **lifeline.environment},
        pass_fds=lifeline.inherited,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert job.stdout is not None and job.stdout.readline() == "up\n"
    return job


@pytest.mark.parametrize("code", [JOB, IMPORTING], ids=["anywhere", "importing"])
def test_a_job_is_told_when_its_sweep_is_gone(code: str, tmp_path: Path) -> None:
    with Lifeline() as lifeline:
        job = child(code, lifeline, tmp_path)
        assert job.poll() is None
    with job:
        assert job.wait(timeout=120) == -signal.SIGTERM


def test_jobs_hold_no_end_of_one_another(tmp_path: Path) -> None:
    """The second job must not keep the first one's pipe open, nor a pipe's write end at all."""
    first = Lifeline()
    with Lifeline() as second:
        jobs = [child(JOB, first, tmp_path), child(JOB, second, tmp_path)]
        os.close(os.dup(first.inherited[0]))  # it is open here
        first.__exit__()
        assert jobs[0].wait(timeout=120) == -signal.SIGTERM
        assert jobs[1].poll() is None
    assert jobs[1].wait(timeout=120) == -signal.SIGTERM
    for job in jobs:
        job.__exit__(None, None, None)


@pytest.mark.parametrize("given", ["x", "", "99999"])
def test_a_variable_from_elsewhere_is_without_effect(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEZO_SWEEP_PIPE", given)
    end_with_the_sweep()
    assert "LEZO_SWEEP_PIPE" not in os.environ
