"""lezo-report: one page, and tables in Markdown and CSV, from run folders alone."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lezo.records.files import replace_file
from lezo.runs.terminal import open_streams

if TYPE_CHECKING:
    from lezo.config.schema import ReportConfig
    from lezo.records.reader import Run

HELP = """lezo-report: compare runs, from their folders alone: report.html, results.md and results.csv.

Commands to copy
  lezo-report                                   every run below runs/
  lezo-report runs/sweeps runs/rte report.out=DIR
  lezo-report report.watch=true                 write it again every few seconds while runs go on, until Ctrl-C
  lezo-report report.target_score=0.9           what "steps to target" and "seconds to target" aim at

RUN or FOLDER: searched with all folders below, links in them excepted. Finished runs make the means and standard
deviations over seeds; failed, killed and running ones appear too, as far as they came. Damaged files are named.
report.html is one file that needs no network; open it in a browser. Click a table's header to sort it.

Options
  report.out           folder for the three files        [the current one]
  report.watch         whether to go on writing          [false]
  report.every         seconds between, when watching    [5]
  report.target_loss   a dev loss to come down to        [of each task and model: the lowest all finished runs reach]
  report.target_score  a dev score, 0..1, to come up to
"""


def main() -> None:
    """The command. Exits with 0, 1 where there is no run or no room, 2 for bad options, 130 when interrupted."""
    open_streams()
    try:
        from lezo.cli.run import answered

        sys.exit(answered("lezo-report", HELP, _answer))
    except KeyboardInterrupt:
        sys.exit(130)


def _answer(said: list[str]) -> int:
    from lezo.config.compose import report_options

    options = [word for word in said if word.startswith("report.") and "=" in word]
    roots = [Path(word) for word in said if word not in options] or [Path("runs")]
    try:
        chosen = _checked(report_options(options))
        _refuse_missing(roots)
        return _watch(roots, chosen) if chosen.watch else _report(roots, chosen)
    except OSError as error:
        print(
            f"error: {error.filename}: cannot write there ({error.strerror}); choose another folder with report.out=DIR",
            file=sys.stderr,
        )
        return 1


def _checked(options: ReportConfig) -> ReportConfig:
    """Raises ConfigError for values that mean nothing."""
    from lezo.config.schema import ConfigError

    problems = []
    if options.every < 1:
        problems.append(f"report.every={options.every}: expected at least 1 second")
    if options.target_score is not None and not 0 <= options.target_score <= 1:
        problems.append(f"report.target_score={options.target_score}: expected a fraction from 0 to 1")
    if options.target_score is not None and options.target_loss is not None:
        problems.append("report.target_loss, report.target_score: expected one target; leave out the other")
    if problems:
        raise ConfigError(problems)
    return options


def _refuse_missing(roots: Sequence[Path]) -> None:
    from lezo.config.schema import ConfigError

    missing = [root for root in roots if not root.is_dir()]
    if missing:
        expected = "expected the folder of a run, or a folder above some"
        raise ConfigError([f"{root}: no such folder; {expected}" for root in missing])


def _report(roots: Sequence[Path], options: ReportConfig) -> int:
    """Write the report once. Returns the exit code."""
    from lezo.records.folder import CONFIG, METRICS, RESULT
    from lezo.records.reader import Reader

    runs = Reader().runs(roots)
    if not runs:
        where = ", ".join(map(str, roots))
        print(
            f"error: {where}: no run below; expected folders with {CONFIG} and {METRICS}, or {RESULT}",
            file=sys.stderr,
        )
        return 1
    for name, content in written(runs, roots, options, reload=None).items():
        print(f"wrote {_replaced(Path(options.out) / name, content)}")
    print(counted(runs))
    return 0


def _watch(roots: Sequence[Path], options: ReportConfig) -> int:
    """Write the report whenever a run has changed, until Ctrl-C; then once more, for keeping. Returns the exit code."""
    from lezo.records.reader import Reader

    reader, shown = Reader(), None
    print(
        f"writing {Path(options.out) / 'report.html'} every {options.every} s while runs change; Ctrl-C ends",
        flush=True,
    )
    try:
        while True:
            runs = reader.runs(roots)
            if runs != shown:
                _write(runs, roots, options, reload=options.every)
                print(f"{time.strftime('%H:%M:%S')} {counted(runs)}", flush=True)
            shown = runs
            time.sleep(options.every)
    except KeyboardInterrupt:
        runs = reader.runs(roots)
        _write(runs, roots, options, reload=None)
        print(counted(runs))
    return 0


def _write(runs: Sequence[Run], roots: Sequence[Path], options: ReportConfig, *, reload: int | None) -> None:
    for name, content in written(runs, roots, options, reload=reload).items():
        _replaced(Path(options.out) / name, content)


def written(
    runs: Sequence[Run], roots: Sequence[Path], options: ReportConfig, *, reload: int | None
) -> dict[str, str]:
    """The three files' contents by their names."""
    from lezo.report import tables as report_tables
    from lezo.report.groups import by_task, groups, target
    from lezo.report.page import page
    from lezo.report.plots import plots, series

    found = groups(runs)
    targets = {
        names: target(members, options.target_loss, options.target_score)
        for names, members in by_task(found).items()
    }
    tables, numbers = report_tables.tables(found, targets), series(found)
    heading = f"Runs in {', '.join(map(str, roots))}"
    summary = f"{counted(runs)}. Written by lezo-report at {time.strftime('%Y-%m-%d %H:%M:%S %z')}."
    return {
        "report.html": page(heading, summary, found, tables, plots(found, numbers), numbers, reload=reload),
        "results.md": report_tables.markdown(heading, tables),
        "results.csv": report_tables.comma_separated(tables),
    }


def counted(runs: Sequence[Run]) -> str:
    """How many runs there are, and of which status: "3 runs: 2 finished, 1 failed"."""
    statuses = Counter(run.status for run in runs)
    words = ", ".join(f"{count} {status}" for status, count in statuses.most_common())
    return f"{len(runs)} run{'' if len(runs) == 1 else 's'}{': ' if words else ''}{words}"


def _replaced(path: Path, content: str) -> Path:
    """Write a whole file: a reader sees the old one or the new one. Returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content.encode())
    return path


if __name__ == "__main__":
    main()
