"""Which runs does a -m command mean, and what became of each? A run is found by its configuration's hash."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from lezo.config.compose import Composed, compose, parse, swept_values
from lezo.config.identity import config_hash, differences
from lezo.config.schema import ConfigError, Resume
from lezo.records.files import FolderError
from lezo.records.folder import CONFIG, RunFolder
from lezo.records.reader import DIVERGED, ended_as, read_result

NOT_STARTED, RUNNING, STOPPING = "not started", "running", "stopping"
FINISHED, FAILED, INTERRUPTED, PLANNED = "finished", "failed", "interrupted", "planned"
_STATUS = {0: FINISHED, 1: FAILED, 130: INTERRUPTED}  # a run's exit codes, and the status in its result
_SEEDS = ("seed", "task.data_seed")
_ELSEWHERE = "hydra.sweep.dir=DIR chooses another folder"


@dataclass(frozen=True)
class SweepJob:
    """One combination: its overrides, the swept ones as its label, its hash, and the folder it writes to.

    ``setting``: its label without seeds.
    """

    number: int
    label: str
    setting: str
    overrides: tuple[str, ...]
    composed: Composed
    identity: str
    folder: Path

    @property
    def sets_resume(self) -> bool:
        """Whether the command itself says resume=..."""
        return any(text.lstrip("+").split("=")[0] == "resume" for text in self.overrides)

    @property
    def refuses_runs(self) -> bool:
        """Whether the command wants no run in the job's folder."""
        return self.sets_resume and self.composed.config.resume is Resume.off

    def resume_overrides(self, group: str) -> list[str]:
        """What a sweep adds unless the user says other: to resume what is there, and wandb's ``group``."""
        resume = [] if self.sets_resume else ["resume=auto"]
        own_group = self.composed.config.log.group or os.environ.get("WANDB_RUN_GROUP")
        return resume if own_group else [*resume, f"log.group={group}"]


@dataclass
class JobState:
    """A job and what has become of it: its status in words, and its result as far as there is one."""

    job: SweepJob
    status: str
    result: dict[str, Any] = field(default_factory=dict)

    def end(self, code: int, *, stopped: bool) -> None:
        """The job's process has ended with an exit code, by itself or because it was ``stopped``."""
        status, result = _STATUS.get(code), read_result(self.job.folder, [])
        if status is not None and result.get("status") == status:
            self.status, self.result = _status_of(result), result
        elif code == 0 and self.job.composed.config.dry_run:
            self.status = PLANNED
        elif code == 130 or stopped:
            self.status = INTERRUPTED
        else:  # whatever result lies there is an earlier attempt's
            self.status = f"failed (exit code {code})"

    def row(self) -> dict[str, Any]:
        """The job as a row of the table and of the sweep's file: scores 0..1, seconds, bytes."""
        scores = {name: self.result.get(name) for name in ("metric", "dev_loss", "dev", "test")}
        used, seconds = self.result.get("peak_memory_bytes", {}), self.result.get("seconds", {}).get("total")
        costs = {"seconds": seconds, "memory": used.get("device") or used.get("host")}
        where = {"status": self.status, "folder": str(self.job.folder)}
        return {"job": self.job.label, **scores, **costs, **where}

    @property
    def is_left(self) -> bool:
        """Whether it is not tried again: as sweep.retry_failed says, or by itself where it diverged."""
        retry = self.job.composed.config.sweep.retry_failed
        return (self.status == DIVERGED and not retry) or (self.status == FAILED and retry is False)

    def forget(self) -> None:
        """Empty the folder of a job that diverged: from where it stopped it could only fail. Raises ConfigError."""
        try:
            with closing(RunFolder(self.job.folder, resume=True)) as folder:
                folder.clear()
        except FolderError as error:
            raise ConfigError([str(error)]) from None
        self.status, self.result = NOT_STARTED, {}


