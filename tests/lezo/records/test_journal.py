"""The journal's bytes: what comes back, what is dropped at a torn end, and what is refused everywhere else."""

import json
import math
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from lezo.records.files import FolderError
from lezo.records.journal import MAGIC, RECORD, Journal, JournalError, Kind, Record, read_journal
from lezo.records.rows import DevRow, TrainRow
from lezo.records.schema import Header, Provenance, ReplaySpec
from tests.lezo.refusals import refused as refuses
from tests.lezo.whole_runs import limited

ORIGIN = Provenance("w" * 64, "t" * 64, "d" * 64, "float32", 1, "c" * 64, "0.1.0")
RECIPE = ReplaySpec("tiny", None, None, None, True, None, 3, 0.75, 1e-5, "nearest")
HEADER = Header(ORIGIN, RECIPE)
RECORDS = [
    Record(0, Kind.dev, 0.75),
    Record(1, Kind.update, 1e-7),
    Record(2, Kind.update, -3.5e-8),
    Record(2, Kind.dev, 0.7),
    Record(3, Kind.skipped, math.inf),
    Record(4, Kind.update, -0.0),
    Record(4, Kind.dev, 0.7),
    Record(5, Kind.update, 2.5),
]


def stepped(
    step: int, coefficient: float, *, skipped: bool = False, more: tuple[float, ...] = ()
) -> TrainRow:
    return TrainRow(step, 0.0, 1.0, skipped=skipped, coefficient=coefficient, more=more)


def write(path: Path, records: Sequence[Record], header: Header = HEADER, at: int | None = None) -> bytes:
    """The journal of a run that did and measured ``records``."""
    journal = Journal(path, header, at=at)
    for record in records:
        if record.kind is Kind.dev:
            journal.evaluated(DevRow(record.step, 0.0, record.value, 0.5))
        else:
            skipped = record.kind is Kind.skipped
            journal.trained(stepped(record.step, record.value, skipped=skipped, more=record.more))
    journal.close()
    return path.read_bytes()


def rebuilt(header: bytes, records: Sequence[bytes]) -> bytes:
    """A journal of any header and any fields of records, with the checksums that belong to them."""
    start = MAGIC + struct.pack("<I", len(header)) + header
    checksum = zlib.crc32(start)
    content = start + struct.pack("<I", checksum)
    for fields in records:
        checksum = zlib.crc32(fields, checksum)
        content += fields + struct.pack("<I", checksum)
    return content


def header_json(**changes: Any) -> bytes:
    """The header with other values, by the names of their fields."""
    content = asdict(HEADER)
    for part in content.values():
        part.update({key: value for key, value in changes.items() if key in part})
    return json.dumps(content).encode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.bin"


