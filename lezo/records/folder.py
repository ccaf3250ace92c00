"""The run folder: a run's configuration, surroundings, metrics, predictions and result as files that last."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lezo.records.files import (
    Appended,
    FolderError,
    finite,
    json_line,
    named,
    read_file,
    remove_folder,
    replace_file,
)
from lezo.records.rows import DevRow, TestRow, TrainRow
from lezo.records.schema import decoded

MODEL = "model"  # the folder in a run's where its model is, for `from_pretrained`
JOURNAL, CHECKPOINTS, METRICS, PREFIX_START = (
    "journal.bin",
    "checkpoints",
    "metrics.jsonl",
    "prefix.safetensors",
)
CONFIG, ENVIRONMENT, RESULT = "config.yaml", "environment.json", "result.json"
PREDICTIONS, TRACEBACK, CONSOLE, LOCK = "predictions.jsonl", "traceback.txt", "console.log", ".lock"
BENCH = "bench.json"  # of a folder that is no run's


def surroundings(folder: Path) -> dict[str, Any]:
    """What the last session of a run ran on; nothing where that is damaged, as no weights depend on it."""
    try:
        return decoded(read_file(folder / ENVIRONMENT) or b"{}")
    except ValueError:
        return {}


class RunFolder:
    """Writes one run's files, alone. ``metrics.jsonl`` grows by a row at a time, ``result.json`` comes last."""

    def __init__(
        self, path: Path, *, resume: bool = False, replaces: Callable[[Path], bool] = lambda path: False
    ) -> None:
        """Create and lock ``path``.

        Raises FolderError where it cannot be written, where another process is at work in it, and, without
        ``resume``, where it already holds a run that must not be replaced.
        """
        self.path, self.model, self._replaces = path, path / MODEL, replaces
        self._refuse_run(resume)
        with named(path):
            path.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(path)
        self._refuse_run(resume)
        self.holds_run = (path / CONFIG).exists()
        self._metrics: Appended | None = None
        self._tested = False  # whether the metrics have the zero-shot score

    def _refuse_run(self, resume: bool) -> None:
        if not resume and (self.path / CONFIG).exists() and not self._replaces(self.path):
            ways = "resume=auto goes on with it, hydra.run.dir=DIR chooses another folder"
            raise FolderError(f"{self.path}: already holds a run; {ways}")
        for name in (JOURNAL, CHECKPOINTS):
            if (self.path / name).exists() and not (
                self.path / CONFIG
            ).exists():  # nobody can tell which run's
                ways = "put that back, or choose another folder with hydra.run.dir=DIR"
                raise FolderError(f"{self.path}: holds the {name} of a run but not its {CONFIG}; {ways}")

    def begin(self, rows: bytes = b"") -> None:
        """Open the metrics, which then hold just ``rows``; model, result and predictions of an earlier end are removed.

        Raises FolderError where the folder is new to runs and holds a model/ of somebody's, which is never removed.
        """
        if not self.holds_run and os.path.lexists(self.model):
            ways = "move it, or choose another folder with hydra.run.dir=DIR"
            raise FolderError(f"{self.model}: is not this run's, and its model would be there; {ways}")
        self.drop_model()  # first, so that the old model never stands beside the new run
        self._remove(RESULT, PREDICTIONS, TRACEBACK)
        self.data(METRICS, rows)
        self._metrics, self._tested = Appended(self.path / METRICS), bool(rows)

    def drop_model(self) -> None:
        """Remove the model of an earlier end; whenever the process ends, all of it is there or nothing."""
        with named(self.model):
            remove_folder(self.model)

    def clear(self) -> None:
        """Forget a run that made no step, its configuration last: until then the folder stays one that can be cleared."""
        self.drop_model()
        shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)  # a partial one, if anything
        self._remove(JOURNAL, PREFIX_START, METRICS, RESULT, PREDICTIONS)
        self._remove(TRACEBACK, ENVIRONMENT, CONFIG)
        self.holds_run = False

    def _remove(self, *names: str) -> None:
        with named(self.path):
            for name in names:
                (self.path / name).unlink(missing_ok=True)

    def session(self, ran_on: Mapping[str, Any]) -> None:
        """Write what this session runs on as ``environment.json``; those before it stay there under "earlier"."""
        before = surroundings(self.path)
        earlier = before.pop("earlier", [])
        run_id = before.get("run_id") or secrets.token_hex(4)
        sessions = [*(earlier if isinstance(earlier, list) else []), *([before] if before else [])]
        self.json(ENVIRONMENT, {"run_id": run_id, **ran_on, "earlier": sessions})

    def run_id(self) -> str:
        """The name under which all sessions of this run are known elsewhere."""
        return str(surroundings(self.path)["run_id"])

    def text(self, name: str, content: str) -> None:
        """Write a whole file at once: it is either absent or complete."""
        self.data(name, content.encode())

    def data(self, name: str, content: bytes) -> None:
        """Write a whole file of bytes, such as a picture, in the same way."""
        with named(self.path / name):
            replace_file(self.path / name, content)

    def json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write an object as indented JSON; what is not a finite number becomes null."""
        self.text(name, json.dumps(finite(content), indent=2, ensure_ascii=False) + "\n")

    def lines(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write one JSON object a line."""
        self.text(name, "".join(json_line(row) for row in rows))

    def trained(self, row: TrainRow) -> None:
        """Append a train row."""
        self.row(row.values())

    def evaluated(self, row: DevRow) -> None:
        """Append a dev row and see all rows onto the disk."""
        self.row(row.values())
        assert self._metrics is not None
        self._metrics.sync()

    def tested(self, row: TestRow) -> None:
        """Append the zero-shot row; of the last one write the predictions."""
        if not self._tested:
            self.row(row.values())
            self._tested = True
        if row.last:
            self.lines(PREDICTIONS, row.predictions)

    @property
    def begun(self) -> bool:
        """Whether the folder is this process's run's to write to; before that nothing in it is touched."""
        return self._metrics is not None

    def close(self) -> None:
        """Close the metrics and let other processes in."""
        if self._metrics is not None:
            self._metrics.close()
        os.close(self._lock)

    def row(self, row: Mapping[str, Any]) -> None:
        """Append any row of numbers to the metrics, which ``begin`` opened."""
        assert self._metrics is not None
        self._metrics.append(json_line(row).encode())


def _locked(path: Path) -> int:
    """The descriptor that holds the folder's lock, until it is closed or the process ends, however it ends."""
    with named(path):
        number = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
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
