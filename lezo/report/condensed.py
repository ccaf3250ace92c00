"""A table as people read it: what all rows share is said once above them, what is empty is left out. No torch."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace

from lezo.report.cells import NOTHING, Cell, Table, setting

# Columns that need not be seen where all rows agree.
_SAID_ONCE = ("task", "model", "data seed", "status", "steps", "settings that differ")
_WHERE_THERE = (
    "lr",
    "eps",
    "sparsity",
)  # named wherever a method has them: its lack of one is no other value
_REPEATED = {"runs": "seeds"}  # a column that says no more than another where both are alike


def condensed(table: Table) -> Table:
    """The same table with fewer columns; ``above`` says what its rows share."""
    rows, everywhere, somewhere = _settings_once(table)
    columns = list(zip(*rows, strict=True))
    by_name = dict(zip(table.columns, columns, strict=True))
    once = [
        name for name in _SAID_ONCE if name in by_name and len({cell.text for cell in by_name[name]}) == 1
    ]
    told = [f"{name} {by_name[name][0].text}" for name in once if by_name[name][0] != NOTHING] + everywhere
    gone = {*once, *(name for name, cells in by_name.items() if _empty(cells))}
    gone |= {name for name, other in _REPEATED.items() if by_name.get(name) == by_name.get(other)}
    kept = [place for place, name in enumerate(table.columns) if name not in gone]
    return replace(
        table,
        columns=[table.columns[place] for place in kept],
        rows=[[row[place] for place in kept] for row in rows],
        above=_above(told, somewhere),
    )


def _empty(cells: Sequence[Cell]) -> bool:
    return all(cell.text == NOTHING.text for cell in cells)


def _above(everywhere: Sequence[str], somewhere: Sequence[str]) -> str:
    """A sentence; nothing where there is nothing to say."""
    parts = [", ".join(everywhere)] if everywhere else []
    if somewhere:
        parts.append(f"{', '.join(somewhere)} where a method has {'it' if len(somewhere) == 1 else 'them'}")
    return f"All rows: {'; '.join(parts)}." if parts else ""


def _settings_once(table: Table) -> tuple[list[list[Cell]], list[str], list[str]]:
    """The rows without the settings that they share; those that all have, and those of all that have such a setting."""
    parts = [next((cell.parts for cell in row if cell.parts), {}) for row in table.rows]
    shared = {
        key: values.pop()
        for key in dict.fromkeys(key for one in parts for key in one if key not in table.columns)
        if len(values := {one.get(key) for one in parts} - ({None} if key in _WHERE_THERE else set())) == 1
    }
    everywhere = [key for key in shared if all(key in one for one in parts)]
    somewhere = [key for key in shared if key not in everywhere]
    rows = [[_without(cell, {*shared, *table.columns}) for cell in row] for row in table.rows]
    return rows, [f"{key} {shared[key]}" for key in everywhere], [f"{key} {shared[key]}" for key in somewhere]


def _without(cell: Cell, shared: Container[str]) -> Cell:
    """A setting without what is said once; any other cell as it is."""
    if not cell.parts:
        return cell
    own = {key: value for key, value in cell.parts.items() if key not in shared}
    return setting(own)
