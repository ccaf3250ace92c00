"""The report's tables, and how Markdown and CSV write them. No torch."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from lezo.records.reader import Run, seconds_a_step
from lezo.report.groups import Group, Spread, Target, by_task, dev_loss, sparsity_families, spread, trains
from lezo.report.published import NO_LEZO, PROTOCOL, Published, beside, comparable, rows_of

PHASES = ("data", "forward", "perturb", "update")
_LABELS = ("task", "model", "optimizer", "setting")
_SAMPLE = "Sample data are synthetic: no published number is comparable with a score on them, and none stands beside one."

STAR = "\u2605"
_GRID = (
    f"{STAR}: of runs that differ in their learning rate only, the one with the lowest mean dev loss, as the published "
    "protocol chooses; test scores have no say. Published numbers stand beside that one."
)


@dataclass(frozen=True)
class Cell:
    """What is shown, and for numbers what is sorted by; ``std`` where ``value`` is a mean."""

    text: str
    value: float | None = None
    std: float | None = None


@dataclass(frozen=True)
class Table:
    """Rows under named columns; ``name`` is its identity in links and in the CSV file."""

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()


Targets = Mapping[tuple[str, str], Target | None]


def tables(found: Sequence[Group], targets: Targets) -> list[Table]:
    """All that have a row."""
    made = [
        _results(found),
        _published(found),
        _speed([group for group in found if trains(group.runs[0].optim)], targets),
        _phases(found),
        _memory(found),
        _sparsity(found),
        _not_finished(found),
        _damaged(found),
        _runs(found),
    ]
    return [table for table in made if table.rows]


def markdown(heading: str, found: Sequence[Table]) -> str:
    """The tables as GitHub's Markdown."""
    return "\n".join([f"# {_plain(heading)}", *(_markdown_table(table) for table in found)])


def comma_separated(found: Sequence[Table]) -> str:
    """The tables as one CSV file: column "table" says whose a row is, and a mean has its std in the next column."""
    spreads = {column for table in found for column in _with_std(table)}
    columns = dict.fromkeys(column for table in found for column in table.columns)
    names = [
        name
        for column in columns
        for name in (column, f"{column} std")
        if name in columns or column in spreads
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, ["table", *names], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_csv_row(table, row) for table in found for row in table.rows)
    return text.getvalue()


def _results(found: Sequence[Group]) -> Table:
    searched = any(group.rates > 1 for group in found)
    columns = (
        *_LABELS,
        *("test %", "finished", "runs", "dev %", "dev loss"),
        *(["learning rate"] if searched else []),
        *("untrained %", "published %"),
    )
    rows = [
        [
            *_labels(group),
            _percent(group.spread(lambda run: run.number("test"))),
            _count(len(group.finished)),
            _count(len(group.runs)),
            _percent(group.spread(lambda run: run.number("dev"))),
            _mean(dev_loss(group)),
            *([_chosen(group)] if searched else []),
            _percent(group.spread(lambda run: run.number("zero_shot"))),
            Cell(beside(group.runs[0]) if group.best else "-"),
        ]
        for group in found
    ]
    mean = "Mean ± standard deviation over the seeds whose runs finished; of a single seed there is no deviation."
    dev = "Dev is that of the best step, the one of the lowest dev loss, whose weights are tested."
    grid = [_GRID] if searched else []
    return Table("results", "Results", columns, rows, [f"{mean} {dev}", *grid, *_cautions(found)])


def _chosen(group: Group) -> Cell:
    """The star of a learning-rate grid."""
    return Cell(f"{STAR} best of {group.rates}" if group.best and group.rates > 1 else "-")


def _cautions(found: Sequence[Group]) -> list[str]:
    runs = [run for group in found for run in group.runs]
    sample = [_SAMPLE] if any(run.said("data.name") == "sample" for run in runs) else []
    beside_them = any(rows_of(run) for run in runs)
    unseen = any(run.optim == "lezo" and comparable(run) for run in runs)
    return [*sample, *([PROTOCOL] if beside_them else []), *([NO_LEZO] if unseen else [])]


def _published(found: Sequence[Group]) -> Table:
    """All that is published of the tasks and models that were run, whatever the method."""
    rows = dict.fromkeys(row for group in found for row in rows_of(group.runs[0]))
    return Table(
        "published",
        "Published numbers of these tasks and models",
        ("task", "model", "method", "score %", "seeds", "source"),
        [_published_row(row) for row in rows],
    )


def _published_row(row: Published) -> list[Cell]:
    seeds = Cell("not said") if row.seeds is None else _count(row.seeds)
    score = Cell(row.printed, row.mean, row.std)
    return [Cell(row.task), Cell(row.model), Cell(row.method), score, seeds, Cell(row.source)]


