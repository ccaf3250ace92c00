"""lezo-run: compose a configuration, run it, and leave a result whatever happens."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig

from lezo.compose import CONF, Composed, compose, converted, register_schema
from lezo.config import ConfigError, check


def main() -> None:
    """The command. Exits with 0, 1 for a failed run, 2 for a bad configuration, 130 when interrupted."""
    arguments = get_args_parser().parse_intermixed_args()
    try:
        _refuse_other_configs(arguments)
        if _shows(arguments) or _for_hydras_launcher(arguments):
            register_schema()
            _hydra_job()
        elif arguments.multirun:
            from lezo.sweep import sweep

            sys.exit(sweep(arguments.overrides, config_dir=arguments.config_dir))
        else:
            composed = compose(arguments.overrides, config_dir=arguments.config_dir)
            sys.exit(run(composed, command=command(arguments.overrides, arguments.config_dir)))
    except ConfigError as error:
        sys.exit(complain(error))
    except KeyboardInterrupt:
        sys.exit(130)


def run(composed: Composed, *, command: str) -> int:
    """Do what the configuration says. Returns the exit code."""
    from lezo.outcome import carried_out  # torch and transformers take seconds to import: only now

    return carried_out(composed, command)


def complain(error: ConfigError) -> int:
    """Print what is wrong with a configuration; returns the exit code."""
    for problem in error.problems:
        print(f"error: {problem}", file=sys.stderr)
    return 2


def command(overrides: Sequence[str], config_dir: str | None = None, program: str = "lezo-run") -> str:
    """The command line that repeats a run, in a folder of its own."""
    kept = [text for text in overrides if not text.startswith("hydra.run.dir=")]
    folder = ["--config-dir", config_dir] if config_dir else []
    return shlex.join([program, *folder, *kept])


def _shows(arguments: Any) -> bool:
    """Whether Hydra answers by itself: help, completion, showing configs."""
    shows = ("help", "hydra_help", "cfg", "info", "shell_completion", "experimental_rerun")
    return any(getattr(arguments, name) for name in shows)


def _for_hydras_launcher(arguments: Any) -> bool:
    """Whether a sweep is for one of Hydra's own launchers, which then gets jobs that are all checked."""
    named = any(text.lstrip("+").startswith("hydra/launcher=") for text in arguments.overrides)
    if not (arguments.multirun and named):
        return False
    from lezo.sweep import jobs

    return bool(jobs(arguments.overrides, arguments.config_dir))


def _refuse_other_configs(arguments: Any) -> None:
    if arguments.config_path or arguments.config_name:
        problem = (
            "--config-path, --config-name: lezo-run has its own configuration; --config-dir DIR adds to it"
        )
        raise ConfigError([problem])


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="run")
def _hydra_job(config: DictConfig) -> None:
    """A job of one of Hydra's own launchers, which composed it and chose its folder."""
    job = HydraConfig.get()
    composed = converted(config, Path(job.runtime.output_dir), Path(job.sweep.dir))
    check(composed.config)
    if run(composed, command=command(list(job.overrides.task))) != 0:
        raise CompactHydraException(f"error: {composed.run_dir}: did not finish; result.json there says why")


if __name__ == "__main__":
    main()
