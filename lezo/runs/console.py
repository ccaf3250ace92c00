"""The console: tables, and progress with the time left; plain lines where there is no terminal."""

from __future__ import annotations

import math
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from lezo.records.format import clock, pace, score
from lezo.records.rows import DevRow, TestRow, TrainRow

_COPIED = ("repeat",)  # a command with a line's end inside is another command
_REPLIES, _LONGEST = 2, 300  # replies that are shown, and characters of each
_BROKEN = "warning: not finite, or the same for all examples: the weights are broken, and no such step is the best; a lower optim.lr may help"
_LINES = 20  # progress lines a run prints where there is no terminal


def console(file: TextIO | None = None) -> Console:
    """Standard output, or another ``file``; never wrapped or coloured where it is not a terminal."""
    width = None if (file or sys.stdout).isatty() else 10_000
    return Console(file=file, highlight=False, markup=False, emoji=False, width=width, soft_wrap=True)


def print_table(out: Console, text: str) -> None:
    """Print a table; on a terminal its lines end between words, and go on below their value."""
    if not out.is_terminal:
        out.print(text)
        return
    for line in text.split("\n"):
        name = re.match(r"(  \S+(?: \S+)* {2,})?", line)
        assert name is not None
        whole = name[0].strip() in _COPIED
        out.print(line if whole else _wrapped(name[0], line[name.end() :], out.width))


def _wrapped(name: str, value: str, width: int) -> str:
    return textwrap.fill(
        value,
        width,
        initial_indent=name,
        subsequent_indent=" " * min(len(name), width // 2),
        break_long_words=False,
        break_on_hyphens=False,
    )


class ConsoleSink:
    """Shows rows as they come, with the time left: a bar on a terminal, a line now and then elsewhere.

    ``steps``: how many there will be; None where nothing is trained.
    """

    def __init__(self, out: Console, steps: int | None, metric: str) -> None:
        self._out, self._steps, self._metric = out, steps, metric
        self._dev, self._loss = "", math.nan
        self._bar: Progress | None = None

    def trained(self, row: TrainRow) -> None:
        """Show a step: the bar moves, or every twentieth of the run a line appears."""
        assert self._steps is not None
        if not row.skipped:  # one skipped step's NaN would stay in the average
            first = math.isnan(self._loss)
            self._loss = row.loss if first else 0.95 * self._loss + 0.05 * row.loss
        each = row.seconds / row.step
        left = f"{clock((self._steps - row.step) * each)} left"
        if self._out.is_terminal:
            self._move(row.step, pace(each), left)
        elif row.step % max(self._steps // _LINES, 1) == 0:
            self._out.print(f"step {row.step}/{self._steps}  loss {self._loss:.4f}  {pace(each)}  {left}")

    def evaluated(self, row: DevRow) -> None:
        """Show a dev evaluation."""
        loss = "-" if row.loss is None else f"{row.loss:.4f}"
        self._dev = "dev -" if row.score is None else f"dev {row.score:.3f}"
        place = "" if self._steps is None else f"step {row.step}/{self._steps}  "
        self._out.print(f"{place}dev_loss {loss}  dev {self._metric} {score(row.score)}")
        if row.step and row.loss is not None and not math.isfinite(row.loss):
            self._out.print(_BROKEN)

    def tested(self, row: TestRow) -> None:
        """Show a score on the test set, and of replies two."""
        source = "" if row.zero_shot_from is None else f"  (computed by {row.zero_shot_from})"
        self._out.print(f"test {row.weights}: {self._metric} {score(row.score)}{source}")
        for record in [record for record in row.predictions if "reply" in record][:_REPLIES]:
            self._out.print(f"  asked {record['index']}  {_shown(record['prompt'])}")
            self._out.print(f"  reply {record['index']}  {_shown(record['reply'])}")

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()

    def _move(self, step: int, rate: str, left: str) -> None:
        if self._bar is None:
            self._bar = _bar(self._out)
            self._bar.start()
            self._bar.add_task("train", total=self._steps, rate="", loss="", dev="", left="")
        loss = f"loss {self._loss:.4f}"
        self._bar.update(
            self._bar.task_ids[0], completed=step, rate=rate, loss=loss, dev=self._dev, left=left
        )


@contextmanager
def replaying(out: Console, step: int) -> Iterator[Callable[[int], None]]:
    """Prints that the weights of ``step`` are restored; yields what to call after each update."""
    what, start = f"weights of step {step}", time.perf_counter()
    with out.status(f"restoring the {what}: reading") as status:
        yield lambda at: status.update(f"restoring the {what}: at step {at}") if at % 100 == 0 else None
    out.print(f"restored the {what} in {time.perf_counter() - start:.1f} s")


def _shown(text: str) -> str:
    """The end of a text on one line, without anything that moves the cursor."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return line if len(line) <= _LONGEST else f"... {line[-_LONGEST:]}"


def _bar(out: Console) -> Progress:
    return Progress(
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[dev]}"),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[left]}"),  # rich's own knows nothing of steps of half a minute
        console=out,
    )
