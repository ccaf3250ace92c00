"""The house rules that the code itself can show: who imports whom, and how long the loop is."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RUN_LEVEL = {"run", "outcome", "job", "plan", "prepare", "banner", "compose", "config", "sweep", "show"}
DOORS = {  # library -> the only modules of lezo/ and tasks/ that may open it
    "hydra": {"lezo.run", "lezo.compose", "lezo.sweep", "lezo.show"},
    "transformers": {"lezo.model", "lezo.evaluate", "lezo.tiny.pretrain"},
    "datasets": {"tasks.source"},
    "wandb": {"lezo.mirror"},
}


def modules() -> dict[str, ast.Module]:
    files = [*ROOT.glob("lezo/**/*.py"), *ROOT.glob("tasks/**/*.py")]
    return {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
            file.read_text()
        )
        for file in files
    }


def imported(tree: ast.AST) -> set[str]:
    """Every module that a file imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def arrows() -> dict[str, set[str]]:
    """Module -> the project's modules that it imports."""
    found = modules()
    return {name: (imported(tree) & found.keys()) - {name, "lezo", "tasks"} for name, tree in found.items()}


def test_tasks_know_words_only():
    for name, tree in modules().items():
        if name.startswith("tasks"):
            assert not {i.split(".")[0] for i in imported(tree)} & {
                "torch",
                "lezo",
                "transformers",
                "hydra",
            }, name


@pytest.mark.parametrize("library", DOORS)
def test_each_library_has_one_door(library):
    opened = {n for n, tree in modules().items() if library in {i.split(".")[0] for i in imported(tree)}}
    assert opened == DOORS[library]


def test_parts_take_plain_arguments_and_never_the_configuration():
    importers = {n for n, targets in arrows().items() if targets & {"lezo.config", "lezo.compose"}}
    assert importers <= {f"lezo.{name}" for name in RUN_LEVEL}


def test_imports_go_one_way():
    remaining = arrows()
    while remaining:
        free = [name for name, targets in remaining.items() if not targets & remaining.keys()]
        assert free, f"a cycle among {sorted(remaining)}"
        for name in free:
            del remaining[name]


def test_no_module_has_a_name_that_says_nothing():
    names = {name.split(".")[-1] for name in modules()}
    assert not names & {"utils", "util", "common", "misc", "helpers", "core", "base"}


def test_no_top_module_of_lezo_shadows_the_standard_library():
    assert (
        not {name.split(".")[1] for name in modules() if name.startswith("lezo.")} & sys.stdlib_module_names
    )


def test_the_loop_stays_under_fifty_lines():
    (loop,) = (
        n for n in modules()["lezo.train"].body if isinstance(n, ast.FunctionDef) and n.name == "train"
    )
    assert loop.end_lineno is not None
    assert loop.end_lineno - loop.lineno + 1 < 50


def test_the_command_line_answers_before_torch_is_imported():
    code = "import sys, lezo.run, lezo.show, lezo.sweep; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["False", "False"]
