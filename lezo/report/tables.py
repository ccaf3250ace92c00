"""The tables of a report and their columns. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from lezo.records.reader import Run
from lezo.records.rows import PHASES
from lezo.report.cells import NOTHING, Cell, Table, mean, number, percent, perplexity, places, setting
from lezo.report.groups import Group, Spread, Target, by_task, sparsity_families, spread
from lezo.report.paired import BOLD, best
from lezo.report.published import NO_LEZO, PROTOCOL, Published, beside, is_lezo, rows_of
from lezo.tasks.metrics import PERPLEXITY

STAR = "\u2605"
_SAMPLE = "Sample data are synthetic: no published number is comparable with a score on them, and none stands beside one."
_SEEDS = (
    "Mean ± sample standard deviation (n - 1) over the seeds whose runs finished; of a single seed there is no deviation. "
    "Dev is that of the best step, the one of the lowest dev loss, whose weights are tested."
)
_GRID = (
    f"{STAR}: of runs that differ in their learning rate only, the one with the lowest mean dev loss, as the published "
    "protocol chooses; test scores have no say. Published numbers stand beside that one. Where it is the highest or the lowest "
    "of three or more, the best rate may lie beyond."
)
_TO_TARGET = (
    "A step's seconds are each run's median, over the runs that finished, or while none has over all. Steps, forwards and seconds to target are those of the first dev evaluation that "
    "meets it, mean ± standard deviation over the seeds that do (reached by); the seconds are wall-clock since training began, "
    "evaluations included. Means over other numbers of seeds do not compare."
)
_FORWARDS = (
    "Forwards are those of training over a batch, and evaluations are not counted: two a step and direction of MeZO, LeZO and most others, "
    "one a direction and one more of FZOO, 1 - top + 2 probes top, rounded up, of exzo, three of a "
    "first-order step, whose backward pass takes about two."
)
_SIDE_BY_SIDE = (
    f"Each method, at each of its settings, at the learning rate that {STAR} marks, the lowest dev loss first: a comparison where "
    "forwards and the number of rates are alike, as +experiment=compare makes them."
)
_OTHER_BUDGETS = "Rows of one task and model differ in their forwards: a lower loss there may be no more than a longer run."
_PHASES = "Mean seconds a step, over the runs that finished, or while none has over all. Data is waiting for the batch; of first-order runs the backward pass counts as forward."
_PEAKS = (
    "The highest of the runs' peaks: allocated on the GPU, and resident on the host, Python and libraries included. "
    "Of a run without a result, what its last step had reached."
)
_SKIPPED = (
    "Runs that differ in sparsity only, the fraction of decoder blocks skipped in each step: 0 is MeZO, at 1 embeddings, "
    "final norm and head alone are trained."
)
_FOREIGN = (
    "no run's: neither configuration nor result says which task, model or optimizer; left out of the report"
)
_UNREAD = "The rest of these runs is in the other tables as far as it could be read."

Targets = Mapping[tuple[str, str], Target | None]  # of each task and model
Rows = Sequence[tuple[Group, Sequence[Cell]]]


def tables(groups: Sequence[Group], targets: Targets, foreign: Sequence[Run] = ()) -> list[Table]:
    """All that have a row. ``foreign``: what looked like runs' folders and is not, which is named."""
    runs = [(group, run) for group in groups for run in group.runs]
    every = [
        _results(groups),
        _side_by_side(groups, targets),
        _published(groups),
        _speed(groups, targets),
        _phases(groups),
        _memory(groups),
        _sparsity(groups),
        _not_finished(runs),
        _damaged([*(run for _, run in runs), *foreign]),
        _runs(runs),
    ]
    return [table for table in every if table.rows]


def mean_phases(group: Group) -> dict[str, float]:
    """Mean seconds a step of each phase over the runs as in `step_seconds`; empty where none was timed."""
    each = [phases for run in group.timed if (phases := _phases_of(run))]
    means = {phase: spread(phases.get(phase) for phases in each) for phase in PHASES}
    return {phase: seconds.mean for phase, seconds in means.items() if seconds is not None}


