"""A command that a launcher starts in several processes is refused, one that is alone is not."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra.errors import CompactHydraException
from omegaconf import OmegaConf

from lezo.cli import bench, replay, run
from lezo.config.compose import compose
from lezo.config.schema import ConfigError
from lezo.model.load import ModelError
from lezo.ranks import launcher
from lezo.runs import follow
from lezo.sweeps.hydra_job import LaunchedRun
from lezo.sweeps.hydra_sweep import launch
from tests.lezo.refusals import names, refused
from tests.lezo.whole_runs import typed

TORCHRUN = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("environment", "number"),
    [
        ({}, None),
        (TORCHRUN, 0),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"WORLD_SIZE": "8"}, None),  # nobody has numbered this process
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}, 3),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}, None),  # submitit's, by default
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, None),  # a batch script
        ({"SLURM_NTASKS": "4"}, None),  # a shell in an allocation
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PTY_PORT": "9"}, None),  # srun --pty bash
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, 1),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, 1),
        ({"SUBMITIT_LOCAL_GLOBALID": "1", "SUBMITIT_LOCAL_NTASKS": "2"}, 1),
        ({"PMI_RANK": "one", "PMI_SIZE": "two"}, None),
    ],
)  # fmt: skip
def test_who_is_one_of_several(environment: dict[str, str], number: int | None) -> None:
    found = launcher.several(environment)
    assert (found and found[0]) == number


@pytest.mark.parametrize(("program", "words"), [(run, ["-m", "seed=0,1"]), (bench, []), (replay, ["out"])])
@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_first_says_so_and_none_does_anything(
    program: object,
    words: list[str],
    rank: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launcher, "GRACE_SECONDS", 0.0)
    for name, value in (TORCHRUN | {"RANK": rank}).items():
        monkeypatch.setenv(name, value)
    code, out, err = typed("lezo", program.main, monkeypatch, capsys)(*words)  # type: ignore[attr-defined]
    assert (code, out, list(tmp_path.iterdir())) == (2, "", [])
    if rank == "0":
        names(err, "error: ", "torchrun", "RANK=0, WORLD_SIZE=2")
    else:
        assert err == ""


def test_a_launchers_job_of_several_tasks_fails_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with refused(CompactHydraException, "SLURM_PROCID=1", "SLURM_STEP_NUM_TASKS=2"):
        LaunchedRun()(OmegaConf.create())


def test_only_what_can_join_makes_a_run_together(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    code, out, err = typed("lezo", run.main, monkeypatch, capsys)()
    assert (code, out) == (2, "")
    names(err, "error: ", "mpirun", "torchrun")


SRUN = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "123456"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({**TORCHRUN, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}, ("10.0.0.1", 29500)),
        ({**SRUN, "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_NODES": "1"}, ("127.0.0.1", 20_000 + 3458)),
        ({**SRUN, "SLURM_STEP_NODELIST": "n[1-2]", "MASTER_PORT": "7"}, ("n1", 7)),
        ({**SRUN, "SLURM_STEP_NODELIST": "n[1-2]", "MASTER_ADDR": "head"}, ("head", 20_000 + 3456)),
    ],
)
def test_where_processes_meet(
    environment: dict[str, str], expected: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames n[1-2]" ] && printf "n1\\nn2\\n"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    placed = launcher.place(environment)
    assert placed is not None
    assert launcher.rendezvous(placed, environment) == expected


def test_processes_that_cannot_meet_say_what_is_missing() -> None:
    placed = launcher.place(TORCHRUN)
    assert placed is not None
    with refused(ValueError, "MASTER_ADDR=unset"):
        launcher.rendezvous(placed, TORCHRUN)


def test_ranks_of_a_machine_share_its_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    named = [torch.device("cuda", number) for number in range(5)]
    monkeypatch.setattr(follow, "named_devices", lambda given, key: named if given == "auto" else named[:2])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    second = launcher.Place("torchrun", rank=5, size=8, local_rank=1, local_size=2)

    def devices_of(place: launcher.Place, *words: str) -> tuple[str, list[str] | None]:
        model = follow.on_own_device(compose(words), place).config.model
        return model.device, model.devices

    assert devices_of(second) == ("cuda:1", None)
    assert devices_of(second, "model.device=cpu") == ("cpu", None)
    assert devices_of(second, "model.devices=auto") == ("auto", ["cuda:2", "cuda:3"])
    with refused(ModelError, "model.device=cuda:0", "each of 8 ranks"):
        devices_of(second, "model.device=cuda:0")
    with refused(ModelError, "2 GPUs, and 3 ranks"):
        devices_of(replace(second, local_size=3), "model.devices=[cuda:0,cuda:1]")


def test_how_many_are_on_a_machine() -> None:
    placed = launcher.place({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "2(x2)"})
    assert placed is not None and (placed.local_rank, placed.local_size) == (1, 2)


def test_a_rank_that_is_shown_its_own_gpu_alone_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    third = launcher.Place("srun", rank=3, size=4, local_rank=3, local_size=4)
    assert follow.on_own_device(compose([]), third).config.model.device == "cuda:0"


def test_a_run_is_repeated_by_as_many_ranks() -> None:
    one = launcher.Place("torchrun", rank=0, size=4, local_rank=0, local_size=4)
    assert follow.started_by(one) == "torchrun --nproc_per_node=4 --no-python"
    assert follow.started_by(replace(one, launcher="srun")) == "srun -n 4"
    assert follow.started_by(replace(one, size=16)).startswith("torchrun --nnodes=4 --rdzv_backend=c10d ")


def test_hydras_launchers_are_not_given_jobs_of_several_ranks() -> None:
    with refused(ConfigError, "sweep.gpus_per_job=2", "hydra/launcher"):
        launch(["seed=0", "sweep.gpus_per_job=2", "hydra/launcher=basic"])
