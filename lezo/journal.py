"""What determines a run's weights? What it starts from, and one small record a step (design section 3).

The file: MAGIC, the header's length and its JSON, their CRC-32; then records of 20 bytes, little-endian:
uint32 step, uint32 kind, float64 value, and the CRC-32 of these and of the header. Nothing is unpickled.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from enum import IntEnum
from pathlib import Path
from typing import Any

from lezo.evaluate import Evaluation
from lezo.identity import Origin
from lezo.optim import StepReport
from lezo.record import Appended, replace_file

MAGIC = b"lezo journal 1\n\0"
RECORD = struct.Struct("<IIdI")
_LENGTH, _CHECKSUM, _FIELDS = struct.Struct("<I"), struct.Struct("<I"), struct.Struct("<IId")
_LONGEST_HEADER = 2**20


class JournalError(ValueError):
    """A journal that cannot be trusted; the message names the file, the offset and what was expected."""


class Kind(IntEnum):
    """What a record's value is: the coefficient of an update; nothing, the step was skipped; a dev loss."""

    update = 0
    skipped = 1
    dev = 2


@dataclass(frozen=True)
class Record:
    """``step`` counts updates: the first has 1. Step 0 has a dev loss only."""

    step: int
    kind: Kind
    value: float


@dataclass(frozen=True)
class Recipe:
    """What turns records into weights: where the base model is, and the settings of `SeededUpdate`.

    ``path``: folder or hub id; None for the embedded model.

    ``decay``: what each update takes off weights that decay, lr * weight_decay.
    """

    model: str
    path: str | None
    revision: str | None
    shape: dict[str, Any] | None
    random_weights: bool
    tokenizer: str | None
    seed: int
    sparsity: float
    decay: float
    rounding: str


@dataclass(frozen=True)
class Header:
    """The start of a journal."""

    origin: Origin
    recipe: Recipe


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
        """The step of the lowest dev loss, the earliest of equals, never 0; None where there is none."""
        losses = [(r.value, r.step) for r in self.devs() if r.step > 0]
        return min((pair for pair in losses if not math.isnan(pair[0])), default=(0.0, None))[1]

    def cut(self, step: int, keeps_dev: bool) -> int:
        """The bytes up to the last record of ``step``, with or without its dev loss."""
        kept = [
            r
            for r in self.records
            if r.step < step or (r.step == step and (keeps_dev or r.kind is not Kind.dev))
        ]
        return self.end - RECORD.size * (len(self.records) - len(kept))


class Journal:
    """Appends a record for every step and dev evaluation; each reaches the system at once, the disk once a second."""

    def __init__(self, path: Path, header: Header, *, at: int | None = None) -> None:
        """Begin a journal, or go on with the one at ``path`` behind its first ``at`` bytes. Raises FolderError."""
        start = _start(header)
        if at is None:
            replace_file(path, start)
        self._seed = zlib.crc32(start)
        self._file = Appended(path, at=at)

    def trained(self, step: int, seconds: float, report: StepReport) -> None:
        """Append a step."""
        kind = Kind.update if report.applied else Kind.skipped
        self._append(Record(step, kind, report.coefficient))

    def evaluated(self, step: int, seconds: float, dev: Evaluation) -> None:
        """Append a dev loss and see everything onto the disk."""
        self._append(Record(step, Kind.dev, math.nan if dev.loss is None else dev.loss))
        self._file.sync()

    def close(self) -> None:
        """See everything onto the disk."""
        self._file.close()

    def _append(self, record: Record) -> None:
        self._file.append(_packed(record, self._seed))


def read_journal(path: Path) -> JournalFile:
    """Check and read a journal. A record cut short at the end is left out; other damage raises JournalError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise JournalError(f"{path}: cannot read the journal ({error.strerror})") from None
    header, at = _header(path, content)
    whole = (len(content) - at) // RECORD.size
    seed = zlib.crc32(content[:at])
    records: list[Record] = []
    for number in range(whole):
        offset = at + number * RECORD.size
        record = _unpacked(content[offset : offset + RECORD.size], seed)
        if record is None and _is_tail(content, offset):
            whole = number
            break
        if record is None or not _follows(records, record):
            raise JournalError(_damaged(path, offset, "a record's checksum or step number is wrong"))
        records.append(record)
    end = at + whole * RECORD.size
    return JournalFile(header, records, end, len(content) - end)


def _start(header: Header) -> bytes:
    text = json.dumps(asdict(header), sort_keys=True).encode()
    start = MAGIC + _LENGTH.pack(len(text)) + text
    return start + _CHECKSUM.pack(zlib.crc32(start))


def _packed(record: Record, seed: int) -> bytes:
    body = _FIELDS.pack(record.step, record.kind, record.value)
    return body + _CHECKSUM.pack(zlib.crc32(body, seed))


def _unpacked(data: bytes, seed: int) -> Record | None:
    step, kind, value, checksum = RECORD.unpack(data)
    if checksum != zlib.crc32(data[: _FIELDS.size], seed) or kind not in list(Kind):
        return None
    return Record(step, Kind(kind), value)


def _is_tail(content: bytes, offset: int) -> bool:
    """Whether what is wrong at ``offset`` is the end of the file: its last record, or zeros that were never filled."""
    return len(content) - offset < 2 * RECORD.size or not any(content[offset:])


def _follows(records: Sequence[Record], record: Record) -> bool:
    last = records[-1].step if records else 0
    return record.step == last + (record.kind is not Kind.dev)


def _header(path: Path, content: bytes) -> tuple[Header, int]:
    """The header and where the records begin."""
    if not content.startswith(MAGIC):
        raise JournalError(_damaged(path, 0, "this is not the start of a lezo journal (version 1)"))
    at = len(MAGIC) + _LENGTH.size
    length = _LENGTH.unpack(content[len(MAGIC) : at].ljust(_LENGTH.size, b"\xff"))[0]
    end = at + length
    checksum = content[end : end + _CHECKSUM.size]
    if length > _LONGEST_HEADER or checksum != _CHECKSUM.pack(zlib.crc32(content[:end])):
        raise JournalError(_damaged(path, len(MAGIC), "the header's checksum is wrong"))
    try:
        return _parsed(json.loads(content[at:end])), end + _CHECKSUM.size
    except (ValueError, TypeError, KeyError) as error:
        raise JournalError(_damaged(path, at, f"the header is not a journal's ({error})")) from None


def _parsed(content: Mapping[str, Any]) -> Header:
    return Header(_typed(Origin, content["origin"]), _typed(Recipe, content["recipe"]))


def _typed(kind: Any, content: Mapping[str, Any]) -> Any:
    """A dataclass from JSON. Raises TypeError for a field that lacks, is unknown or of another type."""
    expected = {
        "int": int, "str": str, "bool": bool, "float": float | int,
        "str | None": str | None, "dict[str, Any] | None": dict | None,
    }  # fmt: skip
    for field in fields(kind):
        if not isinstance(content[field.name], expected[str(field.type)]):
            raise TypeError(f"{field.name} is {content[field.name]!r}")
    return kind(**content)


def _damaged(path: Path, offset: int, reason: str) -> str:
    return f"{path}: damaged at byte {offset}: {reason}; expected the file as the run wrote it (take it from a copy)"
