"""Where does a step's time go?"""

from __future__ import annotations

from collections.abc import Sequence

from lezo.records.rows import PHASES
from lezo.report.groups import Group
from lezo.report.palette import GREYS, Palette
from lezo.report.plots.sheet import Sheet, in_font, sheet
from lezo.report.tables import mean_phases

_COLOURS = dict(zip(PHASES, GREYS, strict=True))  # colours are methods


def phase_sheet(groups: Sequence[Group], looks: Palette, of: tuple[str, str]) -> Sheet | None:
    """A bar a setting, stacked by phase; None where nothing was timed."""
    numbered = sorted((group for group in groups if group.best), key=lambda group: group.number)
    timed = [(group, phases) for group in numbered if (phases := mean_phases(group))]
    if not timed:
        return None
    caption = "mean seconds a step by phase, a bar a setting"
    drawn = sheet(
        "seconds by phase", caption, "mean seconds a step", "", of=of, height=0.5 + 0.19 * len(timed)
    )
    starts = [0.0] * len(timed)
    for phase, colour in _COLOURS.items():
        widths = [phases.get(phase, 0.0) for _, phases in timed]
        bars = drawn.axes.barh(range(len(timed)), widths, left=starts, color=colour, height=0.7)
        for bar, width, (group, _) in zip(bars, widths, timed, strict=True):
            name = f"tips-{len(drawn.tips)}"
            bar.set_gid(name)
            drawn.tips[name] = [f"{looks.look(group).label}: {phase} {width:.3g} s"]
            drawn.series[name] = group.method, ""
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
        drawn.explain(phase, color=colour, linewidth=4)
    drawn.axes.set_yticks(range(len(timed)), [in_font(looks.look(group).label, 36) for group, _ in timed])
    drawn.axes.invert_yaxis()
    drawn.axes.tick_params(axis="y", length=0)
    drawn.axes.grid(visible=False, axis="y")
    return drawn
