"""Which figures does a report have?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from lezo.report.groups import Group, by_task
from lezo.report.palette import Palette, palette
from lezo.report.plots.curves import curve_sheets
from lezo.report.plots.export import Plot, exported
from lezo.report.plots.phases import phase_sheet
from lezo.report.plots.scores import score_sheets
from lezo.report.plots.settings import rate_sheets, sparsity_sheets
from lezo.report.plots.sheet import STYLE, Sheet


def plots(groups: Sequence[Group], *, files: bool = True) -> list[Plot]:
    """The figures of all runs, then of each task and model; none of what no run has a number for.

    ``files``: whether they are to be kept as files too, which takes longer.
    """
    import matplotlib

    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        drawn = [exported(sheet, number, files=files) for number, sheet in enumerate(drawings(groups))]
    return _named(drawn)


def drawings(groups: Sequence[Group]) -> Iterator[Sheet]:
    """The figures before they are files."""
    looks = palette(groups)
    yield from score_sheets(groups, looks)
    for of, members in by_task(groups).items():
        yield from _of_task(members, looks, of)


def _of_task(groups: Sequence[Group], looks: Palette, of: tuple[str, str]) -> Iterator[Sheet]:
    yield from rate_sheets(groups, looks, of)
    yield from sparsity_sheets(groups, looks, of)
    if (phases := phase_sheet(groups, looks, of)) is not None:
        yield phases
    yield from curve_sheets(groups, looks, of)


def _named(drawn: Sequence[Plot]) -> list[Plot]:
    """The figures with names that a file may have, each its own."""
    names: dict[str, int] = {}
    named = []
    for plot in drawn:
        name = "_".join(_slug(part) for part in (*(plot.of or ()), plot.name))
        names[name] = names.get(name, 0) + 1
        named.append(replace(plot, name=name if names[name] == 1 else f"{name}-{names[name]}"))
    return named


def _slug(text: str) -> str:
    """Letters, digits and dashes, of long names the end: "rte (sample)" is "rte-sample"."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[-60:] or "unnamed"
