"""Who may import whom, and other rules of the house, read from the code."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(file for package in ("lezo", "tasks") for file in (ROOT / package).rglob("*.py"))
RUN_LEVEL = {
    "run",
    "compose",
    "outcome",
    "job",
    "build",
    "plan",
    "prepare",
    "device",
    "banner",
    "show",
    "replay",
    "remade",
}
SWEEP_LEVEL = {"sweep", "sweep_jobs", "sweep_launched", "launched"}
BENCH_LEVEL = {"bench", "contest", "variants", "bench_report"}
REPORT_LEVEL = {"report", "run_groups", "dashboard"}

DOORS = {
    "hydra": {
        *("lezo.run", "lezo.launched", "lezo.compose", "lezo.sweep_jobs", "lezo.sweep_launched"),
        *("lezo.show", "lezo.bench"),
    },
    "transformers": {
        "lezo.weights",
        "lezo.model",
        "lezo.prefix",
        "lezo.adapter",
        "lezo.generation",
        "lezo.tiny.pretrain",
        "lezo.trainer",
    },
    "peft": {"lezo.adapter"},
    "datasets": {"tasks.source"},
    "wandb": {"lezo.mirror", "lezo.mirror_start", "lezo.workspace"},
    "wandb_workspaces": {"lezo.workspace"},
    "triton": {"lezo.kernels.normal", "lezo.kernels.perturb", "lezo.kernels.update"},
    "rich": {
        "lezo.story",
        "lezo.sweep",
        "lezo.sweep_table",
        "lezo.outcome",
        "lezo.job",
        "lezo.remade",
        "lezo.contest",
    },
    "matplotlib": {"lezo.bench_report", "lezo.report_plots"},
    "lezo.config": {f"lezo.{name}" for name in RUN_LEVEL | SWEEP_LEVEL | BENCH_LEVEL | REPORT_LEVEL},
}


def module_of(file: Path) -> str:
    """The dotted name of a file."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in FILES}


def imports(file: Path, *, at_start: bool = False) -> Iterator[str]:
    """The modules a file imports, in full; ``at_start``: only those that importing it imports."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in _at_start(tree) if at_start else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{file}: a relative import"
            inner = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in MODULES else node.module for name in inner)


def _at_start(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run on import: not those in functions or under TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from _at_start(child)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("library", DOORS)
def test_each_library_has_its_doors(library: str) -> None:
    users = {
        name for name, file in MODULES.items() if any(within(imported, library) for imported in imports(file))
    }
    assert users <= DOORS[library]
    assert users, f"nothing imports {library}: the rule is out of date"


@pytest.mark.parametrize("module", [name for name in MODULES if within(name, "tasks")])
def test_tasks_are_words_only(module: str) -> None:
    names = set(imports(MODULES[module]))
    assert not [
        name for name in names if any(within(name, other) for other in ("torch", "transformers", "lezo"))
    ]


def test_no_two_modules_need_each_other() -> None:
    graph = {
        name: {imported for imported in imports(file) if imported in MODULES and imported != name}
        for name, file in MODULES.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError with the cycle


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_files_are_named_after_concepts(file: Path) -> None:
    assert file.stem not in {"utils", "util", "common", "misc", "helpers", "helper", "tools"}
    assert file.stem not in sys.stdlib_module_names


@pytest.mark.parametrize("package", ["lezo", "tasks", "lezo.tiny", "lezo.kernels", "tasks.sample"])
def test_importing_a_package_imports_nothing_heavy(package: str) -> None:
    assert package in MODULES
    heavy = {"torch", "transformers", "datasets", "wandb", "hydra"}
    assert not {name.split(".")[0] for name in imports(MODULES[package], at_start=True)} & heavy


@pytest.mark.parametrize(
    "module",
    [
        "lezo.run",
        "lezo.compose",
        "lezo.config",
        "lezo.show",
        "lezo.replay",
        "lezo.bench",
        "lezo.report",
        "lezo.report_page",
        "lezo.dashboard",
        "lezo.workspace",
        "lezo.sweep",
        "lezo.launched",
    ],
)
def test_the_commands_start_without_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers', 'datasets', 'wandb', 'matplotlib'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_noise_needs_neither_compiler_before_its_first_use() -> None:
    code = "import sys, lezo.noise; print(sorted({'numba', 'triton'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_loop_is_under_fifty_lines() -> None:
    tree = ast.parse((ROOT / "lezo" / "train.py").read_text())
    (loop,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "train")
    assert loop.end_lineno is not None
    assert loop.end_lineno - loop.lineno + 1 < 50
