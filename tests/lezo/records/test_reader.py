"""Runs of every fate and with every damage, read from their folders."""

import fcntl
import json
import math
import os
from pathlib import Path

import pytest

from lezo.config.compose import compose
from lezo.config.methods import METHODS
from lezo.records.reader import Reader, Run, read_run, run_folders
from tests.lezo.run_folders import config, finished, result, rows, write


def test_a_finished_run_is_read_in_full(tmp_path: Path) -> None:
    run = read_run(finished(tmp_path / "run", seed=3))
    assert (run.title, run.model, run.optim, run.sparsity, run.seed) == (
        "rte (sample)",
        "tiny",
        "lezo",
        0.75,
        ("3", "0"),
    )
    assert (run.status, run.error, run.damage, run.finished) == ("finished", "", [], True)
    assert [step.step for step in run.steps] == [1, 2, 3, 4]
    assert [(dev.step, dev.loss) for dev in run.devs] == [(0, 0.7), (2, 0.6), (4, 0.5)]
    assert (run.number("test"), run.number("seconds.total"), run.number("seconds.nothing")) == (
        0.75,
        30.0,
        None,
    )
    assert run.step_seconds == pytest.approx(0.171)


def test_names_follow_the_data_and_the_model(tmp_path: Path) -> None:
    hub = config(data__name="hub", model__name="hf", model__path="facebook/opt-13b", optim__name="mezo")
    run = read_run(write(tmp_path, hub, rows()))
    assert (run.title, run.model, run.sparsity) == ("rte", "facebook/opt-13b", 0.0)


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    failed = write(tmp_path / "a", config(), rows((0.7,)), result(status="failed", error="out of memory"))
    assert (read_run(failed).status, read_run(failed).error) == ("failed", "out of memory")
    silent = write(tmp_path / "b", config(), rows((0.7,)), result(status="failed"))
    (silent / "traceback.txt").write_text("Traceback\n  somewhere\nValueError: the last line\n")
    assert read_run(silent).error == "ValueError: the last line"


def test_a_run_without_a_result_is_running_while_its_process_holds_the_lock(tmp_path: Path) -> None:
    folder = write(tmp_path, config(), rows((0.7, 0.6)))
    with (folder / ".lock").open("w") as lock:
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        held = read_run(folder)
    left = read_run(folder)
    if Path("/proc/locks").exists():
        assert (held.status, held.error) == ("running", "")
    assert left.status == "unfinished"
    assert left.error.startswith("no result: killed, or at work on another machine; last wrote at 20")


def test_a_last_line_cut_short_is_left_out_and_named_where_the_run_has_ended(tmp_path: Path) -> None:
    for ended, damage in ((None, []), (result(), ["metrics.jsonl: the last line is cut short"])):
        folder = write(tmp_path / str(ended is None), config(), rows(), ended)
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"step": 5, "secon')
        run = read_run(folder)
        assert run.damage == damage
        assert len(run.steps) == 4


def test_what_a_run_ran_on_is_read_and_named_where_it_cannot_be(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    assert read_run(folder).environment == {}
    (folder / "environment.json").write_text('{"device": "AMD EPYC", "packages": {"torch": "2.13.0"}}')
    run = read_run(folder)
    assert run.environment["packages"] == {"torch": "2.13.0"} and not run.damage
    (folder / "environment.json").write_text("[1]")
    run = read_run(folder)
    assert run.environment == {} and run.damage[0].startswith("environment.json: ")


def test_lines_that_are_no_rows_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path, config(), [], result())
    bad = [
        b"\xff\x00",
        b"[1]",
        b'{"step": "x", "seconds": 1, "loss": 1}',
        b'{"step": 1, "seconds": NaN, "loss": 1}',
        b"[" * 10**5,
    ]
    good = [json.dumps(row).encode() for row in rows()]
    (folder / "metrics.jsonl").write_bytes(b"".join(line + b"\n" for line in [*good[:2], *bad, *good[2:]]))
    run = read_run(folder)
    assert run.damage == ["metrics.jsonl: line 3 and 4 more not a row of a run"]
    assert len(run.steps) == 4 and len(run.devs) == 3


def test_what_is_no_number_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    train, dev = rows()[2], rows()[1]
    wrong = [train | {"phases": {"forward": "much"}}, dev | {"dev_score": "much"}, train | {"memory": 1e999}]
    run = read_run(write(tmp_path, config(), [train | {"loss": None}, *wrong], result(test="x", more={})))
    assert [(step.step, math.isnan(step.loss)) for step in run.steps] == [(1, True)]
    assert (run.devs, run.number("test"), run.number("dev"), run.result["more"]) == ([], None, 0.8, {})
    assert run.damage == [
        "result.json: Expected `float | null`, got `str` - at `$.test`",
        "metrics.jsonl: line 2 and 2 more not a row of a run",
    ]


