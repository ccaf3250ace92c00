"""lezo-report: one page, its figures, its data and its tables, from run folders alone."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lezo.cli.run import answer_words

if TYPE_CHECKING:
    from lezo.config.schema import ReportConfig

HELP = """lezo-report: compare runs, from their folders alone.

Files
  report.html                      the page, which needs no network
  results.md                       its tables as Markdown
  results.csv, results.parquet     a row a run, for pandas and R
  tables/*.csv, tables/*.tex       each table; those with means over seeds for LaTeX too

Commands to copy
  lezo-report                                   every run below runs/
  lezo-report runs/sweeps runs/rte report.out=DIR
  lezo-report old/ new/                         what differs between the runs of two folders
  lezo-report report.watch=true                 write it again every few seconds while runs go on, until Ctrl-C
  lezo-report report.target_score=0.9           what "steps to target" and "seconds to target" aim at

RUN or FOLDER: searched with all folders below, links in them excepted. Finished runs make the means and standard
deviations over seeds; failed, killed and running ones appear too, as far as they came. Damaged files are named.
report.html is one file that needs no network; open it in a browser. Click a table's header to sort it, choose or type
what to show, point at a figure for its values. figures/ has each figure as SVG and PDF, as wide as a paper's column.

Options
  report.out           folder for what it writes         [the current one]
  report.watch         whether to go on writing          [false]
  report.every         seconds between, when watching    [5]
  report.target_loss   a dev loss to come down to        [of each task and model: the lowest all finished runs reach]
  report.target_score  a dev score, 0..1, to come up to, or a dev perplexity, above 1, to come down to
"""


def main() -> None:
    """The command. Exits with 0, 1 where there is no run or no room, 2 for bad options, 130 when interrupted."""
    answer_words("lezo-report", HELP, _answer)


def _answer(words: list[str]) -> int:
    from lezo.config.compose import command_options
    from lezo.config.schema import ConfigError, ReportConfig
    from lezo.report.write import NoRunError, watch, write

    options = [word for word in words if word.startswith("report.") and "=" in word]
    roots = [Path(word) for word in words if word not in options] or [Path("runs")]
    chosen = command_options(ReportConfig, options)
    expected = "expected the folder of a run, or a folder above some"
    missing = [f"{root}: no such folder; {expected}" for root in roots if not root.is_dir()]
    if problems := [*_problems(chosen)] or missing:
        raise ConfigError(problems)
    try:
        (watch if chosen.watch else write)(roots, chosen)
        return 0
    except NoRunError as error:
        problem = str(error)
    except OSError as error:
        ways = "choose another folder with report.out=DIR"
        problem = f"{error.filename}: cannot write there ({error.strerror}); {ways}"
    print(f"error: {problem}", file=sys.stderr)
    return 1


def _problems(options: ReportConfig) -> Iterator[str]:
    """What is wrong with values that have the right type."""
    if options.every < 1:
        yield f"report.every={options.every}: expected at least 1 second"
    if options.target_score is not None and not 0 <= options.target_score < math.inf:
        expected = "expected a fraction from 0 to 1, or a perplexity above 1"
        yield f"report.target_score={options.target_score}: {expected}"
    if options.target_score is not None and options.target_loss is not None:
        yield "report.target_loss, report.target_score: expected one target; leave out the other"


if __name__ == "__main__":
    main()
