"""Ranks as processes: killed, gone on with, with gradients; forked from this one, or as torchrun starts them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState, PartialState

from lezo.cli import run
from lezo.ranks import pulse
from lezo.ranks.ranks import Joined
from tests.lezo.ranks.threads import left
from tests.lezo.ranks.trainer_of_ranks import accelerated, trained
from tests.lezo.whole_runs import SMALL, Runner

RANKED = [*SMALL, "train.batch_size=6", "log=files", "resume=auto"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all of these processes write."""
    monkeypatch.chdir(tmp_path)


ALONE = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}


def forked(ranks: int, work: Callable[[], object], log: str) -> list[int]:
    """Processes that do something together, over Gloo, as torchrun would start them; what they print is in a file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    Path(log).touch()  # whoever waits for a line of it may look before the first process has started
    return [_fork(rank, ranks, port, work, log) for rank in range(ranks)]


def _fork(rank: int, ranks: int, port: int, work: Callable[[], object], log: str) -> int:
    child = os.fork()
    if child:
        return child
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    numbers = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks}
    os.environ |= {name: str(value) for name, value in {**numbers, "MASTER_PORT": port}.items()}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    try:
        work()
    except SystemExit as ended:
        os._exit(int(ended.code or 0))
    except BaseException:
        traceback.print_exc()
        os._exit(99)
    os._exit(0)


def lezo_runs(ranks: int, words: Sequence[str], log: str) -> list[int]:
    """Ranks of a run."""

    def work() -> None:
        sys.argv = ["lezo-run", *words]
        run.main()

    return forked(ranks, work, log)


def ended(child: int) -> int:
    """A process's exit code, when it has one."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def done(command: list[str]) -> str:
    """What a command prints."""
    process = subprocess.run(
        command, capture_output=True, text=True, env=ALONE | {"OMP_NUM_THREADS": "1"}, timeout=280
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize("victim", [1, 0])
def test_a_killed_rank_is_named_and_others_go_on_to_the_same_bits(
    lezo_run: Runner, victim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "SILENT", 2.0)
    words = [*RANKED, "train.steps=40"]
    alone = lezo_run(*words, "train.micro_batch_size=3", folder="alone")
    children = lezo_runs(2, [*words, "hydra.run.dir=shared"], "out.log")
    deadline = time.monotonic() + 200
    while b"step 6/" not in Path("out.log").read_bytes() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(children[victim], signal.SIGKILL)
    assert ended(children[victim]) == -signal.SIGKILL
    assert ended(children[1 - victim]) == 1
    said = Path("out.log").read_text()
    assert f"error: rank {victim} (" in said
    assert f"process {children[victim]}) does not answer any more" in said
    if victim:
        assert json.loads(Path("shared/result.json").read_text())["status"] == "failed"
    again = lezo_runs(
        3 + victim, [*words, "hydra.run.dir=shared"], "again.log"
    )  # some have nothing to do in a step
    assert list(map(ended, again)) == [0] * len(again), Path("again.log").read_text()
    assert left(Path("shared")) == left(alone.folder)


def test_a_rank_that_hangs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread still says that it lives, and the others wait for it to hear what comes next."""
    real, heard = Joined.hear, []

    def hear(ranks: Joined) -> Any:
        heard.append(0)
        if len(heard) == 6:
            time.sleep(60)
        return real(ranks)

    monkeypatch.setattr(Joined, "hear", hear)
    children = lezo_runs(2, [*RANKED, "train.rank_timeout=8", "hydra.run.dir=shared"], "out.log")
    assert ended(children[0]) == 1
    os.kill(children[1], signal.SIGKILL)
    ended(children[1])
    said = Path("out.log").read_text()
    assert "error: rank 1 (" in said and "did not come to where others waited for 8 s" in said


def test_gradients_are_averaged_over_ranks(lezo_run: Runner) -> None:
    """Within rounding: torch adds up gradients in an order of its own."""
    words = ["optim=fo-adamw", "optim.dropout=0", "train.batch_size=5", "train.micro_batch_size=2"]
    alone = lezo_run(*RANKED, *words, folder="alone")
    children = lezo_runs(2, [*RANKED, *words, "hydra.run.dir=shared"], "out.log")
    assert list(map(ended, children)) == [0, 0], Path("out.log").read_text()
    shared = json.loads(Path("shared/result.json").read_text())
    assert shared["dev_loss"] == pytest.approx(alone.result["dev_loss"], rel=1e-4)
    moved = alone.evaluations()[0]["dev_loss"] - alone.result["dev_loss"]
    assert abs(moved) > 1e-2 * alone.result["dev_loss"]


def test_trainers_processes_make_the_same_update() -> None:
    """Each sees half of a batch: together the steps of one process that sees all, up to rounding."""

    def work() -> None:
        for state in (AcceleratorState, PartialState):
            state._reset_state()  # of this process, which is alone
        said = trained(4)
        Path(f"said-{os.environ['RANK']}").write_text(json.dumps(said))

    children = forked(2, work, "out.log")
    assert list(map(ended, children)) == [0, 0], Path("out.log").read_text()
    alone, both = trained(8), [json.loads(Path(f"said-{rank}").read_text()) for rank in (0, 1)]
    assert both[0]["weights"] == both[1]["weights"]
    assert both[0]["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert [each["journal"] for each in both] == [alone["journal"]] * 2


def test_accelerates_processes_make_the_same_update() -> None:
    """As Trainer's do: the model is prepared, and so are loader and optimizer."""

    def work() -> None:
        for state in (AcceleratorState, PartialState):
            state._reset_state()  # of this process, which is alone
        Path(f"said-{os.environ['RANK']}").write_text(json.dumps(accelerated(4)))

    children = forked(2, work, "out.log")
    assert list(map(ended, children)) == [0, 0], Path("out.log").read_text()
    alone, both = accelerated(8), [json.loads(Path(f"said-{rank}").read_text()) for rank in (0, 1)]
    assert both[0] == both[1]
    assert both[0]["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert both[0]["steps"] == alone["steps"] == 4


@pytest.mark.slow
def test_a_sweeps_jobs_are_made_by_ranks_of_their_own(lezo_run: Runner) -> None:
    alone = lezo_run(*SMALL, "train.batch_size=6", "train.micro_batch_size=3", folder="alone")
    sweep = ["-m", *SMALL, "train.batch_size=6", "seed=0", "sweep.gpus_per_job=2", "hydra.sweep.dir=swept"]
    done([sys.executable, "-m", "lezo.cli.run", *sweep])
    (folder,) = Path("swept").glob("rte-*")
    assert left(folder) == left(alone.folder)
    assert json.loads((folder / "environment.json").read_text())["ranks"] == 2
