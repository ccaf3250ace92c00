"""A run that one of Hydra's own launchers started: Hydra composed it and chose its folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig

from lezo.compose import CONF, command, converted, register_schema
from lezo.config import check


class LaunchedRun:
    """Hydra's task function. Unpickled, as in a launcher's own process, it first makes known what conf/ names."""

    def __call__(self, config: DictConfig) -> None:
        """Check and run. Raises CompactHydraException where the run did not finish."""
        job = HydraConfig.get()
        folder = Path(job.runtime.output_dir)
        composed = converted(config, folder, Path(job.sweep.dir), folder.name)
        check(composed.config)
        from lezo.outcome import carried_out  # the launcher's own process needs no torch

        if carried_out(composed, command(list(job.overrides.task))) != 0:
            raise CompactHydraException(f"error: {folder}: did not finish; result.json there says why")

    def __reduce__(self) -> tuple[Callable[[], LaunchedRun], tuple[()]]:
        return _launched_run, ()


def hand_over() -> None:
    """Leave the process's command line to Hydra."""
    task: Any = _launched_run()
    hydra.main(version_base="1.3", config_path=str(CONF), config_name="run")(task)()


def _launched_run() -> LaunchedRun:
    register_schema()
    return LaunchedRun()
