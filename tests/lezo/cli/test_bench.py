"""lezo-bench from its command line to its exit code, its words and its folder."""

import json
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from lezo.bench import timing
from lezo.bench.table import PHASES, RATIOS, Peak
from lezo.bench.timing import alone
from lezo.cli import bench
from lezo.config.compose import compose
from lezo.config.schema import BenchVariant
from tests.lezo.refusals import names
from tests.lezo.whole_runs import try_rows_once

SMALL = ["task.num_train=24", "task.num_dev=8", "task.num_test=8", "train.batch_size=2", "model.device=cpu"]
NAMES = {name.value for name in BenchVariant} - {
    "published"
}  # which is another's code, in a folder of its own


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder; the signal handler comes back afterwards."""
    monkeypatch.chdir(tmp_path)
    try_rows_once()
    handler = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, handler)


def benched(*overrides: str, patch: pytest.MonkeyPatch) -> Any:
    """Run lezo-bench in this process; its exit code."""
    patch.setattr(sys, "argv", ["lezo-bench", *SMALL, *overrides])
    with pytest.raises(SystemExit) as ended:
        bench.main()
    return ended.value.code


@pytest.fixture
def children_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each variant's memory is measured in this process: one of its own takes ten seconds to start."""

    def child(command: Sequence[str]) -> Peak:
        assert command[:3] == [sys.executable, "-m", "lezo.cli.bench"]
        config = compose(command[3:]).config
        assert config.bench.variant is not None
        return alone(config, config.bench.variant)

    monkeypatch.setattr(timing, "measured_in_a_child", child)


def test_a_bench_leaves_its_whole_folder(
    here: Path, children_here: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["bench.repeats=2", "bench.textbook_repeats=1", "bench.profile=true", "optim.sparsity=0.5"]
    assert benched("task=cb", *given, patch=monkeypatch) == 0
    (folder,) = (here / "runs" / "bench" / "cb" / "tiny").iterdir()
    files = {"config.yaml", "environment.json", "metrics.jsonl", "bench.json", "table.md", "steps.png"}
    assert {file.name for file in folder.iterdir()} == files | {".lock", "trace.json"}
    result = json.loads((folder / "bench.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    _check_variants(result["variants"], rows)
    assert result["ratios"] == {
        f"{a}/{b}": None
        if a == "published"
        else result["variants"][a]["step_seconds"] / result["variants"][b]["step_seconds"]
        for a, b in RATIOS
    }
    assert {name: found["steps"] for name, found in result["window"].items()} == {"mezo": 4, "lezo": 4}
    assert result["gauges"] == {"absent": "no clocks or power are read on a CPU"}
    assert (result["task"], result["model"], result["blocks"]) == ("cb", "tiny", "4 of 8 blocks skipped")
    tokens = result["batch"]["tokens"]
    assert result["batch"]["examples"] == 2
    assert 0 < tokens["real"] <= tokens["padded"] and tokens["padded"] % (2 * 3 * 8) == 0
    assert yaml.safe_load((folder / "config.yaml").read_text())["bench"]["repeats"] == 2
    out, err = capsys.readouterr()
    assert "error" not in err
    assert (folder / "table.md").read_text() in out and str(folder.relative_to(here)) in out
    assert json.loads((folder / "trace.json").read_text())["traceEvents"]


def _check_variants(variants: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Each variant says the medians of its rows, those that warmed up left out."""
    assert set(variants) == NAMES
    for name, found in variants.items():
        timed = [row["seconds"] for row in rows if row["variant"] == name and row["step"] > 0]
        assert found["steps"] == len(timed) == (1 if name.startswith("textbook") else 2)
        assert found["step_seconds"] == statistics.median(timed)
        assert found["spread"] == {"min": min(timed), "median": statistics.median(timed), "max": max(timed)}
        assert set(found["phases"]) == {*PHASES, "other"}
        assert 0 < found["phases"]["forward"] < found["spread"]["max"]
        assert 2**26 < found["peak_bytes"] < 2**36
        assert found["error"] is None


def test_one_variant_alone_prints_its_memory_and_writes_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benched("task=copa", "optim=mezo", "bench.variant=textbook_lezo", patch=monkeypatch) == 0
    peak = json.loads(capsys.readouterr().out)
    assert set(peak) == {"bytes", "seconds", "error", "reserved"}
    assert peak["bytes"] > 2**26 and peak["seconds"] > 0 and peak["error"] is None
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    "bad",
    [
        *("optim=none", "optim=fo-sgd", "dry_run=true", "bench.repeats=0", "bench.variant=published"),
        *("model.home=disk", "-m"),
    ],
)
def test_a_bad_configuration_ends_with_2(
    bad: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benched(bad, patch=monkeypatch) == 2
    out, err = capsys.readouterr()
    assert out == ""
    names(err, f"error: {bad}: ")
    assert not list(here.iterdir())


def test_data_that_cannot_be_read_end_with_1(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benched("data=local", "data.path=.", patch=monkeypatch) == 1
    names(
        capsys.readouterr().err,
        "error: ",
        "no rows in it; expected rte/train.jsonl and val.jsonl, or tables: ",
    )


def test_a_folder_without_mezos_code_ends_with_1(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benched("bench.mezo_path=elsewhere", patch=monkeypatch) == 1
    names(capsys.readouterr().err, "error: bench.mezo_path=elsewhere: ", "trainer.py")


def test_a_folder_that_holds_a_run_is_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "taken").mkdir()
    (here / "taken" / "config.yaml").touch()
    assert benched("hydra.run.dir=taken", patch=monkeypatch) == 1
    names(capsys.readouterr().err, "error: taken: ", "hydra.run.dir=DIR")


def test_help_names_its_own_options() -> None:
    """As a command, which is how each variant's memory is measured."""
    command = [sys.executable, "-m", "lezo.cli.bench", "--help"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    options = (
        "bench.repeats",
        "bench.textbook_repeats",
        "bench.window",
        "bench.profile=false",
        "bench.mezo_path=DIR",
    )
    assert all(f"\n  {option} " in out for option in options)
    assert all(name in out for name in NAMES)
