"""Random damage to rows: they are read as they say, or refused in one line; never anything else."""

import json
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lezo.data.source import DataError, load
from lezo.tasks import TASKS, Example

# A task's columns of text, its label's column and names, and a sound row.
FLAT: dict[str, tuple[tuple[str, ...], str, tuple[str, ...], dict[str, Any]]] = {
    "rte": (
        *(("premise", "hypothesis"), "label", ("entailment", "not_entailment")),
        {"premise": "Owls hunt.", "hypothesis": "Owls sleep.", "label": 1, "idx": 0},
    ),
    "sst2": (
        *(("sentence",), "label", ("negative", "positive")),
        {"sentence": "a fine film ", "label": "positive", "idx": 3},
    ),
    "boolq": (
        *(("passage", "question"), "answer", ("False", "True")),
        {"passage": "Owls hunt.", "question": "do owls hunt", "answer": True},
    ),
    "copa": (
        *(("premise", "choice1", "choice2"), "label", ("choice1", "choice2")),
        {"premise": "It rained.", "choice1": "I left.", "choice2": "He ran.", "question": "effect", "label": 0},
    ),
    "wsc": (
        *(("text", "span1_text", "span2_text"), "label", ("False", "True")),
        {"text": "Ana saw Bo.", "span1_text": "Ana", "span1_index": 0, "span2_text": "bo", "span2_index": 2, "label": 1},
    ),
}  # fmt: skip
NESTED: dict[str, dict[str, Any]] = {
    "squad": {"title": "T", "context": "C.", "question": "Q?", "answers": {"text": ["a", "b"], "answer_start": [0]}},
    "drop": {"passage": "P.", "question": "Q?", "answers_spans": {"spans": ["3", "4"], "types": ["number"] * 2}},
    "multirc": {"passage": {"text": "P.", "questions": [{"question": "Q?", "answers": [{"text": "A", "label": 1}]}]}},
    "record": {
        "passage": {"text": "Ana met Bo.", "entities": [{"start": 0, "end": 2}, {"start": 8, "end": 9}]},
        "qas": [{"query": "@placeholder left", "answers": [{"start": 8, "end": 9, "text": "Bo"}]}],
    },
}  # fmt: skip
FUZZ = settings(
    max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)

ODD = st.sampled_from(
    [
        *(None, True, False, 0, 1, -1, 2, 1.0, 10**400, 1e308, math.nan, math.inf, -math.inf),
        *("", " ", "\n", "0", "entailment", "True", "\ud800", "a\udfffb", "\x00", "\u2028", "😀", "x" * 5000),
        *([], {}, [[]], [None], ["\ud800"], {"text": []}, {"": 0}),
    ]
)
VALUES = ODD | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
HALVES = st.text(st.characters(categories=["Cs", "Lu"]), min_size=1, max_size=3)
LABELS = st.sampled_from([None, True, False, -1, 0, 1, 2, 0.0, 1.0, "0", "True", "negative", [0], math.nan])
JUNK = [
    *(b"NaN", b"Infinity", b"9" * 5000, b"1e999", b"[" * 50_000, b'{"a":' * 50_000, b"\xff", b"\xef\xbb\xbf"),
    *(b"\x00", b'"', b"\\", b"\\ud800", b"{", b"}", b",", b"\r", b"\n", b"\x85", b"null", b'"label": 0,'),
]
Damage = Callable[[bytes], bytes]