def refused(path: Path, content: bytes) -> str:
    """The message with which this content is refused; it names the file, in one line."""
    path.write_bytes(content)
    with pytest.raises(JournalError) as caught:
        read_journal(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


def test_what_was_written_comes_back_in_20_bytes_a_record(path: Path) -> None:
    content = write(path, RECORDS)
    found = read_journal(path)
    assert found.header == HEADER
    assert list(found.records) == RECORDS and math.copysign(1, found.records[5].value) == -1
    assert (found.step, found.end, found.torn) == (5, len(content), 0)
    write(path.with_name("empty"), [])
    assert RECORD.size == 20 == (len(content) - path.with_name("empty").stat().st_size) / len(RECORDS)


def test_the_bytes_are_those_of_the_documented_format(path: Path) -> None:
    fields = [struct.pack("<IId", record.step, record.kind, record.value) for record in RECORDS]
    header = asdict(HEADER)
    del header["recipe"]["quantization"]  # None is left out, as before there was any
    assert write(path, RECORDS) == rebuilt(json.dumps(header, sort_keys=True).encode(), fields)


@pytest.mark.parametrize("shape", [None, {"num_hidden_layers": 2, "do_layer_norm_before": False}])
def test_every_field_of_the_header_comes_back(shape: dict[str, Any] | None, path: Path) -> None:
    recipe = ReplaySpec("hf", "a/b", "main", shape, False, "Zoë", 2**63, 0.0, 0.0, "stochastic")
    origin = Provenance("1", "2", "3", "bfloat16", 7, "4", "0.1.0 abc+changes")
    others = replace(recipe, blocks=["layers.0", ""]), replace(recipe, quantization="4bit")
    for header in (Header(origin, recipe), *(Header(origin, other) for other in others)):
        write(path, [], header)
        assert read_journal(str(path)).header == header


def test_a_header_of_before_blocks_were_named_is_read(path: Path) -> None:
    older = header_json().replace(b', "blocks": null', b"").replace(b', "peft": null', b"")
    assert older != header_json()
    path.write_bytes(rebuilt(older, []))
    assert read_journal(path).header == HEADER


def test_a_record_cut_anywhere_is_dropped(path: Path) -> None:
    content = write(path, RECORDS)
    for size in range(RECORD.size):
        path.write_bytes(content[: len(content) - RECORD.size + size])
        found = read_journal(path)
        assert list(found.records) == RECORDS[:-1]
        assert (found.end, found.torn) == (len(content) - RECORD.size, size)


def test_a_journal_without_records_has_no_step(path: Path) -> None:
    content = write(path, [])
    found = read_journal(path)
    assert (found.step, list(found.records), found.end, found.best()) == (0, [], len(content), None)
    path.write_bytes(content + b"\1" * 19)
    assert (read_journal(path).torn, read_journal(path).end) == (19, len(content))


@pytest.mark.parametrize("zeros", [1, 19, 20, 21, 4096])
@pytest.mark.parametrize("filled", [0, 1, 15, 19])
def test_a_tail_of_zeros_is_dropped_wherever_it_begins(zeros: int, filled: int, path: Path) -> None:
    content = write(path, RECORDS)
    kept = len(content) - RECORD.size
    path.write_bytes(content[: kept + filled] + b"\0" * zeros)
    found = read_journal(path)
    assert list(found.records) == RECORDS[:-1] and found.end == kept
    assert found.torn == filled + zeros


def test_a_flipped_byte_in_the_last_record_drops_it(path: Path) -> None:
    content = write(path, RECORDS)
    for place in range(len(content) - RECORD.size, len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        assert list(read_journal(path).records) == RECORDS[:-1]


def test_a_flipped_byte_anywhere_else_is_refused_with_its_offset(path: Path) -> None:
    content = write(path, RECORDS)
    begin = len(content) - RECORD.size * len(RECORDS)
    for place in [*range(0, begin, 9), *range(begin, len(content) - RECORD.size, 3)]:
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        offset = (place - begin) // RECORD.size * RECORD.size + begin if place >= begin else None
        header = 0 if place < len(MAGIC) else len(MAGIC)
        assert f": damaged at byte {header if offset is None else offset}: " in refused(path, bytes(damaged))


def test_a_file_cut_within_its_header_is_refused(path: Path) -> None:
    content = write(path, [])
    for size in [*range(24), *range(24, len(content) - 8, 31), *range(len(content) - 8, len(content))]:
        assert "damaged at byte " in refused(path, content[:size])


@pytest.mark.parametrize(
    "other",
    [replace(HEADER, origin=replace(ORIGIN, weights="x")), replace(HEADER, recipe=replace(RECIPE, seed=4))],
    ids=["of another model", "of another seed"],
)
def test_records_of_another_journal_are_refused(other: Header, path: Path) -> None:
    content, begin = write(path, RECORDS), len(write(path.with_name("empty"), []))
    foreign = write(path.with_name("other"), RECORDS, other)
    foreign = foreign[-RECORD.size * len(RECORDS) :]
    assert f"damaged at byte {begin}: " in refused(path, content[:begin] + foreign)
    assert f"damaged at byte {begin + 60}: " in refused(path, content[: begin + 60] + foreign[60:])


def test_records_of_another_run_under_the_same_header_are_refused(path: Path) -> None:
    content = write(path, RECORDS)
    other = [replace(record, value=2 * record.value) for record in RECORDS]
    foreign = write(path.with_name("other"), other)
    at = len(content) - 3 * RECORD.size
    assert f"damaged at byte {at}: " in refused(path, content[:at] + foreign[at:])


def test_a_lost_a_doubled_and_a_swapped_record_are_refused(path: Path) -> None:
    content = write(path, RECORDS)
    begin = len(content) - RECORD.size * len(RECORDS)
    parts = [content[at : at + RECORD.size] for at in range(begin, len(content), RECORD.size)]
    for i in range(len(parts) - 2):  # among them the dev losses, which leave no gap in the steps
        for changed in (
            [*parts[:i], *parts[i + 1 :]],
            [*parts[: i + 1], *parts[i:]],
            [*parts[:i], parts[i + 1], parts[i], *parts[i + 2 :]],
        ):
            assert "damaged at byte " in refused(path, content[:begin] + b"".join(changed))


@pytest.mark.parametrize(
    ("fields", "bad"),
    [
        ([(1, 0), (3, 0), (4, 0)], 1),
        ([(1, 0), (1, 0), (2, 0)], 1),
        ([(0, 0), (1, 0), (2, 0)], 0),
        ([(2, 0), (3, 0), (4, 0)], 0),
        ([(1, 2), (1, 0), (2, 0)], 0),
        ([(0, 2), (0, 2), (1, 0), (2, 0)], 1),
        ([(1, 0), (1, 2), (1, 2), (2, 0), (3, 0)], 2),
        ([(1, 0), (2, 0), (1, 2), (3, 0), (4, 0)], 2),
        ([(1, 3), (2, 0), (3, 0)], 1),
        ([(1, 4), (2, 0), (3, 0)], 0),
        ([(1, 0), (2, 2**32 - 1), (3, 0), (4, 0)], 1),
    ],
)
def test_steps_out_of_order_and_unknown_kinds_are_refused_though_the_checksums_are_right(
    fields: list[tuple[int, int]], bad: int, path: Path
) -> None:
    content = rebuilt(header_json(), [struct.pack("<IId", step, kind, 0.5) for step, kind in fields])
    offset = len(content) - RECORD.size * (len(fields) - bad)
    assert f"damaged at byte {offset}: " in refused(path, content)


@pytest.mark.parametrize("length", [2**20 + 1, 2**31, 2**32 - 1])
def test_a_huge_header_length_is_refused(length: int, path: Path) -> None:
    content = MAGIC + struct.pack("<I", length) + b"{}" * 50
    assert "damaged at byte 16: " in refused(path, content)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"7",
        b'"origin"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"origin": {}, "recipe": {}}',
        b'{"origin": [], "recipe": []}',
        b'{"origin": "weights", "recipe": null}',
        header_json(noise="1"),
        header_json(noise=True),
        header_json(noise=1.0),
        header_json(weights=None),
        header_json(seed="0"),
        header_json(seed=True),
        header_json(sparsity=None),
        header_json(decay=False),
        header_json(random_weights=1),
        header_json(rounding="odd"),
        header_json(sparsity=7.0),
        header_json(seed=-1),
        header_json(decay=-0.1),
        header_json(shape=[]),
        header_json(revision=0),
        header_json(blocks="layers.0"),
        header_json(blocks=[0]),
        header_json().replace(b'"seed"', b'"sede"'),
        header_json().replace(b'"seed"', b'"more": 1, "seed"'),
    ],
    ids=lambda header: header[:40].decode("latin1"),
)
def test_a_header_of_the_wrong_types_is_refused_though_its_checksum_is_right(
    header: bytes, path: Path
) -> None:
    assert "damaged at byte 20: " in refused(path, rebuilt(header, []))


