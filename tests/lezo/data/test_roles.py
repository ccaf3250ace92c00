"""Which rows of one's own are what: by names of files and splits, by settings, by share."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from lezo.data.roles import Own
from lezo.data.source import DataError, Pools, load
from lezo.tasks import TASKS
from lezo.tasks.sst2 import SST2
from lezo.tasks.task import Task

KNOWN = ".jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow or .feather, text also with .gz"


def rows(size: int, word: str = "row") -> list[dict[str, Any]]:
    return [{"sentence": f"{word} {number}", "label": number % 2} for number in range(size)]


def write(folder: Path, **sizes: int) -> Path:
    """Tables of so many rows by their names, with two underscores for a dot and one for a dash; each says its own."""
    folder.mkdir(exist_ok=True)
    for name, size in sizes.items():
        file = folder / name.replace("__", ".").replace("_", "-")
        if file.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows(size, file.name)), file)
        elif file.suffix == ".csv":
            lines = [f"{row['sentence']},{row['label']}\n" for row in rows(size, file.name)]
            file.write_text("sentence,label\n" + "".join(lines))
        else:
            file.write_text("\n".join(map(json.dumps, rows(size, file.name))))
    return folder


def own(path: Path | str, **settings: Any) -> Pools:
    return load(TASKS["sst2"], "local", path=str(path), own=Own(**settings))


def sizes(pools: Pools) -> tuple[int, int | None, int]:
    return len(pools.train), None if pools.dev is None else len(pools.dev), len(pools.val)


def refusal(path: Path | str, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        own(path, **settings)
    return str(caught.value)


@pytest.mark.parametrize(
    ("files", "found", "said"),
    [
        (
            {"train__csv": 6, "validation__csv": 3, "test__csv": 2},
            (6, 3, 2),
            "train from train.csv (6 rows), dev from validation.csv (3 rows), test from test.csv (2 rows)",
        ),
        (
            {"train__csv": 6, "val__csv": 3, "notes__csv": 9},
            (6, None, 3),
            "train and dev from train.csv (6 rows), test from val.csv (3 rows), as in the papers where none is called test; "
            "not read: notes.csv",
        ),
        (
            {"train__jsonl": 6, "test__parquet": 1},
            (6, None, 1),
            "train and dev from train.jsonl (6 rows), test from test.parquet (1 row)",
        ),
        (
            {"train_00000_of_00002__parquet": 6, "train_00001_of_00002__parquet": 4, "dev_0__parquet": 2, "test_0__parquet": 1},
            (10, 2, 1),
            "train from train-00000-of-00002.parquet and train-00001-of-00002.parquet (10 rows), dev from dev-0.parquet (2 rows), "
            "test from test-0.parquet (1 row)",
        ),
        (
            {"my_train__csv": 5, "my_test__csv": 2},
            (5, None, 2),
            "train and dev from my-train.csv (5 rows), test from my-test.csv (2 rows)",
        ),
        (
            {"a__csv": 6, "b__csv": 3, "c__csv": 1},
            (8, None, 2),
            "train and dev from 3 files, a.csv to c.csv (10 rows), test from 2 of them, drawn (data.test_share=0.2)",
        ),
        (
            {"train__csv": 10},
            (8, None, 2),
            "train and dev from train.csv (10 rows), test from 2 of them, drawn (data.test_share=0.2)",
        ),
    ],
)  # fmt: skip
def test_files_of_a_folder_are_what_their_names_say(
    files: dict[str, int], found: tuple[int, int | None, int], said: str, tmp_path: Path
) -> None:
    pools = own(write(tmp_path, **files))
    assert (sizes(pools), pools.rows) == (found, said)
    assert sizes(own(tmp_path / "*")) == found  # a pattern finds the same


def test_a_plain_name_is_meant_before_a_longer_one(tmp_path: Path) -> None:
    pools = own(write(tmp_path, train__csv=6, train_small__csv=2, test__csv=3))
    assert (sizes(pools), pools.rows.partition("; ")[2]) == ((6, None, 3), "not read: train-small.csv")


def test_a_test_row_is_of_the_test_file(tmp_path: Path) -> None:
    pools = own(write(tmp_path, train__csv=6, validation__csv=3, test__csv=2))
    assert {example.prompt.split()[0] for example in pools.val} == {"test.csv"}
    assert {example.prompt.split()[0] for example in pools.dev or ()} == {"validation.csv"}


def test_a_share_is_drawn_by_its_seed(tmp_path: Path) -> None:
    write(tmp_path, a__csv=50)
    one, again, other = (own(tmp_path / "a.csv", seed=seed, test_share=0.3) for seed in (0, 0, 1))
    assert one == again and sizes(one) == (35, None, 15) and set(one.val) != set(other.val)
    assert not {*one.train} & {*one.val} and len({*one.train, *one.val}) == 50


def test_examples_of_one_row_stay_together(tmp_path: Path) -> None:
    answers = [{"text": f"A{k}", "label": 1} for k in range(4)]
    text = [
        {"passage": {"text": f"P{i}.", "questions": [{"question": "Q?", "answers": answers}]}}
        for i in range(10)
    ]
    (tmp_path / "a.json").write_text(json.dumps(text))
    pools = load(TASKS["multirc"], "local", path=str(tmp_path / "a.json"))
    assert (len(pools.train), len(pools.val)) == (32, 8)
    assert not {e.prompt.split("\n")[0] for e in pools.train} & {e.prompt.split("\n")[0] for e in pools.val}


def test_the_published_layout_comes_first(tmp_path: Path) -> None:
    write(write(tmp_path, train__csv=9, test__csv=9) / "sst2", train__jsonl=4, val__jsonl=2)
    pools = own(tmp_path)
    assert (sizes(pools), pools.rows) == ((4, None, 2), "train and dev from train.jsonl, test from val.jsonl")


def test_settings_say_what_names_do_not(tmp_path: Path) -> None:
    write(tmp_path, reviews__csv=6, holdout__csv=3, dev__csv=2)
    splits = {"train": "reviews.csv", "test": "holdout"}
    assert sizes(own(tmp_path, splits=splits)) == (6, 2, 3)
    assert sizes(own(tmp_path, splits={**splits, "dev": None})) == (6, None, 3)
    assert sizes(own(tmp_path, splits={"train": "rev*", "test": str(tmp_path / "holdout.csv")})) == (6, 2, 3)
    assert sizes(own(tmp_path, splits={"train": "reviews", "dev": "dev"})) == (
        5,
        2,
        1,
    )  # a share is the test set
    assert sizes(own(tmp_path / "*.csv", splits=splits)) == (6, 2, 3)


def test_a_script_beside_rows_is_never_run(tmp_path: Path) -> None:
    write(tmp_path, train__csv=6, test__csv=3)
    for name in (f"{tmp_path.name}.py", "load.py", "train.py"):
        (tmp_path / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert sizes(own(tmp_path)) == (6, None, 3) and not (tmp_path / "ran").exists()


BAD: dict[str, tuple[dict[str, int], dict[str, Any], str]] = {
    "two forms": (
        {"a__csv": 1, "b__jsonl": 1},
        {},
        "DIR: a.csv (CSV) and b.jsonl (JSON lines) would be one table; expected one form, or data.path=FILE, or "
        "data.splits={train: FILE, test: FILE}",
    ),
    "two forms of a split": (
        {"train__csv": 1, "train__parquet": 1},
        {},
        "DIR: train.csv (CSV) and train.parquet (Parquet) would be one table; expected one form, or data.path=FILE, or "
        "data.splits={train: FILE, test: FILE}",
    ),
    "no train": (
        {"a__csv": 1, "test__csv": 1},
        {},
        "DIR: none of a.csv, test.csv is called train; data.splits={train: NAME} says which is",
    ),
    "two for dev": (
        {"train__csv": 1, "dev__csv": 1, "val__csv": 1},
        {},
        "DIR: dev and val may both be dev; data.splits={dev: NAME} says which",
    ),
    "a split of no file": (
        {"a__csv": 1, "b__csv": 1},
        {"splits": {"train": "a", "test": "c"}},
        "DIR: data.splits.test=c is no file there; expected one of a.csv, b.csv",
    ),
    "rows in two roles": (
        {"a__csv": 1, "b__csv": 1},
        {"splits": {"train": "a", "test": "a.csv"}},
        "DIR/a.csv: would be train and test; expected other rows for each (data.splits)",
    ),
    "no test rows": (
        {"a__csv": 4},
        {"test_share": 0.1},
        "DIR/a.csv: data.test_share=0.1 of 4 rows leaves none to test on; expected another share, more rows, or a file for "
        "train and one for test",
    ),
    "no train rows": (
        {"a__csv": 4},
        {"test_share": 0.9},
        "DIR/a.csv: data.test_share=0.9 of 4 rows leaves none to train on; expected another share, more rows, or a file for "
        "train and one for test",
    ),
    "a share where test rows are named": (
        {"train__csv": 4, "test__csv": 2},
        {"test_share": 0.5},
        "DIR: data.test_share=0.5: is of a single table, and test rows are in test.csv (2 rows); leave it out",
    ),
    "nothing": (
        {},
        {},
        f"DIR: no rows in it; expected sst2/train.jsonl and val.jsonl, or tables: {KNOWN}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_files_that_say_nothing_or_too_much_are_refused(case: str, tmp_path: Path) -> None:
    files, settings, said = BAD[case]
    (write(tmp_path, **files) / "load.py").write_text("1 / 0")
    assert refusal(tmp_path, **settings) == said.replace("DIR", str(tmp_path))


def test_splits_may_lie_outside_of_a_folder_without_tables(tmp_path: Path) -> None:
    write(tmp_path / "rows", a__csv=4, b__csv=2)
    (tmp_path / "empty").mkdir()
    pools = own(tmp_path / "empty", splits={"train": "../rows/a.csv", "test": "../rows/b.csv"})
    assert sizes(pools) == (4, None, 2)


def test_a_share_beside_the_published_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sst2").mkdir()
    for part in ("train", "val"):
        (tmp_path / "sst2" / f"{part}.jsonl").write_text('{"sentence": "S.", "label": 0}')
    said = f"{tmp_path}: data.test_share=0.5: is of a single table, and test rows are in sst2/val.jsonl; leave it out"
    assert refusal(tmp_path, test_share=0.5) == said


def test_paths_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    assert refusal(tmp_path / "no.csv") == f"{tmp_path / 'no.csv'}: no such file"
    ends = f"expected names that end in {KNOWN}"
    assert refusal(tmp_path / "*.csv") == f"data.path={tmp_path}/*.csv: matches no file; {ends}"
    assert refusal(tmp_path / "*") == f"data.path={tmp_path}/*: matches only notes.txt; {ends}"
    file = write(tmp_path, a__csv=4) / "a.csv"
    one = "is one file, and data.splits={'train': 'a'} names several; expected data.path=FOLDER"
    assert refusal(file, splits={"train": "a"}) == f"{file}: {one}"


# -- data sets of the datasets library --------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder that DatasetDict.save_to_disk wrote."""
    parts = {
        name: Dataset.from_list(rows(size, name))
        for name, size in (("train", 6), ("validation", 3), ("extra", 2))
    }
    DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


