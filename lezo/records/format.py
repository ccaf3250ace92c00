"""Numbers and tables as people write them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def table(rows: Mapping[str, str], heading: str) -> str:
    """A heading and aligned names and values."""
    width = max(map(len, rows))
    return "\n".join([heading, *(f"  {name:<{width}}  {value}" for name, value in rows.items())])


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


def duration(seconds: float) -> str:
    """What takes less than a minute, in the unit that fits: 16.4 ms, 4.31 s."""
    return (
        f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.3g} s" if seconds < 100 else clock(seconds)
    )


def pace(seconds: float) -> str:
    """How fast steps of so many seconds are: "10.0 steps/s", and of a slow model "4.31 s a step"."""
    return f"{1 / max(seconds, 1e-9):.1f} steps/s" if seconds < 1 else f"{duration(seconds)} a step"


def first_score(demos: int) -> str:
    """What the score of a model before any step is called: that of so many demonstrations in each prompt."""
    plural = "" if demos == 1 else "s"
    return f"in context, {demos} demonstration{plural}" if demos else "zero-shot"


def score(value: Any) -> str:
    """A score of a result, which may not have been reached, or be too large a perplexity for a number."""
    return (
        "-"
        if value is None or not math.isfinite(value)
        else f"{value:.4f}"
        if value < 1000
        else f"{value:.5g}"
    )
