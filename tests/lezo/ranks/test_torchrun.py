"""Ranks as processes that torchrun starts: killed, gone on with, and with gradients."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lezo.ranks.threads import left
from tests.lezo.whole_runs import SMALL, Runner

RANKED = [*SMALL, "train.batch_size=6", "log=files", "resume=auto", "hydra.run.dir=shared"]
ALONE = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}


def torchrun(ranks: int, *words: str) -> list[str]:
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return [*run, *words]


def done(command: list[str], code: int = 0) -> str:
    """What a command prints."""
    ended = subprocess.run(
        command, capture_output=True, text=True, env=ALONE | {"OMP_NUM_THREADS": "1"}, timeout=280
    )
    assert ended.returncode == code, ended.stderr
    return ended.stdout


def processes(folder: Path) -> dict[int, int]:
    """The ranks at work in a folder, and their processes."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            here = (entry / "cwd").resolve() == folder
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended, or is not ours
            continue
        ranks = [int(v.partition(b"=")[2]) for v in variables if v.startswith(b"RANK=")]
        if here and ranks:
            found[ranks[0]] = int(entry.name)
    return found


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_killed_rank_is_named_and_others_go_on_to_the_same_bits(lezo_run: Runner, victim: int) -> None:
    steps = "train.steps=60"
    alone = lezo_run(*RANKED[:-1], steps, "train.micro_batch_size=2", folder="alone")
    command = torchrun(3, "-m", "lezo.cli.run", *RANKED, steps)
    with open("out.log", "wb") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log, env=ALONE | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 100
    while b"step 6/" not in Path("out.log").read_bytes() and time.monotonic() < deadline:
        time.sleep(0.02)
    number = processes(Path.cwd())[victim]
    os.kill(number, signal.SIGKILL)
    assert running.wait(timeout=200) != 0
    said = Path("out.log").read_text()
    assert f"error: rank {victim} (" in said and f"process {number}) does not answer any more" in said
    if victim:
        assert json.loads(Path("shared/result.json").read_text())["status"] == "failed"
    done(torchrun(4, "-m", "lezo.cli.run", *RANKED, steps))  # one of which has nothing to do in a step
    assert left(Path("shared")) == left(alone.folder)


def test_gradients_are_averaged_over_ranks(lezo_run: Runner) -> None:
    """Within rounding: torch adds up gradients in an order of its own."""
    words = ["optim=fo-adamw", "optim.dropout=0", "train.batch_size=5", "train.micro_batch_size=2"]
    alone = lezo_run(*RANKED[:-1], *words, folder="alone")
    done(torchrun(2, "-m", "lezo.cli.run", *RANKED, *words))
    shared = json.loads(Path("shared/result.json").read_text())
    assert shared["dev_loss"] == pytest.approx(alone.result["dev_loss"], rel=1e-4)
    moved = alone.evaluations()[0]["dev_loss"] - alone.result["dev_loss"]
    assert abs(moved) > 1e-2 * alone.result["dev_loss"]


def test_trainers_processes_make_the_same_update() -> None:
    """Each sees half of a batch: together the steps of one process that sees all, up to rounding."""
    program = Path(__file__).with_name("trainer_of_ranks.py")
    alone = json.loads(done([sys.executable, str(program), "8"]).splitlines()[-1])
    both = [
        json.loads(line) for line in done(torchrun(2, str(program), "4")).splitlines() if line[:2] == '{"'
    ]
    assert both[0]["weights"] == both[1]["weights"]
    assert both[0]["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert [each["journal"] for each in both] == [alone["journal"]] * 2


def test_a_sweeps_jobs_are_made_by_ranks_of_their_own(lezo_run: Runner) -> None:
    alone = lezo_run(*SMALL, "train.batch_size=6", "train.micro_batch_size=3", folder="alone")
    sweep = ["-m", *SMALL, "train.batch_size=6", "seed=0", "sweep.gpus_per_job=2", "hydra.sweep.dir=swept"]
    done([sys.executable, "-m", "lezo.cli.run", *sweep])
    (folder,) = Path("swept").glob("rte-*")
    assert left(folder) == left(alone.folder)
    assert json.loads((folder / "environment.json").read_text())["ranks"] == 2
