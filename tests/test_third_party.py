"""A package of others registers a method's parts, a method made of them, and a task; lezo's commands take them by name."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore

import lezo
from lezo.cli import replay, report, run
from lezo.config.compose import store_options
from lezo.tasks.registry import declared
from tests.lezo.whole_runs import SMALL, typed

METHOD = """
from dataclasses import dataclass

from lezo.config.methods import Composition, Method, Part, ZerothOrderConfig
from lezo.config.ranges import COUNT, ranged


@dataclass
class GreedyConfig(ZerothOrderConfig):
    keep: int = ranged(2, COUNT)
    directions: int = ranged(2, COUNT)


def compose(optim, steps):
    estimator = Part("mean", {"directions": optim.directions})
    return Composition(Part("greedy", {"keep": optim.keep}), Part("signs"), estimator, Part("linear", {"steps": steps}))


METHOD = Method("greedy", GreedyConfig, compose=compose, forwards=lambda optim: 2 * optim.directions)
"""
PARTS = '''
import torch
from lezo.noise import directions, seeds
from lezo.zo.probe import TwoSided


class Greedy:
    """Half of the blocks are those that moved most; the others are drawn."""

    def __init__(self, total, keep):
        self.keep, self.moved = min(keep, total), [0.0] * total

    def __call__(self, step, seed):
        ranked = sorted(range(len(self.moved)), key=lambda block: -self.moved[block])[: self.keep // 2]
        drawn = [b for b in seeds.subset(seed, len(self.moved), self.keep) if b not in ranked]
        return tuple(sorted([*ranked, *drawn][: self.keep]))

    def observe(self, step, blocks, coefficients):
        for block in blocks:
            self.moved[block] = 0.5 * self.moved[block] + sum(map(abs, coefficients))


class Signs:
    """Rademacher: the signs of the Gaussian."""

    def perturb(self, theta, seed, name, eps, *, rows=None, dtype=None, out=None):
        z = directions.perturb(torch.zeros_like(theta), seed, name, 1.0, rows=rows)[0].sign()
        theta = theta if rows is None else theta[rows]
        pair = [(theta + sign * eps * z).to(dtype or theta.dtype) for sign in (1, -1)]
        if out is None:
            return tuple(pair)
        for place, copy in zip(out, pair):
            place.copy_(copy)
        return out

    def update_(self, theta, seed, name, coefficient, decay, *, rounding="nearest"):
        z = directions.perturb(torch.zeros_like(theta), seed, name, 1.0)[0].sign()
        theta.sub_(torch.where(coefficient.isfinite(), coefficient * z + decay * theta, 0.0))


class Mean(TwoSided):
    def __init__(self, site, directions):
        self.probe, self.directions = site.probe(), directions

    def __call__(self, batch, active, *, seed, eps):
        along = [seeds.direction_seed(seed, number) for number in range(self.directions)]
        return torch.cat([self.probe(batch, active, seed=one, eps=eps) for one in along])
'''
TASK = """
from lezo.tasks import Task
from lezo.tasks.task import choice


class Mood(Task):
    name = "mood"

    def examples(self, row):
        return choice(f"{row.text('said')} It was", (" terrible", " great"), row.label("mood", ("bad", "good")))
