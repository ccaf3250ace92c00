"""The page of lezo-qualify: what each section found, as Markdown and as a picture. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from lezo.bench.table import bars, gauges_line, grid, in_order, number
from lezo.records.format import clock

TIMES = "times"
# What the engine is to reach, by model and task: on one H100, in fp16, with 16 examples a step.
BARS = {
    ("opt-1.3b", "sst2"): {"textbook_mezo/lezo": 6.0},
    ("opt-1.3b", "rte"): {"textbook_mezo/lezo": 6.0},
    ("opt-13b", "sst2"): {"textbook_mezo/lezo": 12.0, "lezo/floor": 1.35},
    ("opt-13b", "rte"): {"textbook_mezo/lezo": 6.0, "lezo/floor": 1.1},
    ("opt-30b", "sst2"): {"textbook_mezo/lezo": 14.0},
    ("opt-30b", "rte"): {"textbook_mezo/lezo": 7.0},
}
_AT_MOST = ("lezo/floor",)  # of which less is better
_GIB = 2**30
_SHOWN = ("floor", "lezo", "mezo", "textbook_lezo", "textbook_foreach", "textbook_mezo")


@dataclass
class Section:
    """What a part of the qualification found.

    ``ok``: None where there was nothing to judge. ``said``: in a line. ``rows``: a table, the first its head.
    ``data``: all of it, for page.json. ``error``: what went wrong, and then ``ok`` is False.
    """

    kind: str
    name: str
    ok: bool | None = None
    said: str = ""
    rows: Sequence[Sequence[str]] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """In a word."""
        return {True: "right", False: "FAILED", None: "-"}[self.ok]


@dataclass
class Page:
    """All of it. ``device``: what the numbers were measured on, by its words. ``over``: whether no section is to come."""

    device: Mapping[str, Any]
    command: str
    sections: list[Section] = field(default_factory=list)
    seconds: float = 0.0
    over: bool = False

    @property
    def ok(self) -> bool:
        """Whether no section has failed."""
        return all(section.ok is not False for section in self.sections)

    @property
    def timed(self) -> list[Mapping[str, Any]]:
        """The timings of a model on a task each."""
        return [s.data for s in self.sections if s.kind == TIMES and s.data]

    def plain(self) -> dict[str, Any]:
        """As page.json has it."""
        sections = [{**vars(section), "verdict": section.verdict} for section in self.sections]
        return {**vars(self), "ok": self.ok, "sections": sections, "bars": met(self.timed)}


def met(timed: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each bar beside what was measured: model, task, ratio, value, bar, met."""
    found = []
    for one in timed:
        for ratio, bar in BARS.get((one["model"], one["task"]), {}).items():
            value = one["ratios"].get(ratio)
            held = None if value is None else value <= bar if ratio in _AT_MOST else value >= bar
            row = {"model": one["model"], "task": one["task"], "ratio": ratio, "value": value}
            found.append({**row, "bar": bar, "met": held})
    return found


def markdown(page: Page) -> str:
    """The page, its picture page.png above the tables."""
    state = "all right" if page.ok else "NOT ALL RIGHT"
    state = f"{state}, {clock(page.seconds)}" if page.over else f"{state} so far; not over yet"
    lines = [f"# {page.device['device']}: {state}", "", f"`{page.command}`", ""]
    lines += [*_overview(page), ""]
    if page.timed:
        lines += ["![Step times by model and task](page.png)", ""]
        lines += [*_times(page.timed), *_bars_met(page.timed), *_windows(page.timed), *_memory(page.timed)]
        lines += _launches(page.timed)
    for section in page.sections:
        if section.rows:
            lines += [f"## {section.name}", "", *grid(section.rows), ""]
    return "\n".join([*lines, *_surroundings(page), *_errors(page)]).rstrip() + "\n"


