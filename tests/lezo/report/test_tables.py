"""The tables' numbers, and their Markdown and CSV."""

import csv
import io
from collections import defaultdict
from pathlib import Path

import pytest

from lezo.config.schema import ReportConfig
from lezo.records.reader import Reader, Run
from lezo.report.cells import Cell, Table
from lezo.report.groups import by_task, group_runs, target
from lezo.report.plots.draw import drawings
from lezo.report.tables import tables
from lezo.report.text import comma_separated, markdown
from lezo.report.write import NoRunError, watch
from lezo.report.write import write as report
from tests.lezo.run_folders import config, finished, result, rows, write


def of(folder: Path) -> dict[str, Table]:
    found = group_runs(Reader().runs([folder]))
    targets = {names: target(members, None, None) for names, members in by_task(found).items()}
    return {table.name: table for table in tables(found, targets)}


def told(table: Table) -> list[dict[str, str]]:
    return [dict(zip(table.columns, (cell.text for cell in row), strict=True)) for row in table.rows]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Three seeds of lezo, one of which failed; one of mezo; one killed of another task."""
    for seed, test in enumerate((0.7, 0.8)):
        finished(tmp_path / f"lezo{seed}", (0.7, 0.6, 0.5), seed=seed, test=test)
    write(
        tmp_path / "lezo2",
        config(seed=2),
        rows((0.7,)),
        result(status="failed", error="out | of\n<memory>", test=None, steps=0, seconds={}),
    )
    finished(tmp_path / "mezo", (0.7, 0.65, 0.6), optim__name="mezo", step=0.4, test=0.9)
    killed = write(tmp_path / "killed", config(task__name="sst2"), rows((0.7, 0.6)))
    with (killed / "metrics.jsonl").open("a") as file:
        file.write("?\n")
    return tmp_path


def test_results_are_mean_and_deviation_over_finished_seeds(made: Path) -> None:
    lezo, mezo, killed = told(of(made)["results"])
    assert (lezo["test %"], lezo["seeds"], lezo["runs"]) == ("75.0 ± 7.1", "2", "3")
    assert (mezo["test %"], mezo["seeds"], mezo["published %"]) == ("90.0", "1", "-")
    assert (killed["task"], killed["test %"], killed["seeds"]) == ("sst2 (sample)", "-", "0")


def test_sample_data_have_a_caution_and_no_published_table(made: Path) -> None:
    found = of(made)
    assert "published" not in found
    assert any("synthetic" in note for note in found["results"].notes)


def test_real_data_have_published_rows_and_lezo_the_word_that_there_are_none(tmp_path: Path) -> None:
    finished(tmp_path, data__name="hub", model__name="opt-30b")
    found = of(tmp_path)
    assert {row["method"] for row in told(found["published"])} >= {"MeZO", "AdaLeZO"}
    scores = [row[3] for row in found["published"].rows if row[2].text == "MeZO"]
    assert scores == [Cell("66.4", 66.4), Cell("65.46 ± 1.04", 65.46, 1.04)]
    assert told(found["results"])[0]["published %"] == "none public"
    assert any("in no public source" in note for note in found["results"].notes)
    assert not any("synthetic" in note for note in found["results"].notes)


def test_published_numbers_stand_beside_the_learning_rate_that_dev_losses_choose(tmp_path: Path) -> None:
    big = {"data__name": "hub", "model__name": "opt-30b", "optim__name": "mezo"}
    for rate, loss, test in ((1e-6, 0.5, 0.6), (1e-7, 0.6, 0.9)):
        write(tmp_path / str(rate), config(optim__lr=rate, **big), rows(), result(dev_loss=loss, test=test))
    table = of(tmp_path)["results"]
    rejected, chosen = told(table)
    assert (chosen["setting"], chosen["lr chosen"]) == ("lr 1e-06, eps 0.001", "\u2605 best of 2")
    assert chosen["published %"].startswith("66.4 (MeZO paper")
    assert (rejected["lr chosen"], rejected["published %"]) == ("-", "-")
    assert any("lowest mean dev loss" in note for note in table.notes)
    assert "\u2605 best of 2" in markdown("x", [table]) and "\u2605 best of 2" in comma_separated(table)


def test_without_a_grid_of_learning_rates_there_is_no_such_column(made: Path) -> None:
    table = of(made)["results"]
    assert "lr chosen" not in table.columns
    assert not any("\u2605" in note for note in table.notes)


def test_speed_has_a_step_and_the_way_to_the_target_apart(made: Path) -> None:
    table = of(made)["speed"]
    lezo, mezo, killed = told(table)
    columns = ("seconds a step", "steps to target", "forwards to target", "seconds to target", "reached by")
    assert [lezo[name] for name in columns] == ["0.171", "2", "4", "0.400", "2 of 3"]
    assert [mezo[name] for name in columns] == ["0.171", "4", "8", "1.60", "1 of 1"]
    assert [killed[name] for name in columns] == ["0.171", "-", "-", "-", "-"]
    assert (
        "rte (sample), tiny: the target is a dev loss of 0.6000, the lowest that every finished run reached."
        in table.notes
    )


def test_methods_stand_side_by_side_at_their_chosen_rates_by_dev_loss(tmp_path: Path) -> None:
    """Each at one rate, whatever its test score; the way to a target is asked of the chosen runs alone."""
    losses = {
        ("fo-sgd", 0.1): (0.7, 0.65, 0.6),
        ("lezo", 0.1): (0.7, 0.6, 0.5),
        ("lezo", 0.2): (0.7, 0.7, 0.65),
        ("lezo", 0.3): (0.7, 0.7, 0.68),
    }
    for (optim, rate), dev in losses.items():
        settings = config(optim__name=optim, optim__lr=rate)
        write(tmp_path / f"{optim}{rate}", settings, rows(dev), result(dev_loss=dev[-1], test=rate))
    found = of(tmp_path)
    lezo, sgd = told(found["methods"])
    names = ("test %", "forwards", "steps to target", "forwards to target", "lr chosen")
    assert [sgd[name] for name in names] == ["10.0", "12", "4", "12", "-"]
    assert [lezo[name] for name in names] == ["10.0", "8", "2", "4", "\u2605 best of 3, the lowest"]
    assert (lezo["host GiB"], lezo["seeds"], lezo["reached by"]) == ("1.00", "1", "1 of 1")
    aim = "rte (sample), tiny: the target is a dev loss of 0.6000, the lowest that every finished run at a chosen learning rate reached."
    assert aim in found["methods"].notes and aim in found["speed"].notes


def test_one_method_has_nothing_to_stand_beside(tmp_path: Path) -> None:
    finished(tmp_path / "a", optim__sparsity=0.5)
    finished(tmp_path / "b", optim__sparsity=0.75)
    assert "methods" not in of(tmp_path)


@pytest.mark.parametrize("optim", ["none", "icl", "lp"])
def test_what_takes_no_step_has_a_result_and_no_speed(tmp_path: Path, optim: str) -> None:
    finished(tmp_path, optim__name=optim)
    found = of(tmp_path)
    assert [row["method"] for row in told(found["results"])] == [optim] and "speed" not in found


def test_phases_and_memory_come_from_rows_or_results(made: Path) -> None:
    write(made / "alone", ended=result(task="cb", data="sample", model="tiny", optim="mezo"))
    found = of(made)
    by_name = {row["task"]: row for row in told(found["phases"])}
    assert by_name["sst2 (sample)"]["perturb s"] == "0.050"
    assert by_name["cb (sample)"]["forward s"] == "0.0250"  # of four steps
    memory = {row["task"]: row["host GiB"] for row in told(found["memory"])}
    assert memory == {
        "rte (sample)": "1.00",
        "sst2 (sample)": "0.50 (GPU where there is one)",
        "cb (sample)": "1.00",
    }


def test_sparsity_has_a_table_where_runs_differ_in_it(made: Path) -> None:
    assert [row["sparsity"] for row in told(of(made)["sparsity"])] == ["0", "0.75"]


def test_nothing_is_not_bold_and_ablations_have_no_bold(made: Path) -> None:
    for name, test in (("a", 2.5), ("b", 2.7)):
        chat = config(task__name="chat", optim__name="mezo" if name == "a" else "lezo")
        write(made / name, chat, rows(), result(metric="perplexity", test=test))
    found = of(made)
    bold = [cell.text for row in found["results"].rows for cell in row if cell.best]
    assert sorted(bold) == ["2.50", "90.0"]
    assert not any(cell.best for row in found["sparsity"].rows for cell in row)


def test_runs_that_did_not_finish_and_damage_are_named(made: Path) -> None:
    found = of(made)
    failed, killed = told(found["not-finished"])
    assert (failed["status"], failed["why"], failed["seed"]) == ("failed", "out | of\n<memory>", "2")
    assert killed["status"] == "unfinished" and killed["steps"] == "2"
    (damaged,) = told(found["damaged"])
    assert damaged["what"] == "metrics.jsonl: line 6 not a row of a run"
    assert len(found["runs"].rows) == 5


def test_markdown_has_each_row_in_a_line_and_no_markup_from_files(made: Path) -> None:
    text = markdown("runs", list(of(made).values()))
    assert "## Results" in text and "out \\| of &lt;memory&gt;" in text
    widths = {line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("| rte")}
    assert widths == {12, 17, 11, 10, 7, 16}


def test_csv_has_numbers_apart_from_their_deviations_and_each_setting_apart(made: Path) -> None:
    found = of(made)
    lezo, *_ = csv.DictReader(io.StringIO(comma_separated(found["results"])))
    assert float(lezo["test_percent"]) == pytest.approx(75)
    assert float(lezo["test_percent_std"]) == pytest.approx(7.0710678)
    assert (lezo["seeds"], lezo["published_percent"]) == ("2", "")
    assert (lezo["setting"], lezo["sparsity"]) == ("lr 0.001, eps 0.001, sparsity 0.75", "0.75")
    assert len([*csv.DictReader(io.StringIO(comma_separated(found["runs"])))]) == 5


def test_a_score_that_is_no_accuracy_is_named_where_there_is_one(tmp_path: Path) -> None:
    write(tmp_path / "a", config(task__name="squad"), rows(), result(metric="f1"))
    write(tmp_path / "b", config(), rows(), result(metric="accuracy"))
    runs = [run for folder in ("a", "b") for run in Reader().runs([tmp_path / folder])]
    cases: list[tuple[list[Run], set[str] | None]] = [(runs, {"f1", "accuracy"}), (runs[1:], None)]
    for some, expected in cases:
        table = next(
            one for one in tables(group_runs(some), defaultdict(lambda: None)) if one.name == "results"
        )
        place = table.columns.index("metric") if "metric" in table.columns else None
        assert (None if place is None else {row[place].text for row in table.rows}) == expected
    chart = next(iter(drawings(group_runs(runs))))
    labels = [label.get_text() for label in chart.axes.get_yticklabels()]
    assert any("squad" in one and one.endswith("F1") for one in labels)
    assert all("squad" in one or "accuracy" not in one for one in labels)


def test_csv_has_mezos_sparsity_as_results_csv_has(made: Path) -> None:
    table = of(made)["results"]
    lezo, mezo, _ = csv.DictReader(io.StringIO(comma_separated(table)))
    assert (lezo["sparsity"], mezo["sparsity"]) == ("0.75", "0")
    assert "sparsity" not in told(table)[1]["setting"]


def test_rates_that_diverged_are_counted_and_told(tmp_path: Path) -> None:
    for rate, loss in ((1e-3, 0.5), (1e-2, 0.6)):
        write(tmp_path / str(rate), config(optim__lr=rate), rows(), result(dev_loss=loss))
    lost = {"status": "failed", "dev_loss": None, "test": None}
    error = "5 non-finite losses in a row"
    write(tmp_path / "old", config(optim__lr=1.0), rows(), result(error=error, **lost))
    found = of(tmp_path)
    assert [row["lr chosen"] for row in told(found["results"])] == ["\u2605 best of 3, 1 diverged", "-", "-"]
    assert [row["status"] for row in told(found["not-finished"])] == ["diverged"]


def test_names_and_notes_that_were_given_stand_with_every_run(tmp_path: Path) -> None:
    finished(tmp_path / "new", log__name="first try", log__notes="as Anna proposed", log__wandb=False)
    finished(tmp_path / "old", seed=1)  # its log.name chose where its rows went
    rows_ = [(row["name"], row["notes"]) for row in told(of(tmp_path)["runs"])]
    assert rows_ == [("first try", "as Anna proposed"), ("-", "-")]


def test_a_folder_of_another_programs_result_is_named_and_not_reported(
    made: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    write(made / "foreign", ended={"x": 1})
    out = tmp_path_factory.mktemp("out")
    report([made], ReportConfig(out=str(out)))
    page = (out / "results.md").read_text()
    assert "None" not in page and "no run's: neither configuration nor result says" in page
    assert "5 runs: " in capsys.readouterr().out
    with pytest.raises(NoRunError, match="no run below"):
        report([made / "foreign"], ReportConfig(out=str(out)))


def test_watching_a_folder_without_a_run_waits_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ends(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", ends)
    write(tmp_path / "foreign", ended={"x": 1})
    watch([tmp_path], ReportConfig(out=str(tmp_path / "out")))
    assert capsys.readouterr().out.endswith("\n0 runs\n") and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("steps", "said"), [(4, False), (40, True)])
def test_methods_of_other_budgets_are_not_shown_as_a_comparison_without_a_word(
    steps: int, said: bool, tmp_path: Path
) -> None:
    finished(tmp_path / "a")
    write(tmp_path / "b", config(optim__name="mezo"), rows(), result(steps=steps))
    words = "Rows of one task and model differ in their forwards"
    assert any(note.startswith(words) for note in of(tmp_path)["methods"].notes) is said


def test_what_bends_a_method_is_named_beside_its_rate(tmp_path: Path) -> None:
    bent = {"optim__probes": 2, "optim__schedule": "cosine", "optim__warmup": 3, "optim__clip": 0.5}
    finished(tmp_path / "a", **bent)
    (group,) = group_runs(Reader().runs([tmp_path]))
    assert group.setting.endswith("probes 2, schedule cosine, warmup 3, clip 0.5")
    finished(tmp_path / "b", optim__probes=1, optim__schedule="constant", optim__warmup=0, optim__clip=None)
    plain = group_runs(Reader().runs([tmp_path / "b"]))[0]
    assert plain.setting == "lr 0.001, eps 0.001, sparsity 0.75"
