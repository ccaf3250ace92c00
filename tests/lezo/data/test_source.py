"""Where rows come from, and what is said where they cannot be read."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from datasets import ClassLabel, Features, List, Value

from lezo.data import source as source_module
from lezo.data.source import DataError, load
from lezo.tasks import TASKS, Example
from tests.lezo.refusals import refused

RTE = {"premise": "Owls hunt.", "hypothesis": "Owls sleep.", "label": "not_entailment", "idx": 0}
PROMPT = 'Owls hunt.\nDoes this mean that "Owls sleep." is true? Yes or No?\n'
GOOD = json.dumps(RTE).encode() + b"\n"
SHOWN = Example(PROMPT, ("Yes", "No"), (1,), blank="")

TEXT, WHOLE = Value("string"), Value("int32")
FALSE_TRUE = ClassLabel(names=["False", "True"])
# task: a row as the hub stores it, with its features (invented words)
HUB = {
    "sst2": (
        {"sentence": "a fine film ", "label": 0, "idx": 0},
        {"sentence": TEXT, "label": ClassLabel(names=["negative", "positive"]), "idx": WHOLE},
    ),
    "rte": (
        {"premise": "P.", "hypothesis": "H.", "idx": 0, "label": 1},
        {
            "premise": TEXT,
            "hypothesis": TEXT,
            "idx": WHOLE,
            "label": ClassLabel(names=["entailment", "not_entailment"]),
        },
    ),
    "cb": (
        {"premise": "P.", "hypothesis": "H.", "idx": 0, "label": 2},
        {
            "premise": TEXT,
            "hypothesis": TEXT,
            "idx": WHOLE,
            "label": ClassLabel(names=["entailment", "contradiction", "neutral"]),
        },
    ),
    "boolq": (
        {"question": "is it", "answer": False, "passage": "P."},
        {"question": TEXT, "answer": Value("bool"), "passage": TEXT},
    ),
    "wsc": (
        {
            "text": "Ana saw Bo.",
            "span1_index": 0,
            "span2_index": 2,
            "span1_text": "Ana",
            "span2_text": "Bo.",
            "idx": 0,
            "label": 1,
        },
        {
            "text": TEXT,
            "span1_index": WHOLE,
            "span2_index": WHOLE,
            "span1_text": TEXT,
            "span2_text": TEXT,
            "idx": WHOLE,
            "label": FALSE_TRUE,
        },
    ),
    "wic": (
        {
            "word": "bank",
            "sentence1": "A bank.",
            "sentence2": "One bank.",
            "start1": 2,
            "start2": 4,
            "end1": 6,
            "end2": 8,
            "idx": 0,
            "label": 1,
        },
        {
            "word": TEXT,
            "sentence1": TEXT,
            "sentence2": TEXT,
            **dict.fromkeys(("start1", "start2", "end1", "end2", "idx"), WHOLE),
            "label": FALSE_TRUE,
        },
    ),
    "multirc": (
        {
            "paragraph": "P.",
            "question": "Q?",
            "answer": "A",
            "idx": {"paragraph": 0, "question": 0, "answer": 0},
            "label": 1,
        },
        {
            "paragraph": TEXT,
            "question": TEXT,
            "answer": TEXT,
            "idx": {"paragraph": WHOLE, "question": WHOLE, "answer": WHOLE},
            "label": FALSE_TRUE,
        },
    ),
    "copa": (
        {
            "premise": "P.",
            "choice1": "One.",
            "choice2": "Two.",
            "question": "effect",
            "idx": 0,
            "label": 1,
        },
        {
            **dict.fromkeys(("premise", "choice1", "choice2", "question"), TEXT),
            "idx": WHOLE,
            "label": ClassLabel(names=["choice1", "choice2"]),
        },
    ),
    "record": (
        {
            "passage": "Ana met Bo.\n@highlight\nBo left",
            "query": "@placeholder left",
            "entities": ["Ana", "Bo"],
            "entity_spans": {"text": ["Ana", "Bo"], "start": [0, 8], "end": [3, 10]},
            "answers": ["Bo"],
            "idx": {"passage": 0, "query": 0},
        },
        {
            "passage": TEXT,
            "query": TEXT,
            "entities": List(TEXT),
            "entity_spans": {"text": List(TEXT), "start": List(WHOLE), "end": List(WHOLE)},
            "answers": List(TEXT),
            "idx": {"passage": WHOLE, "query": WHOLE},
        },
    ),
    "squad": (
        {
            "id": "x",
            "title": "T",
            "context": "C.",
            "question": "Q?",
            "answers": {"text": ["a", "b"], "answer_start": [0, 1]},
        },
        {
            **dict.fromkeys(("id", "title", "context", "question"), TEXT),
            "answers": {"text": List(TEXT), "answer_start": List(WHOLE)},
        },
    ),
    "drop": (
        {
            "section_id": "s",
            "query_id": "q",
            "passage": "P.",
            "question": "Q?",
            "answers_spans": {"spans": ["3", "4"], "types": ["number", "number"]},
        },
        {
            **dict.fromkeys(("section_id", "query_id", "passage", "question"), TEXT),
            "answers_spans": {"spans": List(TEXT), "types": List(TEXT)},
        },
    ),
}
HUB_GOLD = {  # the answer that is trained on, or the accepted texts
    "sst2": " terrible",
    "rte": "No",
    "cb": "Maybe",
    "boolq": "No",
    "wsc": "Yes",
    "wic": "Yes",
    "multirc": "Yes",
    "copa": " two.",
    "record": " Bo left",
    "squad": ("a", "b"),
    "drop": ("3", "4"),
}
# rows of the published sets, as ../shared/data has them
COUNTS = {
    "sst2": (67349, 872),
    "rte": (2490, 277),
    "cb": (250, 56),
    "copa": (400, 100),
    "wsc": (554, 104),
    "wic": (5428, 638),
    "multirc": (27243, 4848),
    "boolq": (2270, 1000),
    "record": (86, 122),
    "squad": (3000, 1500),
    "drop": (2000, 1000),
}


@pytest.fixture
def read(tmp_path):
    """Read RTE from a train file of the given bytes and a sound val file."""

    def read(train: bytes):
        folder = tmp_path / "rte"
        folder.mkdir()
        (folder / "train.jsonl").write_bytes(train)
        (folder / "val.jsonl").write_bytes(GOOD)
        return load(TASKS["rte"], "local", path=str(tmp_path))

    return read


@pytest.fixture
def hub(monkeypatch):
    """Replace the hub by data sets made of rows; returns the calls that were made."""
    calls = []

    def answer(rows, features=None):
        def load_dataset(*args, **options):
            calls.append((args, options))
            found = rows[options["split"]]
            return datasets.Dataset.from_list(found, features=features and Features(features))

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return calls

    return answer


def of_length(monkeypatch, task, train, val):
    """Let the task expect so many rows on the hub."""
    monkeypatch.setattr(type(task), "hub", replace(task.hub, train_rows=train, val_rows=val))


# -- files ------------------------------------------------------------------------------------


def test_local_reads_release_and_hub_rows_of_one_file(read):
    hub_row = {**RTE, "label": 1}
    pools = read(GOOD + b"\n  \r\n" + json.dumps(hub_row).encode())
    assert list(pools.train) == [SHOWN, SHOWN]
    assert list(pools.val) == [SHOWN]


def test_local_says_where_it_read(read, tmp_path):
    assert read(GOOD).origin == str(tmp_path)


def test_local_reads_utf8_and_escapes(read):
    row = {**RTE, "premise": "Žofie — 猫\u2028"}
    raw, escaped = (json.dumps(row, ensure_ascii=ascii).encode() for ascii in (False, True))
    first, second = read(raw + b"\r\n" + escaped).train
    assert first == second
    assert first.prompt.startswith("Žofie — 猫\u2028\n")


def test_local_flattens_nested_rows(tmp_path):
    answers = [{"text": "A", "label": 1}, {"text": "B", "label": 0}]
    row = {"passage": {"text": "P.", "questions": [{"question": "Q?", "answers": answers}] * 2}}
    (tmp_path / "multirc").mkdir()
    for part in ("train", "val"):
        (tmp_path / "multirc" / f"{part}.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    pools = load(TASKS["multirc"], "local", path=str(tmp_path))
    assert [example.gold for example in pools.train] == [(1,), (0,)] * 6


def test_local_path_may_start_at_home(read, monkeypatch, tmp_path):
    read(GOOD)
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert list(load(TASKS["rte"], "local", path=f"~/{tmp_path.name}").train) == [SHOWN]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (b'{"premise": "Owls', ["column 13"]),
        (b"[1, 2]", ["[1, 2]"]),
        (b'{"premise": "P.", "label": 0}', ["'hypothesis'", "premise, label"]),
        (
            GOOD.replace(b"not_entailment", b"perhaps"),
            ["'label'", "'perhaps'", "0 (entailment), 1 (not_entailment)"],
        ),
        (b'{"premise": "\xff"}', ["UTF-8", "byte 14"]),
        (b'{"label": 0, "premise": "P.", "label": 1}', ["'label'"]),
        (GOOD.replace(b"Owls hunt.", rb"Owls\ud800 hunt."), ["'premise'", "'Owls\\ud800 hunt.'"]),
        (b"[" * 100_000, ["nested"]),
        (b'{"a":' * 100_000, ["nested"]),
        (b"9" * 5000, ["4300 digits"]),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_local_error_names_file_line_and_expectation(read, tmp_path, line, named):
    before = 1000 if named == ["[1, 2]"] else 0  # beyond the first block that is read, too
    with refused(DataError, f"{tmp_path / 'rte' / 'train.jsonl'}, line {before + 2}: ", *named):
        read(b"\n" + GOOD * before + line)


@pytest.mark.parametrize("content", [b"", b"\n  \n"])
def test_local_empty_file(read, tmp_path, content):
    with refused(DataError, f"{tmp_path / 'rte' / 'train.jsonl'}: "):
        read(content)


def test_local_nested_rows_without_examples(tmp_path):
    (tmp_path / "multirc").mkdir()
    row = {"passage": {"text": "P.", "questions": []}}
    (tmp_path / "multirc" / "train.jsonl").write_text(json.dumps(row))
    with refused(DataError, "train.jsonl: "):
        load(TASKS["multirc"], "local", path=str(tmp_path))


def test_local_missing_files(read, tmp_path):
    file, expected = tmp_path / "rte" / "train.jsonl", "<data.path>/<task>/{train,val}.jsonl"
    with refused(
        DataError, f"{tmp_path}: no rows in it; expected rte/train.jsonl and val.jsonl, or tables: "
    ):
        load(TASKS["rte"], "local", path=str(tmp_path))
    file.mkdir(parents=True)
    with refused(DataError, f"{file}: Is a directory", expected):
        load(TASKS["rte"], "local", path=str(tmp_path))
    file.rmdir()
    file.write_bytes(GOOD)
    with refused(DataError, f"{file.with_name('val.jsonl')}: No such file"):
        load(TASKS["rte"], "local", path=str(tmp_path))


@pytest.mark.parametrize("task", TASKS)
def test_local_reads_all_real_rows(task, shared):
    pools = load(TASKS[task], "local", path=str(shared / "data"))
    assert (len(pools.train), len(pools.val)) == COUNTS[task]
    for example in (*pools.train, *pools.val):
        assert example.prompt.strip()
        assert all(0 <= index < len(example.answers) for index in example.gold)
        assert all(answer.strip() for answer in example.answers)
        assert bool(example.references) == TASKS[task].generates


FLAT = {  # a row without its label, and a label that is right
    "sst2": ({"sentence": "S."}, 0),
    "rte": ({"premise": "P.", "hypothesis": "H."}, 0),
    "cb": ({"premise": "P.", "hypothesis": "H."}, 0),
    "boolq": ({"passage": "P.", "question": "q"}, True),
    "wic": ({"word": "w", "sentence1": "A.", "sentence2": "B."}, False),
    "wsc": ({"text": "a b", "span1_text": "a", "span2_text": "b"}, 0),
    "multirc": ({"paragraph": "P.", "question": "Q?", "answer": "A"}, 0),
    "copa": ({"premise": "P.", "question": "effect", "choice1": "A.", "choice2": "B."}, 0),
}
TRUTHS = ("boolq", "wic", "wsc", "multirc")  # tasks whose labels are False and True


@pytest.mark.parametrize("value", [-1, 3, 1.0, "1", "perhaps", None, [1], {"label": 1}, float("nan"), True])
@pytest.mark.parametrize("task", FLAT)
def test_a_label_outside_the_candidates_is_named_with_the_right_ones(task, value, tmp_path):
    row, right = FLAT[task]
    lines = [json.dumps({**row, "label": label}) for label in (right, value)]
    (tmp_path / task).mkdir()
    (tmp_path / task / "train.jsonl").write_text("\n".join(lines))
    (tmp_path / task / "val.jsonl").write_text(lines[0])
    if value is True and task in TRUTHS:
        assert len(load(TASKS[task], "local", path=str(tmp_path)).train) == 2
        return
    with refused(DataError, "train.jsonl, line 2: ", "'label'", repr(value), "0 (", "1 ("):
        load(TASKS[task], "local", path=str(tmp_path))


def test_symbolic_links_are_followed(read, tmp_path):
    (tmp_path / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "rte").mkdir(parents=True)
    (tmp_path / "kept.jsonl").write_bytes(GOOD)
    for part in ("train", "val"):
        (tmp_path / "elsewhere" / "rte" / f"{part}.jsonl").symlink_to(tmp_path / "kept.jsonl")
    assert list(load(TASKS["rte"], "local", path=str(tmp_path / "linked")).train) == [SHOWN]
    (tmp_path / "kept.jsonl").unlink()
    with refused(DataError, "train.jsonl: No such file"):
        load(TASKS["rte"], "local", path=str(tmp_path / "linked"))


# -- sample -----------------------------------------------------------------------------------


def test_sample_renders_the_rows_it_is_given(monkeypatch):
    made = {"rte": ([RTE, {**RTE, "label": 0}], [RTE])}
    monkeypatch.setattr(source_module, "sample_rows", made.__getitem__)
    pools = load(TASKS["rte"], "sample")
    assert [example.gold for example in pools.train] == [(1,), (0,)]
    assert list(pools.val) == [SHOWN]
    assert pools.origin == "sample"


# -- hub --------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_hub_reads_the_documented_features(task, hub, monkeypatch):
    row, features = HUB[task]
    hub({"train": [row, row], "validation": [row]}, features)
    of_length(monkeypatch, TASKS[task], 2, 1)
    pools = load(TASKS[task], "hub")
    assert (len(pools.train), len(pools.val)) == (2, 1)
    assert pools.origin == TASKS[task].hub.id
    for example in (*pools.train, *pools.val):
        gold = example.references or example.answers[example.gold[0]]
        assert gold == HUB_GOLD[task]


def test_hub_rows_keep_their_order_and_are_sliced(hub, monkeypatch):
    rows = [{**HUB["rte"][0], "premise": f"P{i}."} for i in range(5)]
    hub({"train": rows, "validation": rows[:1]}, HUB["rte"][1])
    of_length(monkeypatch, TASKS["rte"], 5, 1)
    train = load(TASKS["rte"], "hub").train
    assert [example.prompt[:3] for example in train] == ["P0.", "P1.", "P2.", "P3.", "P4."]
    assert train[1:4:2] == [train[1], train[3]]
    assert train[-1] == train[4]


def test_every_hub_revision_is_a_commit():
    assert all(re.fullmatch("[0-9a-f]{40}", task.hub.revision) for task in TASKS.values() if task.hub)


@pytest.mark.parametrize("asked", [None, "0123abc"])
def test_hub_revision_is_pinned(asked, hub, monkeypatch):
    row, features = HUB["rte"]
    calls = hub({"train": [row], "validation": [row]}, features)
    of_length(monkeypatch, TASKS["rte"], 1, 1)
    load(TASKS["rte"], "hub", revision=asked)
    pinned = TASKS["rte"].hub
    assert calls == [
        ((pinned.id, pinned.config), {"split": part, "revision": asked or pinned.revision})
        for part in ("train", "validation")
    ]


@pytest.mark.parametrize(
    "train, val, named",
    [
        (2489, 277, ["aps/super_glue train ", "2489", "2490"]),
        (2490, 3, ["aps/super_glue validation ", "3", "277"]),
    ],
)
def test_hub_of_another_length_is_refused(hub, train, val, named):
    row, features = HUB["rte"]
    hub({"train": [row] * train, "validation": [row] * val}, features)
    with refused(DataError, *named, "data.revision=...", "data=local"):
        load(TASKS["rte"], "hub")


def test_hub_error_names_data_set_split_and_row(hub, monkeypatch):
    row, features = HUB["rte"]
    hub({"train": [row, {**row, "label": -1}], "validation": [row]}, features)
    of_length(monkeypatch, TASKS["rte"], 2, 1)
    train = load(TASKS["rte"], "hub").train
    assert train[0].gold == (1,)
    with refused(DataError, "aps/super_glue train, row 1: ", "'label'", "-1"):
        train[1]


@pytest.mark.parametrize(
    "error",
    [ConnectionError("no route\nto host"), ValueError("no route"), RuntimeError("no route")],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("task, shown", [("rte", "aps/super_glue (rte)"), ("squad", "rajpurkar/squad")])
def test_hub_out_of_reach(monkeypatch, error, task, shown):
    def load_dataset(*args, **options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with refused(DataError, shown, f"{type(error).__name__}: no route", "data=local data.path=DIR"):
        load(TASKS[task], "hub")


def test_hub_offline_for_real(tmp_path):
    code = (
        "from lezo.tasks import TASKS\n"
        "from lezo.data.source import DataError, load\n"
        "try:\n"
        "    load(TASKS['boolq'], 'hub')\n"
        "except DataError as error:\n"
        "    print(error)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).resolve().parents[3],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.stdout.startswith("cannot read google/boolq from the Hugging Face hub (ConnectionError: ")
    assert found.stdout.count("\n") == 1
    assert (found.returncode, found.stderr) == (0, "")


def test_files_need_no_hub_library(read, tmp_path):
    read(GOOD)
    code = (
        "import sys\n"
        "from lezo.tasks import TASKS\n"
        "from lezo.data.source import load\n"
        f"print(len(load(TASKS['rte'], 'local', path={str(tmp_path)!r}).train))\n"
        "print('datasets' in sys.modules, 'torch' in sys.modules)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).resolve().parents[3],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (found.stdout, found.stderr) == ("1\nFalse False\n", "")
