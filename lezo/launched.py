"""Sweeps by one of Hydra's own launchers, which may run the jobs in processes of its own, or on other machines.

Jobs, folders, record and table are those of a sweep of our own; only who runs a job is another.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any

import hydra
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from lezo.compose import CONF, command, converted, hydra_on, parse, register_schema
from lezo.config import ConfigError, check
from lezo.story import console
from lezo.sweep import Record, ending
from lezo.sweep_jobs import FAILED, FINISHED, SweepJob, jobs, standing
from lezo.sweep_table import final_table

_QUIET = ("hydra/hydra_logging=none", "hydra/job_logging=none")  # we say what there is to say


def hand_over() -> None:
    """Leave the process's command line to Hydra: help, completion, configurations shown."""
    register_schema()
    task: Any = LaunchedRun()
    hydra.main(version_base="1.3", config_path=str(CONF), config_name="run")(task)()


def launch(overrides: Sequence[str], *, config_dir: str | None = None) -> int:
    """Check every job, have the launcher run those that are not complete, print the table.

    Returns 0 if all finished, 1 if not, 130 interrupted. Raises ConfigError as a sweep of our own does.
    """
    _refuse_unknown(overrides, config_dir)
    out, found = console(), jobs(overrides, config_dir)
    before = [standing(job) for job in found]
    record = Record(before)
    todo = [each.job for each in before if each.status != FINISHED]
    left_alone = f", {len(found) - len(todo)} of them finished before" if len(todo) < len(found) else ""
    out.print(f"sweep of {len(found)} jobs in {record.path.parent}{left_alone}")
    if todo:
        out.print("running; console.log in a job's folder says how far it is")
    stopped, failures = _outcome(todo, overrides, config_dir, record.name) if todo else (False, {})
    after = [standing(each.job) if each.job in todo else each for each in before]
    for each in after:
        if (failure := failures.get(each.job.number)) is not None:
            each.status = FAILED
            out.print(f"[{each.job.number + 1}/{len(found)}] failed: {each.job.label}: {failure}")
    Record(after)
    out.print(final_table(after, len(found) - len(todo)))
    return ending(after, out, stopped=stopped)


def _refuse_unknown(overrides: Sequence[str], config_dir: str | None) -> None:
    """Raise ConfigError where no such launcher is installed."""
    with hydra_on(config_dir):
        known = sorted(GlobalHydra.instance().config_loader().get_group_options("hydra/launcher"))
    for override in parse(overrides):
        if override.key_or_group == "hydra/launcher" and override.value() not in known:
            extras = "pip install 'lezo[joblib]' adds joblib, 'lezo[submitit]' submitit_slurm, submitit_local"
            raise ConfigError([f"{override.input_line}: not among {', '.join(known)}; {extras}"])


def _outcome(
    todo: Sequence[SweepJob], overrides: Sequence[str], config_dir: str | None, group: str
) -> tuple[bool, dict[int, str]]:
    """Have the jobs run. Returns whether that was interrupted, and by their numbers why jobs failed.

    Says why where the launcher itself failed: nobody knows then what its other jobs do.
    """
    try:
        returned = _run([_words(job, group) for job in todo], overrides, config_dir)
    except (KeyboardInterrupt, SystemExit):
        return True, {}
    except (
        Exception
    ) as error:  # a launcher's own, such as that there is no Slurm here, or that a job was killed
        print(f"error: hydra/launcher: {str(error).strip() or repr(error)}", file=sys.stderr)
        return False, {}
    pairs = zip(todo, returned, strict=True)
    return False, {job.number: _why(end) for job, end in pairs if end.status is not JobStatus.COMPLETED}


def _run(
    todo: Sequence[Sequence[str]], overrides: Sequence[str], config_dir: str | None
) -> Sequence[JobReturn]:
    """What Hydra's sweeper does with its launcher. Raises what the launcher raises; failed jobs raise nothing."""
    with hydra_on(config_dir) as extra:
        own = GlobalHydra.instance().hydra
        assert own is not None
        config = own.compose_config("run", [*_QUIET, *overrides, *extra], run_mode=RunMode.MULTIRUN)
        context = HydraContext(config_loader=own.config_loader, callbacks=Callbacks(config))
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=LaunchedRun(config_dir), config=config
        )
        return launcher.launch([list(job) for job in todo], initial_job_idx=0)


def _why(end: JobReturn) -> str:
    error = end._return_value  # the property raises it
    return str(error) if isinstance(error, CompactHydraException) else repr(error)


def _words(job: SweepJob, group: str) -> list[str]:
    """The job's overrides without Hydra's own, which the launcher has: it goes on with what its folder holds."""
    own = [text for text in job.overrides if not text.lstrip("+~").startswith(("hydra.", "hydra/"))]
    resume = [] if job.says("resume") else ["resume=auto"]
    grouped = [] if job.composed.config.log.group else [f"log.group={group}"]
    return [*own, *resume, *grouped]


class LaunchedRun:
    """Hydra's task function: Hydra composed the run and chose its folder.

    Unpickled, as in a launcher's own process, it makes known what conf/ names, and runs speak to ``console.log``.
    """

    def __init__(self, config_dir: str | None = None, *, apart: bool = False) -> None:
        self._config_dir, self._apart = config_dir, apart

    def __call__(self, config: DictConfig) -> None:
        """Check and run. Raises CompactHydraException where the run failed, SystemExit where it was interrupted."""
        job = HydraConfig.get()
        folder = Path(job.runtime.output_dir)
        composed = converted(config, folder, Path(job.sweep.dir), folder.name)
        check(composed.config)
        with _speaking_to(folder / "console.log") if self._apart else nullcontext():
            from lezo.outcome import carried_out  # the launcher's own process needs no torch
            from lezo.record import forget_peak_memory

            forget_peak_memory()  # of the process's runs before this one
            asked = Notice()
            code = carried_out(composed, command(list(job.overrides.task), self._config_dir))
        if code == 130:
            asked.pass_on()
            sys.exit(130)  # no result for the launcher: it ends too, or its scheduler starts the job again
        if code != 0:
            told = "; console.log there says why" if self._apart else ""
            raise CompactHydraException(f"{folder}{told}")

    def __reduce__(self) -> tuple[Callable[[str | None], LaunchedRun], tuple[str | None]]:
        return _unpickled, (self._config_dir,)


class Notice:
    """A scheduler's notice that a job's time is up, for which a launcher listens by SIGUSR1 or SIGUSR2.

    Its handler would end the run in the middle of a step. So the run stops first, as on SIGTERM; then ``pass_on``.
    """

    def __init__(self) -> None:
        found = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
        self._handlers = {number: handler for number, handler in found.items() if callable(handler)}
        self._heard: signal.Signals | None = None
        for number in self._handlers:
            signal.signal(number, self._hear)

    def pass_on(self) -> None:
        """Let the launcher's handler answer the notice, if there was one: it may queue the job again."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._heard is not None:
            self._handlers[self._heard](self._heard, None)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._heard = signal.Signals(number)
        signal.raise_signal(signal.SIGTERM)


@contextmanager
def _speaking_to(log: Path) -> Iterator[None]:
    with log.open("a", encoding="utf-8", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):
        yield


def _unpickled(config_dir: str | None) -> LaunchedRun:
    register_schema()
    return LaunchedRun(config_dir, apart=True)
