"""What the writers write both readers read, and what else stands there the strict one refuses by its path."""

import json
import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lezo.records import reader
from lezo.records.files import FolderError, json_line
from lezo.records.folder import RunFolder
from lezo.records.rows import DevRow, Row, TestRow, TrainRow, row_of
from lezo.records.schema import LARGEST, Result
from lezo.records.strict import read_result, read_rows
from tests.lezo.refusals import refused

BEFORE = Path(__file__).parents[2] / "before"
RUNS = sorted(file.parent.name for file in BEFORE.glob("*/result.json"))

ANY = st.floats() | st.integers(-(2**60), 2**60)
COUNTS = st.integers(0, 2**53 - 1)
SECONDS = st.floats(0, 1e9)
FINITE = st.floats(-LARGEST, LARGEST)
ROWS = st.one_of(
    st.builds(
        TrainRow,
        COUNTS,
        SECONDS,
        ANY,
        st.dictionaries(st.sampled_from(["g", "lr", "loss_plus", "of_a_later_one", "a\nb"]), ANY),
        st.booleans(),
        st.dictionaries(st.text(max_size=5), SECONDS),
        COUNTS,
    ),
    st.builds(DevRow, COUNTS, SECONDS, st.none() | ANY, FINITE, SECONDS),
    st.builds(TestRow, COUNTS, SECONDS, st.none() | ANY, FINITE),
)


def told(value: Any) -> Any:
    """As a file tells it: what is not a finite number is null."""
    return json.loads(json_line({"value": value}))["value"]


@settings(derandomize=True, deadline=None, max_examples=80, database=None)
@given(ROWS)
def test_a_row_comes_back_as_it_was_written(row: Row) -> None:
    line = json_line(row.values()).encode()
    found = row_of(line)
    assert type(found) is type(row)
    assert json_line(found.values()).encode() == json_line(told(row.values()) | ints(row)).encode()


def ints(row: Row) -> dict[str, Any]:
    """Measures that were whole numbers are read as what they are, numbers."""
    return {key: float(value) for key, value in told(row.values()).items() if is_measure(key, value)}


def is_measure(key: str, value: Any) -> bool:
    return type(value) is int and key not in ("step", "memory")


def test_what_was_not_finite_is_nan_again() -> None:
    row = TrainRow(1, 0.5, math.inf, {"g": math.nan, "lr": 2 * LARGEST}, skipped=True)
    found = row_of(json_line(row.values()).encode())
    assert isinstance(found, TrainRow) and all(map(math.isnan, [found.loss, *found.measures.values()]))


def test_a_number_that_would_be_written_as_null_now_is_read(tmp_path: Path) -> None:
    """Up to where a report's sums would overflow."""
    for size, damage in ((1e299, 0), (1e308, 2)):
        rows = [DevRow(0, 0.0, size, 0.5).values(), TrainRow(1, size, 0.5, {"g": -size}).values()]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        run = reader.read_run(tmp_path)
        assert len(run.devs) + len(run.steps) == 2 - damage
        with nullcontext() if not damage else refused(FolderError, "metrics.jsonl, line 1", "$.dev_loss"):
            assert len(read_rows(tmp_path / "metrics.jsonl")) == 2


@pytest.mark.parametrize("name", RUNS)
def test_both_readers_read_what_was_written_before(name: str) -> None:
    run = reader.read_run(BEFORE / name)
    lines, result = read_rows(BEFORE / name / "metrics.jsonl"), read_result(BEFORE / name)
    assert run.damage == [] and b"".join(line.line for line in lines).count(b"\n") == len(lines)
    assert run.devs == [line.row for line in lines if line.kind == "dev"]
    assert [step.step for step in run.steps] == [line.step for line in lines if line.kind == "train"]
    assert result is not None and result.items() == run.result.items()
    assert result.keys() <= Result.__annotations__.keys()


def written(folder: Path, name: str, content: Any) -> Path:
    text = json.dumps(content, indent=2) if name == "result.json" else json.dumps(content) + "\n"
    (folder / name).write_text(text)
    return folder / name


