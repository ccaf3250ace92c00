"""What the bench measured: medians and ratios from samples, as JSON, as a table, as a picture. No torch."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from lezo.config.schema import BenchVariant
from lezo.records.format import size
from lezo.records.rows import PHASES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RATIOS = (
    ("textbook_mezo", "lezo"),
    ("textbook_lezo", "lezo"),
    ("textbook_mezo", "mezo"),
    ("textbook_foreach", "lezo"),
    ("textbook_foreach", "mezo"),
    ("published", "mezo"),
    ("lezo", "floor"),
    ("mezo", "floor"),
)
_BUSY = 1.5  # slowest over fastest step of a variant
# From slow to fast, we expect.
_ORDER = ("published", "textbook_mezo", "textbook_foreach", "textbook_lezo", "mezo", "lezo", "floor")
_LEGEND = {"perturb": "perturb (noise and copies)", "other": "other (outside the phases)"}
_PARTS = (*PHASES, "other")
_COLOURS = {
    "data": "#cc79a7",
    "forward": "#0072b2",
    "perturb": "#e69f00",
    "update": "#009e73",
    "other": "#999999",
}


@dataclass(frozen=True)
class Sample:
    """One timed step: its seconds from a device at rest to a device at rest, and those of its phases."""

    variant: BenchVariant
    step: int
    seconds: float
    phases: Mapping[str, float]


@dataclass(frozen=True)
class Peak:
    """A variant alone: its most bytes and its first step's seconds, or why it has neither.

    ``reserved``: what torch had taken from a CUDA device by then, its unused parts included.
    """

    bytes: int | None = None
    seconds: float | None = None
    error: str | None = None
    reserved: int | None = None


def findings(
    samples: Sequence[Sample],
    peaks: Mapping[BenchVariant, Peak],
    windows: Mapping[BenchVariant, Sequence[float]] | None = None,
) -> dict[str, Any]:
    """``variants``, ``ratios`` and ``window`` of bench.json; of a variant without samples they are null.

    ``windows``: seconds of consecutive steps.
    """
    variants = {
        name.value: _variant([sample for sample in samples if sample.variant is name], peak)
        for name, peak in peaks.items()
    }
    seconds = {name: variant["step_seconds"] for name, variant in variants.items()}
    pairs = {f"{a}/{b}": (seconds.get(a), seconds.get(b)) for a, b in RATIOS}
    ratios = {n: a / b if a and b else None for n, (a, b) in pairs.items()}
    seen = {name.value: spread_of(seconds) for name, seconds in (windows or {}).items() if seconds}
    return {"variants": variants, "ratios": ratios, "window": seen}


def spread_of(seconds: Sequence[float]) -> dict[str, float]:
    """Median, mean, the step that a tenth are slower than, and the slowest, of as many ``steps``."""
    ranked = sorted(seconds)
    ninth = ranked[max(-(-9 * len(ranked) // 10) - 1, 0)]
    middle = {"median": statistics.median(ranked), "mean": statistics.mean(ranked)}
    return {**middle, "p90": ninth, "max": ranked[-1], "steps": len(ranked)}


def grid(rows: Sequence[Sequence[str]], *, words: int = 1) -> list[str]:
    """A Markdown table, its first row the head; the first ``words`` columns to the left, numbers to the right."""
    whole = [rows[0], [":-" if i < words else "-:" for i in range(len(rows[0]))], *rows[1:]]
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
    return ["| " + " | ".join(_padded(row, widths, words)) + " |" for row in whole]


def markdown(result: Mapping[str, Any]) -> str:
    """The table: a row a variant, seconds by phase, memory, the ratios below it, and the window of a run's steps."""
    head = ["variant", "step s", "min", "max", *_PARTS, "peak memory", "reserved", "steps"]
    variants = in_order(result["variants"])
    ratios = [f"- {n}: {number(v)}" for n, v in result["ratios"].items() if _tried(n, variants)]
    missing = [f"- {name}: {one['error']}" for name, one in variants.items() if one["error"]]
    lines = [*grid([head, *map(_row, variants.items())]), "", *ratios, *missing, *_caution(variants)]
    if "gauges" in result:
        lines.append(f"- {gauges_line(result['gauges'])}")
    return "\n".join([_heading(result), "", *lines, *_window_lines(result["window"])]) + "\n"


def in_order(variants: Mapping[str, Any]) -> dict[str, Any]:
    """The variants of bench.json from slow to fast, as we expect them."""
    return {name: variants[name] for name in _ORDER if name in variants}


def _tried(ratio: str, variants: Mapping[str, Any]) -> bool:
    return all(name in variants for name in ratio.split("/"))


def _window_lines(windows: Mapping[str, Any]) -> list[str]:
    if not windows:
        return []
    head = ["consecutive steps of a run", "median s", "mean", "p90", "max", "steps"]
    rows = [
        [name, *(number(of[key]) for key in ("median", "mean", "p90", "max")), str(of["steps"])]
        for name, of in windows.items()
    ]
    return ["", *grid([head, *rows])]


