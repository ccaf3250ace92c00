"""A model trains under a limit on the process's memory that is below its weights; elsewhere than on disk it cannot."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

SCRIPT = "tests.lezo.runs.larger_than_memory"
WEIGHTS = 103  # MB of eight blocks and what is outside them


def trained(model: str, limit: int, home: str) -> tuple[int, str, dict[str, Any]]:
    """Exit code, output and peaks above what a small run left, in MB."""
    command = [sys.executable, "-m", SCRIPT, model, str(limit), home]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    found = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert found, done.stdout + done.stderr
    return done.returncode, done.stdout + done.stderr, json.loads(found[0].rpartition("}")[0] + "}")


@pytest.mark.skipif(sys.platform != "linux", reason="limits and counts of memory are Linux's")
def test_a_hundred_megabytes_in_sixty() -> None:
    code, said, peaks = trained("8", 60, "disk")
    assert code == 0, said
    assert peaks["anonymous"] < 45 < WEIGHTS and peaks["resident"] < 60, peaks


@pytest.mark.slow
def test_on_the_device_they_do_not_fit() -> None:
    code, said, _ = trained("8", 60, "device")
    assert code == 1 and "error: out of memory" in said


@pytest.mark.slow
def test_opt_1_3b_in_less_than_half_of_its_weights() -> None:
    """5.3 GB of weights, of which 4.8 GB are blocks."""
    code, said, peaks = trained("opt-1.3b", 2500, "disk")
    assert code == 0, said
    assert peaks["anonymous"] < 2000, peaks