def test_a_saved_data_set_has_its_splits(saved: Path) -> None:
    pools = own(saved)
    assert (sizes(pools), pools.rows) == (
        (6, None, 3),
        "train and dev from the split train (6 rows), test from the split validation (3 rows), as in the papers where none is "
        "called test; not read: extra",
    )
    assert sizes(own(saved, splits={"test": "extra"})) == (6, 3, 2)
    assert refusal(saved, splits={"test": "val"}) == (
        f"{saved}: data.splits.test=val is no split of it; expected one of train, validation, extra"
    )


def test_a_damaged_saved_data_set_is_refused(saved: Path) -> None:
    file = saved / "train" / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes()[:100])
    said = refusal(saved)
    assert (
        said.startswith(f"{saved}: cannot be read as a folder that the datasets library saved (")
        and "\n" not in said
    )


@pytest.fixture
def prompted() -> Task:
    """A task that has no published data set."""

    class Prompted(SST2):
        name, hub = "prompted", None

    return Prompted()


def test_a_data_set_of_the_hub(prompted: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_dataset(*given: Any, **options: Any) -> DatasetDict:
        calls.append((given, options))
        return DatasetDict(
            {"train": Dataset.from_list(rows(6)), "test": Dataset.from_list([{"sentence": "x", "label": 7}])}
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        DataError,
        match=r"^somebody/rows, split test, row 0 \(the first is 0\): column 'label' is 7, expected",
    ):
        load(prompted, "hub", path="somebody/rows", config="plain", revision="abc")
    pools = load(prompted, "hub", path="somebody/rows", own=Own(splits={"test": None}, test_share=0.5))
    assert (sizes(pools), pools.origin) == ((3, None, 3), "somebody/rows")
    assert calls == [
        (("somebody/rows", "plain"), {"revision": "abc"}),
        (("somebody/rows", None), {"revision": None}),
    ]


def test_a_hub_out_of_reach(prompted: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['a', 'b']")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError) as caught:
        load(prompted, "hub", path="somebody/rows")
    assert str(caught.value) == (
        "cannot read somebody/rows from the Hugging Face hub (ValueError: Config name is missing. Please pick one among the "
        "available configs: ['a', 'b']); check data.path=OWNER/NAME, data.config and the connection, or use data=local "
        "data.path=FILE"
    )