"""
ENTRIES = {
    "lezo.methods": "greedy = theirs:METHOD",
    "lezo.blocks": "greedy = theirs_parts:Greedy",
    "lezo.directions": "signs = theirs_parts:Signs",
    "lezo.estimators": "mean = theirs_parts:Mean",
    "lezo.tasks": "mood = theirs_task:Mood",
}
RUN = [
    *SMALL,
    "task=mood",
    "optim=greedy",
    "data=local",
    "data.path=rows",
    "train.steps=8",
    "train.eval_every=4",
]
RUN += ["train.checkpoint_every=3", "train.keep_checkpoints=9", "optim.weight_decay=0.1"]


def registers(site: Path, entries: dict[str, str]) -> None:
    """Write what pip would have written of the package's entry points."""
    about = site / "theirs-1.0.dist-info"
    about.mkdir(exist_ok=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("".join(f"[{k}]\n{v}\n" for k, v in entries.items()))


def installed(site: Path) -> None:
    for name, text in {"theirs": METHOD, "theirs_parts": PARTS, "theirs_task": TASK}.items():
        (site / f"{name}.py").write_text(text)
    registers(site, ENTRIES)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which lezo-run, in a process of its own, has trained such a method: ``site``, ``rows`` and ``out``."""
    home = tmp_path_factory.mktemp("third_party")
    (site := home / "site").mkdir()
    installed(site)
    (rows := home / "rows" / "mood").mkdir(parents=True)
    said = [
        {"said": f"{word} {i} .", "mood": mood}
        for i in range(24)
        for word, mood in (("a bore", 0), ("fine", 1))
    ]
    for name in ("train", "val"):
        (rows / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in said))
    ran = subprocess.run(
        [sys.executable, "-m", "lezo.cli.run", *RUN, "hydra.run.dir=out"],
        cwd=home,
        env={**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{Path(lezo.__file__).parents[1]}"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return home


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Command]:
    """The commands in this process, where a copy of the package is installed, beside a copy of the run."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "site")
    mains = {"lezo-run": run.main, "lezo-replay": replay.main, "lezo-report": report.main}

    def call(name: str, *words: str) -> tuple[int, str, str]:
        forget()
        return typed(name, mains[name], monkeypatch, capsys)(*words)

    yield call
    forget()
    for name in [name for name in sys.modules if name.startswith("theirs")]:
        del sys.modules[name]


def forget() -> None:
    """What a process knows once it has looked: the next command is another process."""
    declared.cache_clear()
    store_options.cache_clear()
    for group, name in (("optim", "greedy"), ("task", "mood")):
        ConfigStore.instance().repo.get(group, {}).pop(f"{name}.yaml", None)


def result(folder: str) -> dict[str, object]:
    return json.loads((Path(folder) / "result.json").read_text())  # type: ignore[no-any-return]


def test_its_journal_names_the_parts_and_has_a_record_a_direction(trained: Path) -> None:
    journal = lezo.read_journal(trained / "out" / "journal.bin")
    composition = journal.header.recipe.composition
    assert composition is not None
    assert {kind: part["name"] for kind, part in composition.items()} == {
        "blocks": "greedy",
        "direction": "signs",
        "estimator": "mean",
        "step_size": "linear",
    }
    assert composition["blocks"]["settings"] == {"keep": 2}
    steps = list(journal.steps(0, 8))
    assert [(r.step, len(r.values)) for r in steps] == [(n, 2) for n in range(1, 9)]
    rows = [json.loads(line) for line in (trained / "out" / "metrics.jsonl").read_text().splitlines()]
    rates = [row["lr"] for row in rows if "loss" in row]
    assert rates == pytest.approx([3e-4 * (1 - step / 8) for step in range(8)])


@pytest.mark.parametrize("checkpoints", [True, False])
def test_a_killed_run_goes_on_to_the_same_bits(checkpoints: bool, command: Command) -> None:
    """From a checkpoint too: what the chooser of blocks had learned by then is learned from the journal."""
    whole = lezo.read_journal("out/journal.bin")
    shutil.copytree("out", "again")
    for name in ("result.json", "predictions.jsonl"):
        Path("again", name).unlink()
    path = Path("again", "journal.bin")
    path.write_bytes(path.read_bytes()[: whole.cut(7, keeps_dev=False) - 5])  # in the middle of step 7
    rows = Path("again", "metrics.jsonl").read_text().splitlines(keepends=True)
    Path("again", "metrics.jsonl").write_text("".join(rows[: 1 + 1 + 6 + 1]))
    kept = sorted(file.name for file in Path("again/checkpoints").iterdir())
    assert kept == ["step-3", "step-6"]
    shutil.rmtree(f"again/checkpoints/{'step-3' if checkpoints else ''}")
    code, out, err = command("lezo-run", *RUN, "hydra.run.dir=again", "resume=auto")
    assert code == 0, err
    assert "going on with this run after step 6 of 8" in out
    assert lezo.read_journal("again/journal.bin").records == whole.records
    assert result("again")["weights"] == result("out")["weights"]


def test_it_is_replayed_and_verified(command: Command) -> None:
    code, out, err = command("lezo-replay", "out", "replay.verify=true", "replay.device=cpu")
    assert (code, err) == (0, ""), out
    assert "everything is right" in out


def test_it_is_reported(command: Command) -> None:
    code, out, err = command("lezo-report", "out", "report.out=page")
    assert code == 0, err
    text = next(Path("page").glob("*.md")).read_text()
    assert "mood" in text and "greedy" in text
    with Path("page/tables/speed.csv").open() as file:
        (speed,) = csv.DictReader(file)
    assert speed["forwards_a_step"] == "4"  # of two directions


def test_banner_and_dry_run_say_its_parts(command: Command) -> None:
    code, out, _ = command("lezo-run", *RUN, "hydra.run.dir=new", "dry_run=true")
    assert code == 0
    assert (
        "6 of 8 blocks skipped each step; blocks greedy keep=2, direction signs, losses mean directions=2"
        in out
    )
    assert "32 training" in out


def test_its_settings_are_checked_like_ours(command: Command) -> None:
    code, _, err = command("lezo-run", "optim=greedy", "optim.keep=0")
    assert code == 2 and "optim.keep=0: expected a whole number from 1" in err
    code, _, err = command("lezo-run", "optim=greedy", "optim.kep=1")
    assert code == 2 and "optim.kep=1: unknown key; did you mean optim.keep=1?" in err
    code, _, err = command("lezo-run", "optim=gredy")
    assert code == 2 and "optim=gredy: unknown; did you mean greedy?" in err
    code, _, err = command("lezo-run", "task=mood")
    assert code == 1 and "data=sample: there are no made-up rows for task=mood" in err


@pytest.mark.parametrize("group", ["lezo.blocks", "lezo.directions"])
def test_a_journal_whose_part_is_gone_says_so(group: str, command: Command) -> None:
    registers(Path("site"), {k: v for k, v in ENTRIES.items() if k != group})
    name = ENTRIES[group].split()[0]
    code, _, err = command("lezo-replay", "out", "replay.verify=true")
    assert code == 1
    assert f"out/journal.bin: its method cannot be made here: '{name}' is registered by no" in err
    assert f"entry points of {group}" in err
    code, _, err = command("lezo-run", *RUN, "hydra.run.dir=new")
    assert code == 1 and f"'{name}' is registered by no installed package" in err


def test_a_method_or_task_that_is_gone_is_unknown_and_its_run_still_reported(command: Command) -> None:
    registers(Path("site"), {})
    for word in ("optim=greedy", "task=mood"):
        code, _, err = command("lezo-run", word)
        assert code == 2 and f"{word}: unknown; " in err
    code, _, err = command("lezo-report", "out", "report.out=page")
    assert code == 0, err


def test_a_package_that_cannot_be_imported_harms_only_who_asks_for_it(command: Command) -> None:
    for name in ("theirs", "theirs_task"):
        sys.modules.pop(name, None)
        Path("site", f"{name}.py").write_text("import nowhere\n")
    for word in ("optim=greedy", "task=mood"):
        code, _, err = command("lezo-run", word, "dry_run=true")
        assert (
            code == 2
            and "of theirs 1.0 cannot be used (ModuleNotFoundError: No module named 'nowhere')" in err
        )
    code, out, _ = command("lezo-run", *SMALL, "dry_run=true")
    assert code == 0


def test_what_files_name_is_never_imported(command: Command) -> None:
    """Modules that lie at hand, but that no installed package registers."""
    Path("site", "theirs_evil.py").write_text("raise SystemExit('imported')\n")
    for word in ("optim=theirs_evil", "task=theirs_evil", "optim=theirs_evil:METHOD"):
        code, _, err = command("lezo-run", word, "dry_run=true")
        assert code == 2 and "imported" not in err
    assert "theirs_evil" not in sys.modules
