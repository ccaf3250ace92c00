"""What does the user see? The banner, progress with time left, the summary; plain lines off a terminal."""

from __future__ import annotations

import math
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:  # a sweep's driver tells stories too, and never needs torch
    from lezo.model.evaluate import Evaluation
    from lezo.zo.step import StepReport

_COPIED = ("repeat",)  # a command with a line's end inside is another command
_LINES = 20  # progress lines a run prints where there is no terminal


def console() -> Console:
    """Standard output; never wrapped or coloured where it is not a terminal."""
    width = None if sys.stdout.isatty() else 10_000
    return Console(highlight=False, markup=False, emoji=False, width=width, soft_wrap=True)


def table(rows: Mapping[str, str], heading: str) -> str:
    """A heading and aligned names and values."""
    width = max(map(len, rows))
    return "\n".join([heading, *(f"  {name:<{width}}  {value}" for name, value in rows.items())])


def tell(out: Console, told: str) -> None:
    """Print a table; on a terminal its lines end between words, and go on below the value that they are of."""
    if not out.is_terminal:
        out.print(told)
        return
    for line in told.split("\n"):
        name = re.match(r"(  \S+(?: \S+)* {2,})?", line)
        assert name is not None
        out.print(line if name[0].strip() in _COPIED else _wrapped(name[0], line[name.end() :], out.width))


def _wrapped(name: str, value: str, width: int) -> str:
    return textwrap.fill(
        value,
        width,
        initial_indent=name,
        subsequent_indent=" " * min(len(name), width // 2),
        break_long_words=False,
        break_on_hyphens=False,
    )


class ProgressStory:
    """A bar on a terminal, a line now and then elsewhere: loss, dev score, steps per second, time left."""

    def __init__(self, out: Console, steps: int, metric: str) -> None:
        self._out, self._steps, self._metric = out, steps, metric
        self._dev, self._start, self._loss = "", time.perf_counter(), float("nan")
        self._bar = _bar(out) if out.is_terminal else None
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("train", total=steps, rate="", loss="", dev="")

    def trained(self, step: int, seconds: float, report: StepReport) -> None:
        """Show a step: the bar moves, or every twentieth of the run a line appears."""
        if report.applied:  # one skipped step's NaN would stay in the average
            first = math.isnan(self._loss)
            self._loss = report.loss if first else 0.95 * self._loss + 0.05 * report.loss
        rate = step / max(seconds, 1e-9)
        if self._bar is not None:
            rate_text, loss_text = f"{rate:.1f} steps/s", f"loss {self._loss:.4f}"
            self._bar.update(self._task, completed=step, rate=rate_text, loss=loss_text, dev=self._dev)
        elif step % max(self._steps // _LINES, 1) == 0:
            left = clock((self._steps - step) / rate)
            self._out.print(
                f"step {step}/{self._steps}  loss {self._loss:.4f}  {rate:.1f} steps/s  {left} left"
            )

    def evaluated(self, step: int, seconds: float, dev: Evaluation) -> None:
        """Show a dev evaluation."""
        loss = "-" if dev.loss is None else f"{dev.loss:.4f}"
        self._dev = f"dev {dev.score:.3f}"
        self._out.print(f"step {step}/{self._steps}  dev_loss {loss}  dev {self._metric} {dev.score:.4f}")

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()


@contextmanager
def replaying(out: Console, what: str) -> Iterator[Callable[[int], None]]:
    """Says what is brought back; yields what to call after each update, which shows a count on a terminal."""
    start = time.perf_counter()
    with out.status(f"{what}: reading") as status:
        yield lambda step: status.update(f"{what}: at {step}") if step % 100 == 0 else None
    out.print(f"{what}: brought back in {time.perf_counter() - start:.1f} s")


def count(value: int) -> str:
    """A parameter count as people say it: 125.2M."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= size:
            return f"{value / size:.1f}{unit}"
    return str(value)


def size(value: float) -> str:
    """Bytes in the unit that fits."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if value >= scale:
            return f"{value / scale:.1f} {unit}"
    return f"{value / 2**10:.0f} KiB"


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def score(value: Any) -> str:
    """A score of a result, which may not have been reached."""
    return "-" if value is None else f"{value:.4f}"


def _bar(out: Console) -> Progress:
    return Progress(
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[dev]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=out,
    )