@st.composite
def byte_damage(draw: st.DrawFn) -> Damage:
    """Flip, cut out, double or put in bytes at some place of a line."""
    kind, part = draw(st.sampled_from(["flip", "cut", "tail", "double", "put"])), draw(st.floats(0, 1))
    bits, length, junk = draw(st.integers(1, 255)), draw(st.integers(1, 40)), draw(st.sampled_from(JUNK))

    def apply(line: bytes) -> bytes:
        at = int(part * max(len(line) - 1, 0))
        if kind == "flip":
            return line[:at] + bytes([line[at] ^ bits]) + line[at + 1 :] if line else b""
        if kind == "cut":
            return line[:at] + line[at + length :]
        if kind == "tail":
            return line[:at]
        return line + b"\n" + line if kind == "double" else line[:at] + junk + line[at:]

    return apply


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a row."""
    keys = node.keys() if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else []
    for key in list(keys):
        yield node, key
        yield from places(node[key])


@st.composite
def value_damage(draw: st.DrawFn) -> Damage:
    """Put an odd value, or junk, or none, or two, in some place of a row."""
    kind, part = draw(st.sampled_from(["set", "junk", "drop", "twice"])), draw(st.floats(0, 1))
    value, junk = draw(HALVES | VALUES), draw(st.sampled_from(JUNK))

    def apply(line: bytes) -> bytes:
        row = json.loads(line)
        found = list(places(row))
        node, key = found[int(part * (len(found) - 1))]
        if kind == "twice":
            return b'{"%s": %s, ' % (str(next(iter(row))).encode(), _dumped(value)) + line[1:]
        if kind == "drop":
            del node[key]
        else:
            node[key] = "HERE" if kind == "junk" else value
        return _dumped(row).replace(b'"HERE"', junk)

    return apply


@st.composite
def label_damage(draw: st.DrawFn) -> Damage:
    """Another label."""
    label = draw(LABELS)

    def apply(line: bytes) -> bytes:
        row = json.loads(line)
        return _dumped(row | {"answer" if "answer" in row else "label": label})

    return apply


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def read(task: str, lines: list[bytes]) -> list[Example] | str:
    """The examples of the lines, or what is said of them."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / task).mkdir()
        for part in ("train", "val"):
            (Path(folder) / task / f"{part}.jsonl").write_bytes(b"\n".join(lines))
        try:
            return list(load(TASKS[task], "local", path=folder).train)
        except DataError as error:
            said = str(error)
            assert said.startswith(f"{Path(folder) / task / 'train.jsonl'}") and len(said) < 1000
            assert said.isprintable(), ascii(said)
            return said


def plain(line: bytes) -> dict[str, Any]:
    """A row as JSON has it, read without our reader. Raises where it is none, or says one thing twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({name for name, _ in pairs}) == len(pairs)
        return dict(pairs)

    row = json.loads(line.decode(), object_pairs_hook=once)
    assert isinstance(row, dict)
    return row


def agrees(task: str, row: dict[str, Any], example: Example) -> None:
    """The example says what the row says."""
    texts, column, names, _ = FLAT[task]
    shown = " ".join([example.prompt, *example.answers]).casefold()
    for text in (row[name] for name in texts):
        assert isinstance(text, str) and text.encode() is not None
        assert all(word.casefold().rstrip(".") in shown for word in text.split())
    label = row[column]
    assert not isinstance(label, float)
    assert isinstance(label, str | int) and (names == ("False", "True") or not isinstance(label, bool))
    right = names.index(label) if isinstance(label, str) else int(label)
    assert 0 <= right < 2
    if task == "boolq":  # its candidates are Yes, No
        right = 1 - right
    assert example.gold == (right,)


@FUZZ
@given(
    st.sampled_from(sorted(FLAT)),
    byte_damage() | value_damage() | label_damage(),
    st.lists(byte_damage(), max_size=1),
)
def test_a_damaged_row_is_read_as_it_says_or_refused(task: str, damage: Damage, more: list[Damage]) -> None:
    sound = _dumped(FLAT[task][3])
    damaged = damage(sound)
    for another in more:
        damaged = another(damaged)
    found = read(task, [sound, damaged, sound])
    if isinstance(found, list):
        rows = [plain(line) for line in b"\n".join([sound, damaged, sound]).split(b"\n") if line.strip()]
        assert len(found) == len(rows)
        for row, example in zip(rows, found, strict=True):
            agrees(task, row, example)


@FUZZ
@given(st.sampled_from(sorted(NESTED)), byte_damage() | value_damage(), st.lists(byte_damage(), max_size=1))
def test_a_damaged_nested_row_is_read_or_refused(task: str, damage: Damage, more: list[Damage]) -> None:
    damaged = damage(_dumped(NESTED[task]))
    for another in more:
        damaged = another(damaged)
    found = read(task, [_dumped(NESTED[task]), damaged])
    for example in found if isinstance(found, list) else []:
        assert all(0 <= index < len(example.answers) for index in example.gold) and example.gold
        assert all(isinstance(text, str) and text.encode() for text in (example.prompt, *example.answers))
        assert bool(example.references) == TASKS[task].generates


@pytest.mark.parametrize("task", [*FLAT, *NESTED])
def test_the_sound_rows_are_sound(task: str) -> None:
    row = FLAT[task][3] if task in FLAT else NESTED[task]
    found = read(task, [_dumped(row)])
    assert isinstance(found, list) and len(found) == 1
    if task in FLAT:
        agrees(task, row, found[0])
