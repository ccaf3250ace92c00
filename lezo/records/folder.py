"""The run folder: a run's configuration, surroundings, metrics, predictions and result as files that last."""

from __future__ import annotations

import errno
import fcntl
import importlib.metadata
import json
import os
import platform
import resource
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

from lezo.model.evaluate import Evaluation
from lezo.records.disk import sync
from lezo.zo.step import StepReport

MODEL = "model"  # the folder in a run's where its model is, for `from_pretrained`
JOURNAL, CHECKPOINTS, METRICS, START = "journal.bin", "checkpoints", "metrics.jsonl", "prefix.safetensors"
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


class Appended:
    """A file that only grows: what is appended reaches the system at once, and the disk at least once a second.

    So a killed process loses nothing, and a machine without power what it had appended since.
    """

    def __init__(self, path: Path, *, at: int | None = None) -> None:
        """Open ``path``, made where it is not there; ``at``: forget what is behind that byte. Raises FolderError."""
        self._path, self._synced = path, time.monotonic()
        with _named(path):
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
            self._file = os.open(path, flags, 0o666)
            if at is not None:
                os.ftruncate(self._file, at)

    def append(self, data: bytes) -> None:
        """Append all of ``data`` in one write. Raises FolderError, as on a full disk."""
        with _named(self._path):
            if os.write(self._file, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if time.monotonic() - self._synced >= 1:
            self.sync()

    def end(self, size: int) -> bytes:
        """The last ``size`` bytes."""
        with _named(self._path):
            return os.pread(self._file, size, os.fstat(self._file).st_size - size)

    def sync(self) -> None:
        """Wait until everything is on the disk."""
        with _named(self._path):
            os.fsync(self._file)
        self._synced = time.monotonic()

    def close(self) -> None:
        """See everything onto the disk and close."""
        if self._file >= 0:
            number, self._file = self._file, -1
            with suppress(OSError):  # a full disk was said already
                os.fsync(number)
            os.close(number)


class RunFolder:
    """Writes one run's files, alone. ``metrics.jsonl`` grows by a row at a time, ``result.json`` comes last."""

    def __init__(
        self, path: Path, *, resume: bool = False, replaces: Callable[[Path], bool] = lambda path: False
    ) -> None:
        """Create and lock ``path``.

        Raises FolderError where it cannot be written, where another process is at work in it, and, without
        ``resume``, where it already holds a run that must not be replaced.
        """
        self.path, self._replaces = path, replaces
        self._refuse_run(resume)
        with _named(path):
            path.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(path)
        self._refuse_run(resume)
        self.holds_run = (path / "config.yaml").exists()
        self._metrics: Appended | None = None

    def _refuse_run(self, resume: bool) -> None:
        if not resume and (self.path / "config.yaml").exists() and not self._replaces(self.path):
            ways = "resume=auto goes on with it, hydra.run.dir=DIR chooses another folder"
            raise FolderError(f"{self.path}: already holds a run; {ways}")
        left = [name for name in (JOURNAL, CHECKPOINTS) if (self.path / name).exists()]
        if left and not (self.path / "config.yaml").exists():  # nobody can tell whose they are
            ways = "put that back, or choose another folder with hydra.run.dir=DIR"
            raise FolderError(f"{self.path}: holds the {left[0]} of a run but not its config.yaml; {ways}")

    def begin(self, rows: bytes = b"") -> None:
        """Open the metrics, which then hold just ``rows``; model, result and predictions of an earlier end are no more.

        Raises FolderError where the folder is new to runs and holds a model/ of somebody's, which is never removed.
        """
        if not self.holds_run and os.path.lexists(self.path / MODEL):
            ways = "move it, or choose another folder with hydra.run.dir=DIR"
            raise FolderError(f"{self.path / MODEL}: is not this run's, and its model would be there; {ways}")
        self.drop_model()  # the first to go: no moment may show the old model beside the new run
        self._remove("result.json", "predictions.jsonl", "traceback.txt")
        self.data(METRICS, rows)
        self._metrics = Appended(self.path / METRICS)

    def drop_model(self) -> None:
        """Remove the model of an earlier end; whenever the process ends, all of it is there or nothing."""
        model, gone = self.path / MODEL, self.path / f".{MODEL}.gone"
        shutil.rmtree(gone, ignore_errors=True)
        with _named(model):
            if model.is_symlink():
                model.unlink()
            elif model.exists():
                model.rename(gone)
            sync(self.path)
        shutil.rmtree(gone, ignore_errors=True)

    def clear(self) -> None:
        """Forget a run that made no step, its configuration last: until then the folder stays one that can be cleared."""
        self.drop_model()
        shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)  # a partial one, if anything
        self._remove(JOURNAL, START, METRICS, "result.json", "predictions.jsonl")
        self._remove("traceback.txt", "environment.json", "config.yaml")
        self.holds_run = False

    def _remove(self, *names: str) -> None:
        with _named(self.path):
            for name in names:
                (self.path / name).unlink(missing_ok=True)

    def session(self, surroundings: Mapping[str, Any]) -> None:
        """Write what this session runs on as ``environment.json``; those before it stay there under "earlier"."""
        before = _object(read_file(self.path / "environment.json"))
        earlier = before.pop("earlier", [])
        run_id = before.get("run_id") or secrets.token_hex(4)
        sessions = [*(earlier if isinstance(earlier, list) else []), *([before] if before else [])]
        self.json("environment.json", {"run_id": run_id, **surroundings, "earlier": sessions})

    def run_id(self) -> str:
        """The name under which all sessions of this run are known elsewhere."""
        return str(_object(read_file(self.path / "environment.json"))["run_id"])

    def text(self, name: str, content: str) -> None:
        """Write a whole file at once: it is either absent or complete."""
        self.data(name, content.encode())

    def data(self, name: str, content: bytes) -> None:
        """Write a whole file of bytes, such as a picture, in the same way."""
        replace_file(self.path / name, content)

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
        """Append a dev row and see all rows onto the disk."""
        self.row(dev_row(step, seconds, dev))
        assert self._metrics is not None
        self._metrics.sync()

    def close(self) -> None:
        """Close the metrics and let other processes in."""
        if self._metrics is not None:
            self._metrics.close()
        os.close(self._lock)

    def row(self, row: Mapping[str, Any]) -> None:
        """Append any row of numbers to the metrics, which ``begin`` opened."""
        assert self._metrics is not None
        self._metrics.append(_line(row).encode())


