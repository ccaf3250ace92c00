"""The runs below several folders side by side: what became of the same setting here and there. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lezo.records.reader import Run
from lezo.report.cells import NOTHING, Cell, Table, mean, number, percent, perplexity, setting
from lezo.report.groups import Group, Spread, gathered, group_runs
from lezo.report.paired import paired
from lezo.report.tables import about, step_seconds

Family = tuple[str, str, str]  # task, model, method
Differing = Mapping[str, tuple[str, str]]  # by setting, its value here and there
Pair = tuple[Group | None, Group | None, Differing]

_HOW = (
    "Difference: the second less the first, in points of a hundred or of perplexity, mean ± sample standard deviation (n - 1) over "
    "paired seeds, those that finished in both. p: of a two-sided paired t-test, from two such seeds on. Rows are of one task, model, "
    "method and setting, but for settings that differ, which each have one value here and another there."
)


def root_names(roots: Sequence[Path]) -> dict[Path, str]:
    """Each folder by the fewest of its last parts that tell it from the others."""
    parts = {root: root.absolute().parts for root in roots}
    for count in range(1, max(map(len, parts.values()), default=0) + 1):
        names = {root: "/".join(of[-count:]) for root, of in parts.items()}
        if len({*names.values()}) == len(names):
            return names
    return {root: str(root) for root in roots}


def naming(roots: Sequence[Path]) -> Callable[[Run], str]:
    """Below which of the folders a run was found, by `root_names`: the innermost."""
    names = root_names(roots)

    def root_of(run: Run) -> str:
        above = [root for root in names if Path(run.folder).is_relative_to(root)]
        return names[max(above, key=lambda root: len(root.parts))] if above else ""

    return root_of


def side_by_side(runs: Sequence[Run], root_of: Callable[[Run], str], names: Sequence[str]) -> list[Table]:
    """A table for each folder after the first that has runs, beside the first; none of a single folder."""
    parts = gathered(runs, root_of)
    groups = {name: group_runs(parts[name]) for name in names if name in parts}
    first, *others = groups or [""]
    tables = [
        replace(
            _table(first, other, groups[first], groups[other]),
            name=f"roots-{number}" if number > 1 else "roots",
        )
        for number, other in enumerate(others, start=1)
    ]
    return [table for table in tables if table.rows]


def _table(here: str, there: str, first: Sequence[Group], second: Sequence[Group]) -> Table:
    pairs = [*_pairs(first, second)]
    rows = [_row(*pair) for pair in pairs] if any(a and b for a, b, _ in pairs) else []
    test = _unit([*first, *second])
    columns = (
        *(
            "task",
            "model",
            "method",
            "difference",
            "paired seeds",
            "p",
            f"{test} in {here}",
            f"{test} in {there}",
        ),
        *("setting", "settings that differ", f"seeds in {here}", f"seeds in {there}"),
        *(f"dev loss in {here}", f"dev loss in {there}"),
        *(f"seconds a step in {here}", f"seconds a step in {there}"),
    )
    notes = [_HOW, *_made_by(here, there, first, second)]
    named = [about(*filter(None, pair[:2])) for pair in pairs] if rows else []
    return Table("roots", f"{there} beside {here}", columns, rows, notes, named)


def _unit(groups: Sequence[Group]) -> str:
    """What the scores are, where all are the same."""
    kinds = {group.in_perplexity for group in groups}
    return "test" if len(kinds) > 1 else "test perplexity" if True in kinds else "test %"


def _pairs(first: Sequence[Group], second: Sequence[Group]) -> Iterator[Pair]:
    """The groups of both that are of one setting, but for settings that differ as a whole; then those without another."""
    here, there = gathered(first, _family), gathered(second, _family)
    for family in dict.fromkeys([*here, *there]):
        a, b = here.get(family, []), there.get(family, [])
        differing = _differing(a, b)
        others = {_rest(group, differing): group for group in b}
        for group in a:
            yield group, others.pop(_rest(group, differing), None), differing
        yield from ((None, group, differing) for group in others.values())


def _family(group: Group) -> Family:
    return group.title, group.model, group.method


def _differing(first: Sequence[Group], second: Sequence[Group]) -> Differing:
    """The settings of one value in all groups here, and of another in all there."""
    keys = sorted({key for group in (*first, *second) for key in group.settings})
    values = {key: (_values(first, key), _values(second, key)) for key in keys}
    return {
        key: (min(here), min(there))
        for key, (here, there) in values.items()
        if len(here) == len(there) == 1 and here != there
    }


def _values(groups: Sequence[Group], key: str) -> set[str]:
    return {group.settings.get(key, "-") for group in groups}


def _rest(group: Group, differing: Differing) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((key, value) for key, value in group.settings.items() if key not in differing))


def _row(here: Group | None, there: Group | None, differing: Differing) -> list[Cell]:
    both = (here, there)
    one = next(filter(None, both))
    changed = {key.removeprefix("optim."): f"{old} \u2192 {new}" for key, (old, new) in differing.items()}
    said = {key: value for key, value in one.said.items() if key not in changed}
    words = ", ".join(f"{key} {values}" for key, values in changed.items())
    return [
        *(Cell(one.title), Cell(one.model), Cell(one.method)),
        *_difference(here, there),
        *(_score(here), _score(there)),
        setting(said),
        Cell(words) if words and here and there else NOTHING,
        *(number(len(group.finished), str) if group else NOTHING for group in both),
        *(mean(group.dev_loss) if group else NOTHING for group in both),
        *(mean(step_seconds(group)) if group else NOTHING for group in both),
    ]


def _difference(here: Group | None, there: Group | None) -> list[Cell]:
    """Of test scores, with the number of pairs and p."""
    if here is None or there is None:
        return [NOTHING] * 3
    found = paired(here.by_seed("test"), there.by_seed("test"))
    return [
        _signed(found.difference, here.in_perplexity),
        number(found.n, str),
        number(found.p, "{:.2g}".format),
    ]


def _signed(difference: Spread | None, in_perplexity: bool) -> Cell:
    cell = perplexity(difference) if in_perplexity else percent(difference)
    plus = "+" if cell.value is not None and cell.value > 0 else ""
    return Cell(f"{plus}{cell.text}", cell.value, cell.std)


def _score(group: Group | None) -> Cell:
    if group is None:
        return NOTHING
    return (perplexity if group.in_perplexity else percent)(group.result("test"))


def _made_by(here: str, there: str, first: Sequence[Group], second: Sequence[Group]) -> Iterator[str]:
    """What else is not the same here and there: code, device, versions."""
    for what, told in _MADE_BY.items():
        old, new = (
            sorted({str(told(run) or "unknown") for group in groups for run in group.runs})
            for groups in (first, second)
        )
        if old != new:
            yield f"{what}: {', '.join(old)} in {here}; {', '.join(new)} in {there}."


def _package(name: str) -> Callable[[Run], object]:
    def version(run: Run) -> object:
        packages = run.environment.get("packages")
        return packages.get(name) if isinstance(packages, Mapping) else None

    return version


_MADE_BY: Mapping[str, Callable[[Run], object]] = {
    "Commit": lambda run: run.environment.get("git_commit"),
    "Device": lambda run: run.environment.get("device"),
    "torch": _package("torch"),
    "transformers": _package("transformers"),
}
