"""Where do the jobs of a sweep run? In slots, each with a GPU of its own where there are any."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lezo.config.schema import ConfigError

_SIGNS = ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/dxg")  # a driver's devices: Linux, Jetson, WSL
COUNT = "import torch; print(torch.cuda.device_count())"


def environments(slots: int | None, devices: Sequence[str], each: int = 1) -> list[dict[str, str]]:
    """A dictionary for each slot: the environment variables its jobs get on top of the sweep's own.

    ``each``: GPUs of a job. ``slots`` None is one for each so many visible GPUs, or one; there are never more than jobs.
    ``devices`` are the jobs' model.device. Slots beyond the GPUs share them; slots on a CPU, and their ranks, share its
    cores. Raises ConfigError where a job's GPUs are more than there are.
    """
    gpus = visible_gpus() if any(device != "cpu" for device in devices) else []
    if gpus and each > len(gpus):
        visible = f"{len(gpus)} GPU{'s are' if len(gpus) > 1 else ' is'} visible"
        raise ConfigError([f"sweep.gpus_per_job={each}: {visible}; expected at most as many"])
    shares = [",".join(gpus[at : at + each]) for at in range(0, len(gpus) - each + 1, each)]
    count = min(slots or max(len(shares), 1), len(devices))
    if shares:
        return [{"CUDA_VISIBLE_DEVICES": shares[i % len(shares)]} for i in range(count)]
    shared = count * each > 1 and "OMP_NUM_THREADS" not in os.environ
    return [
        {"OMP_NUM_THREADS": str(max(cores() // (count * each), 1))} if shared else {} for _ in range(count)
    ]


def visible_gpus() -> list[str]:
    """Each GPU as CUDA_VISIBLE_DEVICES names it already (number or UUID), else by number."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = None if given is None else [name.strip() for name in given.split(",")]
    if not has_driver() or (names is not None and names[0] in ("", "-1")):
        return []
    count = gpu_count()
    return [str(i) for i in range(count)] if names is None else names[:count]


def has_driver() -> bool:
    """Whether it is worth the seconds to ask torch."""
    return any(Path(sign).exists() for sign in _SIGNS) or shutil.which("nvidia-smi") is not None


def gpu_count() -> int:
    """The GPUs that torch sees; asked in a process of its own, since the sweep itself stays light."""
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True)
    last = (done.stdout.split() or [""])[-1]
    return int(last) if done.returncode == 0 and last.isdigit() else 0


def cores() -> int:
    """The cores this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1