def read_file(path: Path) -> bytes | None:
    """A file's content; None where it is not there. Raises FolderError where it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FolderError(f"{path}: cannot read it ({error.strerror})") from error


def read_result(folder: Path) -> dict[str, Any] | None:
    """A run's result; None where the run has not ended. Raises FolderError where it cannot be read."""
    file = folder / "result.json"
    if (content := read_file(file)) is None:
        return None
    if not (found := _object(content)):
        raise FolderError(
            f"{file}: not a result; remove it, and with resume=auto the run's end is made again"
        )
    return found


def _object(content: bytes | None) -> dict[str, Any]:
    """A JSON object, or nothing where there is none."""
    try:
        found = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def replace_file(path: Path, content: bytes) -> None:
    """Write a whole file: whatever happens, it is the old one or the new one, on disk. Raises FolderError."""
    partial = path.with_name(f".{path.name}.partial")
    with _named(path):
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        sync(path.parent)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """An operating system's refusal as a FolderError that says where."""
    try:
        yield
    except OSError as error:
        ways = "what was written before stays; make room, or choose another folder with hydra.run.dir=DIR"
        raise FolderError(f"{path}: cannot write there ({error.strerror}); {ways}") from error


def _locked(path: Path) -> int:
    """The descriptor that holds the folder's lock, until it is closed or the process ends, however it ends."""
    with _named(path):
        number = os.open(path / ".lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(number, 20).decode(errors="replace").strip()
        os.close(number)
        raise FolderError(
            f"{path}: another process (pid {owner}) is at work there; wait for its end, or stop it, "
            "or choose another folder with hydra.run.dir=DIR"
        ) from None
    except OSError as error:  # a file system without locks
        print(f"warning: {path} cannot be locked ({error.strerror}): run one process there", file=sys.stderr)
    with suppress(OSError):  # a full disk: the name is for the reader only, and the lock is held
        os.ftruncate(number, 0)
        os.write(number, f"{os.getpid()}\n".encode())
    return number


def train_row(step: int, seconds: float, report: StepReport) -> dict[str, Any]:
    """A train row of metrics.jsonl: seconds since training began, memory in bytes; g None for first-order steps.

    ``phases``: seconds that this step waited for its batch, and that its forwards and the rest took.
    """
    used = peak_memory()
    row = {"step": step, "seconds": round(seconds, 4), "loss": report.loss, "g": None, **report.measures}
    phases = {phase: round(spent, 6) for phase, spent in report.phases.items()}
    memory = used["device"] or used["host"]
    return {**row, "skipped": not report.applied, "phases": phases, "memory": memory}


def dev_row(step: int, seconds: float, dev: Evaluation) -> dict[str, Any]:
    """A dev row of metrics.jsonl; ``eval_seconds``: what the evaluation took."""
    scores = {"dev_loss": dev.loss, "dev_score": dev.score}
    return {"step": step, "seconds": round(seconds, 4), **scores, "eval_seconds": round(dev.seconds, 4)}


def peak_memory() -> dict[str, int]:
    """The process's peak so far in bytes: allocated on the GPU (0 without one), and resident on the host."""
    device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"device": device, "host": _resident_peak()}


def resident_memory() -> int:
    """What the process holds of the host's memory now, in bytes; where only Linux can say that, the peak."""
    return _of_status("VmRSS") or _resident_peak()


def forget_peak_memory() -> None:
    """Count the peaks anew, for a run in a process that had one before; on the host only Linux can."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def environment(device: torch.device) -> dict[str, Any]:
    """What a run depends on besides its configuration. Holds no environment variables: they may be secrets."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        **({"cuda": torch.version.cuda} if device.type == "cuda" else {}),
        "cpu_threads": torch.get_num_threads(),
        "git_commit": _git_commit(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def code_version() -> str:
    """lezo's version, and the commit of the checkout that it runs from."""
    return " ".join(filter(None, [_version("lezo"), _git_commit()]))


def _resident_peak() -> int:
    """Bytes. Where Linux has it, the program's own counter: getrusage's starts at the peak of the parent process."""
    unit = 1 if sys.platform == "darwin" else 1024
    return _of_status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _of_status(name: str) -> int | None:
    """Bytes that Linux counts for this process under ``name``."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


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


@cache
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
