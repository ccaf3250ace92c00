"""Every number of a report again, in plain Python from the run folders alone: nothing of lezo.report computes here."""

import csv
import json
import random
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from lezo.config.schema import ReportConfig
from lezo.report.write import write as report
from tests.lezo.run_folders import config, result, rows, write

Row = dict[str, str]
PHASES = ("data", "forward", "perturb", "update")
COST = {"mezo": 2, "lezo": 2, "fo-sgd": 3}


def made(folder: Path, seed: int, chance: random.Random, **changes: Any) -> None:
    """A run with numbers of its own everywhere."""
    metrics = rows([chance.uniform(0.3, 0.8) for _ in range(4)], step=chance.uniform(0.1, 0.3))
    for row in metrics:
        row["phases"] = {phase: chance.uniform(0.001, 0.1) for phase in PHASES} if "phases" in row else None
    lines = [{key: value for key, value in row.items() if value is not None} for row in metrics]
    scores = {name: round(chance.uniform(0.4, 0.9), 4) for name in ("test", "dev", "dev_loss", "zero_shot")}
    memory = {"device": chance.randrange(2**30, 2**34), "host": chance.randrange(2**28, 2**32)}
    seconds = {"total": chance.uniform(10, 99), "step_median": 0.2}
    ended = result(**scores, steps=6, peak_memory_bytes=memory, seconds=seconds)
    write(folder, config(seed=seed, **changes), lines, ended)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two tasks, three methods, one of them at two rates, of four seeds; one run failed, another goes on."""
    folder, chance = tmp_path_factory.mktemp("recomputed"), random.Random(7)
    for task in ("rte", "sst2"):
        for method, rate in (("mezo", 1e-6), ("lezo", 1e-6), ("lezo", 1e-5), ("fo-sgd", 0.1)):
            for seed in range(4):
                place = folder / "runs" / f"{task}-{method}-{rate}-{seed}"
                made(place, seed, chance, task__name=task, optim__name=method, optim__lr=rate)
    broken = folder / "runs" / "rte-mezo-1e-06-3" / "result.json"
    broken.write_text(
        json.dumps(json.loads(broken.read_text()) | {"status": "failed", "error": "out of memory"})
    )
    (folder / "runs" / "sst2-mezo-1e-06-3" / "result.json").unlink()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            "lezo.report.write.plots", lambda groups, files: []
        )  # they have tests of their own, and take their time
        report([folder / "runs"], ReportConfig(out=str(folder)))
    return folder


def found(out: Path) -> list[dict[str, Any]]:
    """What the files of each run hold."""
    every = []
    for folder in sorted((out / "runs").iterdir()):
        file = folder / "result.json"
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        settings = yaml.safe_load((folder / "config.yaml").read_text())
        ended = json.loads(file.read_text()) if file.exists() else {}
        every.append({"folder": str(folder), "config": settings, "result": ended, "rows": lines})
    return every


Name = tuple[str, str, float]  # task, method, learning rate


def name_of(run: Mapping[str, Any]) -> Name:
    optim = run["config"]["optim"]
    return f"{run['config']['task']['name']} (sample)", optim["name"], float(optim["lr"])


@pytest.fixture(scope="module")
def groups(out: Path) -> dict[Name, list[dict[str, Any]]]:
    """The runs of each task, method and rate."""
    sorted_runs: dict[Name, list[dict[str, Any]]] = {}
    for run in found(out):
        sorted_runs.setdefault(name_of(run), []).append(run)
    return sorted_runs


def done(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [run for run in runs if run["result"].get("status") == "finished"]


def table(out: Path, name: str) -> dict[Name, Row]:
    with (out / "tables" / f"{name}.csv").open() as file:
        return {(row["task"], row["method"], float(row["lr"])): row for row in csv.DictReader(file)}


def same(row: Row, column: str, values: Sequence[float]) -> None:
    """The mean of some values, and their sample standard deviation where there are several."""
    assert float(row[column]) == pytest.approx(sum(values) / len(values)), column
    if len(values) > 1:
        mean = sum(values) / len(values)
        std = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
        assert float(row[f"{column}_std"]) == pytest.approx(std, abs=1e-9), column


def chosen(groups: Mapping[Name, list[dict[str, Any]]]) -> set[Name]:
    """Of each task and method, the rate of the lowest mean dev loss."""
    best: dict[tuple[str, str], tuple[float, Name]] = {}
    for name, runs in groups.items():
        loss = statistics.mean(run["result"]["dev_loss"] for run in done(runs))
        best[name[:2]] = min(best.get(name[:2], (loss, name)), (loss, name))
    return {name for _, name in best.values()}


def median_step(run: Mapping[str, Any]) -> float:
    return statistics.median(sum(row["phases"].values()) for row in run["rows"] if "phases" in row)


def target(groups: Mapping[Name, list[dict[str, Any]]], task: str) -> float:
    """The dev loss that all finished runs at chosen rates reach."""
    return max(
        min(row["dev_loss"] for row in run["rows"] if "dev_loss" in row and row["step"])
        for name in chosen(groups)
        if name[0] == task
        for run in done(groups[name])
    )


def test_scores(out: Path, groups: dict[Name, list[dict[str, Any]]]) -> None:
    for kind in ("results", "methods", "sparsity"):
        for name, row in table(out, kind).items():
            runs = done(groups[name])
            same(row, "test_percent", [100 * run["result"]["test"] for run in runs])
            same(row, "dev_loss", [run["result"]["dev_loss"] for run in runs])
            assert int(row["seeds"]) == len(runs)
    results = table(out, "results")
    assert results.keys() == groups.keys() and {len(done(runs)) for runs in groups.values()} == {3, 4}
    for name, row in results.items():
        same(row, "dev_percent", [100 * run["result"]["dev"] for run in done(groups[name])])
        same(row, "zero_shot_percent", [100 * run["result"]["zero_shot"] for run in done(groups[name])])
        assert int(row["runs"]) == len(groups[name])
    assert {name for name, row in results.items() if "\u2605" in row["lr_chosen"]} == {
        name for name in chosen(groups) if name[1] == "lezo"
    }
    assert table(out, "methods").keys() == chosen(groups)


def test_times(out: Path, groups: dict[Name, list[dict[str, Any]]]) -> None:
    for kind in ("speed", "methods"):
        for name, row in table(out, kind).items():
            same(row, "seconds_a_step", [median_step(run) for run in done(groups[name])])
            aim = target(groups, name[0])
            reached = [
                next((r for r in run["rows"] if "dev_loss" in r and r["step"] and r["dev_loss"] <= aim), None)
                for run in groups[name]
            ]
            there = [dev for dev in reached if dev is not None]
            assert float(row["reached_by"]) == pytest.approx(len(there) / len(reached))
            if there:
                same(row, "steps_to_target", [dev["step"] for dev in there])
                same(row, "seconds_to_target", [dev["seconds"] for dev in there])
                same(row, "forwards_to_target", [dev["step"] * COST[name[1]] for dev in there])
    for name, row in table(out, "methods").items():
        same(row, "forwards", [run["result"]["steps"] * COST[name[1]] for run in done(groups[name])])
    for name, row in table(out, "phases").items():
        each = [[r["phases"] for r in run["rows"] if "phases" in r] for run in done(groups[name])]
        mean = {
            phase: statistics.mean(statistics.mean(row[phase] for row in run) for run in each)
            for phase in PHASES
        }
        assert [float(row[f"{phase}_s"]) for phase in PHASES] == pytest.approx([*mean.values()])
        assert float(row["forward_share_percent"]) == pytest.approx(
            100 * mean["forward"] / sum(mean.values())
        )


def test_memory(out: Path, groups: dict[Name, list[dict[str, Any]]]) -> None:
    for kind in ("memory", "methods"):
        for name, row in table(out, kind).items():
            for column, key in (("gpu_gib", "device"), ("host_gib", "host")):
                peaks = [run["result"]["peak_memory_bytes"][key] for run in groups[name] if run["result"]]
                assert float(row[column]) == pytest.approx(max(peaks) / 2**30)


def test_every_run_in_csv_and_parquet(out: Path) -> None:
    pandas = pytest.importorskip("pandas")
    runs = {run["folder"]: run for run in found(out)}
    for data in (pandas.read_csv(out / "results.csv"), pandas.read_parquet(out / "results.parquet")):
        assert {*data["folder"]} == runs.keys() and len(data) == len(runs)
        for row in data.to_dict("records"):
            run = runs[row["folder"]]
            optim, ended = run["config"]["optim"], run["result"]
            assert (row["task"], row["optimizer"]) == (run["config"]["task"]["name"], optim["name"])
            assert (row["seed"], row["lr"]) == (run["config"]["seed"], optim["lr"])
            assert (row["num_train"], row["batch_size"], row["steps"]) == (1000, 16, 20000)
            for column in ("test", "dev", "dev_loss", "zero_shot"):
                assert row[column] == ended[column] if ended else pandas.isna(row[column])
            assert row["peak_host_bytes"] == ended["peak_memory_bytes"]["host"] if ended else True
            assert row["seconds_total"] == pytest.approx(ended["seconds"]["total"]) if ended else True
            assert pandas.isna(row["eps"]) == ("eps" not in optim)
    with (out / "tables" / "runs.csv").open() as file:
        told = {row["folder"]: row for row in csv.DictReader(file)}
    for folder, run in runs.items():
        score = run["result"].get("test")
        assert (
            told[folder]["test_percent"] == ""
            if score is None
            else float(told[folder]["test_percent"]) == pytest.approx(100 * score)
        )


def test_the_page_of_the_docs_reads_them(
    out: Path, groups: dict[Name, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path(__file__).parents[3] / "docs" / "results.md"
    (code,) = re.findall(
        r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    monkeypatch.chdir(out)
    names: dict[str, Any] = {}
    exec(code, names)
    for (task, method, rate), runs in groups.items():
        row = names["scores"].loc[(task.removesuffix(" (sample)"), "tiny", method, rate)]
        tests = [run["result"]["test"] for run in done(runs)]
        assert (row["mean"], row["std"]) == pytest.approx((statistics.mean(tests), statistics.stdev(tests)))
        assert row["count"] == len(tests)


def bold(groups: Mapping[Name, list[dict[str, Any]]], task: str) -> set[Name]:
    """The best of a task, and what a paired t-test over common seeds does not tell from it."""
    stats: Any = pytest.importorskip("scipy.stats")
    scores = {
        name: {run["config"]["seed"]: run["result"]["test"] for run in done(groups[name])}
        for name in chosen(groups)
        if name[0] == task
    }
    top = max(scores, key=lambda name: statistics.mean(scores[name].values()))
    alike = {top}
    for name, values in scores.items():
        seeds = sorted(values.keys() & scores[top].keys())
        pair = [[of[seed] for seed in seeds] for of in (values, scores[top])]
        tested = name != top and len(seeds) >= 3
        alike |= {name} if tested and stats.ttest_rel(*pair).pvalue >= 0.05 else set()
    return alike


def as_text(values: Sequence[float]) -> str:
    return rf"{statistics.mean(values):.1f} \pm {statistics.stdev(values):.1f}"


def test_latex_and_page(out: Path, groups: dict[Name, list[dict[str, Any]]]) -> None:
    for name, texts in {"results": groups.keys(), "methods": chosen(groups)}.items():
        text = (out / "tables" / f"{name}.tex").read_text()
        expected = {n: as_text([100 * run["result"]["test"] for run in done(groups[n])]) for n in texts}
        marked = {expected[n] for task in ("rte (sample)", "sst2 (sample)") for n in bold(groups, task)}
        assert {*re.findall(r"\\mathbf\{(.*?)\}", text)} == marked
        assert all(f"${one}$" in text for one in {*expected.values()} - marked)
        page = (out / "report.html").read_text().split(f'<table id="{name}">')[1].split("</table>")[0]
        assert {*re.findall("<strong>(.*?)</strong>", page)} == {one.replace(r"\pm", "±") for one in marked}
