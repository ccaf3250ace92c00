"""lezo-run -m hydra/launcher=NAME: a sweep of our own, whose jobs one of Hydra's launchers runs."""

import json
import os
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.core.utils import JobReturn, JobStatus

from lezo.cli import run
from lezo.sweeps.hydra_job import LaunchedRun
from tests.lezo.refusals import names
from tests.lezo.sweeps.composed import compose_once
from tests.lezo.whole_runs import SMALL, typed

BASIC = ["-m", "hydra/launcher=basic", "hydra.sweep.dir=out"]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def lezo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """lezo-run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lezo.sweeps.jobs.compose", compose_once)
    return typed("lezo-run", run.main, monkeypatch, capsys)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What a launcher is given, which runs nothing."""
    given: list[list[str]] = []

    def ended(todo: Sequence[list[str]], *_: object) -> list[JobReturn]:
        given.extend(todo)
        return [JobReturn(status=JobStatus.COMPLETED) for _ in todo]

    monkeypatch.setattr("lezo.sweeps.hydra_sweep.run_jobs", ended)
    return given


@pytest.fixture
def handlers() -> Iterator[None]:
    """Signal handlers come back afterwards."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def result(folder: Path, *overrides: str) -> dict[str, Any]:
    """That of a job, in the folder that a sweep of our own gives it."""
    name = compose_once(overrides).job_name
    return json.loads((folder / name / "result.json").read_text())  # type: ignore[no-any-return]


def statuses(folder: Path) -> list[str]:
    """The last column of the sweep's record."""
    (record,) = folder.glob("sweep-*.json")
    return [row["status"] for row in json.loads(record.read_text())]


def test_a_sweep_is_told_as_one_of_our_own(lezo: Command, handlers: None) -> None:
    code, out, err = lezo(*BASIC, *SCORING, "seed=0,1")
    assert (code, err) == (0, "")
    assert "sweep of 2 jobs in out" in out and out.count("finished \u2502") == 2
    assert [result(Path("out"), *SCORING, f"seed={seed}")["seed"] for seed in (0, 1)] == [0, 1]
    assert statuses(Path("out")) == ["finished", "finished"]
    first = compose_once([*SCORING, "seed=0"]).job_name
    assert result(Path("out"), *SCORING, "seed=1")["zero_shot_from"] == first
    assert out.endswith("next: lezo-report out\n")
    code, out, _ = lezo(*BASIC, *SCORING, "seed=0,1")
    assert code == 0 and "2 of them finished before" in out and "running" not in out


def test_jobs_go_on_in_the_sweeps_group(lezo: Command, launched: list[list[str]]) -> None:
    assert lezo(*BASIC, "seed=0,1", "hydra.verbose=false")[0] == 1  # none of them ran
    (record,) = Path("out").glob("sweep-*.json")
    group = f"log.group={record.stem}"
    assert launched == [["seed=0", "resume=auto", group], ["seed=1", "resume=auto", group]]


@pytest.mark.parametrize("given", ["resume=off", "log.group=mine"])
def test_what_the_command_says_is_kept(given: str, lezo: Command, launched: list[list[str]]) -> None:
    lezo(*BASIC, given)
    key = given.split("=")[0]
    assert [text for text in launched[0] if text.startswith(key)] == [given]


def test_a_sweep_that_must_not_go_on_runs_once(lezo: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def finish(todo: Sequence[list[str]], *_: object) -> list[JobReturn]:
        for job in todo:
            composed = compose_once(job)
            folder = Path("out") / composed.job_name
            folder.mkdir(parents=True)
            (folder / "config.yaml").write_text(composed.yaml)
            (folder / "result.json").write_text('{"status": "finished"}')
        return [JobReturn(status=JobStatus.COMPLETED) for _ in todo]

    monkeypatch.setattr("lezo.sweeps.hydra_sweep.run_jobs", finish)
    given = [*BASIC, "seed=0,1", "resume=off"]
    assert lezo(*given)[0] == 0
    code, _, err = lezo(*given)
    assert code == 2
    names(err, "error: ", "out/", "resume=auto")


def test_finished_jobs_are_not_launched(lezo: Command, launched: list[list[str]]) -> None:
    folder = Path("out") / compose_once(["seed=0"]).job_name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(compose_once(["seed=0"]).yaml)
    (folder / "result.json").write_text('{"status": "finished"}')
    assert lezo(*BASIC, "seed=0,1")[0] == 1
    assert [job[0] for job in launched] == ["seed=1"]


def test_jobs_are_checked_before_any_is_launched(lezo: Command, launched: list[list[str]]) -> None:
    code, _, err = lezo(*BASIC, "seed=0,1", "+resume=auto")
    assert code == 2 and "+resume=auto" in err
    assert launched == [] and os.listdir() == []


def test_a_launcher_that_is_absent_is_named_with_what_installs_it(lezo: Command) -> None:
    code, _, err = lezo("-m", "hydra/launcher=slurm", "seed=0,1")
    assert code == 2
    names(err, "hydra/launcher=slurm: ", "basic", "lezo[submitit]")


def test_plans_need_no_launcher(lezo: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lezo.sweeps.sweep.sweep", lambda *_, **__: 42)
    assert lezo(*BASIC, "seed=0,1", "dry_run=true")[0] == 42


def test_an_interrupted_job_ends_the_sweep(
    lezo: Command, handlers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Path] = []
    monkeypatch.setattr("lezo.runs.session.run", lambda job, _: ran.append(job.run_dir) or 130)
    code, out, _ = lezo(*BASIC, "seed=0,1")
    assert (code, len(ran)) == (130, 1) and "interrupted; 2 of 2 jobs did not finish" in out


def test_a_launcher_that_fails_is_quoted(lezo: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Sequence[str]) -> None:
        raise RuntimeError("no srun here")

    monkeypatch.setattr("lezo.sweeps.hydra_sweep.run_jobs", fail)
    code, _, err = lezo(*BASIC, "seed=0,1")
    assert (code, err) == (1, "error: hydra/launcher: no srun here\n")


SCORING = [*SMALL, "optim=none", "task.num_train=0"]


def test_a_job_that_fails_in_a_process_apart_says_why_in_its_console_log(
    lezo: Command, handlers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, with what a launcher unpickles in another."""
    apart = lambda config_dir: pickle.loads(pickle.dumps(LaunchedRun(config_dir)))  # noqa: E731
    monkeypatch.setattr("lezo.sweeps.hydra_sweep.LaunchedRun", apart)
    refused = Path("out") / compose_once([*SCORING, "seed=1"]).job_name
    refused.mkdir(parents=True)
    (refused / "journal.bin").touch()
    code, out, err = lezo(*BASIC, *SCORING, "seed=1")
    assert (code, err) == (1, "")
    assert f"[1/1] failed: single: {refused.resolve()}; console.log" in out and "1 of 1 jobs " in out
    assert statuses(Path("out")) == ["failed"]
    assert "holds the journal.bin" in (refused / "console.log").read_text()


def test_submitit_runs_a_sweep(lezo: Command) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    submitit = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=2"]
    code, _, err = lezo("-m", *submitit, *SCORING, "seed=0", "hydra.sweep.dir=out")
    assert (code, err, statuses(Path("out"))) == (0, "", ["finished"])
    assert result(Path("out"), *SCORING, "seed=0")["status"] == "finished"
    log = Path("out") / compose_once([*SCORING, "seed=0"]).job_name / "console.log"
    assert "test accuracy" in log.read_text()
