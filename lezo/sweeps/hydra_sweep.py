"""lezo-run -m hydra/launcher=NAME: a sweep whose jobs one of Hydra's launchers runs, elsewhere perhaps.

Jobs, folders, record and table are those of a sweep of our own; only who runs a job is another.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from hydra.types import HydraContext, RunMode

from lezo.config.compose import hydra_on
from lezo.config.schema import ConfigError
from lezo.records.folder import CONSOLE
from lezo.records.reader import DIVERGED
from lezo.runs.console import console
from lezo.sweeps.hydra_job import LaunchedRun
from lezo.sweeps.jobs import FAILED, FINISHED, SweepJob, jobs, outcome_of, state_of, todo_of
from lezo.sweeps.sweep import SweepFile, done_before, ending, share_scores

_QUIET = ("hydra/hydra_logging=none", "hydra/job_logging=none")  # we say what there is to say


def launch(overrides: Sequence[str], *, config_dir: str | None = None) -> int:
    """Check every job, have the launcher run those that are not complete, print the table.

    Returns 0 if all finished, 1 if not, 130 interrupted. Raises ConfigError as a sweep of our own does.
    """
    out, planned = console(), [state_of(job) for job in jobs(overrides, config_dir)]
    if (each := max(state.job.composed.config.sweep.gpus_per_job for state in planned)) > 1:
        reason = (
            "Hydra's launchers start jobs of one process; leave out hydra/launcher, or start a run by srun"
        )
        raise ConfigError([f"sweep.gpus_per_job={each}: {reason}"])
    before, todo = sum(state.status == FINISHED for state in planned), [s.job for s in todo_of(planned)]
    record = SweepFile(planned)
    share_scores(planned)
    out.print(f"sweep of {len(planned)} jobs in {record.path.parent}" + done_before(planned, before))
    if todo:
        out.print(f"running; {CONSOLE} in a job's folder says how far it is")
    stopped, failures = _outcome(todo, overrides, config_dir, record.name) if todo else (False, {})
    states = [outcome_of(state.job) for state in planned]
    for state in states:
        if (failure := failures.get(state.job.number)) is not None:
            state.status = state.status if state.status == DIVERGED else FAILED
            out.print(f"[{state.job.number + 1}/{len(states)}] failed: {state.job.label}: {failure}")
    SweepFile(states)
    return ending(states, before, out, stopped=stopped)


def _outcome(
    todo: Sequence[SweepJob], overrides: Sequence[str], config_dir: str | None, group: str
) -> tuple[bool, dict[int, str]]:
    """Have the jobs run. Returns whether that was interrupted, and by their numbers why jobs failed.

    Says why where the launcher itself failed: nobody knows then what its other jobs do.
    """
    try:
        returned = run_jobs([_overrides(job, group) for job in todo], overrides, config_dir)
    except (KeyboardInterrupt, SystemExit):
        return True, {}
    except Exception as error:  # a launcher's own: no Slurm here, or a job was killed
        print(f"error: hydra/launcher: {str(error).strip() or repr(error)}", file=sys.stderr)
        return False, {}
    pairs = zip(todo, returned, strict=True)
    return False, {job.number: _why(end) for job, end in pairs if end.status is not JobStatus.COMPLETED}


def run_jobs(
    todo: Sequence[Sequence[str]], overrides: Sequence[str], config_dir: str | None
) -> Sequence[JobReturn]:
    """As Hydra's sweeper runs jobs. Raises what the launcher raises; failed jobs raise nothing."""
    with hydra_on(config_dir) as extra:
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        config = hydra.compose_config("run", [*_QUIET, *overrides, *extra], run_mode=RunMode.MULTIRUN)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config))
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=LaunchedRun(config_dir), config=config
        )
        return launcher.launch([list(job) for job in todo], initial_job_idx=0)


def _why(end: JobReturn) -> str:
    error = end._return_value  # the property raises it
    return str(error) if isinstance(error, CompactHydraException) else repr(error)


def _overrides(job: SweepJob, group: str) -> list[str]:
    """The job's overrides without Hydra's own, which the launcher has, and what resumes it."""
    own = [text for text in job.overrides if not text.lstrip("+~").startswith(("hydra.", "hydra/"))]
    return [*own, *job.resume_overrides(group)]
