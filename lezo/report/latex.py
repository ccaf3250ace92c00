"""A table for a paper: LaTeX with booktabs, whatever text is in it. No torch."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

from lezo.report.cells import NOTHING, Cell, Table
from lezo.report.text import printable

_OTHERS = ("published", "not-finished", "damaged", "runs")  # tables that carry no means over seeds
# What a table does without while it is wide, the first first: the other tables or the CSV file have it.
_WIDE = (
    *(
        "steps to target",
        "forwards to target",
        "host GiB",
        "seeds in ",
        "dev loss in ",
        "dev perplexity",
        "dev %",
    ),
    *("zero-shot perplexity", "reached by", "GPU GiB", "forwards"),
)
_LINE = 80  # characters beyond which a table is wide: its letters are smaller
_SHORT = 10  # characters up to which a column's name is one line
_WORDS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    **{character: f"\\{character}" for character in "&%$#_"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\u00b1": r"$\pm$",
    "\u2605": r"$\star$",
    "\u2013": "--",
    "\u2212": "$-$",
    "\u2192": r"$\to$",
}
_POWER = re.compile(r"\b(\d+(?:\.\d+)?)e([+-]\d+)\b")


def carries_results(table: Table) -> bool:
    """Whether it is one for a paper."""
    return table.name not in _OTHERS


def latex(table: Table) -> str:
    """A table environment to ``\\input``: rules between tasks, numbers to the right, the best in bold, notes below.

    Of tables wider than a page, without what the CSV file has besides.
    """
    table = _narrowed(table)
    kinds = "".join("r" if numeric else "l" for numeric in table.numeric)
    size = r"\small" if _characters(table) <= _LINE else r"\footnotesize"
    head = " & ".join(map(_head, table.columns, kinds))
    notes = [_text(note) for note in (table.above, *table.notes) if note]
    lines = [
        f"% {_comment(table.title)}. In the preamble: \\usepackage{{booktabs,graphicx}}",
        r"\begin{table}",
        rf"\centering{size}\setlength{{\tabcolsep}}{{4pt}}",
        rf"\caption{{{_text(table.title)}. {_DEVIATION}}}",
        rf"\label{{tab:lezo-{table.name}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{kinds}}}",
        r"\toprule",
        rf"{head} \\",
        r"\midrule",
        *_body(table),
        r"\bottomrule",
        r"\end{tabular}}",
        *([r"\par\medskip\footnotesize\raggedright", *notes] if notes else []),
        r"\end{table}",
    ]
    return "\n".join([*lines, ""])


_DEVIATION = r"Mean $\pm$ sample standard deviation ($n - 1$) over seeds"


def _narrowed(table: Table) -> Table:
    """Without blocks beside the sparsity that says the same; while it is wide, with one column less and less."""
    if "sparsity" in table.columns:
        table = _without(table, "blocks")
    for name in _WIDE:
        table = _without(table, name) if _characters(table) > _LINE else table
    return table


def _without(table: Table, left_out: str) -> Table:
    """The table without the columns whose names begin so."""
    kept = [place for place, name in enumerate(table.columns) if not name.startswith(left_out)]
    rows = [[row[place] for place in kept] for row in table.rows]
    return replace(table, columns=[table.columns[place] for place in kept], rows=rows)


def _characters(table: Table) -> int:
    """Of its widest cells and the gaps between them; heads are of two lines."""
    cells = zip(*table.rows, strict=True)
    heads = ((len(name) + 1) // 2 if len(name) > _SHORT else len(name) for name in table.columns)
    widths = (
        max(head, *(len(cell.text) for cell in column)) for head, column in zip(heads, cells, strict=True)
    )
    return sum(width + 2 for width in widths)


def _head(name: str, kind: str) -> str:
    """A column's name; one of several words in two lines."""
    words = name.split()
    half = (len(words) + 1) // 2
    if len(name) <= _SHORT or len(words) == 1:
        return _text(name)
    return rf"\shortstack[{kind}]{{{_text(' '.join(words[:half]))}\\{_text(' '.join(words[half:]))}}}"


def _body(table: Table) -> list[str]:
    """The rows, a rule where another task or model begins, whose name stands in its first row alone."""
    places = [place for place, name in enumerate(table.columns) if name in ("task", "model")]
    names = [tuple(row[place].text for place in places) for row in table.rows]
    new = [True, *(before != now for before, now in pairwise(names))]
    lines: list[str] = []
    for number, (row, begins) in enumerate(zip(table.rows, new, strict=True)):
        lines += [r"\midrule"] if begins and number else []
        cells = ["" if place in places and not begins else _cell(cell) for place, cell in enumerate(row)]
        lines.append(rf"{' & '.join(cells)} \\")
    return lines


def _cell(cell: Cell) -> str:
    if cell.text == NOTHING.text:
        return "--"
    if cell.value is None or not re.fullmatch(r"[-0-9.e+ \u00b1]+", cell.text):
        return _text(cell.text)
    shown = cell.text.replace("\u00b1", r"\pm")
    return rf"$\mathbf{{{shown}}}$" if cell.best else f"${shown}$"


def _text(text: str) -> str:
    """Text from anywhere, as text; 1e-07 as a power of ten."""
    words = "".join(_WORDS.get(character, character) for character in printable(" ".join(text.split())))
    return _POWER.sub(_power, words)


def _power(found: re.Match[str]) -> str:
    mantissa, exponent = found[1], int(found[2])
    return f"$10^{{{exponent}}}$" if mantissa == "1" else rf"${mantissa} \cdot 10^{{{exponent}}}$"


def _comment(text: str) -> str:
    return " ".join(text.split())