def test_what_is_no_journal_or_not_there_is_refused(path: Path) -> None:
    assert "damaged at byte 0: " in refused(path, b"")
    assert "damaged at byte 0: " in refused(path, b"PK\x03\x04" * 100)
    for missing in (path / "below", path.parent):
        with refuses(JournalError, str(missing)):
            read_journal(missing)


def test_best_is_the_earliest_lowest_finite_loss_after_step_0(path: Path) -> None:
    write(path, RECORDS)
    assert read_journal(path).best() == 2
    for losses, best in (
        ([0.1, 3.0, 2.0], 2),
        ([0.1, math.nan, 2.0], 2),
        ([0.1, math.nan, math.inf], None),
        ([0.1], None),
    ):
        records = [record for step, loss in enumerate(losses) for record in judged(step, loss)]
        write(path, records)
        assert read_journal(path).best() == best


def judged(step: int, loss: float) -> list[Record]:
    made = [Record(step, Kind.update, 0.5)] if step else []
    return [*made, Record(step, Kind.dev, loss)]


def test_a_dev_loss_that_is_none_or_nan_comes_back_as_nan(path: Path) -> None:
    journal = Journal(path, HEADER)
    journal.evaluated(DevRow(0, 0.0, None, 0.5))
    journal.trained(stepped(1, 1.0))
    journal.evaluated(DevRow(1, 0.0, math.nan, 0.5))
    journal.close()
    found = read_journal(path)
    assert [math.isnan(r.value) for r in found.devs()] == [True, True] and found.best() is None


def test_steps_are_updates_and_skipped_ones_behind_the_first_up_to_the_last(path: Path) -> None:
    write(path, RECORDS)
    found = read_journal(path)
    assert [r.step for r in found.steps(0, 5)] == [1, 2, 3, 4, 5]
    assert [r.step for r in found.steps(2, 4)] == [3, 4]
    assert [r.step for r in found.steps(4, 4)] == [] == list(found.steps(5, 9))
    assert [r.step for r in found.devs()] == [0, 2, 4]


@pytest.mark.parametrize(
    ("step", "keeps_dev", "kept"),
    [(0, False, 0), (0, True, 1), (1, True, 2), (2, False, 3), (2, True, 4), (5, True, 8), (9, True, 8)],
)
def test_a_journal_goes_on_behind_a_cut(step: int, keeps_dev: bool, kept: int, path: Path) -> None:
    whole = write(path, RECORDS)
    path.write_bytes(whole + b"torn")
    at = read_journal(path).cut(step, keeps_dev)
    assert at == len(whole) - RECORD.size * (len(RECORDS) - kept)
    grown = replace(HEADER, origin=replace(ORIGIN, config="of more steps", code="of a later day"))
    assert write(path, RECORDS[kept:], grown, at=at) == whole  # to the bit, and the first header stays
    assert list(read_journal(path).records) == RECORDS