def _speed(found: Sequence[Group], targets: Targets) -> Table:
    columns = (*_LABELS, "seconds a step", "steps to target", "seconds to target", "reached by")
    rows = [[*_labels(group), *_to_target(group, targets[group.title, group.model])] for group in found]
    words = [
        f"{title}, {model}: the target is {target.words}."
        for (title, model), target in targets.items()
        if target is not None
    ]
    how = (
        "A step's seconds are the median. Steps and seconds to target are those of the first dev evaluation that "
        "meets it, mean ± standard deviation over the runs that do; the seconds are wall-clock since training began, "
        "evaluations included."
    )
    return Table("speed", "Speed: a step, and the way to the target", columns, rows, [how, *words])


def _to_target(group: Group, target: Target | None) -> list[Cell]:
    step = _mean(spread(map(seconds_a_step, group.runs)))
    if target is None:
        return [step, *[Cell("-")] * 3]
    reached = [way for run in group.runs if (way := target.reached(run)) is not None]
    steps, seconds = spread(way[0] for way in reached), spread(way[1] for way in reached)
    ratio = len(reached) / len(group.runs)
    return [step, _mean(steps), _mean(seconds), Cell(f"{len(reached)} of {len(group.runs)}", ratio)]


def _phases(found: Sequence[Group]) -> Table:
    timed = [(group, spent) for group in found if (spent := mean_phases(group))]
    rows = [
        [*_labels(group), *(_seconds(spent.get(phase)) for phase in PHASES), _share(spent, "forward")]
        for group, spent in timed
    ]
    columns = (*_LABELS, *(f"{phase} s" for phase in PHASES), "forward share %")
    note = "Mean seconds a step. Data is waiting for the batch; of first-order runs the backward pass counts as forward."
    return Table("phases", "Where a step's time goes", columns, rows, [note])


def mean_phases(group: Group) -> dict[str, float]:
    """Mean seconds a step of each phase over the group's runs; empty where none was timed."""
    each = [spent for run in group.runs if (spent := _phases_of(run))]
    means = {phase: spread(spent.get(phase) for spent in each) for phase in PHASES}
    return {phase: found.mean for phase, found in means.items() if found is not None}


def _phases_of(run: Run) -> dict[str, float]:
    """Seconds a step by the metrics, else by the result."""
    rows = [step.phases for step in run.steps if step.phases]
    if rows:
        return {phase: sum(row.get(phase, 0.0) for row in rows) / len(rows) for phase in PHASES}
    steps = run.number("steps") or 0.0
    spent = {phase: run.number(f"seconds.{phase}") for phase in PHASES}
    return {phase: value / steps for phase, value in spent.items() if value is not None and steps > 0}


def _memory(found: Sequence[Group]) -> Table:
    rows = [[*_labels(group), *used] for group in found if (used := _peaks(group))]
    note = "The highest of the runs' peaks: allocated on the GPU, and resident on the host, Python and libraries included."
    columns = (*_LABELS, "GPU GiB", "host GiB")
    return Table(
        "memory",
        "Peak memory",
        columns,
        rows,
        [f"{note} Of a run without a result, what its last step had reached."],
    )


def _peaks(group: Group) -> list[Cell]:
    device = [used for run in group.runs if (used := run.number("peak_memory_bytes.device"))]
    host = [used for run in group.runs if (used := run.number("peak_memory_bytes.host"))]
    going = [run.memory for run in group.runs if run.memory and not run.result]
    if going and not (device or host):  # which of the two its rows do not say
        return [Cell("-"), Cell(f"{max(going) / 2**30:.2f} (GPU where there is one)", max(going) / 2**30)]
    cells = [
        Cell(f"{max(used) / 2**30:.2f}", max(used) / 2**30) if used else Cell("-") for used in (device, host)
    ]
    return cells if device or host else []


def _sparsity(found: Sequence[Group]) -> Table:
    columns = (*_LABELS, "sparsity", "blocks", "finished", "test %", "dev loss", "seconds a step")
    families = [family for members in by_task(found).values() for family in sparsity_families(members)]
    rows = [
        [
            *_labels(group),
            _number(group.runs[0].sparsity),
            Cell(next((str(run.result["blocks"]) for run in group.runs if run.result.get("blocks")), "-")),
            _count(len(group.finished)),
            _percent(group.spread(lambda run: run.number("test"))),
            _mean(dev_loss(group)),
            _mean(spread(map(seconds_a_step, group.runs))),
        ]
        for family in families
        for group in family
    ]
    note = "Runs that differ in sparsity only, the fraction of decoder blocks skipped in each step: 0 is MeZO, at 1 embeddings, final norm and head alone are trained."
    return Table("sparsity", "Sparsity ablation", columns, rows, [note])


def _not_finished(found: Sequence[Group]) -> Table:
    rows = [
        [
            *_labels(group),
            Cell(run.seed[0]),
            Cell(run.status),
            _count(_reached(run)),
            Cell(run.error or "-"),
            Cell(run.folder),
        ]
        for group in found
        for run in group.runs
        if not run.finished
    ]
    columns = (*_LABELS, "seed", "status", "steps", "why", "folder")
    return Table("not-finished", "Runs that have not finished, and why", columns, rows)


