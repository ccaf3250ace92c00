"""The synthetic rows: every task's columns, labels and sizes, and that they never change."""

import hashlib
import json
from collections import Counter
from functools import cache

import pytest

from lezo.tasks import sample
from lezo.tasks.sample import MAKERS
from lezo.tasks.sample.draw import Draw, Row

rows = cache(sample.rows)  # which nobody changes
COLUMNS = {
    "sst2": "sentence label idx",
    "rte": "premise hypothesis label idx",
    "cb": "premise hypothesis label idx",
    "boolq": "question passage label idx",
    "wsc": "text span1_text span2_text span1_index span2_index label idx",
    "wic": "word sentence1 sentence2 label idx",
    "multirc": "paragraph question answer label idx",
    "copa": "premise choice1 choice2 question label idx",
    "record": "passage query entities answers idx",
    "squad": "id title context question answers",
    "drop": "passage question answers_spans",
    "chat": "messages id",
}
DIGESTS = {  # of all rows as json
    "sst2": "bece9da4fda87d99",
    "rte": "6a9e50fb0b0e8fbb",
    "cb": "9c97eed388036e68",
    "boolq": "600817e52570910a",
    "wsc": "542c3b0318aad30a",
    "wic": "2b9f42e8f61a4fbe",
    "multirc": "1b411b788f85a299",
    "copa": "78c0bbebd39fb992",
    "record": "997e22417e50506c",
    "squad": "56b20c4ee8383b87",
    "drop": "7782ca843377f5f4",
    "chat": "48e41ce30ccf4572",
}
SIZES = {"sst2": (1500, 1000), "rte": (1500, 1000), "cb": (420, 120), "copa": (420, 120)}
LABELLED = [task for task, columns in COLUMNS.items() if "label" in columns]
SHORT = {"sst2": 25, "rte": 30, "cb": 30, "copa": 20}  # words; the passages stay under 60


def words(row: Row) -> int:
    return sum(len(value.split()) for value in row.values() if isinstance(value, str))


def content(row: Row) -> str:
    return json.dumps({key: row[key] for key in row if key not in ("label", "idx", "id")})


@pytest.mark.parametrize("task", COLUMNS)
def test_the_rows_have_the_hubs_columns_and_the_promised_number(task: str) -> None:
    train, validation = rows(task)
    assert (len(train), len(validation)) == SIZES.get(task, (600, 200))
    assert {tuple(row) for row in train + validation} == {tuple(COLUMNS[task].split())}


def test_every_task_has_a_maker() -> None:
    assert set(MAKERS) == set(COLUMNS)


@pytest.mark.parametrize("task", LABELLED)
def test_labels_are_balanced_in_both_splits(task: str) -> None:
    for split in rows(task):
        counts = Counter(row["label"] for row in split)
        assert set(counts) == ({0, 1, 2} if task == "cb" else {0, 1})
        assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("task", COLUMNS)
def test_no_row_comes_twice(task: str) -> None:
    train, validation = rows(task)
    assert len({content(row) for row in train + validation}) == len(train) + len(validation)


@pytest.mark.parametrize("task", COLUMNS)
def test_rows_are_short(task: str) -> None:
    assert max(words(row) for split in rows(task) for row in split) <= SHORT.get(task, 60)


@pytest.mark.parametrize("task", COLUMNS)
def test_rows_never_change(task: str) -> None:
    digest = hashlib.sha256(json.dumps(rows(task)).encode()).hexdigest()
    assert digest[:16] == DIGESTS[task]


def test_answers_stand_where_squad_says() -> None:
    for row in rows("squad")[0]:
        (answer,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        assert row["context"][start : start + len(answer)] == answer


def test_record_entities_and_answers_are_sorted_lists_and_the_query_has_a_placeholder() -> None:
    for row in rows("record")[0]:
        assert row["entities"] == sorted(set(row["entities"]))
        assert set(row["answers"]) <= set(row["entities"])
        assert row["query"].count("@placeholder") == 1


def test_wsc_spans_stand_at_their_indices() -> None:
    for row in rows("wsc")[0]:
        text = row["text"].split(" ")
        assert text[row["span1_index"]] == row["span1_text"]
        assert text[row["span2_index"]] == row["span2_text"]


def test_drop_gives_one_span_of_its_type() -> None:
    for row in rows("drop")[0]:
        (span,), (kind,) = row["answers_spans"]["spans"], row["answers_spans"]["types"]
        assert kind == ("number" if span.isdigit() else "span")


def test_wic_uses_the_word_in_both_sentences() -> None:
    for row in rows("wic")[0]:
        assert all(row["word"] in row[key].lower() for key in ("sentence1", "sentence2"))


def test_unknown_task_names_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"'mnli'.*sst2, rte, cb"):
        rows("mnli")


def test_a_draw_depends_on_its_whole_key() -> None:
    def first(*key: str | int) -> list[int]:
        draw = Draw(*key)
        return [draw.below(1000) for _ in range(5)]

    assert first("a", 1) == first("a", 1)
    assert first("a", 1) != first("a", 2)


def test_several_takes_from_different_places() -> None:
    assert sorted(Draw("x").several(range(9), 9)) == list(range(9))