def picture(page: Page) -> bytes:
    """The step times as a PNG: a model a row, a task a column, a bar a variant, stacked by phase."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(one["model"] for one in page.timed))
    tasks = list(dict.fromkeys(one["title"] for one in page.timed))
    figure = Figure(figsize=(6.5 * max(len(tasks), 1), 2.6 * max(len(models), 1) + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    grid_of_axes = figure.subplots(max(len(models), 1), max(len(tasks), 1), squeeze=False)
    for axes in grid_of_axes.flat:
        axes.set_visible(False)
    for one in page.timed:
        axes = grid_of_axes[models.index(one["model"])][tasks.index(one["title"])]
        axes.set_visible(True)
        shown = {n: v for n, v in in_order(one["variants"]).items() if v["step_seconds"] is not None}
        bars(axes, shown, unit="ms", scale=1000)
        gain = one["ratios"].get("textbook_mezo/lezo")
        more = "" if gain is None else f": lezo {gain:.1f} times as fast as textbook_mezo"
        axes.set_title(f"{one['model']}, {one['title']}{more}", fontsize=10, loc="left")
    handles: dict[str, Any] = {}
    for axes in grid_of_axes.flat:
        handles |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    if handles:
        names = list(handles)
        figure.legend(
            list(handles.values()),
            names,
            loc="outside lower center",
            ncols=len(names),
            frameon=False,
            fontsize=9,
        )
    batch = (
        f", {page.timed[0]['dtype']}, {page.timed[0]['batch']['examples']} examples a step"
        if page.timed
        else ""
    )
    figure.suptitle(f"{page.device['device']}{batch}: milliseconds a step (median), peak memory", fontsize=11)
    file = BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()


def _overview(page: Page) -> list[str]:
    rows = [["what", "", "found", "time"]]
    for s in page.sections:
        rows.append([s.name, s.verdict, s.said or (s.error or "").split("\n")[0], clock(s.seconds)])
    return grid(rows, words=4)


def _times(timed: Sequence[Mapping[str, Any]]) -> list[str]:
    """Milliseconds a step, and how much faster."""
    shown = [name for name in _SHOWN if any(name in one["variants"] for one in timed)]
    head = ["", *shown, "textbook_mezo/lezo", "lezo/floor"]
    rows = [head]
    for one in timed:
        steps = [_ms(one["variants"].get(name, {}).get("step_seconds")) for name in shown]
        ratios = [number(one["ratios"].get(name)) for name in head[-2:]]
        rows.append([_of(one), *steps, *ratios])
    said = "Milliseconds a step, the median of steps in turns on one batch of typical lengths."
    return ["## Step times", "", said, "", *grid(rows), ""]


def _bars_met(timed: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [["bar", "ratio", "measured", "wanted", ""]]
    for one in met(timed):
        sign = "at most" if one["ratio"] in _AT_MOST else "at least"
        verdict = {True: "met", False: "not met", None: "-"}[one["met"]]
        wanted = f"{sign} {one['bar']:g}"
        rows.append([f"{one['model']} {one['task']}", one["ratio"], number(one["value"]), wanted, verdict])
    held = sum(one["met"] is True for one in met(timed))
    said = f"{held} of {len(rows) - 1} ratios that the engine is to reach on one H100 are met."
    return [said, "", *grid(rows, words=2), ""] if len(rows) > 1 else []


def _windows(timed: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = ("median", "mean", "p90", "max")
    rows = [["", *(f"{name} {key}" for name in ("lezo", "mezo") for key in keys), "steps"]]
    for one in timed:
        seen = one["window"]
        values = [_ms(seen.get(name, {}).get(key)) for name in ("lezo", "mezo") for key in keys]
        rows.append([_of(one), *values, str(max((w["steps"] for w in seen.values()), default=0))])
    said = "Milliseconds of consecutive steps through a run's own batches, each of other lengths."
    return ["## A run's own steps", "", said, "", *grid(rows), ""]


def _memory(timed: Sequence[Mapping[str, Any]]) -> list[str]:
    if not any(one["memory"]["used"] or "error" in one["memory"] for one in timed):
        return []
    shown = [name for name in _SHOWN if any(name in one["variants"] for one in timed)]
    rows = [["GiB", *shown, "lezo reserved", "plan", "used", "off by"]]
    for one in timed:
        peaks = [_gib(one["variants"].get(name, {}).get("peak_bytes")) for name in shown]
        reserved = _gib(one["variants"].get("lezo", {}).get("reserved_bytes"))
        expected, used = one["memory"]["expected"], one["memory"]["used"]
        off = f"{100 * (expected / used - 1):+.1f} %" if used else str(one["memory"].get("error", "-"))
        rows.append([_of(one), *peaks, reserved, _gib(expected), _gib(used), off])
    said = (
        "Peak of the device's allocated memory in a step. Plan: what lezo-run expects before it loads; used: by a "
        "lezo step on the longest examples and the evaluation of the longest rows."
    )
    return ["## Memory", "", said, "", *grid(rows), ""]


def _launches(timed: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [["", "step", "host waits", "kernels", "GPU busy, ms", "clocks and power"]]
    for one in timed:
        for name, found in one["profiles"].items():
            kernels = str(found.get("kernels", found.get("error", "-")))
            gauges = gauges_line(one["gauges"]) if name == "lezo" else ""
            busy = number(found.get("busy_ms"))
            rows.append([_of(one), name, str(found.get("waits", "-")), kernels, busy, gauges])
    return ["## One step on the device", "", *grid(rows), ""] if len(rows) > 1 else []


def _surroundings(page: Page) -> Iterator[str]:
    yield from ("## Device", "")
    yield from grid(
        [["", ""], *([name, str(value)] for name, value in page.device.items() if value)], words=2
    )
    yield ""


def _errors(page: Page) -> Iterator[str]:
    for section in page.sections:
        if section.error:
            yield from (f"## FAILED: {section.name}", "", "```text", section.error.strip(), "```", "")


def _of(one: Mapping[str, Any]) -> str:
    return f"{one['model']} {one['title']}"


def _ms(seconds: float | None) -> str:
    return number(None if seconds is None else 1000 * seconds)


def _gib(size: float | None) -> str:
    return "-" if size is None else f"{size / _GIB:.2f}"
