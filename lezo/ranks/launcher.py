"""Is this process one of several that a launcher started on one command? Read from its environment; no torch."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Launcher(NamedTuple):
    """The variables with a process's number, how many there are, its number on its machine, and how many are there."""

    rank: str
    size: str
    local_rank: str
    local_size: str = ""


# Slurm's are of a step that srun starts: a batch script, or a shell in an allocation, has SLURM_NTASKS too, and there
# the command runs once.
_LAUNCHERS = {
    "torchrun": Launcher("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "srun": Launcher("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
    "mpirun": Launcher("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "mpiexec": Launcher("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    "submitit": Launcher("SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_NTASKS", "SUBMITIT_LOCAL_LOCALID"),
}
JOINS = ("torchrun", "srun")
"""The launchers whose processes can make one run together."""

GRACE_SECONDS = 2.0  # a launcher ends all its processes with the first, and process 0 has yet to speak
_FIRST_PORT = 20_000  # of those that Slurm's steps choose by their numbers


@dataclass(frozen=True)
class Place:
    """This process is number ``rank`` of ``size``, and number ``local_rank`` of the ``local_size`` on its machine."""

    launcher: str
    rank: int
    size: int
    local_rank: int
    local_size: int


def place(environment: Mapping[str, str]) -> Place | None:
    """This process's place among those that a launcher started; None where it is alone."""
    for name, launcher in _LAUNCHERS.items():
        rank, size, local, here = (environment.get(variable, "") for variable in launcher)
        here = here.partition("(")[0]  # Slurm's 4(x2): on each of two machines
        in_a_shell = name == "srun" and "SLURM_PTY_PORT" in environment  # srun --pty bash
        if rank.isdecimal() and size.isdecimal() and int(size) > 1 and not in_a_shell:
            on_machine = int(here) if here.isdecimal() else int(size)
            return Place(name, int(rank), int(size), int(local) if local.isdecimal() else 0, on_machine)
    return None


def rendezvous(placed: Place, environment: Mapping[str, str]) -> tuple[str, int]:
    """Where the processes meet: an address and a port of rank 0's machine. Raises ValueError where nothing says it."""
    address, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT", "")
    if placed.launcher == "srun":
        address = address or _first_of_step(environment)
        numbers = (environment.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
        own = sum(int(number) for number in numbers if number.isdecimal())
        port = port or str(_FIRST_PORT + own % 10_000)
    if not address or not port.isdecimal():
        raise ValueError(
            f"MASTER_ADDR={address or 'unset'}, MASTER_PORT={port or 'unset'}: expected the machine of rank 0 and a "
            "free port there (torchrun sets both)"
        )
    return address, int(port)


def _first_of_step(environment: Mapping[str, str]) -> str | None:
    """The first machine of a Slurm step, whose short list of names only Slurm itself spells out."""
    if environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES")) == "1":
        return "127.0.0.1"
    names = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    try:
        done = subprocess.run(
            ["scontrol", "show", "hostnames", names], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.split()), None)


def several(environment: Mapping[str, str]) -> tuple[int, str] | None:
    """This process's number, and what is wrong with that, in words, for a command of one process; None where it is alone."""
    if (placed := place(environment)) is None:
        return None
    number, count, *_ = _LAUNCHERS[placed.launcher]
    they = (
        f"one of {placed.size} processes by {placed.launcher} ({number}={placed.rank}, {count}={placed.size})"
    )
    ways = f"start one (srun -n 1, no torchrun), or unset {count}; lezo-run without -m takes several of torchrun or srun"
    return placed.rank, f"{they}: this command is for one; {ways}"


def refuse_several() -> None:
    """Exit with 2 where this process is one of several; the first says why."""
    if (process := several(os.environ)) is not None:
        refuse(*process)


def refuse(rank: int, problem: str) -> None:
    """Exit with 2; of several processes the first says why."""
    if rank == 0:
        print(f"error: {problem}", file=sys.stderr)
    else:
        time.sleep(GRACE_SECONDS)
    sys.exit(2)
