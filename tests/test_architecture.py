"""The rooms of the house: which floor each stands on, who may open which library, and other rules read from the code."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# An import only ever points to a room further up in this list.
FLOORS = (
    ("tasks", "noise", "ranks"),
    ("config", "data"),
    ("records",),
    ("model",),
    ("zo", "tracking", "report"),
    ("runs",),
    ("sweeps", "bench"),
    ("cli",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# Who may import a library or a room that not everybody may.
DOORS = {
    "hydra": {"config.compose", "config.diagnosis", "sweeps", "cli"},
    "transformers": {"model", "zo.trainer"},
    "peft": {"model.adapter"},
    "datasets": {"data.roles", "data.source"},
    "pyarrow": {"data.tables", "report.runs_table"},
    "jinja2": {"tasks.template"},
    "wandb": {"tracking"},
    "wandb_workspaces": {"tracking.workspace"},
    "triton": {"noise.kernels"},
    "torch.distributed": {"ranks", "sweeps.ranked"},
    "rich": {"runs", "sweeps", "bench.bits", "bench.qualify", "bench.timing"},
    "msgspec": {"records"},
    "matplotlib": {"bench.page", "bench.table", "report.plots"},
    # The engine knows no configuration; zo.parts finds what config.methods names.
    "lezo.config": {"config", "records.reader", "zo.parts", "runs", "sweeps", "bench", "report", "cli"},
}


def module_of(file: Path) -> str:
    """The dotted name of a file within lezo."""
    parts = file.relative_to(ROOT / "lezo").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def files() -> Iterator[Path]:
    yield from (ROOT / "lezo").rglob("*.py")
    yield from (
        file for file in (ROOT / "lezo" / "tasks").rglob("*.py")
    )  # a link, which rglob may not follow


MODULES = {module_of(file): file for file in sorted({*files()})}


def room_of(module: str) -> str:
    return module.split(".")[0]


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def imports(file: Path, *, at_start: bool = False) -> frozenset[str]:
    """The modules a file imports, in full; ``at_start``: only those that importing it imports."""
    return frozenset(_imported(file, _at_start(parsed(file)) if at_start else ast.walk(parsed(file))))


def _imported(file: Path, nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{file}: a relative import"
            inner = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name.removeprefix("lezo.") in MODULES else node.module for name in inner)


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


def inner_imports(module: str) -> set[str]:
    """The modules of lezo that one of them imports."""
    found = {name.removeprefix("lezo.") for name in imports(MODULES[module]) if within(name, "lezo")}
    return {name for name in found if name in MODULES and name != module}


def arrows() -> dict[tuple[str, str], int]:
    """How many imports go from a room to another."""
    counts: dict[tuple[str, str], int] = {}
    for module in MODULES:
        for imported in inner_imports(module):
            pair = room_of(module), room_of(imported)
            if module and pair[0] != pair[1]:
                counts[pair] = counts.get(pair, 0) + 1
    return counts


def drawing() -> str:
    """The rooms by floor, the lowest first, with what each imports."""
    lines, counts = [], sorted(arrows().items())
    for floor, rooms in enumerate(FLOORS):
        for room in rooms:
            size = sum(room_of(module) == room for module in MODULES)
            goes = ", ".join(f"{to} {n}" for (of, to), n in counts if of == room)
            lines.append(f"{floor}  {room:<9} {size:>3} files  -> {goes or 'nothing'}")
    return "\n".join(lines)


def test_imports_between_rooms_go_one_way() -> None:
    print(drawing())  # pytest -rP tests/test_architecture.py shows it
    wrong = [f"{of} -> {to}" for of, to in arrows() if FLOOR[of] <= FLOOR[to]]
    assert not wrong, drawing()


def test_every_module_is_in_a_room_that_says_its_law() -> None:
    assert {room_of(module) for module in MODULES} == {"", *FLOOR}
    for room in FLOOR:
        assert ast.get_docstring(parsed(MODULES[room])), room


def test_no_two_modules_need_each_other() -> None:
    TopologicalSorter(
        {module: inner_imports(module) for module in MODULES}
    ).prepare()  # raises with the cycle


@pytest.mark.parametrize("library", DOORS)
def test_each_library_has_its_doors(library: str) -> None:
    users = {
        module for module, file in MODULES.items() if any(within(name, library) for name in imports(file))
    }
    assert users, f"nothing imports {library}: the rule is out of date"
    assert not {user for user in users if not any(within(user, door) for door in DOORS[library])}


@pytest.mark.parametrize("room", ["tasks", "config", "report"])
def test_rooms_without_torch(room: str) -> None:
    for module, file in MODULES.items():
        if room_of(module) == room:
            assert not {name.split(".")[0] for name in imports(file)} & {"torch", "transformers"}, module


def test_files_are_named_after_concepts() -> None:
    vague = {"utils", "util", "common", "misc", "helpers", "helper", "tools"}
    for module in MODULES:
        name = module.rpartition(".")[2]
        assert name not in vague | sys.stdlib_module_names, module


def test_every_test_stands_where_the_module_does() -> None:
    rooms = {file.parent.name for file in (ROOT / "tests" / "lezo").glob("*/test_*.py")}
    assert rooms <= FLOOR.keys()


@pytest.mark.parametrize("package", ["", *FLOOR, "model.tiny", "noise.kernels", "tasks.sample"])
def test_importing_a_package_imports_nothing_heavy(package: str) -> None:
    heavy = {"torch", "transformers", "datasets", "wandb", "hydra"}
    assert not {name.split(".")[0] for name in imports(MODULES[package], at_start=True)} & heavy


LIGHT = [
    *("config.compose", "config.schema", "report.write", "tracking.workspace"),
    *("sweeps.sweep", "sweeps.hydra_job"),
    *("cli.run", "cli.show", "cli.replay", "cli.bench", "cli.qualify", "cli.report", "cli.dashboard"),
]
JOURNAL = ROOT / "tests" / "before" / "lezo" / "journal.bin"
HEAVY = """
import importlib, json, sys

