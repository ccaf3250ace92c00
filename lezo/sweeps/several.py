"""Is this process one of several that a launcher started on one command? The commands are for one process."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping

# Variables with a process's number, and with how many there are. Slurm's are of a step that srun starts:
# a batch script, or a shell in an allocation, has SLURM_NTASKS too, and there the command runs once.
_LAUNCHERS = {
    "torchrun": ("RANK", "WORLD_SIZE"),
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    "mpirun": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    "mpiexec": ("PMI_RANK", "PMI_SIZE"),
    "submitit": ("SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_NTASKS"),
}
GRACE_SECONDS = 2.0  # a launcher ends all its processes with the first, and process 0 has yet to speak


def several(environment: Mapping[str, str]) -> tuple[int, str] | None:
    """This process's number, and what is wrong with that, in words; None where it is alone."""
    for launcher, (number, count) in _LAUNCHERS.items():
        rank, size = environment.get(number, ""), environment.get(count, "")
        in_a_shell = launcher == "srun" and "SLURM_PTY_PORT" in environment  # srun --pty bash
        if rank.isdecimal() and size.isdecimal() and int(size) > 1 and not in_a_shell:
            ways = f"start one (srun -n 1, no torchrun), or unset {count}; -m runs a job on each visible GPU"
            place = f"one of {size} processes by {launcher} ({number}={rank}, {count}={size})"
            return int(rank), f"{place}: several processes or GPUs for one run are not there yet; {ways}"
    return None


def refuse_several() -> None:
    """Exit with 2 where this process is one of several; the first says why."""
    if (process := several(os.environ)) is None:
        return
    rank, problem = process
    if rank == 0:
        print(f"error: {problem}", file=sys.stderr)
    else:
        time.sleep(GRACE_SECONDS)
    sys.exit(2)
