"""The report as one HTML page that needs nothing else: style, script and drawings are in it. No torch."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from lezo.report.cells import Cell, Table
from lezo.report.groups import Group, by_task, gathered
from lezo.report.made import commands, machines
from lezo.report.palette import DARK, DARK_GREYS, GREYS, LIGHT, Palette, palette
from lezo.report.plots.curves import MEAN_POINTS, RUN_POINTS
from lezo.report.plots.export import Plot
from lezo.report.text import printable

_FIRST = ("roots", "roots-2", "roots-3", "results", "methods")  # tables that stand above the curves
_SHORT, _LONG = 16, 40  # characters up to which a cell is one line, and from which on it is given room
FIGURES = "figures"  # the folder of the figures' files beside the page


def page(
    heading: str,
    summary: str,
    groups: Sequence[Group],
    tables: Sequence[Table],
    plots: Sequence[Plot],
    reload: int | None,
    links: Mapping[str, str] | None = None,
) -> str:
    """The page. ``reload``: seconds after which it loads itself again; None: it does not. ``links``: of folders' names."""
    looks = palette(groups)
    tables_of = [[table for table in tables if (table.name in _FIRST) is first] for first in (True, False)]
    results, others = ([_table(table, links or {}) for table in some] for some in tables_of)
    overall = _figures([plot for plot in plots if plot.of is None])
    head = [f"<h1>{_text(heading)}</h1>", f'<p class="note">{_text(summary)}</p>', _made(groups), _FILTERS]
    tasks = [
        _task(names, members, [plot for plot in plots if plot.of == names], looks)
        for names, members in by_task(groups).items()
    ]
    scores = (
        [
            f'<section>\n<h2>Scores</h2>\n{overall}\n<p class="note unfiltered" hidden>{_UNFILTERED}</p>\n<p class="note">{_HEADLINE}</p>\n</section>'
        ]
        if overall
        else []
    )
    return _beside("html").format(
        again="" if reload is None else f'<meta http-equiv="refresh" content="{reload}">',
        title=_text(heading),
        style=_colours() + _beside("css"),
        body="\n".join([*head, *results[:1], *scores, *results[1:], *tasks, *others]),
        script=_beside("js"),
    )


_FILTERS = (
    '<form id="filters" hidden><input type="search" name="words" placeholder="filter rows: type any words" '
    'aria-label="filter rows by words"> <output></output></form>'
)


def _colours() -> str:
    """The palette as the variables --c0, ..., --g0, ..., which the dark has others of."""
    light, dark = (
        "".join(f"--{kind}{i}: {c}; " for kind, colours in both for i, c in enumerate(colours))
        for both in ((("c", LIGHT), ("g", GREYS)), (("c", DARK), ("g", DARK_GREYS)))
    )
    return f":root {{ {light}}}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark}}} }}\n"


def _made(groups: Sequence[Group]) -> str:
    """What the runs ran on, and the commands that made them."""
    runs = [run for group in groups for run in group.runs]
    lines = "<br>\n".join(map(_text, machines(runs)))
    typed = "\n".join(map(_text, commands(runs)))
    told = f'<p class="note">{lines}</p>\n' if lines else ""
    return f"{told}<details><summary>Made by</summary><pre>{typed}</pre></details>" if typed else told


def _table(table: Table, links: Mapping[str, str]) -> str:
    numeric = table.numeric
    head = "".join(map(_head, table.columns, numeric))
    to = [links if name == "folder" else {} for name in table.columns]
    about = table.about or [{}] * len(table.rows)
    rows = "\n".join(
        f"<tr{_about(facts)}>{''.join(map(_cell, row, numeric, to))}</tr>"
        for row, facts in zip(table.rows, about, strict=True)
    )
    notes = "".join(f'<p class="note">{_text(note)}</p>' for note in table.notes)
    above = f'<p class="note">{_text(table.above)}</p>\n' if table.above else ""
    return (
        f"<section>\n<h2>{_text(table.title)}</h2>\n{above}"
        f'<div class="wide"><table id="{table.name}">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>\n'
        f"{notes}\n</section>"
    )


def _head(name: str, numeric: bool) -> str:
    kind = ' class="number"' if numeric else ""
    return f'<th scope="col"{kind}><button type="button">{_text(name)}</button></th>'


def _about(facts: Mapping[str, str]) -> str:
    """What a row is filtered by."""
    return "".join(f' data-{key}="{_text(value)}"' for key, value in facts.items())


