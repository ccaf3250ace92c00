"""Which values a field of the schema takes, said beside the field."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Range:
    """``holds``: whether a value is in it. ``expected``: what it should be, in words."""

    holds: Callable[[Any], bool]
    expected: str


def _are_devices(names: list[Any]) -> bool:
    """CUDA devices, each once; or the CPU more than once, to try out what several devices do."""
    cuda = all(isinstance(name, str) and re.fullmatch(r"cuda:\d+", name) for name in names)
    return bool(names) and ((cuda and len({*names}) == len(names)) or all(name == "cpu" for name in names))


_MOST = 10**9  # of anything that is counted: more is a slip, and a journal's step has 32 bits
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")

POSITIVE = Range(lambda v: v > 0 and math.isfinite(v), "a number above 0")
NOT_NEGATIVE = Range(lambda v: v >= 0 and math.isfinite(v), "a number of at least 0")
FRACTION = Range(lambda v: 0 <= v < 1, "a number from 0 to below 1")
COUNT = Range(lambda v: 1 <= v <= _MOST, f"a whole number from 1 to {_MOST}")
COUNT_OR_0 = Range(lambda v: 0 <= v <= _MOST, f"a whole number from 0 to {_MOST}")
SEED = Range(lambda v: 0 <= v < 2**32, "a whole number from 0 to 4294967295")
THIRDS = Range(lambda v: 3 <= v <= _MOST, f"a whole number from 3 to {_MOST}: a third of them comes first")
PROBES = Range(lambda v: 1 <= v <= 1000, "a whole number from 1 to 1000")
STEPS = Range(COUNT.holds, f"{COUNT.expected} (optim=none scores without training)")
BETWEEN = Range(lambda v: 0 < v < 1, "a number above 0 and below 1")
SHARE = Range(lambda v: 0 <= v <= 1, "a number from 0 to 1")
KEPT = Range(lambda v: 0 < v <= 1, "a number above 0, at most 1")
INDICES = Range(
    lambda v: isinstance(v, list) and all(type(i) is int for i in v),
    "a list of block numbers, such as [0,3,-1]",
)
SPARSITY = Range(
    lambda v: 0 <= v <= 1, "a number from 0 to 1, the fraction of decoder blocks skipped each step"
)
DEVICE = Range(lambda v: bool(_DEVICE.fullmatch(v)), "auto, cpu, cuda or cuda:N")
DEVICES = Range(
    lambda v: v == "auto" or (isinstance(v, list) and _are_devices(v)),
    "auto or a list of different CUDA devices, such as [cuda:0,cuda:1]",
)
QUANTIZATION = Range(lambda v: v in ("none", "8bit", "4bit"), "none, 8bit or 4bit")
COLUMNS = Range(
    lambda v: isinstance(v, dict) and all(isinstance(name, str | int) for name in v.values()),
    "the task's columns, each with the data's own name for it, such as {sentence: Text, label: Class}",
)
SPLITS = Range(
    lambda v: (
        isinstance(v, dict)
        and v.keys() <= {"train", "dev", "test"}
        and all(isinstance(name, str | None) for name in v.values())
    ),
    "files or splits for train, dev and test, such as {train: reviews.csv, test: holdout.csv}",
)
NAMES = Range(lambda v: v and all(isinstance(name, str) for name in v), "a list of names")
LINE = Range(
    lambda v: v.strip() and v.isprintable() and len(v) <= 128, "a line of text, of at most 128 characters"
)
TEXTS = Range(lambda v: all(isinstance(text, str) for text in v), "a list of texts")


def ranged(default: Any, within: Range) -> Any:
    """A dataclass field of ``default`` (a list is copied) whose value, unless it is None, lies ``within``."""
    metadata = {"range": within}
    if isinstance(default, list):
        return field(default_factory=lambda: [*default], metadata=metadata)
    return field(default=default, metadata=metadata)