def imported(*libraries):
    return sorted({*libraries} & set(sys.modules))

found = {}
for module in json.loads(sys.argv[1]):
    importlib.import_module(f"lezo.{module}")
    found[module] = imported("torch", "transformers", "datasets", "wandb", "matplotlib")
import lezo
lezo.read_journal(sys.argv[2])
found["a journal"] = imported("torch", "transformers")
import lezo.noise.directions
found["the noise"] = imported("numba", "triton")
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def heavy() -> dict[str, list[str]]:
    """Which large libraries one process has imported after each of these, one after the other."""
    command = [sys.executable, "-c", HEAVY, json.dumps(LIGHT), str(JOURNAL)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("module", LIGHT)
def test_the_commands_start_without_torch(module: str, heavy: dict[str, list[str]]) -> None:
    assert heavy[module] == []


def test_reading_a_journal_needs_neither_torch_nor_transformers(heavy: dict[str, list[str]]) -> None:
    assert heavy["a journal"] == []


def test_the_noise_needs_neither_compiler_before_its_first_use(heavy: dict[str, list[str]]) -> None:
    assert heavy["the noise"] == []


def test_the_loop_is_under_fifty_lines() -> None:
    body = parsed(MODULES["runs.loop"]).body
    (loop,) = (node for node in body if isinstance(node, ast.FunctionDef) and node.name == "train")
    assert loop.end_lineno is not None
    assert loop.end_lineno - loop.lineno + 1 < 50


def test_the_root_holds_nothing_that_somebody_left_there() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a checkout")
    expected = {"LICENSE", "README.md", "conf", "docs", "lezo", "pyproject.toml", "runs", "tasks", "tests"}
    found = {name.split("/")[0] for name in listed.stdout.splitlines()}
    assert {name for name in found if not name.startswith(".")} <= expected