def step_seconds(group: Group) -> Spread | None:
    """Seconds a step: over the runs that finished, or while none has over all, of each the median."""
    return spread(run.step_seconds for run in group.timed)


_SCORES = {f"{what} %": f"{what} perplexity" for what in ("test", "dev", "zero-shot")}


def _named(columns: Sequence[str], scored: Sequence[Group] | Sequence[Run]) -> list[str]:
    """The columns; one of fractions has one of perplexities beside it, or in its place, where there are any."""
    kinds = {one.in_perplexity for one in scored}
    named: list[str] = []
    for column in columns:
        pair = ((column, False), (_SCORES.get(column, column), True))
        named += [name for name, kind in pair if kind in kinds] if column in _SCORES else [column]
    return named


def _score(key: str, *, in_perplexity: bool) -> Callable[[Group | Run], Cell]:
    """Of a group or run, where its scores are of this kind; else nothing."""
    shown = perplexity if in_perplexity else percent

    def cell(of: Group | Run) -> Cell:
        if of.in_perplexity is not in_perplexity:
            return NOTHING
        return shown(of.result(key) if isinstance(of, Group) else spread([of.number(key)]))

    return cell


def _of_groups(groups: Sequence[Group], columns: Sequence[str]) -> Rows:
    return [(group, _cells(group, columns)) for group in groups]


def _in_bold(table: Table, groups: Sequence[Group]) -> Table:
    """The table, whose rows are of these groups, with the best test scores in bold, and a note on what that says."""
    bold = best(groups)
    if not any(bold):
        return table
    places = [place for place, name in enumerate(table.columns) if name in ("test %", "test perplexity")]
    rows = [
        [replace(cell, best=marked and place in places and cell != NOTHING) for place, cell in enumerate(row)]
        for row, marked in zip(table.rows, bold, strict=True)
    ]
    return replace(table, rows=rows, notes=[*table.notes, BOLD])


def _cells(group: Group, columns: Sequence[str]) -> list[Cell]:
    return [_OF_GROUP[name](group) for name in columns]


def _of_runs(runs: Sequence[tuple[Group, Run]], columns: Sequence[str]) -> Rows:
    """Rows of runs, each as a group of its own."""
    return [(replace(group, runs=[run]), [_OF_RUN[name](run) for name in columns]) for group, run in runs]


def _table(name: str, title: str, columns: Sequence[str], rows: Rows, *notes: str) -> Table:
    """Rows about groups: each begins with what names its group."""
    first = [column for column in columns if column in _LEFT]
    order = [columns.index(column) for column in (*first, *(c for c in columns if c not in first))]
    named = [_named_row(group, [cells[place] for place in order], len(first)) for group, cells in rows]
    names = ("task", "model", "method", *first, "setting", *(columns[place] for place in order[len(first) :]))
    return Table(name, title, names, named, notes, [about(group) for group, _ in rows])


_LEFT = ("seed", "sparsity", "test %", "test perplexity")  # columns that stand before the setting


def _named_row(group: Group, cells: Sequence[Cell], first: int) -> list[Cell]:
    """A row that begins with what names its group and with the ``first`` of its own cells."""
    names = [Cell(group.title), Cell(group.model), Cell(group.method)]
    return [*names, *cells[:first], replace(setting(group.said), hidden=_fixed(group)), *cells[first:]]


def _fixed(group: Group) -> dict[str, str]:
    """The sparsity of a method that has no such setting, mezo's 0: a column of the CSV beside the others'."""
    fixed = group.sparsity is not None and "sparsity" not in group.said
    return {"sparsity": f"{group.sparsity:g}"} if fixed else {}


