"""Which runs a -m command means, and what their folders say of them."""

import json
from pathlib import Path

import pytest

from lezo.config.identity import config_hash
from lezo.config.schema import ConfigError
from lezo.sweeps.jobs import NOT_STARTED, JobState, SweepJob, jobs, outcome_of, state_of
from tests.lezo.refusals import refused
from tests.lezo.sweeps.composed import compose_once


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lezo.sweeps.jobs.compose", compose_once)


def job(*overrides: str) -> SweepJob:
    (found,) = jobs([*overrides, "hydra.sweep.dir=out"])
    return found


def holding(job: SweepJob, *, config: str | None = None, result: str | None = None) -> SweepJob:
    """The job with files in its folder."""
    job.folder.mkdir(parents=True)
    for name, text in (("config.yaml", config), ("result.json", result)):
        if text is not None:
            (job.folder / name).write_text(text)
    return job


def test_jobs_are_labelled_by_what_differs_and_named_by_what_they_are() -> None:
    found = jobs(["task=rte", "optim=mezo,lezo", "optim.lr=1e-6", "seed=range(2)"])
    assert [job.number for job in found] == list(range(4))
    assert found[0].label == "optim=mezo seed=0"
    assert "optim.lr=1e-06" in jobs(["optim.lr=1e-6,1"])[0].label  # as Hydra writes the number
    assert found[0].overrides[0] == "task=rte"
    assert {job.folder.parent for job in found} == {Path("runs/sweeps")}
    for job in found:
        assert job.identity == config_hash(job.composed.yaml)
        optim, seed = job.composed.config.optim.name, job.composed.config.seed
        assert job.folder.name == f"rte-tiny-{optim}-seed{seed}-{job.identity[:8]}"
    assert len({job.folder for job in found}) == 4


def test_a_job_has_the_same_folder_in_every_command() -> None:
    found = jobs(["seed=3,1,2", "train.steps=7", "log.project=x"])
    assert found[1].folder == jobs(["train.steps=7", "seed=1", "resume=auto", "sweep.slots=3"])[0].folder
    assert found[1].folder.name == compose_once(["train.steps=7", "seed=1"]).job_name


def test_a_folder_that_holds_the_time_is_one_for_all() -> None:
    found = jobs(["seed=range(3)", "hydra.sweep.dir='at ${now:%f}'"])
    assert len({job.folder.parent for job in found}) == 1


@pytest.mark.parametrize(
    ("given", "theirs", "expected"),
    [
        ([], "", ["resume=auto", "log.group=sweep"]),
        ([], "mine", ["resume=auto"]),  # WANDB_RUN_GROUP is for wandb to read
        (["log.group=x", "resume=off"], "", []),
    ],
)
def test_a_sweep_adds_what_its_user_has_not_said(
    given: list[str], theirs: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_GROUP", theirs)
    (job,) = jobs(given)
    assert job.resume_overrides("sweep") == expected


@pytest.mark.parametrize("apart", ["log.tags=[a],[b]", "resume=off,auto", "seed=0,0"])
def test_two_jobs_that_are_one_run_are_refused(apart: str) -> None:
    key = apart.split("=")[0]
    with refused(ConfigError, f"jobs 0 ({key}=", f" and 1 ({key}="):
        jobs(["task=sst2", apart])


def test_two_jobs_in_one_folder_are_refused() -> None:
    with refused(ConfigError, "jobs 0 ", " and 1 ", "runs/sweeps/0", "hydra.sweep.subdir"):
        jobs(["optim=mezo,lezo", "hydra.sweep.subdir=${seed}"])


@pytest.mark.parametrize(
    ("result", "status"),
    [
        ('{"status": "finished", "dev": 0.5}', "finished"),
        ('{"status": "interrupted"}', "interrupted"),
        ('{"status": "failed"}', "failed"),
        ('{"status": "failed", "diverged": true, "error": "what it was"}', "diverged"),
        ('{"status": "failed", "error": "step 4: 4 non-finite losses in a row (loss nan)"}', "diverged"),
        ('{"status": "failed", "error": "step 4: no dev loss since step 0 is finite"}', "diverged"),
        ('{"status": "failed", "diverged": false, "error": "x: non-finite losses in a row"}', "failed"),
        (None, "interrupted"),  # killed
        ('{"status": "fini', "interrupted"),
        ("[1, 2]", "interrupted"),
        ("{}", "interrupted"),
        ("\0\xff", "interrupted"),
    ],
)
def test_the_folder_says_what_became_of_a_job(result: str | None, status: str) -> None:
    found = job("seed=1")
    holding(found, config=found.composed.yaml, result=result)
    assert state_of(found).status == status
    assert state_of(found).row()["status"] == status


def test_a_folder_without_a_run_is_not_started() -> None:
    found = job("seed=1")
    assert state_of(found).status == NOT_STARTED
    holding(found)
    (found.folder / "console.log").touch()
    assert state_of(found).status == NOT_STARTED


@pytest.mark.parametrize("config", ["seed: 2", "", "seed: [", "\0", "- a"])
def test_a_folder_with_another_configuration_is_refused(config: str) -> None:
    found = job("seed=1")
    config = found.composed.yaml.replace("seed: 1\n", "seed: 2\n") if config == "seed: 2" else config
    holding(found, config=config, result='{"status": "finished"}')
    with refused(ConfigError, f"{found.folder}: ", "hydra.sweep.dir=DIR"):
        state_of(found)


def test_with_resume_off_no_folder_may_hold_a_run() -> None:
    found = job("seed=1", "resume=off")
    assert state_of(found).status == NOT_STARTED
    holding(found, config=found.composed.yaml, result='{"status": "finished"}')
    with refused(ConfigError, f"{found.folder}: ", "resume=auto", "hydra.sweep.dir=DIR"):
        state_of(found)
    assert state_of(job("seed=1", "resume=auto")).status == state_of(job("seed=1")).status == "finished"


@pytest.mark.parametrize(
    ("code", "stopped", "result", "status", "is_its_own"),
    [
        (0, False, "finished", "finished", True),
        (0, True, "finished", "finished", True),
        (1, False, "failed", "failed", True),
        (130, False, "interrupted", "interrupted", True),
        (130, False, None, "interrupted", False),
        (-15, True, None, "interrupted", False),
        (-9, True, "interrupted", "interrupted", False),  # an earlier attempt's result
        (-9, False, "interrupted", "failed (exit code -9)", False),
        (2, False, "failed", "failed (exit code 2)", False),
        (0, False, "interrupted", "failed (exit code 0)", False),
    ],
)
def test_how_a_job_ended(code: int, stopped: bool, result: str | None, status: str, is_its_own: bool) -> None:
    found = holding(job("seed=1"), result=result and f'{{"status": "{result}", "test": 0.5}}')
    ended = JobState(found, "running")
    ended.end(code, stopped=stopped)
    assert ended.status == status
    assert ended.row()["test"] == (0.5 if is_its_own else None)


def test_a_row_takes_numbers_only() -> None:
    strange = {"dev": "high", "test": [1], "seconds": 3, "peak_memory_bytes": {"device": 0, "host": 5}}
    found = holding(job("seed=1"), result=json.dumps({"status": "finished"} | strange))
    row = outcome_of(found).row()
    assert [row[key] for key in ("dev", "test", "seconds", "memory")] == [None, None, None, 5]
