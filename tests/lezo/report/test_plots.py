"""The drawings: which there are, and that the page's colours are theirs."""

import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from lezo.records.reader import Reader, read_run
from lezo.report.groups import Group, by_task, group_runs
from lezo.report.plots import COLOURS, drawings, plots, time_unit, train_loss
from tests.lezo.run_folders import config, finished, result, rows, write

CURVES = [
    f"{what} against {over}"
    for over in ("step", "training forwards", "wall-clock, seconds")
    for what in ("dev score %", "dev loss", "train loss, smoothed")
]
BARS = "mean seconds a step by phase, a bar a setting"


def groups_of(folder: Path) -> list[Group]:
    return group_runs(Reader().runs([folder]))


def figures(folder: Path) -> dict[str, Figure]:
    """The drawings of the folder's only task by their titles."""
    (members,) = by_task(groups_of(folder)).values()
    return dict(drawings(members))


def test_runs_of_different_length_unfinished_and_without_metrics_are_drawn(tmp_path: Path) -> None:
    finished(tmp_path / "a", (0.7, 0.6, 0.5))
    finished(tmp_path / "b", (0.7, 0.6, 0.5, 0.4, 0.3), seed=1)
    write(tmp_path / "c", config(seed=2), rows((0.7, None)))
    write(tmp_path / "d", config(seed=3), [])
    assert list(figures(tmp_path)) == [*CURVES, BARS]
    write(tmp_path / "other", config(task__name="cb"), [], result(status="failed", steps=0))
    assert figures(tmp_path / "other") == {}


def test_an_ablation_has_its_two_plots(tmp_path: Path) -> None:
    for number, sparsity in enumerate((0.0, 0.5, 1.0)):
        finished(tmp_path / str(number), optim__sparsity=sparsity)
    assert list(figures(tmp_path))[-2:] == [
        "test score % against sparsity",
        "seconds a step against sparsity",
    ]


def test_drawings_are_elements_without_a_size_fixed_colours_or_text_from_files(tmp_path: Path) -> None:
    for number in range(COLOURS + 2):
        seed = {"optim__lr": 0.1 + number, "task__name": "$x^{<b>", "train__steps": 1}
        write(tmp_path / str(number), config(**seed), [dev for dev in rows() if "dev_loss" in dev])
    ((_, drawn),) = plots(groups_of(tmp_path)).items()
    for plot in drawn:
        assert plot.svg.startswith("<svg") and 'width="' not in plot.svg[: plot.svg.index(">")]
        assert not re.findall(r"#0[bcd]0[bcd]\w\w|<b>|\$x", plot.svg)
    assert all(f"var(--c{number})" in drawn[0].svg for number in range(COLOURS))
    assert "stroke-dasharray" in drawn[0].svg
    names = [name for plot in drawn for name in re.findall(r'\bid="([^"]*)"', plot.svg)]
    assert len(drawn) == 6 and len(names) == len(set(names))
    for plot in drawn:
        used = {place for pair in re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', plot.svg) for place in pair}
        assert used - {""} <= set(names)


def test_the_smoothed_loss_is_a_mean_and_has_few_points(tmp_path: Path) -> None:
    row = {"seconds": 1.0, "skipped": False, "phases": {}}
    flat = [row | {"step": step, "loss": 2.0} for step in range(1, 5001)]
    line = train_loss(read_run(write(tmp_path, config(), flat)))
    assert [loss for _, loss in line] == pytest.approx([2.0] * len(line))
    assert len(line) < 500 and line[-1][0].step == 5000


@pytest.mark.parametrize(("longest", "unit"), [(10, "seconds"), (3000, "minutes"), (99999, "hours")])
def test_time_has_the_unit_that_fits(longest: float, unit: str) -> None:
    assert time_unit(longest)[1] == unit


def test_of_several_seeds_mean_band_and_each_run_are_drawn_of_one_its_line(tmp_path: Path) -> None:
    finished(tmp_path / "a", (0.7, 0.6, 0.5))
    finished(tmp_path / "alone", (0.7, 0.6, 0.5), optim__eps=0.5)
    assert _shapes(tmp_path) == ([0, 2], 0)
    finished(tmp_path / "b", (0.7, 0.65, 0.6), seed=1)
    assert _shapes(tmp_path) == ([2, 2], 1)
    write(
        tmp_path / "c", config(seed=2), rows((0.7, 0.6))
    )  # so the band is in two: of three runs, and of two
    assert _shapes(tmp_path) == ([3, 3], 2)


def _shapes(folder: Path) -> tuple[list[int], int]:
    """In the plot of dev loss against steps: lines that are faint and that are not, and bands."""
    (axes,) = figures(folder)["dev loss against step"].axes
    faint = [line for line in axes.lines if line.get_alpha() == 0.3]
    return [len(faint), len(axes.lines) - len(faint)], len(axes.collections)


def test_of_a_rate_that_is_not_chosen_only_faint_lines_are_drawn(tmp_path: Path) -> None:
    for rate, loss in ((0.1, 0.5), (0.2, 0.6)):
        settings = config(optim__name="mezo", optim__lr=rate)
        write(tmp_path / str(rate), settings, rows((0.7, loss)), result(dev_loss=loss))
    assert _shapes(tmp_path) == ([1, 1], 0)
    finished(tmp_path / "other", optim__name="lezo")
    numbers = {(group.method, group.best): group.number for group in groups_of(tmp_path)}
    assert numbers == {
        ("lezo", True): 0,
        ("mezo", True): 1,
        ("mezo", False): 2,
    }  # the chosen have the first colours


def test_points_against_sparsity_have_their_settings_colours_with_adapters_beside(tmp_path: Path) -> None:
    finished(tmp_path / "sgd", optim__name="fo-sgd", optim__sparsity=None)
    for peft in ("none", "lora"):
        for sparsity in (0.25, 0.75):
            finished(tmp_path / f"{peft}{sparsity}", optim__sparsity=sparsity, peft__name=peft)
    (axes,) = figures(tmp_path)["test score % against sparsity"].axes
    colours = [str(line.get_color()) for line in axes.lines if line.get_marker() == "o"]
    numbers = [group.number for group in groups_of(tmp_path) if group.method != "fo-sgd"]
    assert sorted(colours) == [f"#0d0d{number:02d}" for number in sorted(numbers)] and len(numbers) == 4


def test_against_forwards_each_method_has_its_own_steps_cost_and_unknown_ones_are_left_out(
    tmp_path: Path,
) -> None:
    finished(tmp_path / "a", (0.7, 0.6, 0.5), optim__name="fo-sgd")
    finished(tmp_path / "b", (0.7, 0.6, 0.5), optim__name="mezo")
    finished(tmp_path / "c", (0.7, 0.6, 0.5), optim__name="gone")
    (axes,) = figures(tmp_path)["dev loss against training forwards"].axes
    assert [list(line.get_xdata()) for line in axes.lines] == [[0, 6, 12], [0, 4, 8]]
