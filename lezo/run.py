"""lezo-run: compose a configuration, run it, and leave a result whatever happens."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lezo import __version__

if TYPE_CHECKING:  # Hydra takes a good part of a second to import: only inside `main`, where Ctrl-C is caught
    from omegaconf import DictConfig

    from lezo.compose import Composed
    from lezo.config import ConfigError


def main() -> None:
    """The command. Exits with 0, 1 for a failed run, 2 for a bad configuration, 130 when interrupted."""
    try:
        sys.exit(_answer())
    except KeyboardInterrupt:
        sys.exit(130)


def _answer() -> int:
    """Do what the command line says. Returns the exit code."""
    from lezo.compose import compose
    from lezo.config import ConfigError

    given = command_line()
    try:
        _refuse_other_configs(given)
        if _shows(given) or _for_hydras_launcher(given):
            _hydra()
            return 0
        if given.multirun:
            from lezo.sweep import sweep

            return sweep(given.overrides, config_dir=given.config_dir)
        composed = compose(given.overrides, config_dir=given.config_dir)
        return run(composed, command=command(given.overrides, given.config_dir))
    except ConfigError as error:
        return complain(error)


def command_line() -> argparse.Namespace:
    """The process's arguments as Hydra reads them, except that the version is lezo's."""
    from hydra._internal.utils import get_args_parser

    parser = argparse.ArgumentParser(
        parents=[get_args_parser()], conflict_handler="resolve", add_help=False, description="lezo"
    )
    parser.add_argument("--version", action="version", version=f"lezo {__version__}")
    return parser.parse_intermixed_args()


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
    """The command line that repeats a run, from its start and in a folder of its own."""
    kept = [text for text in overrides if not text.startswith(("hydra.run.dir=", "resume="))]
    folder = ["--config-dir", config_dir] if config_dir else []
    return shlex.join([program, *folder, *kept])


def _shows(given: argparse.Namespace) -> bool:
    """Whether Hydra answers by itself: help, completion, showing configs."""
    shows = ("help", "hydra_help", "cfg", "info", "shell_completion", "experimental_rerun")
    return any(getattr(given, name) for name in shows)


def _for_hydras_launcher(given: argparse.Namespace) -> bool:
    """Whether a sweep is for one of Hydra's own launchers, which then gets jobs that are all checked."""
    named = any(text.lstrip("+").startswith("hydra/launcher=") for text in given.overrides)
    if not (given.multirun and named):
        return False
    from lezo.sweep import jobs

    return bool(jobs(given.overrides, given.config_dir))


def _refuse_other_configs(given: argparse.Namespace) -> None:
    from lezo.config import ConfigError

    if given.config_path or given.config_name:
        problem = (
            "--config-path, --config-name: lezo-run has its own configuration; --config-dir DIR adds to it"
        )
        raise ConfigError([problem])


def _hydra() -> None:
    """Leave the command line to Hydra."""
    import hydra

    from lezo.compose import CONF, register_schema

    register_schema()
    hydra.main(version_base="1.3", config_path=str(CONF), config_name="run")(_hydra_job)()


def _hydra_job(config: DictConfig) -> None:
    """A job of one of Hydra's own launchers, which composed it and chose its folder."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import CompactHydraException

    from lezo.compose import converted
    from lezo.config import check

    job = HydraConfig.get()
    composed = converted(config, Path(job.runtime.output_dir), Path(job.sweep.dir))
    check(composed.config)
    if run(composed, command=command(list(job.overrides.task))) != 0:
        raise CompactHydraException(f"error: {composed.run_dir}: did not finish; result.json there says why")


if __name__ == "__main__":
    main()