def _cell(cell: Cell, numeric: bool, links: Mapping[str, str]) -> str:
    length = len(cell.text)
    kind = "number" if numeric else "long" if length >= _LONG else "short" if length <= _SHORT else ""
    class_ = f' class="{kind}"' if kind else ""
    value = "" if cell.value is None else f' data-value="{cell.value!r}"'
    text = _text(cell.text) if kind else _unbroken(_text(cell.text))
    if cell.text in links:
        text = f'<a href="{_text(quote(links[cell.text]))}/">{text}</a>'
    return f"<td{class_}{value}>{f'<strong>{text}</strong>' if cell.best else text}</td>"


def _unbroken(text: str) -> str:
    """A list of settings, which a line may end between but not within: "lr 0.1, eps 0.001"."""
    return ", ".join(part.replace(" ", "\u00a0") for part in text.split(", "))


def _task(names: tuple[str, str], groups: Sequence[Group], plots: Sequence[Plot], looks: Palette) -> str:
    """The figures of a task and model under one legend."""
    if not plots:
        return ""
    title, model = map(_text, names)
    methods = gathered(sorted(groups, key=lambda group: group.number), lambda group: group.method)
    figures = "\n".join(
        _figures([plot for plot in plots if plot.shared_legend is last]) for last in (False, True)
    )
    legend = "\n".join(
        _legend(method, methods[method], looks) for method in looks.methods if method in methods
    )
    return (
        f'<section class="task" data-task="{title}" data-model="{model}">\n<h2>{title}, {model}: figures</h2>\n'
        f'<ul class="legend">\n{legend}\n</ul>\n{figures}\n<p class="note">{_HOW_DRAWN}</p>\n</section>'
    )


_HEADLINE = (
    "The large mark is the mean over the seeds that finished, the bar its standard deviation (n - 1), a dot a seed; dotted: the score "
    "of the model before any training (zero-shot); a hollow diamond: what is published of the same method. Of several settings of a method "
    "the one of the lowest mean dev loss."
)
_UNFILTERED = "Filtered: this figure keeps the tasks, axes and legend of all runs; of methods that are not chosen the marks are gone."
_HOW_DRAWN = (
    "A colour a method, in all figures, and a dash a setting: the mean over its finished seeds as far as all of them go, a band "
    "from the lowest to the highest, and each run to its end as a faint line; of learning rates that are not chosen the faint lines alone. Training "
    "forwards are those of steps over a batch, a first-order step counted as three, without evaluations. Train loss is a "
    "running mean over a twentieth of the run; runs that have not finished are drawn as far as they came. Against sparsity a "
    "line joins the settings that differ in it, each at its learning rate, the chosen one of several. Curves of more than "
    f"{MEAN_POINTS} points (single runs among several: {RUN_POINTS}) are thinned such that the lowest and highest of each part stay. "
    "Axes of losses hold those of the chosen settings: what others do beyond is cut off. A pointer over a figure is told values and runs."
)


def _figures(plots: Sequence[Plot]) -> str:
    figures = "\n".join(map(_figure, plots))
    return f'<div class="plots">\n{figures}\n</div>' if plots else ""


def _figure(plot: Plot) -> str:
    kinds = ("svg", "pdf") if plot.pdf else ()
    files = " ".join(f'<a href="{FIGURES}/{quote(plot.name)}.{kind}">{kind.upper()}</a>' for kind in kinds)
    return f"<figure>{plot.page}<figcaption>{_text(plot.caption)} {files}</figcaption></figure>"


def _legend(method: str, groups: Sequence[Group], looks: Palette) -> str:
    """A method with its colour, and each of its settings with its dash."""
    chosen = "; ".join(_entry(group, looks) for group in groups if group.best)
    faint = "; ".join(_text(group.setting) for group in groups if not group.best)
    others = f' <span class="note">faint: {faint}</span>' if faint else ""
    return f'<li data-method="{_text(method)}"><strong>{_text(method)}</strong> {chosen}{others}</li>'


def _entry(group: Group, looks: Palette) -> str:
    look = looks.look(group)
    dash = " ".join(f"{2 * length:g}" for length in look.dash)
    line = f'<line x1="0" y1="5" x2="32" y2="5" stroke="var(--c{look.colour})" stroke-width="3" stroke-dasharray="{dash}"/>'
    words = f"{group.setting} (n = {len(group.samples)})"
    return f'<span><svg viewBox="0 0 32 10" aria-hidden="true">{line}</svg>{_text(words)}</span>'


def _text(text: str) -> str:
    """Text from anywhere, as text."""
    return html.escape(printable(text))


def _beside(kind: str) -> str:
    """The page's frame, style or script."""
    return Path(__file__).with_suffix(f".{kind}").read_text(encoding="utf-8")