def about(group: Group, *others: Group) -> dict[str, str]:
    """What a row about a group is filtered by; ``others``: of the same task, model and method, in the same row."""
    statuses = " ".join(dict.fromkeys(run.status for one in (group, *others) for run in one.runs))
    return {"task": group.title, "model": group.model, "method": group.method, "status": statuses}


def _results(groups: Sequence[Group]) -> Table:
    searched = any(group.rates > 1 for group in groups)
    unusual = {run.metric for group in groups for run in group.runs} - {*_USUAL}
    scores = ("test %", "seeds", "runs", "dev %", "dev loss")
    columns = _named(
        (
            *scores,
            *(("metric",) if unusual else ()),
            *(("lr chosen",) if searched else ()),
            "zero-shot %",
            "published %",
        ),
        groups,
    )
    notes = [_SEEDS, *([_GRID] if searched else []), *_cautions(groups)]
    return _in_bold(_table("results", "Results", columns, _of_groups(groups, columns), *notes), groups)


def _side_by_side(groups: Sequence[Group], targets: Targets) -> Table:
    """Of each task and model with several methods, what each came to at the rate that its dev losses chose."""
    own = _named(("test %", "seeds", "dev loss", "forwards", "seconds a step"), groups)
    columns, rows, aims = (*own, *_TARGET_COLUMNS, *_PEAK_COLUMNS, "lr chosen"), [], {}
    for names, members in by_task(groups).items():
        chosen = sorted((group for group in members if group.best and group.finished), key=_loss)
        if len({group.method for group in chosen}) > 1:
            aims[names] = targets[names]
            rows += [
                (g, [*_cells(g, own), *_to_target(g, aims[names]), *_peaks(g), _chosen(g)]) for g in chosen
            ]
    other = any(map(_budgets_differ, by_task([group for group, _ in rows]).values()))
    notes = [_SIDE_BY_SIDE, *([_OTHER_BUDGETS] if other else []), _FORWARDS, *_aims(aims)]
    table = _table("methods", "Methods side by side", columns, rows, *notes)
    return _in_bold(table, [group for group, _ in rows])


def _budgets_differ(groups: Sequence[Group]) -> bool:
    """By more than a tenth: of equal forwards each method makes as many whole steps as fit."""
    made = [run.forwards for group in groups for run in group.finished if run.forwards is not None]
    return bool(made) and max(made) > 1.1 * min(made)


def _loss(group: Group) -> float:
    """What methods are ordered by."""
    return math.inf if group.dev_loss is None else group.dev_loss.mean


def _cautions(groups: Sequence[Group]) -> list[str]:
    runs = [run for group in groups for run in group.runs]
    cautions = {
        _SAMPLE: any(run.setting("data.name") == "sample" for run in runs),
        PROTOCOL: any(map(rows_of, runs)),
        NO_LEZO: any(map(is_lezo, runs)),
    }
    return [caution for caution, applies in cautions.items() if applies]


def _published(groups: Sequence[Group]) -> Table:
    """All that is published of the tasks and models that were run, whatever the method."""
    scores = dict.fromkeys(score for group in groups for score in rows_of(group.runs[0]))
    columns = ("task", "model", "method", "score %", "seeds", "source")
    title = "Published numbers of these tasks and models"
    return Table("published", title, columns, list(map(_published_row, scores)))


def _published_row(score: Published) -> list[Cell]:
    mean, _, std = score.printed.partition(" ± ")
    printed = Cell(score.printed, float(mean), float(std) if std else None)
    seeds = Cell("not said") if score.seeds is None else number(score.seeds, str)
    return [Cell(score.task), Cell(score.model), Cell(score.method), printed, seeds, Cell(score.source)]


def _speed(groups: Sequence[Group], targets: Targets) -> Table:
    own = ("seconds a step", "forwards a step")
    trained = [group for group in groups if group.runs[0].trains]
    rows = [(g, [*_cells(g, own), *_to_target(g, targets[g.title, g.model])]) for g in trained]
    notes = [_TO_TARGET, _FORWARDS, *_aims(targets)]
    return _table("speed", "Speed: a step, and the way to the target", (*own, *_TARGET_COLUMNS), rows, *notes)


