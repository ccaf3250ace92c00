"""A drawing in the making: axes as wide as a paper's column, with a legend and with what a pointer is told of its marks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from lezo.report.palette import LIGHT, Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

WIDTH = 3.3  # inches: a column of a paper in two
INK, FAINT = "#1c1e21", "#d8dce1"
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "lezo",  # the same drawing has the same identifiers
    "pdf.fonttype": 42,  # fonts are embedded as TrueType
    "path.simplify": False,  # each point is one that was measured
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "legend.frameon": False,
    "text.parse_math": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), FAINT),
}
_LEGEND_ROW = 0.135  # inches


@dataclass
class Sheet:
    """A drawing named ``name`` in files, and in words what it shows.

    ``of``: the task and model it is of; None: of all. ``tips``: by an artist's identifier a text for each of its marks;
    ``series``: by a line's identifier, its method and its words. ``legend``: handles by their labels; ``shared_legend``: whether a page has it once for several.
    """

    name: str
    caption: str
    figure: Figure
    axes: Axes
    of: tuple[str, str] | None = None
    tips: dict[str, list[str]] = field(default_factory=dict)
    series: dict[str, tuple[str, str]] = field(default_factory=dict)
    legend: dict[str, Line2D] = field(default_factory=dict)
    legend_height: float = 0.0
    shared_legend: bool = False

    def points(
        self, x: Sequence[float], y: Sequence[float], tips: Sequence[str], method: str = "", **look: Any
    ) -> None:
        """Marks without a line, each with a text of its own."""
        name = f"tips-{len(self.tips)}"
        self.axes.plot(x, y, linestyle="none", gid=name, **look)
        self.tips[name] = list(tips)
        if method:
            self.series[name] = method, ""

    def dots(
        self,
        x: Sequence[float],
        y: Sequence[float],
        tips: Sequence[str],
        method: str,
        **look: Any,
    ) -> None:
        """Small marks without an edge: a run each, beside the mark of their mean."""
        self.points(x, y, tips, method, marker=".", markeredgewidth=0, **look)

    def line(self, x: Any, y: Any, method: str, words: str, **look: Any) -> None:
        """A curve, of whose points a reader is told the values."""
        name = f"series-{len(self.series)}"
        self.axes.plot(x, y, gid=name, **look)
        self.series[name] = method, words

    def part(self, artist: Any, method: str) -> None:
        """What else belongs to a method, such as a band."""
        name = f"part-{len(self.series)}"
        artist.set_gid(name)
        self.series[name] = method, ""

    def explain(self, label: str, **look: Any) -> None:
        """An entry of the legend, once."""
        from matplotlib.lines import Line2D

        if label not in self.legend:
            self.legend[label] = Line2D([], [], **look)

    def finish(self) -> None:
        """Draw the legend below the axes, in room of its own, which a page may cut off."""
        self.figure.set_layout_engine("tight", pad=0.3)  # half the time of "constrained"
        if not self.legend:
            return
        labels = [in_font(label) for label in self.legend]
        columns = max(min(int(WIDTH * 72 / (30 + 3.9 * max(map(len, labels)))), len(labels)), 1)
        self.legend_height = _LEGEND_ROW * -(-len(labels) // columns) + 0.05
        height = float(self.figure.get_figheight()) + self.legend_height
        self.figure.set_figheight(height)
        share = self.legend_height / height
        self.figure.set_layout_engine("tight", pad=0.3, rect=(0, share, 1, 1))
        look = {"borderaxespad": 0.2, "columnspacing": 1.2, "handlelength": 2.2, "labelspacing": 0.3}
        legend = self.figure.legend(
            [*self.legend.values()],
            labels,
            loc="lower center",
            bbox_to_anchor=(0.5, 0),
            ncols=columns,
            **look,
        )
        legend.set_gid("legend")
        legend.set_in_layout(False)


def sheet(
    name: str, caption: str, x: str, y: str, *, of: tuple[str, str] | None = None, height: float = 2.2
) -> Sheet:
    """Empty axes, ``height`` inches high; ``x`` and ``y`` say what they show, with units."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_subplot()
    axes.grid(visible=True, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(in_font(x))
    axes.set_ylabel(in_font(y))
    return Sheet(name, caption, figure, axes, of)


def stroke(look: Look) -> dict[str, Any]:
    """Colour and dash of a line."""
    return {"color": LIGHT[look.colour], "linestyle": (0, look.dash) if look.dash else "solid"}


def in_font(text: str, most: int = 60) -> str:
    """Text of which the font has every character, cut at so many."""
    if len(text) > most:
        return in_font(f"{text[: most - 1]}\u2026")
    return "".join(c if c == "\n" or ord(c) in _characters() else "?" for c in text)


@cache
def _characters() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())