def picture(result: Mapping[str, Any]) -> bytes:
    """The same as a PNG: a bar a variant, stacked by phase, its range, its seconds and memory beside it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown = {n: one for n, one in in_order(result["variants"]).items() if one["step_seconds"] is not None}
    bars(axes, shown)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    axes.set_xlabel("seconds a step, median; the line spans the fastest and the slowest")
    axes.set_title(_heading(result), fontsize=10, loc="left", wrap=True)
    file = BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return file.getvalue()


def gauges_line(gauges: Mapping[str, Any]) -> str:
    """What `lezo.bench.hardware.Gauges` saw, in a line."""
    if "absent" in gauges:
        return f"clocks and power: absent ({gauges['absent']})"
    units = {"sm_mhz": "SM {} MHz", "memory_mhz": "memory {} MHz", "watts": "{} W", "celsius": "{} C"}
    return ", ".join(text.format(_span(gauges[key])) for key, text in units.items() if key in gauges)


def _variant(samples: Sequence[Sample], peak: Peak) -> dict[str, Any]:
    seconds = sorted(sample.seconds for sample in samples)
    middle = statistics.median(seconds) if samples else None
    spread = {"min": seconds[0], "median": middle, "max": seconds[-1]} if samples else None
    measured = {"step_seconds": middle, "peak_bytes": peak.bytes, "phases": _phases(samples)}
    measured["reserved_bytes"] = peak.reserved
    return {**measured, "spread": spread, "steps": len(samples), "error": peak.error}


def _phases(samples: Sequence[Sample]) -> dict[str, float]:
    """The phases of the median step, which add up to it; ``other`` is what it took outside them."""
    ranked = sorted(samples, key=lambda sample: sample.seconds)
    middle = ranked[(len(ranked) - 1) // 2 : len(ranked) // 2 + 1]  # one or two, as the median has it
    if not middle:
        return {}
    means = {name: statistics.mean(s.phases.get(name, 0.0) for s in middle) for name in PHASES}
    rest = statistics.mean(s.seconds for s in middle) - sum(means.values())
    return {**means, "other": max(rest, 0.0)}


def _heading(result: Mapping[str, Any]) -> str:
    batch, tokens = result["batch"], result["batch"]["tokens"]
    weights = " (random weights)" if result["random_weights"] else ""
    what = f"{result['title']}, {result['model']}{weights}, {result['dtype']} on {result['device']}"
    counts = f"{tokens['padded']} tokens padded, {tokens['real']} real, {tokens['ours']} in our forward"
    return f"{what}; lezo: {result['blocks']}; {batch['examples']} examples: {counts}"


def _caution(variants: Mapping[str, Any]) -> list[str]:
    """A line where steps of one variant differ so much that something else must have had the machine."""
    spreads = {name: variant["spread"] for name, variant in variants.items() if variant["spread"]}
    busy = [name for name, spread in spreads.items() if spread["max"] > _BUSY * spread["min"]]
    reason = f"the slowest step took more than {_BUSY:g} times the fastest; was the machine busy?"
    return [f"- rough, of {', '.join(busy)} {reason}"] if busy else []


def _row(item: tuple[str, Mapping[str, Any]]) -> list[str]:
    name, variant = item
    spread = variant["spread"] or {}
    seconds = [variant["step_seconds"], spread.get("min"), spread.get("max")]
    phases = [variant["phases"].get(part) for part in _PARTS]
    memory = ["-" if one is None else size(one) for one in (variant["peak_bytes"], variant["reserved_bytes"])]
    return [name, *map(number, [*seconds, *phases]), *memory, str(variant["steps"])]


def number(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}" if value >= 1e-4 else "0"


def _span(values: Mapping[str, float]) -> str:
    low, middle, high = (f"{values[key]:.0f}" for key in ("min", "median", "max"))
    return middle if low == high else f"{middle} ({low} to {high})"


def _padded(row: Sequence[str], widths: Sequence[int], words: int) -> list[str]:
    sides = ["<" if i < words else ">" for i in range(len(row))]
    return [f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)]


def bars(axes: Axes, variants: Mapping[str, Mapping[str, Any]], *, unit: str = "s", scale: float = 1) -> None:
    """A bar a variant, stacked by phase; ``scale``: units in a second."""
    names, starts = list(variants), [0.0] * len(variants)
    for part in _PARTS:
        widths = [variants[name]["phases"][part] * scale for name in names]
        axes.barh(names, widths, left=starts, color=_COLOURS[part], label=_LEGEND.get(part, part))
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    longest = scale * max((variant["spread"]["max"] for variant in variants.values()), default=1.0)
    for place, variant in enumerate(variants.values()):
        seconds, peak = variant["step_seconds"], variant["peak_bytes"]
        low, high = (variant["spread"][end] * scale for end in ("min", "max"))
        axes.hlines(place, low, high, colors="black", linewidth=1.5)
        text = f"{number(seconds * scale)} {unit}" + ("" if peak is None else f", {size(peak)}")
        axes.text(high + 0.01 * longest, place, text, va="center", fontsize=9)
    axes.set_xlim(0, 1.3 * longest)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
