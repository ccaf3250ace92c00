"""The run folder: a run's configuration, surroundings, metrics, predictions and result as files that last."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from lezo.evaluate import Evaluation
from lezo.optim import StepReport

_PACKAGES = (
    "lezo",
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "hydra-core",
    "omegaconf",
    "numpy",
    "wandb",
)


class FolderError(OSError):
    """A run folder that cannot be used."""


class RunFolder:
    """Writes one run's files. ``metrics.jsonl`` grows by a flushed line a row, ``result.json`` comes last."""

    def __init__(self, path: Path) -> None:
        """Create ``path``. Raises FolderError where it cannot be written or already holds a run."""
        self.path = path
        if (path / "config.yaml").exists():
            raise FolderError(f"{path}: already holds a run; choose another folder with hydra.run.dir=DIR")
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._metrics = (path / "metrics.jsonl").open("a", encoding="utf-8")
        except OSError as error:
            raise FolderError(
                f"{path}: cannot write there ({error.strerror}); choose another folder with hydra.run.dir=DIR"
            ) from error

    def text(self, name: str, content: str) -> None:
        """Write a whole file at once: it is either absent or complete."""
        self.data(name, content.encode())

    def data(self, name: str, content: bytes) -> None:
        """Write a whole file of bytes, such as a picture, in the same way."""
        partial = self.path / f".{name}.partial"
        try:
            partial.write_bytes(content)
            os.replace(partial, self.path / name)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise self._unwritable(error) from error

    def json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write an object as indented JSON; what is not a finite number becomes null."""
        self.text(name, json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n")

    def lines(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write one JSON object a line."""
        self.text(name, "".join(_line(row) for row in rows))

    def trained(self, step: int, seconds: float, report: StepReport) -> None:
        """Append a train row."""
        self.row(train_row(step, seconds, report))

    def evaluated(self, step: int, seconds: float, dev: Evaluation) -> None:
        """Append a dev row."""
        self.row(dev_row(step, seconds, dev))

    def close(self) -> None:
        """Close the metrics."""
        with suppress(OSError):  # a full disk was said already
            self._metrics.close()

    def row(self, row: Mapping[str, Any]) -> None:
        """Append any row of numbers to the metrics."""
        try:
            self._metrics.write(_line(row))
            self._metrics.flush()
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> FolderError:
        return FolderError(
            f"{self.path}: cannot write there ({error.strerror}); what was written before stays"
        )


def train_row(step: int, seconds: float, report: StepReport) -> dict[str, Any]:
    """A train row of metrics.jsonl: seconds since training began, memory in bytes; g None for first-order steps."""
    used = peak_memory()
    row = {"step": step, "seconds": round(seconds, 4), "loss": report.loss, "g": None, **report.measures}
    return {**row, "skipped": not report.applied, "memory": used["device"] or used["host"]}


def dev_row(step: int, seconds: float, dev: Evaluation) -> dict[str, Any]:
    """A dev row of metrics.jsonl."""
    return {"step": step, "seconds": round(seconds, 4), "dev_loss": dev.loss, "dev_score": dev.score}


def peak_memory() -> dict[str, int]:
    """The process's peak so far in bytes: allocated on the GPU (0 without one), and resident on the host."""
    device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"device": device, "host": _resident_peak()}


def environment(device: torch.device) -> dict[str, Any]:
    """What a run depends on besides its configuration. Holds no environment variables: they may be secrets."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cuda": torch.version.cuda,
        "cpu_threads": torch.get_num_threads(),
        "git_commit": _git_commit(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _resident_peak() -> int:
    """Bytes. Where Linux has it, the program's own counter: getrusage's starts at the peak of the parent process."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    own = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    unit = 1 if sys.platform == "darwin" else 1024
    return own[0] if own else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(_finite(row), ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    """JSON has no NaN: such a number becomes null."""
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    return names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """The commit of the checkout that lezo runs from, with "+changes" where the checkout has any."""
    folder = Path(__file__).parent
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        tracked = _git(folder, "ls-files", "--error-unmatch", Path(__file__).name)
        return commit + ("+changes" if _git(folder, "status", "--porcelain") else "") if tracked else None
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()
