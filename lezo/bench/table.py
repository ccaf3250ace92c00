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
    ("lezo", "floor"),
    ("mezo", "floor"),
)
_BUSY = 1.5  # slowest over fastest step of a variant
_ORDER = ("textbook_mezo", "textbook_lezo", "mezo", "lezo", "floor")  # from slow to fast, we expect
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
    """A variant alone in a process: its most bytes and its first step's seconds, or why it has neither."""

    bytes: int | None = None
    seconds: float | None = None
    error: str | None = None


def findings(samples: Sequence[Sample], peaks: Mapping[BenchVariant, Peak]) -> dict[str, Any]:
    """``variants`` and ``ratios`` of bench.json; of a variant without samples they are null."""
    variants = {
        name.value: _variant([sample for sample in samples if sample.variant is name], peak)
        for name, peak in peaks.items()
    }
    seconds = {name: variant["step_seconds"] for name, variant in variants.items()}
    pairs = {f"{a}/{b}": (seconds.get(a), seconds.get(b)) for a, b in RATIOS}
    return {"variants": variants, "ratios": {n: a / b if a and b else None for n, (a, b) in pairs.items()}}


def markdown(result: Mapping[str, Any]) -> str:
    """The table: a row a variant, seconds by phase, memory, and the ratios below it."""
    head = ["variant", "step s", "min", "max", *_PARTS, "peak memory", "steps"]
    variants = {name: result["variants"][name] for name in _ORDER}
    rows = [head, [":-", *["-:"] * (len(head) - 1)], *map(_row, variants.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(_padded(row, widths)) + " |" for row in rows]
    ratios = [f"- {name}: {_number(value)}" for name, value in result["ratios"].items()]
    missing = [f"- {name}: {one['error']}" for name, one in variants.items() if one["error"]]
    return "\n".join([_heading(result), "", *lines, "", *ratios, *missing, *_caution(variants)]) + "\n"


def picture(result: Mapping[str, Any]) -> bytes:
    """The same as a PNG: a bar a variant, stacked by phase, its range, its seconds and memory beside it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown = {n: result["variants"][n] for n in _ORDER if result["variants"][n]["step_seconds"] is not None}
    _bars(axes, shown)
    axes.set_xlabel("seconds a step, median; the line spans the fastest and the slowest")
    axes.set_title(_heading(result), fontsize=10, loc="left", wrap=True)
    axes.spines[["top", "right"]].set_visible(False)
    file = BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return file.getvalue()


def _variant(samples: Sequence[Sample], peak: Peak) -> dict[str, Any]:
    seconds = sorted(sample.seconds for sample in samples)
    middle = statistics.median(seconds) if samples else None
    spread = {"min": seconds[0], "median": middle, "max": seconds[-1]} if samples else None
    measured = {"step_seconds": middle, "peak_bytes": peak.bytes, "phases": _phases(samples)}
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
    peak = "-" if variant["peak_bytes"] is None else size(variant["peak_bytes"])
    return [name, *map(_number, [*seconds, *phases]), peak, str(variant["steps"])]


def _number(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}" if value >= 1e-4 else "0"


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Words to the left, numbers to the right."""
    return [f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True))]


def _bars(axes: Axes, variants: Mapping[str, Mapping[str, Any]]) -> None:
    names, starts = list(variants), [0.0] * len(variants)
    for part in _PARTS:
        widths = [variants[name]["phases"][part] for name in names]
        axes.barh(names, widths, left=starts, color=_COLOURS[part], label=_LEGEND.get(part, part))
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    longest = max((variant["spread"]["max"] for variant in variants.values()), default=1.0)
    for place, variant in enumerate(variants.values()):
        spread, peak = variant["spread"], variant["peak_bytes"]
        axes.hlines(place, spread["min"], spread["max"], colors="black", linewidth=1.5)
        text = f"{_number(variant['step_seconds'])} s" + ("" if peak is None else f", {size(peak)}")
        axes.text(spread["max"] + 0.01 * longest, place, text, va="center", fontsize=9)
    axes.set_xlim(0, 1.3 * longest)
    axes.invert_yaxis()
    axes.legend(loc="lower right", frameon=False, fontsize=9)
