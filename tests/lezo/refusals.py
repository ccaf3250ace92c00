"""An error by its class and by the keys and files that it names: what it says besides is told by one test of each."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def refused(
    kind: type[Exception] | tuple[type[Exception], ...], *named: str
) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """The block ends with that error, of one line, which names all of these."""
    with pytest.raises(kind) as caught:
        yield caught
    names(str(caught.value), *named)


def names(said: str, *named: str) -> None:
    """What is said is one line and names all of these."""
    assert "\n" not in said.rstrip("\n")
    assert [name for name in named if name not in said] == [], said
