"""lezo-run: compose a configuration, run it, and leave a result whatever happens."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from lezo import __version__
from lezo.ranks.launcher import GRACE_SECONDS, JOINS, place, refuse_several
from lezo.runs.terminal import open_streams
from lezo.sweeps.lifeline import end_with_the_sweep

if TYPE_CHECKING:  # Hydra takes a good part of a second to import: only inside `main`, where Ctrl-C is caught
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
    """Do what the command line asks for. Returns the exit code."""
    from lezo.config.schema import ConfigError

    given = command_line()
    try:
        _refuse_other_configs(given)
        return _run(given)
    except ConfigError as error:
        return _complain_once(error)


def _complain_once(error: ConfigError) -> int:
    """Of several ranks, which all were given the same, the first prints what is wrong. Returns the exit code."""
    ours = place(os.environ)
    if ours is None or ours.rank == 0:
        return complain(error)
    time.sleep(GRACE_SECONDS)
    return 2


def _run(given: argparse.Namespace) -> int:
    """Have Hydra, a sweep or one run answer. Only a run imports torch, which takes seconds."""
    from lezo.config.compose import command, compose

    overrides, config_dir = given.overrides, given.config_dir
    if _hydra_answers(given):
        from lezo.sweeps.hydra_job import hand_over

        hand_over()
        return 0
    ours = place(os.environ)
    if given.multirun or (ours is not None and ours.launcher not in JOINS):
        refuse_several()
    if given.multirun and _names_a_launcher(overrides):
        from lezo.sweeps.hydra_sweep import launch

        return launch(overrides, config_dir=config_dir)
    if given.multirun:
        from lezo.sweeps.sweep import sweep

        return sweep(overrides, config_dir=config_dir)
    composed, words = compose(overrides, config_dir=config_dir), command(overrides, config_dir)
    if ours is not None:
        from lezo.runs.follow import run_as_rank

        return run_as_rank(composed, words, ours)
    from lezo.runs import session

    return session.run(composed, words)


def command_line() -> argparse.Namespace:
    """The process's arguments as Hydra reads them, except that the version is lezo's."""
    from hydra._internal.utils import get_args_parser

    parser = argparse.ArgumentParser(
        parents=[get_args_parser()], conflict_handler="resolve", add_help=False, description="lezo"
    )
    parser.add_argument("--version", action="version", version=f"lezo {__version__}")

    def meant(name: str, value: str | None) -> list[str]:
        from lezo.config.compose import suggestions

        return suggestions(name, value)

    return _parsed(parser, sys.argv[1:], meant)


def words(
    program: str, given: Sequence[str], manual: str = "", flags: Mapping[str, str] | None = None
) -> tuple[list[str], bool]:
    """The words of a command, and whether help is asked for. ``flags``: besides --help, and the words that each means."""
    parser = argparse.ArgumentParser(program, add_help=False)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--help", "-h", action="store_true")

    def meant(name: str, value: str | None) -> list[str]:
        keys = re.findall(rf"\b[a-z]+\.{re.escape(name)}\b", manual)[:1]
        return [f"{key}={value}" if value else key for key in keys]

    parsed = _parsed(parser, [*_without_flags(given, flags or {})], meant)
    return parsed.words, parsed.help


def _without_flags(given: Sequence[str], flags: Mapping[str, str]) -> Iterator[str]:
    """The words with what each flag means in its place; what stands behind a flag's "=" is a word of its own."""
    for word in given:
        flag, _, behind = word.partition("=")
        yield flags.get(flag, word)
        if flag in flags and behind:
            yield behind


def _parsed(
    parser: argparse.ArgumentParser, given: Sequence[str], meant: Callable[[str, str | None], list[str]]
) -> argparse.Namespace:
    """What the parser reads. Exits with 2, and the key=value that may have been meant, for an unknown flag.

    Also where the working folder was removed: nothing that is named by a relative path is anywhere.
    """
    try:
        os.getcwd()
    except OSError as error:
        where = os.environ.get("PWD", "the working folder")
        _exit(f"{where}: {error.strerror}: the working folder is gone; cd to another one")
    parsed, flags = parser.parse_known_intermixed_args(given)
    if not flags:
        return parsed
    name, equals, value = flags[0].lstrip("-").partition("=")
    behind = given[given.index(flags[0]) + 1 :][:1] if flags[0] in given else []
    if not equals and behind and not behind[0].startswith("-") and "=" not in behind[0]:
        value = behind[0]
    likely = " or ".join(meant(name, value or None))
    ways = f"did you mean {likely}? " if likely else ""
    _exit(f"{flags[0]}: no such flag; {ways}settings are key=value, without dashes (--help)")


def _exit(problem: str) -> NoReturn:
    print(f"error: {problem}", file=sys.stderr)
    sys.exit(2)


def answer_words(
    program: str, manual: str, answer: Callable[[list[str]], int], flags: Mapping[str, str] | None = None
) -> NoReturn:
    """Print a command's manual, or its answer to its words. Exits with the answer's code, or 130. ``flags`` as in `words`."""
    open_streams()
    try:
        sys.exit(_answered(program, manual, answer, flags))
    except KeyboardInterrupt:
        sys.exit(130)


def _answered(
    program: str, manual: str, answer: Callable[[list[str]], int], flags: Mapping[str, str] | None
) -> int:
    from lezo.config.schema import ConfigError

    given, help_wanted = words(program, sys.argv[1:], manual, flags)
    if help_wanted:
        print(manual, end="")
        return 0
    refuse_several()
    try:
        return answer(given)
    except ConfigError as error:
        return complain(error)


def complain(error: ConfigError) -> int:
    """Print what is wrong with a configuration; returns the exit code."""
    for problem in error.problems:
        print(f"error: {problem}", file=sys.stderr)
    return 2


def _hydra_answers(given: argparse.Namespace) -> bool:
    """Whether Hydra answers by itself: help, completion, showing configs."""
    flags = ("help", "hydra_help", "cfg", "info", "shell_completion", "experimental_rerun")
    return any(getattr(given, flag) for flag in flags)


def _names_a_launcher(overrides: Sequence[str]) -> bool:
    """Whether one of Hydra's launchers is to run the jobs; plans alone (dry_run) wait in no queue."""
    named = any(text.lstrip("+").startswith("hydra/launcher=") for text in overrides)
    return named and "dry_run=true" not in [text.lower() for text in overrides]


def _refuse_other_configs(given: argparse.Namespace) -> None:
    from lezo.config.compose import refuse_missing
    from lezo.config.schema import ConfigError

    if given.config_path or given.config_name:
        flags = "--config-path, --config-name"
        raise ConfigError([f"{flags}: lezo-run has its own configuration; --config-dir DIR adds to it"])
    refuse_missing(given.config_dir)


if __name__ == "__main__":
    main()
