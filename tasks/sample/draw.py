"""Where do the choices of a generated text come from? From a `Draw`."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, TypeVar

T = TypeVar("T")

Row = dict[str, Any]  # one example in its hub's format


class Draw:
    """Choices from one stream, which its key names.

    Everything goes through `random()`, whose values Python promises to keep for a given seed; `choice` and
    `shuffle` have changed between versions.
    """

    def __init__(self, *key: str | int) -> None:
        self._random = Random("/".join(str(part) for part in key)).random

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._random() < probability

    def below(self, n: int) -> int:
        """A uniform integer in [0, n)."""
        return int(self._random() * n)

    def pick(self, items: Sequence[T]) -> T:
        """One item, each place equally likely, so that an item given twice is twice as likely."""
        return items[self.below(len(items))]

    def several(self, items: Sequence[T], k: int) -> list[T]:
        """k items from different places, in random order."""
        left = list(items)
        return [left.pop(self.below(len(left))) for _ in range(k)]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """All items in random order."""
        return self.several(items, len(items))
