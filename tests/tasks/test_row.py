import pytest

from lezo.tasks.row import Row, RowError
from tests.lezo.refusals import refused

NAMES = ("entailment", "contradiction", "neutral")
ROW = Row(
    {
        "text": "seven",
        "number": 7,
        "flag": True,
        "none": None,
        "texts": ["a", "b"],
        "mixed": ["a", 1],
        "empty": [],
        "object": {"inner": "x"},
        "objects": [{"n": 1}, {"n": 2}],
        "half": "a\ud800",
        "halves": ["a", "\udfff"],
    }
)


def test_readers_return_the_value():
    assert ROW.text("text") == "seven"
    assert ROW.integer("number") == 7
    assert ROW.texts("texts") == ["a", "b"]
    assert ROW.nested("object").text("inner") == "x"
    assert [row.integer("n") for row in ROW.rows("objects")] == [1, 2]
    assert ROW.rows("empty") == []
    assert "text" in ROW and "other" not in ROW


@pytest.mark.parametrize("read", [Row.text, Row.integer, Row.texts, Row.nested, Row.rows])
def test_missing_column_names_the_present_ones(read):
    with refused(RowError, "'label'", "premise, idx"):
        read(Row({"premise": "p", "idx": 0}), "label")


def test_missing_label_and_empty_row():
    with refused(RowError, "'label'", "no columns"):
        Row({}).label("label", NAMES)


@pytest.mark.parametrize(
    ("read", "column", "value", "expected"),
    [
        (Row.text, "number", "7", "text"),
        (Row.text, "none", "None", "text"),
        (Row.integer, "text", "'seven'", "whole number"),
        (Row.integer, "flag", "True", "whole number"),
        (Row.texts, "number", "7", "list of texts"),
        (Row.texts, "text", "'seven'", "list of texts"),
        (Row.texts, "mixed", "['a', 1]", "list of texts"),
        (Row.texts, "empty", "[]", "at least one text"),
        (Row.nested, "texts", "['a', 'b']", "object"),
        (Row.rows, "object", "{'inner': 'x'}", "list of objects"),
        (Row.rows, "text", "'seven'", "list of objects"),
        (Row.text, "half", r"'a\ud800'", "whole characters"),
        (Row.texts, "halves", r"['a', '\udfff']", "whole characters"),
        (Row.rows, "texts", "['a', 'b']", "list of objects"),
    ],
)
def test_wrong_type(read, column, value, expected):
    with refused(RowError, f"column {column!r} is {value}", expected):
        read(ROW, column)


@pytest.mark.parametrize("columns", [[1, 2], "text", None, 3])
def test_row_that_is_no_object(columns):
    with refused(RowError, "JSON object", repr(columns)):
        Row(columns)


def test_long_values_are_cut_in_messages():
    with pytest.raises(RowError) as caught:
        Row({"text": ["x" * 500]}).text("text")
    assert str(caught.value) == f"column 'text' is ['{'x' * 75}..., expected text"


def label(value, names=NAMES):
    return Row({"label": value}).label("label", names)


def test_label_as_index_and_as_name():
    assert [label(i) for i in range(3)] == [0, 1, 2]
    assert [label(name) for name in NAMES] == [0, 1, 2]


def test_label_as_boolean():
    assert [label(value, ("False", "True")) for value in (False, True)] == [0, 1]


@pytest.mark.parametrize("value", [-1, 3, "maybe", "0", 1.0, None, True, ["neutral"]])
def test_wrong_label_lists_the_right_ones(value):
    with refused(RowError, "'label'", repr(value), "0 (entailment), 1 (contradiction), 2 (neutral)"):
        label(value)


def test_odd_and_many_column_names_stay_on_a_short_line():
    with pytest.raises(RowError) as caught:
        Row({"a\nb\x1b": 1} | {f"column {i}": i for i in range(1000)}).text("text")
    said = str(caught.value)
    assert said.startswith(r"column 'text' is missing; the row has a\nb\x1b, column 0, column 1,")
    assert "\n" not in said and said.endswith("...") and len(said) < 250
