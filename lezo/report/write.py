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
from lezo.report.groups import Group, by_task, group_runs, target
from lezo.report.page import FIGURES, page
from lezo.report.plots.draw import plots
from lezo.report.plots.export import Plot
from lezo.report.tables import tables
from lezo.report.text import comma_separated, markdown


class NoRunError(Exception):
    """There is no run to report; the message says where, and what a run is."""


def write(roots: Sequence[Path], options: ReportConfig) -> None:
    """Write the report of all runs below ``roots``, and print which files. Raises NoRunError, ConfigError, OSError."""
    runs = Reader().runs(roots)
    if not runs:
        where = ", ".join(map(str, roots))
        expected = f"expected folders with {CONFIG} and {METRICS}, or {RESULT}"
        raise NoRunError(f"{where}: no run below; {expected}")
    if (wanted := options.target_score or 0) > 1 and not any(run.in_perplexity for run in runs):
        reason = "no run's scores are perplexities, and all others are at most 1"
        raise ConfigError([f"report.target_score={wanted:g}: {reason}; expected a fraction from 0 to 1"])
    written = _write(runs, roots, options, reload=None)
    inner = [path for path in written if path.parent.name == FIGURES]
    for path in written:
        if path not in inner:
            print(f"wrote {path}")
    if inner:
        print(f"wrote {inner[0].parent}/ ({len(inner)} files)")
    print(counted(runs))


def watch(roots: Sequence[Path], options: ReportConfig) -> None:
    """Write the report whenever a run has changed, until Ctrl-C; then once more, for keeping. Raises OSError."""
    reader, shown = Reader(), None
    page_file = Path(options.out) / "report.html"
    print(f"writing {page_file} every {options.every} s while runs change; Ctrl-C ends", flush=True)
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


def rendered(
    runs: Sequence[Run], roots: Sequence[Path], options: ReportConfig, *, reload: int | None
) -> dict[str, str | bytes]:
    """The files' contents by their names, which may have a folder before them. ``reload``: seconds after which the page loads itself again."""
    groups = group_runs(runs)
    targets = {
        names: target(members, options.target_loss, options.target_score)
        for names, members in by_task(groups).items()
    }
    every = tables(groups, targets)
    heading = headed(groups)
    where = ", ".join(map(str, roots))
    summary = (
        f"{counted(runs)}, below {where}. Written by lezo-report at {time.strftime('%Y-%m-%d %H:%M:%S %z')}."
    )
    drawn = plots(groups, files=reload is None)
    links = {run.folder: os.path.relpath(run.folder, options.out) for run in runs}
    return {
        "report.html": page(heading, summary, groups, every, drawn, reload, links),
        "results.md": markdown(heading, every),
        "results.csv": comma_separated(every),
        **figures(drawn),
    }


def figures(drawn: Sequence[Plot]) -> dict[str, str | bytes]:
    """The figures' files by their names, an SVG and a PDF each; none of those that were drawn for a page only."""
    kept = [plot for plot in drawn if plot.pdf]
    svg: dict[str, str | bytes] = {f"{FIGURES}/{plot.name}.svg": plot.svg for plot in kept}
    return svg | {f"{FIGURES}/{plot.name}.pdf": plot.pdf for plot in kept}


def headed(groups: Sequence[Group]) -> str:
    """What the runs are of: "rte, sst2: lezo, mezo"."""
    titles, methods = ({getattr(group, name): None for group in groups} for name in ("title", "method"))
    return f"{', '.join(titles)}: {', '.join(methods)}"


def counted(runs: Sequence[Run]) -> str:
    """How many runs there are, and of which status: "3 runs: 2 finished, 1 failed"."""
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
