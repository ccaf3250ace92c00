"""What goes by a name: lezo's own things, and those that installed packages have registered.

A package registers by an entry point in its metadata, which stands there since somebody installed it. A name
that a configuration, a journal or a data folder says is only ever looked up here: nothing is imported by what
a file says, but for module:Name in a configuration's task.class and task.metric (see `lezo.tasks.installed`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any, Generic, TypeVar

T = TypeVar("T")
NAME = re.compile(r"[^\W_][\w.-]{0,99}")  # it becomes part of a folder's name


class RegistryError(KeyError):
    """A name that stands for nothing here, or for something that cannot be had; the message says why."""

    def __str__(self) -> str:
        return str(self.args[0])


class Registry(Mapping[str, T], Generic[T]):
    """``own`` by their names, then the entry points of ``group``, each imported when it is first asked for.

    ``convert`` turns what an entry point names into what the registry holds; it raises TypeError for what is
    none. ``get`` takes what cannot be loaded as absent, ``[]`` raises RegistryError with the reason.
    """

    def __init__(self, group: str, own: Mapping[str, T], convert: Callable[[str, Any], T]) -> None:
        self.group, self._own, self._convert = group, own, convert

    def __getitem__(self, name: str) -> T:
        return self._own[name] if name in self._own else self._load(self._declared(name))

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self.installed()

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from self.installed()

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def installed(self) -> list[str]:
        """The names that packages have registered, and lezo has not; none of them is imported."""
        return sorted({point.name for point in self._points() if point.name not in self._own})

    def _points(self) -> list[EntryPoint]:
        return [point for point in declared(self.group) if NAME.fullmatch(point.name)]

    def _declared(self, name: str) -> EntryPoint:
        points = [point for point in self._points() if point.name == name]
        if not points:
            groups = f"entry points of {self.group}; known: {', '.join(self) or 'none'}"
            way_out = "install the package that registers it"
            raise RegistryError(f"{name!r} is registered by no installed package ({groups}); {way_out}")
        if len({point.value for point in points}) > 1:
            owners = " and ".join(sorted(_owner(point) for point in points))
            raise RegistryError(f"{name!r} of {self.group} is registered by {owners}; uninstall one of them")
        return points[0]

    def _load(self, point: EntryPoint) -> T:
        try:
            return self._convert(point.name, point.load())
        except Exception as error:  # what others' modules do when they are imported
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            problem = f"{point.value} of {_owner(point)} cannot be used ({reason})"
            raise RegistryError(
                f"{point.name!r} of {self.group}: {problem}; mend or uninstall that package"
            ) from error


@cache
def declared(group: str) -> EntryPoints:
    """What installed packages register in a group; to read it takes some milliseconds."""
    return entry_points(group=group)


def _owner(point: EntryPoint) -> str:
    return "a package" if point.dist is None else f"{point.dist.name} {point.dist.version}"
