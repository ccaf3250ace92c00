"""lezo-run: compose a configuration, run it, and leave a result whatever happens."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lezo import __version__
from lezo.runs.terminal import open_streams
from lezo.sweeps.lifeline import end_with_the_sweep
from lezo.sweeps.several import refuse_several

if TYPE_CHECKING:  # Hydra takes a good part of a second to import: only inside `main`, where Ctrl-C is caught
    from lezo.config.compose import Composed
    from lezo.config.schema import ConfigError


def main() -> None:
    """The command. Exits with 0, 1 for a failed run, 2 for a bad configuration, 130 when interrupted."""
    open_streams()
    try:
        end_with_the_sweep()
        sys.exit(_answer())
    except KeyboardInterrupt:
        sys.exit(130)


def _answer() -> int:
    """Do what the command line says. Returns the exit code."""
    from lezo.config.compose import command, compose
    from lezo.config.schema import ConfigError

    given = command_line()
    try:
        _refuse_other_configs(given)
        if _shows(given):
            from lezo.sweeps.launched import hand_over

            hand_over()
            return 0
        refuse_several()
        if given.multirun and _names_a_launcher(given.overrides):
            from lezo.sweeps.launchers import launch

            return launch(given.overrides, config_dir=given.config_dir)
        if given.multirun:
            from lezo.sweeps.sweep import sweep

            return sweep(given.overrides, config_dir=given.config_dir)
        composed = compose(given.overrides, config_dir=given.config_dir)
        return run(composed, command=command(given.overrides, given.config_dir))
    except ConfigError as error:
        return complain(error)


def command_line() -> argparse.Namespace:
    """The process's arguments as Hydra reads them, except that the version is lezo's."""
    from hydra._internal.utils import get_args_parser

    _refuse_gone_folder()
    parser = argparse.ArgumentParser(
        parents=[get_args_parser()], conflict_handler="resolve", add_help=False, description="lezo"
    )
    parser.add_argument("--version", action="version", version=f"lezo {__version__}")
    found, flags = parser.parse_known_intermixed_args()
    if flags:
        from lezo.config.compose import suggestions

        sys.exit(_unknown_flag(flags[0], sys.argv[1:], suggestions))
    return found


def words(program: str, given: Sequence[str], manual: str = "") -> tuple[list[str], bool]:
    """The words of a command that takes no flags but --help, and whether help is asked for."""
    _refuse_gone_folder()
    parser = argparse.ArgumentParser(program, add_help=False)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--help", "-h", action="store_true")
    found, flags = parser.parse_known_intermixed_args(given)

    def meant(flag: str, value: str | None) -> list[str]:
        keys = re.findall(rf"\b[a-z]+\.{re.escape(flag)}\b", manual)[:1]
        return [f"{key}={value}" if value else key for key in keys]

    if flags:
        sys.exit(_unknown_flag(flags[0], given, meant))
    return found.words, found.help


def _unknown_flag(flag: str, given: Sequence[str], meant: Callable[[str, str | None], list[str]]) -> int:
    """Say that there is no such flag, and the key=value that may have been meant. Returns the exit code."""
    name, equals, value = flag.lstrip("-").partition("=")
    behind = given[given.index(flag) + 1 :][:1] if flag in given else []
    if not equals and behind and not behind[0].startswith("-") and "=" not in behind[0]:
        value = behind[0]
    likely = meant(name, value or None)
    ways = f"did you mean {' or '.join(likely)}? " if likely else ""
    print(
        f"error: {flag}: no such flag; {ways}settings are key=value, without dashes (--help)", file=sys.stderr
    )
    return 2


def _refuse_gone_folder() -> None:
    """End with a message where the working folder was removed: nothing that is named by a relative path is anywhere."""
    try:
        os.getcwd()
    except OSError as error:
        where = os.environ.get("PWD", "the working folder")
        print(
            f"error: {where}: {error.strerror}: the working folder is gone; cd to another one",
            file=sys.stderr,
        )
        sys.exit(2)


def answered(program: str, manual: str, answer: Callable[[list[str]], int]) -> int:
    """What a command without flags does with its words: says its manual, or answers. Returns the exit code."""
    from lezo.config.schema import ConfigError

    said, help_wanted = words(program, sys.argv[1:], manual)
    if help_wanted:
        print(manual, end="")
        return 0
    refuse_several()
    try:
        return answer(said)
    except ConfigError as error:
        return complain(error)


def run(composed: Composed, *, command: str) -> int:
    """Do what the configuration says. Returns the exit code."""
    from lezo.runs import session  # torch and transformers take seconds to import: only now

    return session.run(composed, command)


def complain(error: ConfigError) -> int:
    """Print what is wrong with a configuration; returns the exit code."""
    for problem in error.problems:
        print(f"error: {problem}", file=sys.stderr)
    return 2


def _shows(given: argparse.Namespace) -> bool:
    """Whether Hydra answers by itself: help, completion, showing configs."""
    shows = ("help", "hydra_help", "cfg", "info", "shell_completion", "experimental_rerun")
    return any(getattr(given, name) for name in shows)


def _names_a_launcher(overrides: Sequence[str]) -> bool:
    """Whether one of Hydra's launchers is to run the jobs; their plans (dry_run) are for nobody to wait in a queue for."""
    named = any(text.lstrip("+").startswith("hydra/launcher=") for text in overrides)
    return named and "dry_run=true" not in [text.lower() for text in overrides]


def _refuse_other_configs(given: argparse.Namespace) -> None:
    from lezo.config.compose import refuse_missing
    from lezo.config.schema import ConfigError

    if given.config_path or given.config_name:
        problem = (
            "--config-path, --config-name: lezo-run has its own configuration; --config-dir DIR adds to it"
        )
        raise ConfigError([problem])
    refuse_missing(given.config_dir)


if __name__ == "__main__":
    main()
