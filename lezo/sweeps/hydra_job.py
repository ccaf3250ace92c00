"""A run that one of Hydra's own launchers started: Hydra composed it and chose its folder."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig

from lezo.config.checks import check
from lezo.config.compose import as_field, command, converted, parse, register_schema
from lezo.config.diagnosis import CONF
from lezo.ranks.launcher import several
from lezo.records.folder import CONSOLE
from lezo.runs.terminal import steady


def hand_over() -> None:
    """Leave the process's command line to Hydra: help, completion, configurations shown."""
    register_schema()
    sys.argv[1:] = map(as_field, sys.argv[1:])
    task: Any = LaunchedRun()
    hydra.main(version_base="1.3", config_path=str(CONF), config_name="run")(task)()


class LaunchedRun:
    """Hydra's task function: Hydra composed the run and chose its folder.

    Unpickled, as in a launcher's process, it makes known what conf/ names, and prints to ``console.log``.
    """

    def __init__(self, config_dir: str | None = None, *, apart: bool = False) -> None:
        self._config_dir, self._apart = config_dir, apart

    def __call__(self, config: DictConfig) -> None:
        """Check and run. Raises CompactHydraException for a failed run, SystemExit for an interrupted one."""
        if (problem := several(os.environ)) is not None:
            raise CompactHydraException(problem[1])
        job = HydraConfig.get()
        folder = Path(job.runtime.output_dir)
        given = [override.key_or_group for override in parse(list(job.overrides.task))]
        composed = converted(config, folder, Path(job.sweep.dir), folder.name, given)
        check(composed.config)
        with _printing_to(folder / CONSOLE) if self._apart else nullcontext():
            from lezo.records.environment import forget_peak_memory
            from lezo.runs import session  # the launcher's own process needs no torch

            forget_peak_memory()  # of the process's runs before this one
            notice = Notice()
            code = session.run(composed, command(list(job.overrides.task), self._config_dir))
        if code == 130:
            notice.pass_on()
            sys.exit(130)  # no result for the launcher: it ends too, or its scheduler starts the job again
        if code != 0:
            raise CompactHydraException(f"{folder}{f'; {CONSOLE} there says why' if self._apart else ''}")

    def __reduce__(self) -> tuple[Callable[[str | None], LaunchedRun], tuple[str | None]]:
        return _unpickled, (self._config_dir,)


class Notice:
    """A scheduler's notice that a job's time is up, for which a launcher listens by SIGUSR1 or SIGUSR2.

    Its handler would end the run amid a step. So the run stops first, as on SIGTERM; then ``pass_on``.
    """

    def __init__(self) -> None:
        before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
        self._handlers = {number: handler for number, handler in before.items() if callable(handler)}
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
def _printing_to(log: Path) -> Iterator[None]:
    with ExitStack() as stack:
        file = stack.enter_context(log.open("ab"))
        text = stack.enter_context(steady(file.fileno(), "utf-8", lines=True))
        stack.enter_context(redirect_stdout(text))
        stack.enter_context(redirect_stderr(text))
        yield


def _unpickled(config_dir: str | None) -> LaunchedRun:
    register_schema()
    return LaunchedRun(config_dir, apart=True)
