"""Zero-shot scores that the runs of a sweep share: one of them computes each, the others read it.

A score lies in a file of its own, named by the hash of everything that it depends on, which the file holds too.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.json import decode

from lezo.records.files import FolderError, read_file, replace_file

ZERO_SHOT = ".zero-shot"  # beside the folders of a sweep's runs
_TICK_SECONDS = 0.1


class ZeroShot(Struct, frozen=True, forbid_unknown_fields=True):
    """The test set by the weights that a run starts from: loss, score and predictions, computed by ``run``, a folder's name.

    ``key``: what they depend on, as JSON values.
    """

    key: dict[str, Any]
    run: str
    loss: float | None
    score: float
    predictions: list[dict[str, Any]]


class SharedScores:
    """The scores in a folder, which is there only where runs are to share them. Nothing here raises for want of one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def obtain(
        self, key: Mapping[str, Any], compute: Callable[[], ZeroShot], waits: Callable[[], None]
    ) -> ZeroShot:
        """The score under ``key``: another run's, or computed here and kept for the others.

        While another process computes it this one waits, having called ``waits``. Where the folder cannot be written or
        locked it is computed, and not kept.
        """
        if (found := self.find(key)) is not None:
            return found
        with self._alone(key, waits) as locked:
            if (found := self.find(key)) is not None:
                return found
            made = compute()
            if locked:
                self._keep(key, made)
        return made

    def find(self, key: Mapping[str, Any]) -> ZeroShot | None:
        """What is kept under ``key``; None where nothing is, or nothing whole."""
        try:
            found = decode(read_file(self._file(key), plain=True) or b"", type=ZeroShot)
        except (FolderError, ValueError):
            return None
        return found if found.key == json.loads(json.dumps(key)) else None

    def _keep(self, key: Mapping[str, Any], made: ZeroShot) -> None:
        """Write it whole. What is not finite JSON has no place there; on a full disk it stays this run's alone."""
        if not math.isfinite(made.score) or not math.isfinite(made.loss or 0.0):
            return
        values = {name: getattr(made, name) for name in made.__struct_fields__}
        try:
            replace_file(self._file(key), json.dumps(values, allow_nan=False).encode())
        except (OSError, ValueError):
            return

    def _file(self, key: Mapping[str, Any]) -> Path:
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        return self._folder / f"{name}.json"

    @contextmanager
    def _alone(self, key: Mapping[str, Any], waits: Callable[[], None]) -> Iterator[bool]:
        """Whether this process alone computes what is under ``key``. The system lets go when a process ends, however it ends."""
        try:
            number = os.open(
                self._file(key).with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666
            )
        except OSError:  # no such folder, or not ours to write to
            yield False
            return
        try:
            yield _locked(number, waits)
        finally:
            os.close(number)


def _locked(number: int, waits: Callable[[], None]) -> bool:
    """Wait until the lock is ours; False on a file system without locks. A signal ends the wait by what it raises."""
    told = False
    while True:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if not told:
                waits()
            told = True
            time.sleep(_TICK_SECONDS)
        except OSError:
            return False
