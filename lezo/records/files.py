"""Files and folders that are whole or absent, files that only grow, and JSON without NaN."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lezo.records.schema import LARGEST


class FolderError(OSError):
    """A run folder that cannot be used."""


class Appended:
    """A file that only grows: what is appended reaches the system at once, and the disk at least once a second.

    So a killed process loses nothing, and a machine without power what it had appended since.
    """

    def __init__(self, path: Path, *, at: int | None = None) -> None:
        """Open or create ``path``; ``at``: forget what is behind that byte. Raises FolderError."""
        self._path, self._synced = path, time.monotonic()
        with named(path):
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            self._file = os.open(path, flags, 0o666)
            if at is not None:
                os.ftruncate(self._file, at)

    def append(self, data: bytes) -> None:
        """Append all of ``data`` in one write. Raises FolderError, as on a full disk."""
        with named(self._path):
            if os.write(self._file, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if time.monotonic() - self._synced >= 1:
            self.sync()

    def end(self, size: int) -> bytes:
        """The last ``size`` bytes."""
        with named(self._path):
            return os.pread(self._file, size, os.fstat(self._file).st_size - size)

    def sync(self) -> None:
        """Wait until everything is on the disk."""
        with named(self._path):
            os.fsync(self._file)
        self._synced = time.monotonic()

    def close(self) -> None:
        """See everything onto the disk and close."""
        if self._file >= 0:
            number, self._file = self._file, -1
            with suppress(OSError):  # a full disk was told already
                os.fsync(number)
            os.close(number)


def read_file(path: Path, *, plain: bool = False, most: int = -1) -> bytes | None:
    """A file's content, of which ``most`` bytes at most; None where it is not there. ``plain``: no link, no pipe.

    Raises FolderError where it cannot be read.
    """
    flags = os.O_NOFOLLOW | os.O_NONBLOCK if plain else 0
    try:
        with open(path, "rb", opener=lambda name, mode: os.open(name, mode | flags)) as file:
            if plain and not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EINVAL, "not a plain file")
            return file.read(most)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FolderError(f"{path}: cannot read it ({error.strerror})") from error


def replace_file(path: Path, content: bytes) -> None:
    """Write a whole file: at any moment the old one or the new one is there. Raises OSError with its name."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which then takes the place of ``folder``; where that fails, what was there stays."""
    partial, gone = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("partial", "gone"))
    for earlier in (partial, gone):
        shutil.rmtree(earlier, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in (*partial.rglob("*"), partial):
            if path.is_file():
                path.chmod(0o644)  # safetensors lets only its writer read
            sync(path)
        if folder.exists():
            os.replace(folder, gone)
        os.replace(partial, folder)
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if gone.exists() and not folder.exists():
            os.replace(gone, folder)
        raise
    shutil.rmtree(gone, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Delete a folder if it is there, or a link to one; it is renamed first and so never half there. Raises OSError."""
    gone = folder.with_name(f".{folder.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        os.replace(folder, gone)
    sync(folder.parent)
    shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Turn an OSError into a FolderError that names ``path``."""
    try:
        yield
    except OSError as error:
        ways = "what was written before stays; make room, or choose another folder with hydra.run.dir=DIR"
        raise FolderError(f"{path}: cannot write there ({error.strerror}); {ways}") from error


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk. Raises OSError."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def json_line(row: Mapping[str, Any]) -> str:
    return json.dumps(finite(row), ensure_ascii=False) + "\n"


def finite(value: Any) -> Any:
    """``value`` for JSON: NaN, infinity and what is beyond LARGEST become None."""
    if isinstance(value, float):
        return value if abs(value) <= LARGEST else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value