def test_a_cut_is_there_at_once(path: Path) -> None:
    whole = write(path, RECORDS)
    journal = Journal(path, HEADER, at=len(whole) - 60)
    assert path.read_bytes() == whole[:-60]
    journal.close()


def test_a_new_journal_takes_the_place_of_an_old_one(path: Path) -> None:
    write(path, RECORDS)
    write(path, RECORDS[:2])
    assert list(read_journal(path).records) == RECORDS[:2]
    assert [file.name for file in path.parent.iterdir()] == ["journal.bin"]


SEVERAL = [
    Record(0, Kind.dev, 0.75),
    Record(1, Kind.update, 1e-7, (2e-7, -3e-7)),
    Record(1, Kind.dev, 0.7),
    Record(2, Kind.skipped, math.inf, (1.0, 2.0)),
    Record(3, Kind.update, 1.0),
]


def test_a_step_of_several_directions_has_a_record_for_each(path: Path) -> None:
    content = write(path, SEVERAL)
    journal = read_journal(path)
    assert list(journal.records) == SEVERAL
    assert [r.values for r in journal.steps(0, 3)] == [(1e-7, 2e-7, -3e-7), (math.inf, 1.0, 2.0), (1.0,)]
    start = len(content) - 9 * RECORD.size
    assert [journal.cut(*at) for at in ((0, True), (1, False), (1, True), (2, True), (3, True))] == [
        start + RECORD.size * records for records in (1, 4, 5, 8, 9)
    ]


@pytest.mark.parametrize("lost", range(1, 3 * RECORD.size, 7))
def test_a_step_that_lacks_a_direction_is_torn(lost: int, path: Path) -> None:
    content = write(path, SEVERAL[:2])
    path.write_bytes(content[:-lost])
    journal = read_journal(path)
    assert list(journal.records) == SEVERAL[:1]
    assert (journal.end, journal.torn) == (len(content) - 3 * RECORD.size, 3 * RECORD.size - lost)
    assert write(path, SEVERAL[1:2], at=journal.end) == content


def test_a_dev_loss_within_a_step_is_refused(path: Path) -> None:
    fields = [
        struct.pack("<IId", *of) for of in ((1, Kind.more, 0.5), (0, Kind.dev, 0.5), (1, Kind.update, 0.5))
    ]
    assert "damaged at byte " in refused(path, rebuilt(header_json(), fields))


def test_records_can_be_read_before_the_journal_is_closed(path: Path) -> None:
    journal = Journal(path, HEADER)
    for count, record in enumerate(RECORDS[1:3], start=1):
        journal.trained(stepped(record.step, record.value))
        assert list(read_journal(path).records) == RECORDS[1 : count + 1]
    journal.close()


def test_an_evaluation_and_a_second_see_it_onto_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, clock = [], [100.0]
    monkeypatch.setattr("lezo.records.files.time.monotonic", lambda: clock[0])
    journal = Journal(path, HEADER)
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(clock[0]))
    for number, now in enumerate([100.0, 100.5, 101.0, 101.5, 101.9], start=1):
        clock[0] = now
        journal.trained(stepped(number, 1.0))
    assert synced == [101.0]
    journal.evaluated(DevRow(5, 0.0, 0.5, 0.5))
    assert synced == [101.0, 101.9]


@pytest.mark.parametrize("room", [0, 7, 19])
def test_a_full_disk_is_said_and_leaves_what_was_written(room: int, path: Path) -> None:
    whole = write(path, RECORDS[:3])
    journal = Journal(path, HEADER, at=len(whole))
    with refuses(FolderError, str(path)), limited(len(whole) + room):
        journal.evaluated(DevRow(2, 0.0, 0.7, 0.5))
    journal.close()
    found = read_journal(path)
    assert (list(found.records), found.end, found.torn) == (RECORDS[:3], len(whole), room)


def test_a_new_journal_that_does_not_fit_leaves_the_old_one(path: Path) -> None:
    whole = write(path, RECORDS)
    with refuses(FolderError, str(path)), limited(40):
        Journal(path, HEADER)
    assert path.read_bytes() == whole
    assert [file.name for file in path.parent.iterdir()] == ["journal.bin"]


def test_a_long_journal_is_a_few_hundred_kilobytes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda number: None)
    records = [Record(step, Kind.update, 1e-3 * step) for step in range(1, 2_001)]
    content = write(path, records)
    assert 10 * len(content) < 420_000  # of the published 20,000 steps
    assert list(read_journal(path).records) == records
