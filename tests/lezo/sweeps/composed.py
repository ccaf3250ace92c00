"""The jobs of a sweep compose for a quarter of a second each: for tests, the same one once."""

from collections.abc import Sequence
from functools import cache

from lezo.config.compose import Composed, compose


def compose_once(overrides: Sequence[str], *, config_dir: str | None = None) -> Composed:
    """`compose`, whose results nobody changes."""
    return _composed(tuple(overrides), config_dir)


@cache
def _composed(overrides: tuple[str, ...], config_dir: str | None) -> Composed:
    return compose(overrides, config_dir=config_dir)
