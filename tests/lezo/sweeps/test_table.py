"""What a sweep shows: how far each job is on a terminal, plain lines elsewhere."""

import io
from math import nan
from pathlib import Path

import pytest
from rich.console import Console

from lezo.records.files import json_line
from lezo.records.rows import DevRow, TrainRow
from lezo.sweeps.jobs import NOT_STARTED, RUNNING, JobState, jobs
from lezo.sweeps.table import Metrics, SweepProgress, final_table, settings_table, window


def rows(*steps: int, dev: float | None = None) -> bytes:
    """Train rows of half a second each, and a dev row after them."""
    made: list[TrainRow | DevRow] = [TrainRow(step, step / 2, nan) for step in steps]
    if dev is not None:
        made.append(DevRow(steps[-1], steps[-1] / 2, 1.0, dev))
    return "".join(json_line(row.values()) for row in made).encode()


def append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


def test_metrics_are_read_as_they_grow(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    metrics.read()
    assert (metrics.step, metrics.dev, metrics.seconds_left(100, None)) == (0, None, None)
    append(path, rows(1, 2, dev=0.5) + rows(3)[:-9])
    metrics.read()
    assert (metrics.step, metrics.seconds, metrics.dev) == (2, 1.0, 0.5)
    append(path, rows(3)[-9:] + rows(4))
    metrics.read()
    assert (metrics.step, metrics.dev) == (4, 0.5)
    assert metrics.seconds_left(100, None) == 48.0
    assert metrics.seconds_left(100, 12.0) == 10.0
    assert metrics.seconds_left(100, 1.0) == 0.0
    assert metrics.seconds_left(3, None) is None


def test_metrics_follow_a_file_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(rows(*range(1, 9)))
    metrics = Metrics(path)
    metrics.read()
    path.write_bytes(rows(1, 2))
    metrics.read()
    append(path, rows(3, dev=0.25))
    metrics.read()
    assert (metrics.step, metrics.dev) == (3, 0.25)


@pytest.mark.parametrize(
    "junk", [b"\xff\x00\n", b"[1]\n", b'"step"\n', b'{"step": "x", "dev_score": {}}\n', b"\n"]
)
def test_metrics_pass_over_what_is_no_row(junk: bytes, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(rows(1) + junk + rows(2, dev=0.5))
    metrics = Metrics(path)
    metrics.read()
    assert (metrics.step, metrics.dev) == (2, 0.5)


@pytest.fixture
def states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[JobState]:
    """Three jobs of 100 steps; the first one finished."""
    monkeypatch.chdir(tmp_path)
    found = [JobState(job, NOT_STARTED) for job in jobs(["seed=0,1,2", "train.steps=100"])]
    found[0].status, found[0].result = "finished", {"metric": "f1", "steps": 100, "dev": 0.75, "test": 0.5}
    return found


def screen(height: int = 30, width: int = 90) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None)


def last(out: Console) -> dict[str, list[str]]:
    """The last table drawn: job -> its other cells."""
    assert isinstance(out.file, io.StringIO)
    drawn = out.file.getvalue().split("┏")[-1]
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in drawn.splitlines() if "│" in line]
    return {line[0]: line[1:] for line in lines}


def test_the_live_table_shows_how_far_each_job_is(states: list[JobState]) -> None:
    out = screen()
    with SweepProgress(out, states) as progress:
        states[1].status = RUNNING
        progress.started(states[1], before=NOT_STARTED)
        assert last(out)["seed=1"] == ["running", "0/100", "-", "-"]
        states[1].job.folder.mkdir(parents=True)
        append(states[1].job.folder / "metrics.jsonl", rows(*range(1, 41), dev=0.625))
        progress.refresh(now=True)
        assert last(out) == {
            "seed=0": ["finished", "100/100", "0.7500", "-"],
            "seed=1": ["running", "40/100", "0.6250", "0:30"],
            "seed=2": ["not started", "-", "-", "-"],
        }
        before = len(out.file.getvalue())  # type: ignore[attr-defined]
        progress.refresh()
        assert len(out.file.getvalue()) == before  # type: ignore[attr-defined]
        states[1].status = "failed"
        progress.ended(states[1], ["first", "second"])
    drawn = out.file.getvalue()  # type: ignore[attr-defined]
    assert "[2/3] failed: seed=1; the end of " in drawn and "    | first\n    | second\n" in drawn
    assert "[2/3] started" not in drawn  # the table shows that


