"""The report as one HTML page that needs nothing else: style, script and drawings are in it. No torch."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from lezo.report.cells import Cell, Table
from lezo.report.groups import Group, by_task
from lezo.report.plots import COLOURS, Plot
from lezo.report.text import printable

_DASHES = ("", "5 2", "1 2", "6 2 1 2")
_FIRST = ("roots", "roots-2", "roots-3", "results", "methods")  # tables that stand above the curves
_SHORT, _LONG = 16, 40  # characters up to which a cell is one line, and from which on it is given room


def page(
    heading: str,
    summary: str,
    groups: Sequence[Group],
    tables: Sequence[Table],
    plots: Mapping[tuple[str, str], Sequence[Plot]],
    reload: int | None,
) -> str:
    """The page. ``reload``: seconds after which it loads itself again; None: it does not."""
    results = [_table(table) for table in tables if table.name in _FIRST]
    others = [_table(table) for table in tables if table.name not in _FIRST]
    curves = [_curves(*names, members, plots.get(names, [])) for names, members in by_task(groups).items()]
    head = [f"<h1>{_text(heading)}</h1>", f'<p class="note">{_text(summary)}</p>']
    return _beside("html").format(
        again="" if reload is None else f'<meta http-equiv="refresh" content="{reload}">',
        title=_text(heading),
        style=_beside("css"),
        body="\n".join([*head, *results, *curves, *others]),
        script=_beside("js"),
    )


def _table(table: Table) -> str:
    numeric = table.numeric
    head = "".join(map(_head, table.columns, numeric))
    rows = "\n".join(f"<tr>{''.join(map(_cell, row, numeric))}</tr>" for row in table.rows)
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


def _cell(cell: Cell, numeric: bool) -> str:
    length = len(cell.text)
    kind = "number" if numeric else "long" if length >= _LONG else "short" if length <= _SHORT else ""
    class_ = f' class="{kind}"' if kind else ""
    value = "" if cell.value is None else f' data-value="{cell.value!r}"'
    text = _text(cell.text) if kind else _unbroken(_text(cell.text))
    return f"<td{class_}{value}>{f'<strong>{text}</strong>' if cell.best else text}</td>"


def _unbroken(text: str) -> str:
    """A list of settings, which a line may end between but not within: "lr 0.1, eps 0.001"."""
    return ", ".join(part.replace(" ", "\u00a0") for part in text.split(", "))


def _curves(title: str, model: str, groups: Sequence[Group], plots: Sequence[Plot]) -> str:
    if not plots:
        return ""
    legend = "\n".join(map(_legend, sorted(groups, key=lambda group: group.number)))
    figures = "\n".join(
        f'<figure role="img" aria-label="{_text(plot.title)}">{plot.svg}</figure>' for plot in plots
    )
    return (
        f'<section>\n<h2>{_text(f"{title}, {model}: curves")}</h2>\n<ol class="legend">\n{legend}\n</ol>\n'
        f'<div class="plots">\n{figures}\n</div>\n<p class="note">{_HOW_DRAWN}</p>\n</section>'
    )


_HOW_DRAWN = (
    "A colour a setting: the mean over its seeds, thinner where not all of them have come, a band from the lowest "
    "to the highest, and each run as a faint line; of learning rates that are not chosen the faint lines alone. Training "
    "forwards are those of steps over a batch, a first-order step counted as three, without evaluations. Train loss is a "
    "running mean over a twentieth of the run; runs that have not finished are drawn as far as they came. Against sparsity a "
    "line joins the settings that differ in it "
    "only."
)


def _legend(group: Group) -> str:
    colour, dash = group.number % COLOURS, _DASHES[group.number // COLOURS % len(_DASHES)]
    line = f'<line x1="0" y1="5" x2="32" y2="5" stroke="var(--c{colour})" stroke-width="3" stroke-dasharray="{dash}"/>'
    words = f"{group.number + 1}: {group.method}, {group.setting} (n = {len(group.samples)})"
    return f'<li><svg viewBox="0 0 32 10" aria-hidden="true">{line}</svg>{_text(words)}</li>'


def _text(text: str) -> str:
    """Text from anywhere, as text."""
    return html.escape(printable(text))


def _beside(kind: str) -> str:
    """The page's frame, style or script."""
    return Path(__file__).with_suffix(f".{kind}").read_text(encoding="utf-8")
