"""Random damage to a run's files: a refusal in one line, or what an undamaged beginning of them says; nothing else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lezo.config.compose import compose
from lezo.records.checkpoint import find_checkpoints
from lezo.records.files import FolderError
from lezo.records.journal import MAGIC, RECORD, JournalFile, read_journal
from lezo.records.strict import read_result, read_rows
from lezo.runs.finished import summary_of
from lezo.runs.resume import ResumeState, events_of_rows, refuse_changes
from lezo.zo.timeline import Timeline
from tests.lezo.records.test_checkpoint import Writer, first_order, model_state
from tests.lezo.runs.test_resume import EVENTS, Run
from tests.lezo.small_models import Bowl, weights

Damage = Callable[[bytes], bytes]

FUZZ = settings(derandomize=True, deadline=None, max_examples=50, database=None)
# Of the file's length; a journal's records and what decides in metrics stand at its end.
PLACES = st.floats(0, 1, exclude_max=True) | st.floats(0.8, 1, exclude_max=True)
BYTES = st.binary(min_size=1, max_size=40) | st.sampled_from(
    [b"\0" * 20, b"\0" * 4096, b"\n", b"1", b"\\n", b"0."]
)


def flip(place: float, mask: int) -> Damage:
    def flipped(content: bytes) -> bytes:
        at = int(place * len(content))
        return content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :] if content else content

    return flipped


def cut(start: float, size: int) -> Damage:
    """Without ``size`` bytes."""
    return lambda content: content[: int(start * len(content))] + content[int(start * len(content)) + size :]


def end(place: float) -> Damage:
    return lambda content: content[: int(place * len(content))]


def insert(place: float, data: bytes) -> Damage:
    return lambda content: content[: int(place * len(content))] + data + content[int(place * len(content)) :]


def double(place: float, size: int) -> Damage:
    def doubled(content: bytes) -> bytes:
        at = int(place * len(content))
        return content[: at + size] + content[at:]

    return doubled


def swap(place: float, size: int, other: int) -> Damage:
    def swapped(content: bytes) -> bytes:
        at = int(place * len(content))
        a, b, c = at, at + size, at + size + other
        return content[:a] + content[b:c] + content[a:b] + content[c:]

    return swapped


SIZES = st.integers(1, 200) | st.sampled_from([RECORD.size, 2 * RECORD.size, 3 * RECORD.size])
DAMAGES = st.lists(
    st.one_of(
        st.builds(flip, PLACES, st.integers(1, 255)),
        st.builds(cut, PLACES, SIZES),
        st.builds(end, PLACES),
        st.builds(insert, PLACES, BYTES),
        st.builds(double, PLACES, SIZES),
        st.builds(swap, PLACES, SIZES, SIZES),
    ),
    min_size=1,
    max_size=3,
)


def damaged(content: bytes, damages: list[Damage]) -> bytes:
    for damage in damages:
        content = damage(content)
    return content


def refused(read: Callable[[], Any]) -> Any:
    """What was read, or None where it was refused; a refusal is one line that names a file."""
    try:
        return read()
    except FolderError as error:
        message = str(error)
        assert "\n" not in message and message.startswith("/") and len(message) < 1000
        return None


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = Run(tmp_path_factory.mktemp("run"), every=2)
    made.trained()
    return made


@pytest.fixture(scope="module")
def whole(run: Run) -> dict[str, bytes]:
    return {name: (run.folder / name).read_bytes() for name in ("journal.bin", "metrics.jsonl")}


@FUZZ
@given(DAMAGES)
def test_a_damaged_journal(run: Run, whole: dict[str, bytes], damages: list[Damage]) -> None:
    file = run.folder / "damaged.bin"
    file.write_bytes(whole["journal.bin"])
    true = read_journal(file)
    file.write_bytes(damaged(whole["journal.bin"], damages))
    found: JournalFile | None = refused(lambda: read_journal(file))
    if found is not None:
        assert found.header == true.header
        assert repr(found.records) == repr(true.records[: len(found.records)])  # in which NaN is NaN
        assert whole["journal.bin"].startswith(file.read_bytes()[: found.end])


@FUZZ
@given(st.binary(max_size=300))
@example(b"")
def test_any_bytes_as_a_journal(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.bin"
    for start in (b"", MAGIC):
        file.write_bytes(start + content)
        assert refused(lambda: read_journal(file)) is None


@FUZZ
@given(DAMAGES)
def test_damaged_metrics_beside_their_journal(
    run: Run, whole: dict[str, bytes], damages: list[Damage]
) -> None:
    (run.folder / "journal.bin").write_bytes(whole["journal.bin"])
    file = run.folder / "metrics.jsonl"
    file.write_bytes(whole["metrics.jsonl"])
    true = events_of_rows(read_rows(file))
    file.write_bytes(damaged(whole["metrics.jsonl"], damages))
    past: ResumeState | None = refused(run.past)
    if past is not None:  # a digit of a score may be another one: nothing else has it; what decides is not
        told = events_of_rows(past.rows)
        assert told == true[: len(told)]
        assert past.journal_end == len(whole["journal.bin"]) - RECORD.size * (len(EVENTS) - len(told))
        progress = past.progress()
        assert progress.step == past.step and type(past.step) is int
        assert progress.best_step == (3 if len(told) > EVENTS.index("dev 3") else None)


@FUZZ
@given(DAMAGES, DAMAGES)
def test_both_files_damaged(
    run: Run, whole: dict[str, bytes], damages: list[Damage], others: list[Damage]
) -> None:
    (run.folder / "metrics.jsonl").write_bytes(damaged(whole["metrics.jsonl"], damages))
    (run.folder / "journal.bin").write_bytes(damaged(whole["journal.bin"], others))
    past: ResumeState | None = refused(run.past)
    if past is not None:
        assert past.journal_end is not None
        cut = (run.folder / "journal.bin").read_bytes()[: past.journal_end]
        assert whole["journal.bin"].startswith(cut)


@FUZZ
@given(
    st.lists(st.binary(max_size=60) | st.sampled_from([b"{}", b"[]", b"null", b"1e999", b'{"step": NaN}']))
)
def test_any_lines_as_metrics(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    file = tmp_path_factory.getbasetemp() / "any.jsonl"
    file.write_bytes(b"\n".join(lines))
    assert not refused(lambda: read_rows(file))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NUMBERS = st.integers(0, 3) | st.floats()


@FUZZ
@given(
    st.fixed_dictionaries(
        {"step": st.integers(0, 2) | JSON, "seconds": NUMBERS | JSON},
        optional={
            "loss": NUMBERS | JSON,
            "skipped": st.booleans() | JSON,
            "phases": st.dictionaries(st.text(max_size=3), NUMBERS, max_size=2) | JSON,
            "dev_loss": NUMBERS | JSON,
            "dev_score": NUMBERS | JSON,
            "eval_seconds": NUMBERS | JSON,
            "test_loss": NUMBERS | JSON,
            "test_score": NUMBERS | JSON,
            "more": JSON,
        },
    )
)
def test_rows_of_other_values(tmp_path_factory: pytest.TempPathFactory, row: dict[str, Any]) -> None:
    """What is taken for a row can be counted."""
    file = tmp_path_factory.getbasetemp() / "other.jsonl"
    file.write_text(json.dumps(row) + "\n")
    rows = refused(lambda: read_rows(file))
    if rows is not None:
        past = ResumeState(rows=rows)
        assert past.progress().step in (0, 1) and past.progress().elapsed == row["seconds"]
        assert past.zero_shot is None or rows[0].kind == "test"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("checkpoints")
    model = Bowl(torch.float32)
    optimizer = first_order(model, "adamw", 0.0)
    optimizer.step(0, 1.0)
    Writer(folder, model_state(model, optimizer)).save(1)
    files = {file: file.read_bytes() for file in (folder / "step-1").iterdir()}
    return {"folder": folder, "files": files, "weights": weights(model), "state": optimizer.state()}


@FUZZ
@given(st.sampled_from(["checkpoint.json", "00000.safetensors"]), DAMAGES)
def test_a_damaged_checkpoint(checkpoint: dict[str, Any], name: str, damages: list[Damage]) -> None:
    for file, content in checkpoint["files"].items():
        file.write_bytes(damaged(content, damages) if file.name == name else content)
    model = Bowl(torch.float32)
    optimizer = first_order(model, "adamw", 0.0)

    def taken() -> bool:
        found = find_checkpoints(checkpoint["folder"])
        Timeline(model, lambda: None, None).bring_to(1, None, found, optimizer)
        return True

    if refused(taken) is not None:
        assert all(torch.equal(p, checkpoint["weights"][n]) for n, p in weights(model).items())
        state = optimizer.state()
        assert state.keys() == checkpoint["state"].keys()
        assert all(torch.equal(value, checkpoint["state"][key]) for key, value in state.items())


RESULT = {
    "status": "finished",
    "error": None,
    "title": "rte (sample)",
    "metric": "accuracy",
    "model": "tiny",
    "optim": "lezo",
    "test": 0.5,
    "zero_shot": 0.25,
    "dev": 0.75,
    "best_step": 3,
    "seconds": {"total": 9.5, "train": 1.5, "eval": 0.5, "step_median": 0.125},
    "peak_memory_bytes": {"device": 0, "host": 447430656},
    "skipped_steps": 2,
    "command": "lezo-run task=rte",
}


CONFIG = compose(["task=rte"]).config


def told(folder: Path) -> str:
    result = read_result(folder)
    assert result is not None
    return summary_of(result, folder, CONFIG)


@FUZZ
@given(DAMAGES)
def test_a_damaged_result(tmp_path_factory: pytest.TempPathFactory, damages: list[Damage]) -> None:
    folder = tmp_path_factory.getbasetemp()
    content = json.dumps(RESULT, indent=2).encode()
    (folder / "result.json").write_bytes(damaged(content, damages))

    assert refused(lambda: told(folder)) != ""


@FUZZ
@given(st.sampled_from(sorted(RESULT)), JSON)
def test_a_result_of_other_values(tmp_path_factory: pytest.TempPathFactory, key: str, value: Any) -> None:
    folder = tmp_path_factory.getbasetemp()
    for result in (RESULT | {key: value}, {k: v for k, v in RESULT.items() if k != key}):
        (folder / "result.json").write_text(json.dumps(result))
        refused(lambda: told(folder))


@FUZZ
@given(DAMAGES)
def test_a_damaged_configuration(tmp_path_factory: pytest.TempPathFactory, damages: list[Damage]) -> None:
    folder: Path = tmp_path_factory.getbasetemp()
    content = b"seed: 0\ntrain:\n  steps: 10\n  eval_every: 3\noptim:\n  name: lezo\n  lr: 0.001\n"
    (folder / "config.yaml").write_bytes(damaged(content, damages))
    refused(lambda: refuse_changes(folder, content.decode()))