def broken(values: dict[str, Any], at: str = "$") -> Iterator[tuple[dict[str, Any], str]]:
    """``values`` with one thing each in place of what is there, and where that is."""
    for key, value in values.items():
        strange = 5 if isinstance(value, str | dict | list) else [value]
        if key != "origin":  # of which the strict reader only asks that it is an object
            yield values | {key: strange}, f"{at}.{key}"
        if isinstance(value, dict) and key == "seconds":
            for inner, place in broken(value, f"{at}.{key}"):
                yield values | {key: inner}, place


ROW = {
    "train": TrainRow(1, 0.5, 0.25, {"g": 0.1, "lr": 1e-3}, phases={"data": 0.5}, memory=2**20).values(),
    "dev": DevRow(0, 0.5, 0.7, 0.5, 0.1).values(),
    "test": TestRow(0, 0.5, 0.7, 0.5).values(),
}


@pytest.mark.parametrize("kind", ROW)
def test_each_broken_field_of_a_row_is_refused_by_its_path(kind: str, tmp_path: Path) -> None:
    file = written(tmp_path, "metrics.jsonl", ROW[kind])
    assert [line.kind for line in read_rows(file)] == [kind]
    for values, place in broken(ROW[kind]):
        written(tmp_path, "metrics.jsonl", values)
        with refused(FolderError, "metrics.jsonl, line 1", f"`{place}`"):
            read_rows(file)
        assert "metrics.jsonl: line 1 not a row of a run" in reader.read_run(tmp_path).damage


@pytest.mark.parametrize("name", RUNS)
def test_each_broken_field_of_a_result_is_refused_by_its_path(name: str, tmp_path: Path) -> None:
    result = json.loads((BEFORE / name / "result.json").read_text())
    assert {place for _, place in broken(result)} > {f"$.{key}" for key in result.keys() - {"origin"}}
    for values, place in broken(result):
        written(tmp_path, "result.json", values)
        with refused(FolderError, "result.json", f"`{place}`"):
            read_result(tmp_path)
        damage: list[str] = []
        found = reader.read_result(tmp_path, damage)
        assert len(damage) == 1 and damage[0].endswith(f" - at `{place}`")
        assert found.keys() >= result.keys() - {place.split(".")[1]}  # and the rest is read


def test_unknown_keys_of_a_result_are_kept_by_those_who_show_it(tmp_path: Path) -> None:
    written(tmp_path, "result.json", {"status": "finished", "of_a_later_one": [1]})
    assert read_result(tmp_path) == {"status": "finished", "of_a_later_one": [1]}
    assert reader.read_result(tmp_path, []) == {"status": "finished", "of_a_later_one": [1]}


def test_what_lacks_is_said(tmp_path: Path) -> None:
    written(tmp_path, "result.json", {"test": 0.5})
    with refused(FolderError, "result.json", "$.status"):
        read_result(tmp_path)
    values = ROW["train"]
    for key in ("step", "seconds", "skipped", "phases"):
        file = written(tmp_path, "metrics.jsonl", {k: v for k, v in values.items() if k != key})
        with refused(FolderError, "metrics.jsonl, line 1", f"`{key}`"):
            read_rows(file)


def test_what_the_run_folder_writes_is_read_by_both(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.begin()
    test, dev = TestRow(0, 0.0, None, 0.5), DevRow(0, 0.0, math.nan, 0.5)
    train = TrainRow(1, 0.5, math.nan, {"g": math.nan}, skipped=True, memory=5)
    folder.tested(test)
    folder.evaluated(dev)
    folder.trained(train)
    folder.close()
    first, second, third = (line.row for line in read_rows(tmp_path / "metrics.jsonl"))
    assert (first, second) == (test, DevRow(0, 0.0, None, 0.5))
    assert repr(third) == repr(train)  # in which NaN is NaN
    run = reader.read_run(tmp_path)
    assert (repr(run.steps), run.devs) == (repr([train]), [second])