def _aims(targets: Targets) -> list[str]:
    return [
        f"{title}, {model}: the target is {target.words}."
        for (title, model), target in targets.items()
        if target is not None
    ]


_TARGET_COLUMNS = ("steps to target", "forwards to target", "seconds to target", "reached by")


def _to_target(group: Group, target: Target | None) -> list[Cell]:
    if target is None or not group.runs[0].trains:
        return [NOTHING] * len(_TARGET_COLUMNS)
    runs = group.samples
    reached = [(dev, run.forwards_a_step) for run in runs if (dev := target.reached(run)) is not None]
    share = Cell(f"{len(reached)} of {len(runs)}", len(reached) / len(runs))
    steps, clock = spread(dev.step for dev, _ in reached), spread(dev.seconds for dev, _ in reached)
    forwards = spread(None if cost is None else dev.step * cost for dev, cost in reached)
    return [mean(steps), mean(forwards), mean(clock), share]


def _phases(groups: Sequence[Group]) -> Table:
    columns = (*(f"{phase} s" for phase in PHASES), "forward share %")
    rows = [(group, _phase_cells(phases)) for group in groups if (phases := mean_phases(group))]
    return _table("phases", "Where a step's time goes", columns, rows, _PHASES)


def _phase_cells(phases: Mapping[str, float]) -> list[Cell]:
    total = sum(phases.values())
    share = 100 * phases.get("forward", 0.0) / total if total > 0 else None
    seconds = f"{{:.{places(total)}f}}".format  # as many of each phase as of the step
    return [*(number(phases.get(phase), seconds) for phase in PHASES), number(share, "{:.0f}".format)]


def _phases_of(run: Run) -> dict[str, float]:
    """Seconds a step by the metrics, else by the result."""
    rows = [step.phases for step in run.steps if step.phases]
    if rows:
        return {phase: sum(row.get(phase, 0.0) for row in rows) / len(rows) for phase in PHASES}
    steps = run.number("steps") or 0.0
    spent = {phase: run.number(f"seconds.{phase}") for phase in PHASES}
    return {phase: seconds / steps for phase, seconds in spent.items() if seconds is not None and steps > 0}


def _memory(groups: Sequence[Group]) -> Table:
    rows = [(group, peaks) for group in groups if (peaks := _peaks(group)) != [NOTHING, NOTHING]]
    return _table("memory", "Peak memory", _PEAK_COLUMNS, rows, _PEAKS)


_PEAK_COLUMNS = ("GPU GiB", "host GiB")


def _peaks(group: Group) -> list[Cell]:
    """On the GPU and on the host."""
    device = _gib(run.number("peak_memory_bytes.device") for run in group.runs)
    host = _gib(run.number("peak_memory_bytes.host") for run in group.runs)
    going = _gib(run.steps[-1].memory for run in group.runs if run.steps and not run.result)
    if going == NOTHING or (device, host) != (NOTHING, NOTHING):
        return [device, host]
    return [NOTHING, Cell(f"{going.text} (GPU where there is one)", going.value)]  # its rows do not say which


def _gib(peaks: Iterable[float | None]) -> Cell:
    """The highest of the bytes that are known."""
    return number(max((peak / 2**30 for peak in peaks if peak), default=None), "{:.2f}".format)


def _sparsity(groups: Sequence[Group]) -> Table:
    members = [group for family in sparsity_families(groups) for group in family]
    columns = _named(("sparsity", "blocks", "seeds", "test %", "dev loss", "seconds a step"), members)
    return _table("sparsity", "Sparsity ablation", columns, _of_groups(members, columns), _SKIPPED)


def _blocks(group: Group) -> Cell:
    return next((Cell(str(run.result["blocks"])) for run in group.runs if run.result.get("blocks")), NOTHING)


