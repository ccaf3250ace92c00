"""The drawings: which there are, and that the page's colours are theirs."""

import re
from pathlib import Path

import pytest

from lezo.records.reader import Reader, read_run
from lezo.report.groups import group_runs
from lezo.report.plots import COLOURS, plots, time_unit, train_loss
from tests.lezo.run_folders import config, finished, result, rows, write

CURVES = [
    f"{what} against {over}"
    for over in ("step", "wall-clock, seconds")
    for what in ("dev score %", "dev loss", "train loss, smoothed")
]
BARS = "mean seconds a step by phase, a bar a setting"


def titles(folder: Path) -> dict[str, list[str]]:
    found = group_runs(Reader().runs([folder]))
    return {title: [plot.title for plot in some] for (title, _), some in plots(found).items()}


def test_runs_of_different_length_unfinished_and_without_metrics_are_drawn(tmp_path: Path) -> None:
    finished(tmp_path / "a", (0.7, 0.6, 0.5))
    finished(tmp_path / "b", (0.7, 0.6, 0.5, 0.4, 0.3), seed=1)
    write(tmp_path / "c", config(seed=2), rows((0.7, None)))
    write(tmp_path / "d", config(seed=3), [])
    write(tmp_path / "e", config(task__name="cb"), [], result(status="failed", steps=0))
    assert titles(tmp_path) == {"rte (sample)": [*CURVES, BARS], "cb (sample)": []}


def test_an_ablation_has_its_two_plots(tmp_path: Path) -> None:
    for number, sparsity in enumerate((0.0, 0.5, 1.0)):
        finished(tmp_path / str(number), optim__sparsity=sparsity)
    assert titles(tmp_path)["rte (sample)"][-2:] == [
        "test score % against sparsity",
        "seconds a step against sparsity",
    ]


def test_drawings_are_elements_without_a_size_fixed_colours_or_text_from_files(tmp_path: Path) -> None:
    for number in range(COLOURS + 2):
        finished(tmp_path / str(number), optim__lr=0.1 + number, task__name="$x^{<b>")
    found = group_runs(Reader().runs([tmp_path]))
    ((_, drawn),) = plots(found).items()
    for plot in drawn:
        assert plot.svg.startswith("<svg") and 'width="' not in plot.svg[: plot.svg.index(">")]
        assert not re.findall(r"#0[bcd]0[bcd]\w\w|<b>|\$x", plot.svg)
    assert all(f"var(--c{number})" in drawn[0].svg for number in range(COLOURS))
    assert "stroke-dasharray" in drawn[0].svg
    names = [name for plot in drawn for name in re.findall(r'\bid="([^"]*)"', plot.svg)]
    assert len(names) == len(set(names))
    for plot in drawn:
        assert set(re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', plot.svg)) <= {(n, "") for n in names} | {
            ("", n) for n in names
        }


def test_the_smoothed_loss_is_a_mean_and_has_few_points(tmp_path: Path) -> None:
    row = {"seconds": 1.0, "skipped": False, "phases": {}}
    flat = [row | {"step": step, "loss": 2.0} for step in range(1, 5001)]
    line = train_loss(read_run(write(tmp_path, config(), flat)), False)
    assert [loss for _, loss in line] == pytest.approx([2.0] * len(line))
    assert len(line) < 500 and line[-1][0] == 5000


@pytest.mark.parametrize(("longest", "unit"), [(10, "seconds"), (3000, "minutes"), (99999, "hours")])
def test_time_has_the_unit_that_fits(longest: float, unit: str) -> None:
    assert time_unit(longest)[1] == unit


def test_of_several_seeds_mean_band_and_each_run_are_drawn_of_one_its_line(tmp_path: Path) -> None:
    finished(tmp_path / "a", (0.7, 0.6, 0.5))
    finished(tmp_path / "alone", (0.7, 0.6, 0.5), optim__lr=0.5)
    assert _shapes(tmp_path) == ([0, 2], 0)
    finished(tmp_path / "b", (0.7, 0.65, 0.6), seed=1)
    assert _shapes(tmp_path) == ([2, 2], 1)
    write(
        tmp_path / "c", config(seed=2), rows((0.7, 0.6))
    )  # so the band is in two: of three runs, and of two
    assert _shapes(tmp_path) == ([3, 3], 2)


def _shapes(folder: Path) -> tuple[list[int], int]:
    """In the plot of dev loss against steps: lines that are faint and that are not, and bands."""
    found = group_runs(Reader().runs([folder]))
    ((_, drawn),) = plots(found).items()
    svg = next(plot.svg for plot in drawn if plot.title == "dev loss against step")
    lines = re.findall(r'<path d="[^"]*" clip-path="[^"]*" style="fill: none;([^"]*)"', svg)
    coloured = [line for line in lines if "var(--c" in line]
    faint = [line for line in coloured if "stroke-opacity: 0.3" in line]
    return [len(faint), len(coloured) - len(faint)], len(re.findall(r"fill-opacity: 0.14", svg))


def test_points_against_sparsity_have_their_settings_colours_with_adapters_beside(tmp_path: Path) -> None:
    finished(tmp_path / "sgd", optim__name="fo-sgd", optim__sparsity=None)
    for peft in ("none", "lora"):
        for sparsity in (0.25, 0.75):
            finished(tmp_path / f"{peft}{sparsity}", optim__sparsity=sparsity, peft__name=peft)
    found = group_runs(Reader().runs([tmp_path]))
    ((_, drawn),) = plots(found).items()
    (plot,) = [plot for plot in drawn if plot.title == "test score % against sparsity"]
    colours = set(map(int, re.findall(r"var\(--c(\d+)\)", plot.svg)))
    assert colours == {g.number for g in found if g.method != "fo-sgd"}
    assert len(colours) == 4