@pytest.mark.parametrize(
    "content",
    [b"", b"5", b"[1]", b"\xff", b"a: [", b"a: &a [*a]", b"task: {name: !!python/object:os.system {}}"],
)
def test_a_damaged_configuration_is_named_and_the_result_speaks(tmp_path: Path, content: bytes) -> None:
    said = {
        "task": "sst2",
        "data": "sample",
        "model": "tiny",
        "optim": "mezo",
        "lr": 0.1,
        "seed": 7,
        "data_seed": 1,
    }
    folder = write(tmp_path, None, rows(), result(**said))
    (folder / "config.yaml").write_bytes(content)
    run = read_run(folder)
    assert run.damage == ["config.yaml: not the configuration of a run"]
    assert (run.title, run.model, run.optim, run.seed) == ("sst2 (sample)", "tiny", "mezo", ("7", "1"))


def test_a_damaged_result_is_named_and_metrics_speak(tmp_path: Path) -> None:
    folder = write(tmp_path, config(), rows())
    (folder / "result.json").write_text("{")
    run = read_run(folder)
    assert (run.damage, run.status, len(run.devs)) == (
        ["result.json: Input data was truncated"],
        "unfinished",
        3,
    )
    write(folder, ended=result(status="<b>"))
    assert read_run(folder).status == "unknown"
    assert read_run(folder).damage == [
        "result.json: Expected `str` matching regex '^(finished|failed|interrupted)$' - at `$.status`"
    ]


def test_runs_are_found_at_any_depth_and_what_is_no_run_is_not(tmp_path: Path) -> None:
    finished(tmp_path / "a")
    finished(tmp_path / "a" / "b" / "c")
    write(tmp_path / "alone", ended=result())
    write(tmp_path / "planned", config())
    finished(tmp_path / "a" / "checkpoints" / "step-1")
    write(tmp_path / "bench", config(), [{"step": 1, "variant": "lezo", "seconds": 0.1}])
    found = [folder.relative_to(tmp_path).as_posix() for folder in run_folders(tmp_path)]
    assert sorted(found) == ["a", "a/b/c", "alone"]
    assert list(run_folders(tmp_path / "a" / "b" / "c")) == [tmp_path / "a" / "b" / "c"]


def test_no_link_is_followed_and_nothing_outside_is_read(tmp_path: Path) -> None:
    finished(tmp_path / "outside")
    (tmp_path / "outside" / "secret.yaml").write_text("task: {name: secret}")
    inside = finished(tmp_path / "runs" / "run")
    (tmp_path / "runs" / "circle").symlink_to(tmp_path / "runs")
    (tmp_path / "runs" / "away").symlink_to(tmp_path / "outside")
    (inside / "config.yaml").unlink()
    (inside / "config.yaml").symlink_to(tmp_path / "outside" / "secret.yaml")
    (run,) = Reader().runs([tmp_path / "runs"])
    assert "secret" not in run.title
    assert any(line.startswith("config.yaml: cannot read it") for line in run.damage)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    folder = write(tmp_path, config(), None, result())
    os.mkfifo(folder / "metrics.jsonl")
    assert read_run(folder).damage == ["metrics.jsonl: cannot read it (not a plain file)"]


def test_folders_given_twice_are_read_once_and_only_changed_runs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def reading(folder: Path) -> Run:
        read.append(folder.name)
        return read_run(folder)

    monkeypatch.setattr("lezo.records.reader.read_run", reading)
    finished(tmp_path / "a")
    write(tmp_path / "b", config(), rows((0.7,)))
    reader, roots = Reader(), [tmp_path, tmp_path / "a", tmp_path / "." / "b"]
    assert len(reader.runs(roots)) == 2
    write(tmp_path / "b", metrics=rows((0.7, 0.6)))
    assert [len(run.devs) for run in reader.runs(roots)] == [3, 2]
    assert read == ["a", "b", "b"]


def test_forwards_are_counted_by_the_method_and_its_settings(tmp_path: Path) -> None:
    runs = {
        name: read_run(finished(tmp_path / name, optim__name=name))
        for name in ("mezo", "fo-sgd", "none", "gone")
    }
    each = {name: (run.forwards_a_step, run.forwards) for name, run in runs.items()}
    assert each == {"mezo": (2, 8), "fo-sgd": (3, 12), "none": (None, None), "gone": (None, None)}
    damaged = config(optim__name="mezo", optim__eps="many")
    assert read_run(write(tmp_path / "damaged", damaged, rows())).forwards_a_step is None
    assert read_run(write(tmp_path / "alone", ended=result(optim="mezo"))).forwards_a_step is None


def test_what_a_step_costs_is_worked_out_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report asks for it with every row that it draws."""
    run, asked = read_run(finished(tmp_path)), []
    monkeypatch.setattr("lezo.records.reader._cost", lambda kind, values: asked.append(kind) or 2)
    assert [run.forwards_a_step, run.forwards_a_step, len(asked)] == [2, 2, 1]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_written_configuration_says_what_a_step_costs(name: str, tmp_path: Path) -> None:
    composed = compose([f"optim={name}"])
    (tmp_path / "config.yaml").write_text(composed.yaml)
    (tmp_path / "metrics.jsonl").touch()
    method = composed.config.method
    cost = method.forwards_a_step(composed.config.optim) if method.trains else None
    assert read_run(tmp_path).forwards_a_step == cost
