"""What a run runs on: machine, packages, code, and how much memory the process has taken."""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # who only reads records never needs torch
    import torch

_PACKAGES = [
    "lezo",
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "hydra-core",
    "omegaconf",
    "numpy",
    "wandb",
]


def environment(*devices: torch.device) -> dict[str, Any]:
    """What a run on these devices, all of one kind, depends on besides its configuration. Holds no environment variables: they may be secrets."""
    import torch

    cuda = devices[0].type == "cuda"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: package_version(name) for name in _PACKAGES},
        "device": ", ".join(map(torch.cuda.get_device_name, devices)) if cuda else _processor(),
        **({"cuda": torch.version.cuda} if cuda else {}),
        "cpu_threads": torch.get_num_threads(),
        "git_commit": git_commit(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def peak_memory() -> dict[str, int]:
    """The process's peak so far in bytes: allocated on its GPUs together (0 without one), and resident on the host."""
    import torch

    numbers = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return {"device": sum(map(torch.cuda.max_memory_allocated, numbers)), "host": resident_peak()}


def resident_memory() -> int:
    """What the process holds of the host's memory now, in bytes; where only Linux can say that, the peak."""
    return _of_status("VmRSS") or resident_peak()


def forget_peak_memory() -> None:
    """Count the peaks anew, for a run in a process that had one before; on the host only Linux can."""
    import torch

    for number in range(torch.cuda.device_count()) if torch.cuda.is_available() else ():
        torch.cuda.reset_peak_memory_stats(number)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def resident_peak() -> int:
    """The peak so far on the host in bytes. On Linux not getrusage's, which starts at the parent process's peak."""
    unit = 1 if sys.platform == "darwin" else 1024
    return _of_status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _of_status(name: str) -> int | None:
    """Bytes that Linux counts for this process under ``name``."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    return next(names, platform.processor() or platform.machine())


def code_version() -> str:
    """lezo's version, and the commit of the checkout that it runs from."""
    return " ".join(filter(None, [package_version("lezo"), git_commit()]))


def package_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def git_commit() -> str | None:
    """The commit of the checkout that lezo runs from, with "+changes" where the checkout has any."""
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # else the checkout is somebody else's
        return _git("rev-parse", "HEAD") + ("+changes" if _git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    folder = Path(__file__).parent
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()
