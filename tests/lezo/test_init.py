"""`import lezo`: light, and its public names are where they say, for programs and for type checkers."""

import ast
import inspect
import os
import runpy
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
    (block,) = (n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    told = {(a.name, a.asname, node.module) for node in block.body for a in node.names}
    assert told == {(name, name, home) for name, home in lezo._HOMES.items()}
    assert (Path(lezo.__file__).parent / "py.typed").exists()


def test_importing_it_and_looking_around_imports_no_torch():
    code = "import sys, lezo; assert {*lezo.__all__} <= {*dir(lezo)}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7", "KMP_BLOCKTIME": "1"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
@pytest.mark.parametrize("loaded", [False, True])
def test_threads_that_wait_spin_briefly_unless_the_user_decided(given, expected, loaded, monkeypatch):
    names = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY")
    for name in names:
        monkeypatch.setenv(name, "")  # for it to come back
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "torch", sys)
    if not loaded:
        monkeypatch.delitem(sys.modules, "torch")
    runpy.run_path(lezo.__file__)
    assert {name: os.environ[name] for name in names if name in os.environ} == (given if loaded else expected)


@pytest.mark.parametrize(
    ("given", "loaded", "expected"), [(None, False, "32"), ("1024", False, "1024"), (None, True, None)]
)
def test_onednn_keeps_few_shapes_unless_the_user_decided(given, loaded, expected, monkeypatch):
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.setenv(name, given or "")
    if given is None:
        monkeypatch.delenv(name)
    monkeypatch.setitem(sys.modules, "torch", sys)
    if not loaded:
        monkeypatch.delitem(sys.modules, "torch")
    runpy.run_path(lezo.__file__)
    assert os.environ.get(name) == expected


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(AttributeError, match="module 'lezo' has no attribute 'LEZO'; it has .*LeZO, MeZO"):
        lezo.LEZO  # noqa: B018