def _damaged(found: Sequence[Group]) -> Table:
    rows = [
        [Cell(run.folder), Cell("; ".join(run.damage))] for group in found for run in group.runs if run.damage
    ]
    note = "The rest of these runs is in the other tables as far as it could be read."
    return Table("damaged", "Files that could not be read in full", ("folder", "what"), rows, [note])


def _runs(found: Sequence[Group]) -> Table:
    columns = (
        *_LABELS,
        "seed",
        "data seed",
        "status",
        "steps",
        "best step",
        "test %",
        "dev %",
        "seconds",
        "folder",
    )
    rows = [[*_labels(group), *_run_cells(run)] for group in found for run in group.runs]
    return Table("runs", "Every run", columns, rows)


def _run_cells(run: Run) -> list[Cell]:
    test, dev = (_percent(spread([run.number(key)])) for key in ("test", "dev"))
    total = run.number("seconds.total")
    seconds = Cell("-") if total is None else Cell(f"{total:.0f}", total)
    seeds = [Cell(seed, _as_number(seed)) for seed in run.seed]
    steps = [_count(_reached(run)), _number(run.number("best_step"))]
    return [*seeds, Cell(run.status), *steps, test, dev, seconds, Cell(run.folder)]


def _reached(run: Run) -> int:
    """The last step there is a row of."""
    return max([step.step for step in run.steps[-1:]] + [int(run.number("steps") or 0)])


def _labels(group: Group) -> list[Cell]:
    return [Cell(group.title), Cell(group.model), Cell(group.optim), Cell(group.setting)]


def _count(value: int) -> Cell:
    return Cell(str(value), value)


def _number(value: float | None) -> Cell:
    return Cell("-") if value is None else Cell(f"{value:g}", value)


def _as_number(text: str) -> float | None:
    return float(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _percent(found: Spread | None) -> Cell:
    """A fraction 0..1 as percent."""
    if found is None:
        return Cell("-")
    std = None if found.std is None else 100 * found.std
    return Cell(_with(f"{100 * found.mean:.1f}", std, ".1f"), 100 * found.mean, std)


def _mean(found: Spread | None) -> Cell:
    if found is None:
        return Cell("-")
    if not found.std:
        return Cell(_with(digits(found.mean), found.std, "g"), found.mean, found.std)
    places = min(max(1 - math.floor(math.log10(found.std)), 0), 12)  # two digits of the deviation
    return Cell(_with(f"{found.mean:.{places}f}", found.std, f".{places}f"), found.mean, found.std)


def _with(mean: str, std: float | None, form: str) -> str:
    return mean if std is None else f"{mean} ± {std:{form}}"


def _seconds(value: float | None) -> Cell:
    return Cell("-") if value is None else Cell(digits(value), value)


def _share(spent: Mapping[str, float], phase: str) -> Cell:
    total = sum(spent.values())
    return (
        Cell(f"{100 * spent.get(phase, 0.0) / total:.0f}", 100 * spent.get(phase, 0.0) / total)
        if total > 0
        else Cell("-")
    )


def digits(value: float) -> str:
    """Three digits that count; all of a whole number."""
    if value == int(value) or abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.3g}"


def printable(text: str) -> str:
    """Text from anywhere without what moves a cursor, turns the reading direction or is no character at all."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _markdown_table(table: Table) -> str:
    numeric = [any(row[place].value is not None for row in table.rows) for place in range(len(table.columns))]
    rule = ["-:" if number else ":-" for number in numeric]
    rows = [[_plain(cell.text) for cell in row] for row in table.rows]
    lines = [f"| {' | '.join(row)} |" for row in [list(table.columns), rule, *rows]]
    return "\n".join(
        ["", f"## {table.title}", "", *(f"{_plain(note)}\n" for note in table.notes), *lines, ""]
    )


def _plain(text: str) -> str:
    """Text from a file without anything that Markdown or a browser would take for markup, in one line."""
    shown = html.escape(printable(" ".join(text.split())), quote=False)
    return "".join(f"\\{c}" if c in "\\|`*_[]~" else c for c in shown)


def _with_std(table: Table) -> Iterable[str]:
    cells: Callable[[int], bool] = lambda place: any(row[place].std is not None for row in table.rows)  # noqa: E731
    return (column for place, column in enumerate(table.columns) if cells(place))


def _csv_row(table: Table, row: Sequence[Cell]) -> dict[str, object]:
    named = list(zip(table.columns, row, strict=True))
    values = {column: _harmless(cell.text) if cell.value is None else cell.value for column, cell in named}
    return {
        "table": table.name,
        **values,
        **{f"{column} std": cell.std for column, cell in named if cell.std is not None},
    }


def _harmless(text: str) -> str:
    """Nothing where there is nothing, and no text that a spreadsheet would take for a formula."""
    if text == "-":
        return ""
    text = printable(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