def test_off_a_terminal_a_line_says_each_start_and_end(states: list[JobState]) -> None:
    out = Console(file=io.StringIO(), width=200)
    with SweepProgress(out, states) as progress:
        progress.started(states[1], before=NOT_STARTED)
        progress.started(states[2], before="failed")
        progress.refresh(now=True)
        states[2].status = "interrupted"
        progress.ended(states[2], [])
        states[1].status, states[1].result = (
            "finished",
            states[0].result | {"seconds": {"total": 75}},
        )
        progress.ended(states[1], [])
    assert out.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "[2/3] started: seed=1",
        "[3/3] goes on (failed before): seed=2",
        "[3/3] interrupted: seed=2",
        "[2/3] finished: f1 dev 0.7500 test 0.5000 in 1:15",
    ]


def test_where_not_all_fit_the_running_ones_are_shown(states: list[JobState]) -> None:
    many = [JobState(states[0].job, "finished") for _ in range(50)]
    assert window(many, 60) == many
    for index, expected in ((0, 0), (5, 3), (30, 28), (48, 42)):
        many[index].status = RUNNING
        shown = window(many, 8)
        assert len(shown) == 8 and shown[0] is many[expected] and many[index] in shown
        many[index].status = "finished"


def test_the_last_table_says_what_was_finished_before(states: list[JobState]) -> None:
    out = screen()
    out.print(final_table(states, before=1))
    assert last(out)["seed=0"] == ["f1", "-", "0.7500", "0.5000", "-", "-", "finished"]
    assert last(out)["seed=2"] == ["-"] * 6 + ["not started"]
    assert "1 of 3 were finished before" in out.file.getvalue()  # type: ignore[attr-defined]


def test_seeds_have_their_mean_and_the_deviation_of_a_sample(states: list[JobState]) -> None:
    for state, (dev, loss) in zip(states, ((0.5, 0.2), (0.6, 0.3), (0.9, None)), strict=True):
        state.status, state.result = "finished", {"metric": "f1", "dev": dev, "dev_loss": loss, "test": 0.5}
    states[2].status = "failed"
    out, table = screen(width=120), settings_table(states)
    out.print(table)
    means = ["0.2500 ± 0.0707", "0.5500 ± 0.0707", "0.5000 ± 0.0000"]
    assert last(out)["all jobs"] == ["2 of 3", "f1", *means, "-"]
    apart = [JobState(job, "finished") for job in jobs(["optim.lr=1e-3,1e-2"])]
    assert settings_table(apart) is None
    assert settings_table([JobState(state.job, "interrupted") for state in states]) is None


def test_seeds_are_told_apart_from_settings() -> None:
    found = jobs(["optim=mezo,lezo", "task.data_seed=0,1", "seed=3"])
    assert [job.setting for job in found] == ["optim=mezo"] * 2 + ["optim=lezo"] * 2


def test_the_time_left_is_the_whole_sweeps(states: list[JobState], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("lezo.sweeps.table.time.monotonic", lambda: now)
    out = Console(file=io.StringIO(), width=200)
    progress = SweepProgress(out, states, states[1:], slots=1)
    states[1].status = RUNNING
    progress.started(states[1], before=NOT_STARTED)
    now += 90
    states[1].status, states[1].result = "finished", states[0].result | {"seconds": {"total": 75}}
    progress.ended(states[1], [])
    states[2].status = RUNNING
    progress.started(states[2], before=NOT_STARTED)
    now += 30
    live = screen()
    live.print(progress._table())
    said = out.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert said[1].endswith("in 1:15; about 1:30 left for the sweep")
    assert "2 of 3 finished, about 1:00 left" in live.file.getvalue()  # type: ignore[attr-defined]
