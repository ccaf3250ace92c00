"""`import lezo`: light, and its public names are where they say, for programs and for type checkers."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import lezo


@pytest.mark.parametrize("name", lezo.__all__)
def test_public_names_are_documented(name):
    found = getattr(lezo, name)
    assert found.__name__ == name
    assert inspect.getdoc(found)


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(lezo.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {(a.name, a.asname, node.module) for node in block.body for a in node.names}
    assert told == {(name, name, home) for name, home in lezo._HOMES.items()}
    assert (Path(lezo.__file__).parent / "py.typed").exists()


def test_importing_it_and_looking_around_imports_no_torch():
    code = "import sys, lezo; assert {*lezo.__all__} <= {*dir(lezo)}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(AttributeError, match="module 'lezo' has no attribute 'LEZO'; it has .*LeZO, MeZO"):
        lezo.LEZO  # noqa: B018
