"""A run's journal: what its weights follow from, which is what it starts from and one small record a step.

The file: MAGIC, the header's length and its JSON, their CRC-32; then records of 20 bytes, little-endian:
uint32 step, uint32 kind, float64 value, and a CRC-32. Each goes on from the one before, the first from the header's:
so no record can be moved. A step of several directions has a record for each. Nothing is unpickled.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path

from lezo.records.files import Appended, FolderError, named, replace_file
from lezo.records.rows import DevRow, TrainRow
from lezo.records.schema import Header, header_of

MAGIC = b"lezo journal 1\n\0"
RECORD = struct.Struct("<IIdI")
_LENGTH, _CHECKSUM, _FIELDS = struct.Struct("<I"), struct.Struct("<I"), struct.Struct("<IId")
_LONGEST_HEADER = 2**20


class JournalError(FolderError):
    """A journal that cannot be trusted; the message names the file, the offset and what was expected."""


class Kind(IntEnum):
    """What a record's value is: the coefficient of an update; nothing, the step was skipped; a dev loss.

    ``more``: the coefficient of a further direction; these stand before the record that completes their step.
    """

    update = 0
    skipped = 1
    dev = 2
    more = 3


_KINDS = frozenset(Kind)


@dataclass(frozen=True)
class Record:
    """``step`` counts updates: the first has 1. Step 0 has a dev loss only. ``more``: of further directions."""

    step: int
    kind: Kind
    value: float
    more: tuple[float, ...] = ()

    @property
    def values(self) -> tuple[float, ...]:
        """The coefficients of all directions, in their order."""
        return (self.value, *self.more)

    @property
    def size(self) -> int:
        """Its bytes in the file."""
        return RECORD.size * len(self.values)


@dataclass(frozen=True)
class JournalFile:
    """A journal as read. ``end``: bytes up to the last whole record; ``torn``: bytes of a record cut short after it."""

    header: Header
    records: Sequence[Record]
    end: int
    torn: int

    @property
    def step(self) -> int:
        """The last step."""
        return max((record.step for record in self.records), default=0)

    def steps(self, after: int, until: int) -> Iterator[Record]:
        """The records of the updates ``after`` < step <= ``until``, in order."""
        return (r for r in self.records if r.kind is not Kind.dev and after < r.step <= until)

    def devs(self) -> Iterator[Record]:
        """The records of the dev evaluations, in order."""
        return (r for r in self.records if r.kind is Kind.dev)

    def best(self) -> int | None:
        """The step of the lowest dev loss, the earliest of equals, never 0; None where none is finite."""
        losses = [(r.value, r.step) for r in self.devs() if r.step > 0 and math.isfinite(r.value)]
        return min(losses)[1] if losses else None

    def cut(self, step: int, keeps_dev: bool) -> int:
        """The bytes up to the last record of ``step``, with or without its dev loss."""
        cut = [r for r in self.records if r.step > step]
        if not keeps_dev:
            cut += [r for r in self.devs() if r.step == step]
        return self.end - sum(r.size for r in cut)


class Journal:
    """Appends a record for every step and dev evaluation; each reaches the system at once, the disk once a second."""

    def __init__(self, path: Path, header: Header, *, at: int | None = None) -> None:
        """Begin a journal, or go on with the one at ``path`` behind its first ``at`` bytes, whose header stays.

        Raises FolderError.
        """
        if at is None:
            with named(path):
                replace_file(path, _start(header))
        self._file = Appended(path, at=at)
        self._file.sync()  # no metrics row may be there before what was cut is gone
        self._checksum = _CHECKSUM.unpack(self._file.end(_CHECKSUM.size))[0]

    def trained(self, row: TrainRow) -> None:
        """Append a step."""
        for value in row.more:
            self._append(Record(row.step, Kind.more, value))
        self._append(Record(row.step, Kind.skipped if row.skipped else Kind.update, row.coefficient))

    def evaluated(self, row: DevRow) -> None:
        """Append a dev loss and see everything onto the disk."""
        self._append(Record(row.step, Kind.dev, math.nan if row.loss is None else row.loss))
        self._file.sync()

    def close(self) -> None:
        """See everything onto the disk."""
        self._file.close()

    def _append(self, record: Record) -> None:
        data = _FIELDS.pack(record.step, record.kind, record.value)
        self._checksum = zlib.crc32(data, self._checksum)
        self._file.append(data + _CHECKSUM.pack(self._checksum))


def read_journal(path: str | os.PathLike[str]) -> JournalFile:
    """Check and read a journal. A record cut short at the end is left out; other damage raises JournalError."""
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise JournalError(f"{path}: cannot read the journal ({error.strerror})") from None
    header, start = _header(path, content)
    (checksum,) = _CHECKSUM.unpack_from(content, start - _CHECKSUM.size)
    records: list[Record] = []
    more: list[float] = []  # of a step that is not whole yet
    end = start
    for offset in range(start, len(content) - RECORD.size + 1, RECORD.size):
        checksum = zlib.crc32(content[offset : offset + _FIELDS.size], checksum)
        step, kind, value, stored = RECORD.unpack_from(content, offset)
        is_whole = checksum == stored and kind in _KINDS
        if not is_whole and _is_tail(content, offset):
            break
        if not is_whole or not _follows(records, step, kind, within_step=bool(more)):
            raise _damaged(path, offset, "a record's checksum or step number is wrong")
        if kind == Kind.more:
            more.append(value)
        else:
            records.append(Record(step, Kind(kind), value, tuple(more)))
            more, end = [], offset + RECORD.size
    return JournalFile(header, records, end, len(content) - end)


def _start(header: Header) -> bytes:
    fields = asdict(header)
    if fields["recipe"]["quantization"] is None:
        del fields["recipe"]["quantization"]  # goes without saying, as it did before there was any
    text = json.dumps(fields, sort_keys=True).encode()
    start = MAGIC + _LENGTH.pack(len(text)) + text
    return start + _CHECKSUM.pack(zlib.crc32(start))


def _is_tail(content: bytes, offset: int) -> bool:
    """Whether the wrong record at ``offset`` is the last, or all behind it are zeros that were never filled."""
    return len(content) - offset < 2 * RECORD.size or not any(content[offset + RECORD.size :])


def _follows(records: Sequence[Record], step: int, kind: int, *, within_step: bool) -> bool:
    """Steps come one after the other, each whole, with one dev loss at most after it."""
    last = records[-1] if records else Record(0, Kind.update, math.nan)
    if kind == Kind.dev:
        return step == last.step and last.kind is not Kind.dev and not within_step
    return step == last.step + 1


def _header(path: Path, content: bytes) -> tuple[Header, int]:
    """The header and where the records begin."""
    if not content.startswith(MAGIC):
        raise _damaged(path, 0, "this is not the start of a lezo journal (version 1)")
    at = len(MAGIC) + _LENGTH.size
    length = _LENGTH.unpack(content[len(MAGIC) : at].ljust(_LENGTH.size, b"\xff"))[0]
    end = at + length
    checksum = content[end : end + _CHECKSUM.size]
    if length > _LONGEST_HEADER or checksum != _CHECKSUM.pack(zlib.crc32(content[:end])):
        raise _damaged(path, len(MAGIC), "the header's checksum is wrong")
    try:
        return header_of(content[at:end]), end + _CHECKSUM.size
    except ValueError as error:
        raise _damaged(path, at, f"the header is not a journal's ({error})") from None


def _damaged(path: Path, offset: int, reason: str) -> JournalError:
    ways = "expected the file as the run wrote it (take it from a copy)"
    return JournalError(f"{path}: damaged at byte {offset}: {reason}; {ways}")