def jobs(overrides: Sequence[str], config_dir: str | None = None) -> list[SweepJob]:
    """Every combination of the swept values, checked.

    Raises ConfigError with the first that cannot run, and for two that are one run.
    """
    parsed = parse([*recipe_values(overrides, config_dir), *overrides])
    swept = {override.get_key_element() for override in parsed if override.is_sweep_override()}
    made: list[SweepJob] = []
    for number, combination in enumerate(_combinations(parsed)):
        own = {text: text.split("=")[0] for text in combination}
        label = " ".join(text for text, key in own.items() if key in swept) or "single"
        setting = " ".join(text for text, key in own.items() if key in swept.difference(_SEEDS)) or "all jobs"
        try:
            composed = compose(combination, config_dir=config_dir)
        except ConfigError as error:
            named = f"job {number} ({label}): "
            problems = [text if text.startswith("sweep.") else named + text for text in error.problems]
            raise ConfigError(problems) from None
        # One for all, though its name may hold the time.
        folder = made[0].composed.sweep_dir if made else composed.sweep_dir
        identity = config_hash(composed.yaml)
        job = SweepJob(
            number, label, setting, tuple(combination), composed, identity, folder / composed.job_name
        )
        _refuse_twin(job, made)
        made.append(job)
    return made


def recipe_values(overrides: Sequence[str], config_dir: str | None = None) -> list[str]:
    """What a recipe (+experiment=NAME) sweeps over, as overrides; not what the command itself says.

    Raises ConfigError with the first override that is wrong, and for several recipes at once.
    """
    parsed = parse(overrides)
    recipes = [override for override in parsed if override.key_or_group == "experiment"]
    if not recipes:
        return []
    if len(recipes) > 1 or recipes[0].is_sweep_override():
        text = " ".join(recipe.input_line or "" for recipe in recipes)
        raise ConfigError([f"{text}: a recipe has values of its own to sweep; expected one recipe a command"])
    given = {override.key_or_group for override in parsed}
    alone = [override.input_line or "" for override in parsed if not override.is_sweep_override()]
    values = swept_values(alone, config_dir)
    return [f"{key}={value}" for key, value in values.items() if key not in given]


def _combinations(parsed: Sequence[Override]) -> list[list[str]]:
    try:
        return BasicSweeper.split_arguments(list(parsed), None)[0]
    except HydraException:  # glob(...) and interval(...)
        swept = " ".join(override.input_line or "" for override in parsed if override.is_sweep_override())
        expected = "expected values with commas between, choice(...) or range(...)"
        raise ConfigError([f"{swept}: {expected}"]) from None


def _refuse_twin(job: SweepJob, others: Sequence[SweepJob]) -> None:
    for other in others:
        both = f"jobs {other.number} ({other.label}) and {job.number} ({job.label})"
        if other.identity == job.identity:
            apart = "log, resume, dry_run and sweep do not"
            raise ConfigError(
                [f"{both}: the same run twice; sweep a setting that changes the result ({apart})"]
            )
        if other.folder == job.folder:
            raise ConfigError([f"{both}: both would write to {job.folder}; leave out hydra.sweep.subdir"])


def state_of(job: SweepJob) -> JobState:
    """What a job's folder says of it. Raises ConfigError for another run, or one not to be resumed."""
    state, config = outcome_of(job), job.folder / CONFIG
    if config.exists() and not _is_of(config, job):
        raise ConfigError([f"{job.folder}: holds a run of another configuration; {_ELSEWHERE}"])
    if state.status != NOT_STARTED and job.refuses_runs:
        raise ConfigError([f"{job.folder}: already holds a run; resume=auto goes on with it, {_ELSEWHERE}"])
    return state


def outcome_of(job: SweepJob) -> JobState:
    """What a job has left in its folder, once it does not run any more."""
    result = read_result(job.folder, [])
    if not ((job.folder / CONFIG).exists() or result):
        return JobState(job, NOT_STARTED)
    return JobState(job, _status_of(result), result)


def todo_of(states: Sequence[JobState]) -> list[JobState]:
    """The jobs that are to run: not what is complete, nor what is left as it is. What diverged starts anew.

    Raises ConfigError where such a job's folder cannot be emptied.
    """
    todo = [state for state in states if state.status != FINISHED and not state.is_left]
    for state in todo:
        if state.status == DIVERGED and not state.job.composed.config.dry_run:
            state.forget()
    return todo


def _status_of(result: Mapping[str, Any]) -> str:
    return ended_as({"status": INTERRUPTED, **result})


def _is_of(config: Path, job: SweepJob) -> bool:
    """Whether a run's configuration is the job's; a size that followed from the rows is not one that was set."""
    try:
        yaml = config.read_text(encoding="utf-8")
        return config_hash(yaml) == job.identity and not differences(yaml, job.composed.yaml)
    except Exception:  # whatever stands there, it is no configuration of ours
        return False
