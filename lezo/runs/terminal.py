"""Standard streams that stop no command: they may be closed, full, left by their reader, or not UTF-8.

What they do not take is dropped. The command goes on to its end, and its files are whole.
"""

from __future__ import annotations

import io
import os
import select
import sys
from typing import Any, TextIO


def open_streams() -> None:
    """Make the process's standard streams such that no write fails; to be called before anything else."""
    if sys.stdin is None:
        sys.stdin = _nothing("r")
    # In this order: a stream is None where its descriptor is closed, and opening takes the lowest free one.
    sys.stdout = _nothing("w") if sys.stdout is None else _steady(sys.stdout, sys.__stdout__)
    sys.stderr = _nothing("w") if sys.stderr is None else _steady(sys.stderr, sys.__stderr__)


def steady(descriptor: int, encoding: str, *, lines: bool, unbuffered: bool = False) -> io.TextIOWrapper:
    """A text stream to an open file, which stays open, that drops what the file does not take."""
    raw = _Steady(descriptor, "w", closefd=False)
    buffer: Any = raw if unbuffered else io.BufferedWriter(raw)
    return io.TextIOWrapper(
        buffer, encoding, errors="backslashreplace", line_buffering=lines, write_through=unbuffered
    )


class _Steady(io.FileIO):
    def write(self, data: Any, /) -> int:
        try:
            while (taken := super().write(data)) is None:  # a full pipe that does not wait: so we do
                select.select([], [self], [])
            return taken
        except OSError:  # no reader, no room, no terminal any more
            return memoryview(data).nbytes


def _steady(stream: TextIO, own: TextIO | None) -> TextIO:
    """``stream``, unless somebody has put one of theirs in the place of the process's ``own``."""
    if stream is not own or not isinstance(stream, io.TextIOWrapper):
        return stream
    return steady(
        stream.fileno(), stream.encoding, lines=stream.line_buffering, unbuffered=stream.write_through
    )


def _nothing(mode: str) -> TextIO:
    """A closed stream's place, so that no file is taken for it, here or in a command that is started."""
    descriptor = os.open(os.devnull, os.O_RDWR)
    os.set_inheritable(descriptor, True)
    stream: Any = os.fdopen(descriptor, mode, encoding="utf-8")
    return stream  # type: ignore[no-any-return]
