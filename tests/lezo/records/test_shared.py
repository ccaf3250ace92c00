"""Zero-shot scores that runs share: computed once, by whoever comes first, and never read by halves."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from lezo.records.shared import SharedScores, ZeroShot
from tests.lezo.sweeps.forked import Forked

KEY = {"weights": "ab", "adapter": {"targets": ("q", "v")}, "batch_size": 32}
AWKWARD = 0.1 + 0.2  # 17 digits


def score(run: str = "first", value: float = AWKWARD, loss: float | None = 1 / 3) -> ZeroShot:
    predictions = [{"index": 0, "scores": [-1e-7, -AWKWARD], "prediction": 1, "gold": [0, 1]}]
    return ZeroShot(
        {"weights": "ab", "adapter": {"targets": ["q", "v"]}, "batch_size": 32}, run, loss, value, predictions
    )


def never() -> ZeroShot:
    raise AssertionError("computed a second time")


def silent() -> None:
    raise AssertionError("waited for nobody")


def test_the_first_computes_and_the_others_read_the_same_bits(tmp_path: Path) -> None:
    assert SharedScores(tmp_path).obtain(KEY, score, silent) == score()
    assert SharedScores(tmp_path).obtain(KEY, never, silent) == score()
    other = SharedScores(tmp_path).obtain({**KEY, "batch_size": 16}, lambda: score("second"), silent)
    assert other.run == "second"


@pytest.mark.parametrize("damage", [b"", b"\0\xff", b"[1]", b"null", b'{"run": "x"}', b"[" * 100_000])
def test_what_is_not_whole_is_computed_again(damage: bytes, tmp_path: Path) -> None:
    shared = SharedScores(tmp_path)
    shared.obtain(KEY, score, silent)
    (file,) = tmp_path.glob("*.json")
    whole = file.read_bytes()
    for content in (damage, whole[:-9], whole.replace(b'"ab"', b'"cd"')):  # the last is another key's
        file.write_bytes(content)
        assert shared.find(KEY) is None
        assert shared.obtain(KEY, lambda: score("again"), silent).run == "again"
    assert shared.find(KEY) == score("again")


@pytest.mark.parametrize("made", [score(value=float("inf")), score(loss=float("nan"))])
def test_what_is_not_finite_stays_the_runs_own(made: ZeroShot, tmp_path: Path) -> None:
    assert SharedScores(tmp_path).obtain(KEY, lambda: made, silent) is made
    assert SharedScores(tmp_path).find(KEY) is None and not list(tmp_path.glob("*.json"))


def test_where_nothing_can_be_written_it_is_computed(tmp_path: Path) -> None:
    for _ in range(2):
        assert SharedScores(tmp_path / "none").obtain(KEY, score, silent) == score()
    assert not list(tmp_path.iterdir())


def test_the_second_waits_for_the_first(tmp_path: Path) -> None:
    begun, may_end, waited = threading.Event(), threading.Event(), threading.Event()

    def slow() -> ZeroShot:
        begun.set()
        assert may_end.wait(10)
        return score()

    first = threading.Thread(target=lambda: SharedScores(tmp_path).obtain(KEY, slow, silent))
    found: list[ZeroShot] = []
    second = threading.Thread(
        target=lambda: found.append(SharedScores(tmp_path).obtain(KEY, never, waited.set))
    )
    first.start()
    assert begun.wait(10)
    second.start()
    assert waited.wait(10) and not found
    may_end.set()
    first.join(10)
    second.join(10)
    assert found == [score()]


def test_a_run_that_is_killed_as_it_computes_leaves_it_to_the_next(tmp_path: Path) -> None:
    def hang() -> ZeroShot:
        (tmp_path / "begun").touch()
        time.sleep(60)
        return score()

    killed = Forked(lambda: bool(SharedScores(tmp_path).obtain(KEY, hang, silent)))
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    waits: list[bool] = []

    def waiting() -> None:
        waits.append(True)
        os.kill(killed.pid, signal.SIGKILL)

    assert SharedScores(tmp_path).obtain(KEY, lambda: score("next"), waiting).run == "next"
    assert waits == [True] and killed.ended()[0] == -signal.SIGKILL
    assert SharedScores(tmp_path).find(KEY) == score("next")


def test_the_file_says_what_it_depends_on(tmp_path: Path) -> None:
    SharedScores(tmp_path).obtain(KEY, score, silent)
    (file,) = tmp_path.glob("*.json")
    assert json.loads(file.read_text())["key"] == {**KEY, "adapter": {"targets": ["q", "v"]}}
