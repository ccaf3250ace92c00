"""Tables in files: each form gives the same rows, cells stay what they are, and what is wrong is named by where it stands."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from pyarrow import feather

from lezo.data.roles import Own
from lezo.data.source import DataError, Pools, load
from lezo.data.tables import Cells
from lezo.tasks import TASKS
from lezo.tasks.row import RowError

ROWS: list[dict[str, Any]] = [{"sentence": f"It is {number}.", "label": number % 2} for number in range(5)]
PROMPTS = [f"It is {number}. It was" for number in range(5)]
CSV = "sentence,label\n" + "".join(f"{row['sentence']},{row['label']}\n" for row in ROWS)
KNOWN = ".jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow or .feather, text also with .gz"
ARRAY = "expected an array of objects, or an object with one such array in it"
HEADER = "expected a header with the columns' names and a line for each row"


def own(path: Path | str, task: str = "sst2", **settings: Any) -> Pools:
    return load(TASKS[task], "local", path=str(path), own=Own(**settings))


def prompts(pools: Pools) -> list[str]:
    return sorted(example.prompt for example in (*pools.train, *pools.val))


def _stream(file: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_stream(str(file), table.schema) as writer:
        writer.write_table(table)


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.csv": lambda file: file.write_text(CSV),
    "semicolons.csv": lambda file: file.write_text(CSV.replace(",", ";")),
    "excel.csv": lambda file: file.write_bytes(
        b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").encode() + b"\r\n"
    ),
    "a.tsv": lambda file: file.write_text(CSV.replace(",", "\t")),
    "a.csv.gz": lambda file: file.write_bytes(gzip.compress(CSV.encode())),
    "a.jsonl": lambda file: file.write_text("\n".join(map(json.dumps, ROWS))),
    "A.NDJSON.GZ": lambda file: file.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode())),
    "array.json": lambda file: file.write_text(json.dumps(ROWS, indent=1)),
    "object.json": lambda file: file.write_text(json.dumps({"version": 1, "data": ROWS})),
    "lines.json": lambda file: file.write_text("\n".join(map(json.dumps, ROWS))),
    "a.parquet": lambda file: pq.write_table(pa.Table.from_pylist(ROWS), file),
    "a.feather": lambda file: feather.write_feather(pa.Table.from_pylist(ROWS), str(file)),
    "stream.arrow": _stream,
    "saved": lambda folder: Dataset.from_list(ROWS).save_to_disk(str(folder)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_form_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    pools = own(tmp_path / name)
    assert prompts(pools) == PROMPTS and (len(pools.train), len(pools.val)) == (4, 1)
    golds = {example.prompt: example.gold for example in (*pools.train, *pools.val)}
    assert [golds[prompt] for prompt in PROMPTS] == [(0,), (1,), (0,), (1,), (0,)]


def test_nothing_is_written_where_rows_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
    for name in ("a.csv", "a.parquet", "saved"):
        WRITERS[name](tmp_path / name)
    before = sorted(tmp_path.rglob("*"))
    for name in ("a.csv", "a.parquet", "saved"):
        own(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before and not cache.exists()


def test_cells_stay_what_they_are(tmp_path: Path) -> None:
    cells = ["NA", "null", "001", "1.0", "nan", "True", " two words ", 'so "quoted"', "a,b", "two\nlines"]
    quoted = "".join('"' + cell.replace('"', '""') + '",1\n' for cell in cells)
    (tmp_path / "a.csv").write_text("sentence,label\n" + quoted)
    assert prompts(own(tmp_path / "a.csv")) == sorted(f"{cell.strip()} It was" for cell in cells)


def test_a_cell_may_hold_a_document(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"sentence,label\n{'word ' * 60_000},1\nb,0\n")
    assert max(map(len, prompts(own(tmp_path / "a.csv", test_share=0.5)))) > 299_000


@pytest.mark.parametrize(
    ("cell", "names", "index"),
    [
        *[("0", ("a", "b"), 0), ("b", ("a", "b"), 1), (" b ", ("a", "b"), 1), ("1", ("1", "2"), 0)],
        *[("TRUE", ("False", "True"), 1), ("false", ("False", "True"), 0), ("1", ("False", "True"), 1)],
    ],
)
def test_a_cells_label_is_a_name_or_an_index(cell: str, names: tuple[str, ...], index: int) -> None:
    assert Cells({"label": cell}).label("label", names) == index


@pytest.mark.parametrize("cell", ["", " ", "2", "-1", "00", "1.0", "B", "NA", "١", "9" * 5000])
def test_a_cell_that_is_no_label_is_refused_as_it_stands(cell: str) -> None:
    with pytest.raises(RowError, match=r"column 'label' is .*, expected one of 0 \(a\), 1 \(b\)"):
        Cells({"label": cell}).label("label", ("a", "b"))


def test_a_cells_number_and_list() -> None:
    row = Cells({"n": " 12", "list": '["a", "b"]', "text": "a, b", "none": ""})
    assert (row.integer("n"), row.texts("list")) == (12, ["a", "b"])
    with pytest.raises(RowError, match="column 'text' is 'a, b', expected a whole number"):
        row.integer("text")
    with pytest.raises(RowError, match="column 'text' is no list of texts; a cell has one as "):
        row.texts("text")
    with pytest.raises(RowError, match="column 'none' is empty, expected text"):
        row.text("none")


def test_columns_have_the_tasks_names_too(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("label,Text, Class\nold,good,1\nold,bad,0\n")
    pools = own(tmp_path / "a.csv", columns={"sentence": "Text", "label": "Class"}, test_share=0.5)
    assert prompts(pools) == ["bad It was", "good It was"]


PARQUET = pa.Table.from_pylist(ROWS)
FIVE = [*ROWS[:3], {"sentence": None, "label": 0}, ROWS[4]]
BAD: dict[str, tuple[str, bytes | pa.Table, str]] = {
    "empty": ("a.csv", b"", f": no rows, {HEADER}"),
    "a header alone": ("a.csv", b"sentence,label\n", f": no rows, {HEADER}"),
    "an empty array": ("a.json", b"[]", f": no rows, {ARRAY}"),
    "another ending": ("a.txt", b"", f": its name does not say what form it has; expected one that ends in {KNOWN}"),
    "no column": (
        "a.csv",
        b"Sentences,label\na,1\n",
        ", line 2: column 'sentence' is missing; the row has Sentences, label; the nearest is 'Sentences'; "
        "data.columns={sentence: Sentences} says which it is",
    ),
    "no column like it": (
        "a.csv",
        b"sentence,Class\na,1\n",
        ", line 2: column 'label' is missing; the row has sentence, Class; data.columns={label: COLUMN} says which it is",
    ),
    "a column twice": (
        "a.csv",
        b"label,label\n1,1\n",
        ", line 1: column 'label' is there more than once in the header; expected each once",
    ),
    "an empty cell": ("a.csv", b"sentence,label\na,1\n,0\n", ", line 3: column 'sentence' is empty, expected text"),
    "an empty label": (
        "a.csv",
        b"sentence,label\na,\n",
        ", line 2: column 'label' is '', expected one of 0 (negative), 1 (positive)",
    ),
    "a null": ("a.parquet", pa.Table.from_pylist(FIVE), ", row 3 (the first is 0): column 'sentence' is None, expected text"),
    "a float": (
        "a.parquet",
        pa.table({"sentence": ["a"], "label": [1.0]}),
        ", row 0 (the first is 0): column 'label' is 1.0, expected one of 0 (negative), 1 (positive)",
    ),
    "a ragged row": (
        "a.csv",
        b'sentence,label\n"two\nlines",1\n\ngood, fine,1\n',
        ", line 5 (row 4 of a spreadsheet): 3 cells, expected 2, one for each column of the header; "
        """a cell with ',' in it is written "in quotes\"""",
    ),
    "an open quote": (
        "a.csv",
        b'sentence,label\na,1\n"b,1\n',
        ', line 3: a quotation mark that is never closed; a cell with quotes in it is written "so ""quoted"""',
    ),
    "not UTF-8": ("a.csv", "sentence,label\na,1\ncafé,1\n".encode("latin-1"), ", line 3: not UTF-8 text at byte 4 of the line; save the file as UTF-8"),
    "a broken array": (
        "a.json",
        b'[{"sentence": "a", "label": 1},\n {"sentence": "b" "label": 0}]',
        f": not valid JSON (Expecting ',' delimiter at line 2, column 19); {ARRAY}",
    ),
    "an object of none": ("a.json", b'{"a": 1}', f": found an object with 0 lists; {ARRAY}"),
    "an object of two": ("a.json", b'{"a": [], "b": []}', f": found an object with 2 lists; {ARRAY}"),
    "a JSON text": ("a.json", b'"a"', f": found a str; {ARRAY}"),
    "no objects": ("a.json", b"[1]", ", row 0 (the first is 0): expected a JSON object, found 1"),
    "a column twice in JSON": ("a.json", b'[{"a": 1, "a": 2}]', ": column 'a' is there more than once"),
    "nested too deeply": ("a.json", b"[" * 100_000, ": JSON nested too deeply"),
    "no gzip": ("a.csv.gz", b"hello", f": Not a gzipped file (b'he'); {HEADER}"),
    "half a gzip": (
        "a.csv.gz",
        gzip.compress(CSV.encode())[:-12],
        f": Compressed file ended before the end-of-stream marker was reached; {HEADER}",
    ),
}  # fmt: skip


def write(file: Path, content: bytes | pa.Table) -> Path:
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        pq.write_table(content, file)
    return file


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_where_it_stands(case: str, tmp_path: Path) -> None:
    name, content, said = BAD[case]
    file = write(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        own(file, test_share=0.5)
    assert str(caught.value) == f"{file}{said}"


@pytest.mark.parametrize("name", ["a.parquet", "a.feather", "stream.arrow"])
@pytest.mark.parametrize("size", [0, 5, 300])
def test_a_file_that_ends_too_soon_is_refused(name: str, size: int, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:size])
    with pytest.raises(DataError) as caught:
        own(tmp_path / name)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / name}: ") and "\n" not in said and len(said) < 500
    assert said.endswith("expected a whole file of its form") or "no rows, expected" in said


def test_rows_are_counted_across_batches(tmp_path: Path) -> None:
    rows = [*ROWS * 201, {"sentence": "a", "label": 7}]
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    for name in ("saved", "a.arrow"):
        with pytest.raises(DataError, match=rf"{name}, row 1005 \(the first is 0\): column 'label' is 7"):
            own(tmp_path / name)
