"""How were a report's runs made: on what, by which code, with which commands? No torch."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence

from lezo.records.reader import Run
from lezo.report.groups import gathered

# What a sweep adds to each of its jobs, and what changes none of them.
_OWN = ("log.group=", "hydra.run.dir=", "resume=", "sweep.best=", "sweep.retry_failed=")
_MOST = 12  # commands that are told
_Words = tuple[
    tuple[str, tuple[str, ...]], ...
]  # the options of several commands: a key, and each of its values


def machines(runs: Sequence[Run]) -> list[str]:
    """A line for each machine and state of the code: device, threads, versions, commit, and how many runs."""
    known = gathered((run for run in runs if run.environment), _machine)
    several = len(known) > 1 or sum(map(len, known.values())) < len(runs)
    return [f"{words}{f' ({_runs(len(same))})' if several else ''}" for words, same in known.items()]


def commands(runs: Sequence[Run]) -> list[str]:
    """The commands that made the runs, those that differ in values only as one sweep; of many the first."""
    typed = (run.environment.get("command") for run in runs)
    lines = _merged(dict.fromkeys(line for line in typed if isinstance(line, str)))
    more = (
        [f"# and {len(lines) - _MOST} more: environment.json of each run has its own"]
        if len(lines) > _MOST
        else []
    )
    return [*lines[:_MOST], *more]


def _runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"


def _machine(run: Run) -> str:
    told = run.environment
    packages = told.get("packages")
    versions = packages if isinstance(packages, dict) else {}
    parts = [
        str(told.get("device") or "unknown device"),
        f"{told['cpu_threads']} CPU thread{'' if told['cpu_threads'] == 1 else 's'}"
        if told.get("cpu_threads")
        else "",
        f"CUDA {told['cuda']}" if told.get("cuda") else "",
        *(f"{name} {versions[name]}" for name in ("torch", "transformers", "lezo") if versions.get(name)),
        f"commit {str(told['git_commit'])[:12]}{'+changes' if str(told['git_commit']).endswith('+changes') else ''}"
        if told.get("git_commit")
        else "",
    ]
    return ", ".join(filter(None, parts))


def _merged(lines: Iterable[str]) -> list[str]:
    """Exactly these commands, as few lines: some are one with several values of a key."""
    by_shape = gathered(
        filter(None, map(_split, lines)), lambda pair: (pair[0], tuple(key for key, _ in pair[1]))
    )
    return [
        _line(start, words)
        for (start, _), same in by_shape.items()
        for words in _joined([w for _, w in same])
    ]


def _split(line: str) -> tuple[str, _Words] | None:
    """The program, and its options with one value each; None of what is no command."""
    try:
        start, *words = shlex.split(line)
    except ValueError:
        return None
    options = (word.partition("=") for word in words if not word.startswith(_OWN))
    return start, tuple((f"{key}{equals}", (value,)) for key, equals, value in options)


def _joined(several: Sequence[_Words]) -> list[_Words]:
    """Commands of the same keys; those that are alike in all but one become one, key by key from the last."""
    found = [*dict.fromkeys(several)]
    for place in reversed(range(len(found[0]))):
        alike = gathered(found, lambda words: (words[:place], words[place][0], words[place + 1 :]))  # noqa: B023
        found = [joined for same in alike.values() for joined in _join(same, place)]
    return found


def _join(same: Sequence[_Words], place: int) -> list[_Words]:
    key = same[0][place][0]
    values = tuple(dict.fromkeys(value for words in same for value in words[place][1]))
    if len(same) == 1 or not all(re.fullmatch(r"[\w.+/-]+", value) for value in values):
        return [*same]
    return [(*same[0][:place], (key, values), *same[0][place + 1 :])]


def _line(start: str, words: _Words) -> str:
    sweep = ["-m"] if any(len(values) > 1 for _, values in words) else []
    return shlex.join([start, *sweep, *(f"{key}{','.join(values)}" for key, values in words)])
