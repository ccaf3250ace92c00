"""How does a method look? One colour and mark in every figure of a report, a dash for each of its settings. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lezo.config.methods import METHODS
from lezo.report.groups import Group, gathered

# Of figures in files and of the page in light, and of the page in the dark: c0, c1, ...
LIGHT = (
    *("#0072b2", "#d55e00", "#00805f", "#b0568f", "#8a6800", "#3b8fd1", "#7a4fbf", "#5c6670"),
    *("#a3333d", "#4d7c0f"),
)
DARK = (
    *("#56b4e9", "#ff8f4a", "#2fd0a0", "#e79ac8", "#e6c229", "#9ccbff", "#b79bff", "#aab4c0"),
    *("#ff8f96", "#a3d65c"),
)
# Of what is no method, such as a step's phases: g0, g1, ...
GREYS = ("#c7ccd3", "#8a929d", "#565e69", "#23282f")
DARK_GREYS = ("#454c56", "#737c87", "#a3abb5", "#e0e4e9")
MARKS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ((), (5, 2), (1, 1.5), (6, 2, 1, 2), (3, 1), (8, 2))
_FIRST = ("mezo", "lezo", "fo-sgd", "fo-adamw")  # have the first colours in every report

_Name = tuple[str, str, str, str]  # of a group: its task, model, method and setting


@dataclass(frozen=True)
class Look:
    """A colour by its place among the palette's, a mark, a dash in points, and the words of a legend."""

    colour: int
    mark: str
    dash: tuple[float, ...]
    label: str


@dataclass(frozen=True)
class Palette:
    """The looks of a report's methods, and of each task's settings."""

    methods: Sequence[str]
    labels: Mapping[_Name, str]
    dashes: Mapping[_Name, int]

    def colour(self, method: str) -> int:
        """The place of a method's colour; those beyond the palette's end begin anew, with other marks."""
        return self.methods.index(method) % len(LIGHT)

    def mark(self, method: str) -> str:
        """The shape of a method's points, for those who see or print no colours."""
        return MARKS[self.methods.index(method) % len(MARKS)]

    def look(self, group: Group) -> Look:
        """A group's: its method's colour and mark, and its setting's dash."""
        name = _name(group)
        dash = DASHES[self.dashes[name] % len(DASHES)]
        return Look(self.colour(group.method), self.mark(group.method), dash, self.labels[name])


def palette(groups: Sequence[Group]) -> Palette:
    """The looks of all groups of a report; a method has the same in each of them, and the first four in every report."""
    known = [*_FIRST, *METHODS]
    others = {group.method for group in groups} - {*_FIRST}
    place = {name: known.index(name) for name in others & {*known}}
    methods = [*_FIRST, *sorted(others, key=lambda name: (place.get(name, len(known)), name))]
    labels: dict[_Name, str] = {}
    dashes: dict[_Name, int] = {}
    for same in gathered(groups, lambda group: (group.title, group.model, group.method)).values():
        chosen = [group for group in same if group.best]
        for number, group in enumerate([*chosen, *(group for group in same if not group.best)]):
            dashes[_name(group)] = number
            labels[_name(group)] = _label(group, chosen if group.best else same)
    return Palette(methods, labels, dashes)


def _name(group: Group) -> _Name:
    return group.title, group.model, group.method, group.setting


def _label(group: Group, others: Sequence[Group]) -> str:
    """The method, and what of its setting not all of the others have: "lezo, sparsity 0.5"."""
    shared = set.intersection(*({*other.said.items()} for other in others))
    apart = [f"{key} {value}" for key, value in group.said.items() if (key, value) not in shared]
    label = ", ".join([group.method, *apart])
    return label if len(label) <= 60 else f"{label[:59]}\u2026"
