"""From run folders to a report's files: once, or again whenever a run has changed. No torch."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lezo.config.schema import ConfigError, ReportConfig
from lezo.records.files import replace_file
from lezo.records.folder import CONFIG, METRICS, RESULT
from lezo.records.reader import Reader, Run
from lezo.report.condensed import condensed
from lezo.report.groups import Group, by_task, gathered, group_runs, target
from lezo.report.latex import carries_results, latex
from lezo.report.page import FIGURES, page
from lezo.report.plots.draw import plots
from lezo.report.plots.export import Plot
from lezo.report.roots import naming, root_names, side_by_side
from lezo.report.runs_table import as_csv, as_parquet, rows_of_runs
from lezo.report.tables import tables
from lezo.report.text import comma_separated, markdown


class NoRunError(Exception):
    """There is no run to report; the message says where, and what a run is."""


def write(roots: Sequence[Path], options: ReportConfig) -> None:
    """Write the report of all runs below ``roots``, and print which files. Raises NoRunError, ConfigError, OSError."""
    runs = Reader().runs(roots)
    if _no_run(runs):
        where = ", ".join(map(str, roots))
        expected = f"expected folders with {CONFIG} and {METRICS}, or {RESULT}"
        raise NoRunError(f"{where}: no run below; {expected}")
    if (wanted := options.target_score or 0) > 1 and not any(run.in_perplexity for run in runs):
        reason = "no run's scores are perplexities, and all others are at most 1"
        raise ConfigError([f"report.target_score={wanted:g}: {reason}; expected a fraction from 0 to 1"])
    for words in _told(_write(runs, roots, options, reload=None), Path(options.out)):
        print(f"wrote {words}")
    print(counted(runs))


def watch(roots: Sequence[Path], options: ReportConfig) -> None:
    """Write the report whenever a run has changed, until Ctrl-C; then once more, for keeping. Raises OSError."""
    reader, shown = Reader(), None
    page_file = Path(options.out) / "report.html"
    print(f"writing {page_file} every {options.every} s while runs change; Ctrl-C ends", flush=True)
    try:
        while True:
            runs = reader.runs(roots)
            if runs != shown and not _no_run(runs):
                _write(runs, roots, options, reload=options.every)
                print(f"{time.strftime('%H:%M:%S')} {counted(runs)}", flush=True)
            shown = runs
            time.sleep(options.every)
    except KeyboardInterrupt:
        runs = reader.runs(roots)
        if not _no_run(runs):
            _write(runs, roots, options, reload=None)
        print(counted(runs))


def _no_run(runs: Sequence[Run]) -> bool:
    """Whether there is nothing to report (yet)."""
    return all(run.foreign for run in runs)


def _told(files: Sequence[Path], out: Path) -> list[str]:
    """The files one by one, and how many are in each folder below."""
    folders = gathered(files, lambda file: file.parent)
    counts = [f"{folder}/ ({len(inner)} files)" for folder, inner in folders.items() if folder != out]
    return [*map(str, folders.get(out, [])), *counts]


def rendered(
    runs: Sequence[Run], roots: Sequence[Path], options: ReportConfig, *, reload: int | None
) -> dict[str, str | bytes]:
    """The files' contents by their names, which may have a folder before them. ``reload``: seconds after which the page loads itself again."""
    foreign, runs = [run for run in runs if run.foreign], [run for run in runs if not run.foreign]
    root_of = naming(roots)
    groups = group_runs(runs, root_of)
    targets = {
        names: target(members, options.target_loss, options.target_score)
        for names, members in by_task(groups).items()
    }
    beside = side_by_side(runs, root_of, [*root_names(roots).values()])
    every = [*beside, *tables(groups, targets, foreign)]
    shown = [condensed(table) for table in every]
    rows = rows_of_runs(runs, root_of)
    heading = headed(groups)
    where = ", ".join(map(str, roots))
    summary = (
        f"{counted(runs)}, below {where}. Written by lezo-report at {time.strftime('%Y-%m-%d %H:%M:%S %z')}."
    )
    drawn = plots(groups, files=reload is None)
    links = {run.folder: os.path.relpath(run.folder, options.out) for run in runs}
    return {
        "report.html": page(heading, summary, groups, shown, drawn, reload, links),
        "results.md": markdown(heading, shown),
        "results.csv": as_csv(rows),
        "results.parquet": as_parquet(rows),
        **figures(drawn),
        **{f"tables/{table.name}.csv": comma_separated(table) for table in every},
        **{f"tables/{table.name}.tex": latex(table) for table in shown if carries_results(table)},
    }


def figures(drawn: Sequence[Plot]) -> dict[str, str | bytes]:
    """The figures' files by their names, an SVG and a PDF each; none of those that were drawn for a page only."""
    kept = [plot for plot in drawn if plot.pdf]
    svg: dict[str, str | bytes] = {f"{FIGURES}/{plot.name}.svg": plot.svg for plot in kept}
    return svg | {f"{FIGURES}/{plot.name}.pdf": plot.pdf for plot in kept}


def headed(groups: Sequence[Group]) -> str:
    """What the runs are of: "rte, sst2: lezo, mezo"; of many the first."""
    titles, methods = (
        dict.fromkeys(names) for names in zip(*((g.title, g.method) for g in groups), strict=True)
    )
    return f"{_first([*titles])}: {_first([*methods])}"


def _first(names: Sequence[str], most: int = 5) -> str:
    """The first, and how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def counted(runs: Sequence[Run]) -> str:
    """How many runs there are, and of which status: "3 runs: 2 finished, 1 failed"."""
    runs = [run for run in runs if not run.foreign]
    statuses = Counter(run.status for run in runs)
    words = ", ".join(f"{count} {status}" for status, count in statuses.most_common())
    return f"{len(runs)} run{'' if len(runs) == 1 else 's'}{': ' if words else ''}{words}"


def _write(
    runs: Sequence[Run], roots: Sequence[Path], options: ReportConfig, *, reload: int | None
) -> list[Path]:
    """Write the report's files whole: a reader sees the old ones or the new ones. Returns their paths."""
    folder = Path(options.out)
    files = rendered(runs, roots, options, reload=reload)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        replace_file(folder / name, content.encode() if isinstance(content, str) else content)
    return [folder / name for name in files]