def _not_finished(runs: Sequence[tuple[Group, Run]]) -> Table:
    columns = ("seed", "status", "steps", "why", "folder")
    rows = _of_runs([(group, run) for group, run in runs if not run.finished], columns)
    return _table("not-finished", "Runs that have not finished, and why", columns, rows)


def _damaged(runs: Sequence[Run]) -> Table:
    said = [(run, [_FOREIGN] if run.foreign else run.damage) for run in runs]
    rows = [[Cell(run.folder), Cell("; ".join(damage))] for run, damage in said if damage]
    return Table("damaged", "Files that could not be read in full", ("folder", "what"), rows, [_UNREAD])


def _runs(runs: Sequence[tuple[Group, Run]]) -> Table:
    scores = ("test %", "dev %", "seconds")
    columns = _named(
        ("seed", "data seed", "status", "steps", "best step", *scores, "name", "notes", "folder"),
        [run for _, run in runs],
    )
    return _table("runs", "Every run", columns, _of_runs(runs, columns))


def _steps(run: Run) -> int:
    """The last step there is a row of."""
    return max(run.steps[-1].step if run.steps else 0, int(run.number("steps") or 0))


def _seed(text: str) -> Cell:
    """Sorted as a number where it is one."""
    return Cell(text, float(text) if text.isascii() and text.isdigit() and len(text) < 20 else None)


def _chosen(group: Group) -> Cell:
    """The star of a learning-rate grid."""
    if not group.best or group.rates < 2:
        return NOTHING
    diverged = f", {group.diverged} diverged" if group.diverged else ""
    tried = group.rates + group.diverged
    return Cell(f"{STAR} best of {tried}{diverged}" + (f", the {group.edge}" if group.edge else ""))


_USUAL = ("accuracy", PERPLEXITY)  # metrics that a column's own name tells
_OF_GROUP: Mapping[str, Callable[[Group], Cell]] = {
    "test %": _score("test", in_perplexity=False),
    "test perplexity": _score("test", in_perplexity=True),
    "metric": lambda group: Cell(group.runs[0].metric),
    "seeds": lambda group: number(len(group.finished), str),
    "runs": lambda group: number(len(group.runs), str),
    "dev %": _score("dev", in_perplexity=False),
    "dev perplexity": _score("dev", in_perplexity=True),
    "dev loss": lambda group: mean(group.dev_loss),
    "lr chosen": _chosen,
    "zero-shot %": _score("zero_shot", in_perplexity=False),
    "zero-shot perplexity": _score("zero_shot", in_perplexity=True),
    "published %": lambda group: Cell(beside(group.runs[0])) if group.best else NOTHING,
    "sparsity": lambda group: number(group.sparsity),
    "blocks": _blocks,
    "forwards": lambda group: mean(spread(run.forwards for run in group.finished)),
    "forwards a step": lambda group: number(group.runs[0].forwards_a_step, str),
    "seconds a step": lambda group: mean(step_seconds(group)),
}
_OF_RUN: Mapping[str, Callable[[Run], Cell]] = {
    "seed": lambda run: _seed(run.seed[0]),
    "data seed": lambda run: _seed(run.seed[1]),
    "status": lambda run: Cell(run.status),
    "steps": lambda run: number(_steps(run), str),
    "best step": lambda run: number(run.number("best_step")),
    "test %": _score("test", in_perplexity=False),
    "test perplexity": _score("test", in_perplexity=True),
    "dev %": _score("dev", in_perplexity=False),
    "dev perplexity": _score("dev", in_perplexity=True),
    "seconds": lambda run: number(run.number("seconds.total"), "{:.1f}".format),
    "why": lambda run: Cell(run.error or "-"),
    "name": lambda run: Cell(run.named or "-"),
    "notes": lambda run: Cell(run.notes or "-"),
    "folder": lambda run: Cell(run.folder),
}
