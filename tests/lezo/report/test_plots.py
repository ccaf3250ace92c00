"""The drawings: which there are, that their numbers are the runs' own, and what files and page get of them."""

import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lezo.records.reader import Reader, read_run
from lezo.report.groups import Group, group_runs
from lezo.report.palette import LIGHT, palette
from lezo.report.plots.curves import time_unit, train_loss
from lezo.report.plots.draw import drawings, plots
from lezo.report.plots.sheet import Sheet
from tests.lezo.run_folders import config, finished, result, rows, write

SCORES = "test score by task and method"
CURVES = [
    f"{what} against {over}"
    for what in ("dev score", "dev loss", "train loss")
    for over in ("step", "training forwards", "wall-clock")
]
BARS = "mean seconds a step by phase, a bar a setting"
SPARSITY = [f"{what} against sparsity, mean ± std" for what in ("test score", "seconds a step")]
RATES = [f"{what} against learning rate, mean ± std" for what in ("test score", "dev loss")]


def groups_of(folder: Path) -> list[Group]:
    return group_runs(Reader().runs([folder]))


def sheets(folder: Path) -> dict[str, Sheet]:
    """The drawings by what they show."""
    return {sheet.caption: sheet for sheet in drawings(groups_of(folder))}


def marks(sheet: Sheet, shape: str | None = None) -> list[tuple[float, float]]:
    """The points that are told of, of this shape or of any but a seed's dot."""
    lines = [line for line in sheet.axes.lines if str(line.get_gid()).startswith("tips-")]
    fit = [
        line
        for line in lines
        if (line.get_marker() == shape if shape else line.get_marker() not in (".", "d"))
    ]
    return sorted((float(x), float(y)) for line in fit for x, y in line.get_xydata())


def bars(sheet: Sheet) -> list[list[list[float]]]:
    """The ends of the lines from mean - std to mean + std."""
    found = [bar for bar in sheet.axes.collections if str(bar.get_gid()).startswith("part-")]
    return sorted(segment.tolist() for bar in found for segment in bar.get_segments())  # type: ignore[attr-defined]


def results(folder: Path) -> list[dict[str, Any]]:
    """What stands in each result.json below a folder, read by nothing of lezo's."""
    return [json.loads(file.read_text()) for file in sorted(folder.rglob("result.json"))]


def close(found: Sequence[float], expected: Sequence[float]) -> bool:
    return sorted(found) == pytest.approx(sorted(expected))


def test_runs_of_different_length_unfinished_and_without_metrics_are_drawn(tmp_path: Path) -> None:
    finished(tmp_path / "a", (0.7, 0.6, 0.5))
    finished(tmp_path / "b", (0.7, 0.6, 0.5, 0.4, 0.3), seed=1)
    write(tmp_path / "c", config(seed=2), rows((0.7, None)))
    write(tmp_path / "d", config(seed=3), [])
    assert list(sheets(tmp_path)) == [SCORES, BARS, *CURVES]
    write(tmp_path / "other", config(task__name="cb"), [], result(status="failed", steps=0))
    assert sheets(tmp_path / "other") == {}


def test_the_headline_is_means_deviations_and_seeds_of_result_json(tmp_path: Path) -> None:
    for optim, tests in {"lezo": (0.7, 0.8, 0.9), "mezo": (0.61, 0.64), "fo-sgd": (0.95,)}.items():
        for seed, test in enumerate(tests):
            finished(tmp_path / optim / str(seed), seed=seed, test=test, optim__name=optim)
    write(tmp_path / "lezo" / "failed", config(seed=9), rows(), result(status="failed", test=0.1))
    sheet = sheets(tmp_path)[SCORES]
    scores = {
        optim: [100 * one["test"] for one in results(tmp_path / optim) if one["status"] == "finished"]
        for optim in ("lezo", "mezo", "fo-sgd")
    }
    assert close([x for x, _ in marks(sheet)], [statistics.mean(each) for each in scores.values()])
    assert close([x for x, _ in marks(sheet, ".")], [score for each in scores.values() for score in each])
    ends = [
        end
        for each in (scores["lezo"], scores["mezo"])
        for end in (
            statistics.mean(each) - statistics.stdev(each),
            statistics.mean(each) + statistics.stdev(each),
        )
    ]
    drawn = [x for bar in bars(sheet) for x, _ in bar if (bar[0][1] == bar[1][1])]
    assert close(drawn, ends)
    told = [tip for texts in sheet.tips.values() for tip in texts]
    assert any(tip.endswith("sparsity 0.75: 80.0 ± 10.0, n = 3") for tip in told)
    assert any("fo-sgd" in tip and tip.endswith("seed 0: 95") for tip in told)


def test_published_numbers_are_marks_of_their_own_where_they_belong(tmp_path: Path) -> None:
    finished(tmp_path / "a", data__name="hub", model__name="opt-13b", optim__name="mezo")
    finished(tmp_path / "b", data__name="hub", model__name="opt-13b", optim__name="lezo")
    sheet = sheets(tmp_path)[SCORES]
    assert [x for x, _ in marks(sheet, "d")] == [66.1, 71.36] and "published" in sheet.legend
    finished(tmp_path / "own" / "a", optim__name="mezo")
    assert marks(sheets(tmp_path / "own")[SCORES], "d") == []


def test_learning_rates_are_means_and_deviations_of_result_json_with_the_chosen_one_marked(
    tmp_path: Path,
) -> None:
    for rate, losses in {0.001: (0.6, 0.5), 0.01: (0.3, 0.2), 0.1: (0.9, 0.7)}.items():
        for seed, loss in enumerate(losses):
            folder, settings = tmp_path / f"{rate}" / f"{seed}", config(seed=seed, optim__lr=rate)
            write(folder, settings, rows(), result(dev_loss=loss, test=1 - loss))
    found = sheets(tmp_path)
    for what, key, unit in zip(RATES, ("test", "dev_loss"), (100, 1), strict=True):
        values = {
            rate: [unit * one[key] for one in results(tmp_path / f"{rate}")] for rate in (0.001, 0.01, 0.1)
        }
        means = [(rate, pytest.approx(statistics.mean(each))) for rate, each in values.items()]
        assert marks(found[what], "s") == means and marks(found[what], "o") == [means[1]]
        ends = [
            [
                [rate, statistics.mean(each) - statistics.stdev(each)],
                [rate, statistics.mean(each) + statistics.stdev(each)],
            ]
            for rate, each in values.items()
        ]
        for bar, expected in zip(bars(found[what]), ends, strict=True):
            assert bar[0] == pytest.approx(expected[0]) and bar[1] == pytest.approx(expected[1])


def test_two_settings_that_vary_are_a_map_with_the_means_in_words(tmp_path: Path) -> None:
    for rate in (0.001, 0.01):
        for eps in (0.1, 0.2):
            for seed, test in enumerate((rate + eps, rate + eps + 0.1)):
                settings = config(seed=seed, optim__lr=rate, optim__eps=eps)
                write(tmp_path / f"{rate}-{eps}-{seed}", settings, rows(), result(test=test, dev_loss=rate))
    found = sheets(tmp_path)
    sheet = found["lezo: test score (%) at each learning rate and eps"]
    assert RATES[0] not in found
    texts = sorted(text.get_text() for text in sheet.axes.texts)
    assert texts == ["16.0 ± 7.1", "26.0 ± 7.1", "\u2605 15.1 ± 7.1", "\u2605 25.1 ± 7.1"]


def test_an_ablation_has_its_two_plots_of_means_and_deviations(tmp_path: Path) -> None:
    for sparsity in (0.25, 0.5, 1.0):
        for seed in (0, 1):
            finished(
                tmp_path / f"{sparsity}" / f"{seed}",
                optim__sparsity=sparsity,
                seed=seed,
                test=sparsity - seed / 10,
            )
    found = sheets(tmp_path)
    assert [caption for caption in found if "sparsity" in caption] == SPARSITY
    values = {
        sparsity: [100 * one["test"] for one in results(tmp_path / f"{sparsity}")]
        for sparsity in (0.25, 0.5, 1.0)
    }
    assert marks(found[SPARSITY[0]]) == [
        (at, pytest.approx(statistics.mean(each))) for at, each in values.items()
    ]
    lengths = [bar[1][1] - bar[0][1] for bar in bars(found[SPARSITY[0]])]
    assert lengths == pytest.approx([2 * statistics.stdev(each) for each in values.values()])


def test_several_lines_against_sparsity_have_each_a_dash_and_a_name(tmp_path: Path) -> None:
    for eps in (0.1, 0.2):
        for sparsity in (0.25, 0.5):
            finished(tmp_path / f"{eps}-{sparsity}", optim__sparsity=sparsity, optim__eps=eps)
    legend = sheets(tmp_path)[SPARSITY[0]].legend
    lines = {name: line.get_linestyle() for name, line in legend.items() if name.startswith("line: ")}
    assert lines == {"line: lezo, eps 0.1": "-", "line: lezo, eps 0.2": "--"}


def test_sparsities_that_have_each_a_rate_of_their_own_are_one_line(tmp_path: Path) -> None:
    finished(tmp_path / "mezo", optim__name="mezo", optim__lr=2e-5, test=0.7)
    finished(tmp_path / "lezo", optim__sparsity=0.75, optim__lr=5e-5, test=0.8)
    sheet = sheets(tmp_path)[SPARSITY[0]]
    assert marks(sheet) == [(0.0, pytest.approx(70.0)), (0.75, pytest.approx(80.0))]


def test_of_a_grid_that_is_not_finished_each_rate_has_a_line_of_its_own(tmp_path: Path) -> None:
    """Nothing is chosen yet, and two rates of one sparsity are no line."""
    for sparsity in (0.25, 0.75):
        for rate in (1e-5, 1e-4):
            write(tmp_path / f"{sparsity}-{rate}", config(optim__sparsity=sparsity, optim__lr=rate), rows())
    lines = [line for line in sheets(tmp_path)[SPARSITY[1]].axes.lines if not line.get_gid()]
    drawn = [list(line.get_xdata()) for line in lines if len(line.get_xdata()) > 1]
    assert drawn == [[0.25, 0.75], [0.25, 0.75]]


def test_rates_searched_at_each_sparsity_are_one_line_of_the_chosen_ones(tmp_path: Path) -> None:
    for sparsity in (0.25, 0.75):
        for rate in (0.1, 0.2):
            settings, loss = config(optim__sparsity=sparsity, optim__lr=rate), abs(rate - sparsity)
            write(tmp_path / f"{sparsity}-{rate}", settings, rows(), result(dev_loss=loss, test=rate))
    assert marks(sheets(tmp_path)[SPARSITY[0]]) == [(0.25, pytest.approx(20)), (0.75, pytest.approx(20))]


def test_a_method_has_one_colour_in_all_figures_of_a_report_and_the_common_ones_in_every_report(
    tmp_path: Path,
) -> None:
    for task in ("rte", "cb"):
        for optim in ("zo-adam", "lezo", "mezo"):
            for rate in (0.1, 0.2):
                finished(
                    tmp_path / f"{task}{optim}{rate}", task__name=task, optim__name=optim, optim__lr=rate
                )
    groups = groups_of(tmp_path)
    looks = palette(groups)
    assert [looks.colour(method) for method in ("mezo", "lezo", "fo-sgd", "zo-adam")] == [0, 1, 2, 4]
    for sheet in drawings(groups):
        for line in sheet.axes.lines:
            method, _ = sheet.series.get(str(line.get_gid()), ("", ""))
            if method and line.get_color() != "none":
                assert line.get_color() == LIGHT[looks.colour(method)], (sheet.caption, method)


def test_settings_of_a_method_differ_in_their_dashes_and_are_named_by_what_sets_them_apart(
    tmp_path: Path,
) -> None:
    finished(tmp_path / "a", optim__sparsity=0.5)
    finished(tmp_path / "b", optim__sparsity=0.75)
    groups = groups_of(tmp_path)
    looks = [palette(groups).look(group) for group in groups]
    assert [look.label for look in looks] == ["lezo, sparsity 0.5", "lezo, sparsity 0.75"]
    assert looks[0].dash != looks[1].dash and looks[0].colour == looks[1].colour


def test_files_have_a_columns_width_text_in_truetype_and_a_legend(tmp_path: Path) -> None:
    write(tmp_path / "0", config(), [row for row in rows() if "dev_loss" in row], result(seconds={}))
    drawn = plots(groups_of(tmp_path))
    assert {plot.name for plot in drawn} >= {
        "test-scores-by-task",
        "rte-sample_tiny_dev-loss-by-training-forwards",
    }
    for plot in drawn:
        width = re.search(r'width="([\d.]+)pt"', plot.svg)
        assert width is not None and float(width[1]) == pytest.approx(3.3 * 72)
        assert "<text" in plot.svg and plot.pdf.startswith(b"%PDF")
        assert b"/Type0" in plot.pdf and b"/CIDFontType2" in plot.pdf and b"/Type3" not in plot.pdf
    (curve,) = (plot for plot in drawn if plot.caption == "dev loss against step")
    assert ">lezo<" in curve.svg and ">lezo<" not in curve.page
    again = plots(groups_of(tmp_path), files=False)
    assert [plot.svg for plot in again] == [plot.svg for plot in drawn] and not any(
        plot.pdf for plot in again
    )


def test_the_pages_drawings_are_elements_without_fixed_colours_or_markup_from_files(tmp_path: Path) -> None:
    for number, optim in enumerate(("lezo", "mezo", "gone<b>\u4e2d$x^{")):
        write(tmp_path / str(number), config(task__name="$x^{<b>", optim__name=optim), rows(), result())
    drawn = plots(groups_of(tmp_path), files=False)
    for plot in drawn:
        assert plot.page.startswith("<svg") and 'width="' not in plot.page[: plot.page.index(">")]
        assert not [colour for colour in LIGHT if colour in plot.page] and "<b>" not in plot.page
    assert all(f"var(--c{number})" in drawn[0].page for number in (0, 1, 4))
    bars = next(plot.page for plot in drawn if plot.caption == BARS)
    assert all(f"fill: var(--g{number})" in bars for number in range(4))  # other greys in the dark
    names = [name for plot in drawn for name in re.findall(r'\bid="([^"]*)"', plot.page)]
    assert len(names) == len(set(names))
    for plot in drawn:
        used = {place for pair in re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', plot.page) for place in pair}
        assert used - {""} <= set(names)


def test_marks_have_their_values_and_curves_their_axes_for_a_pointer(tmp_path: Path) -> None:
    for seed, test in enumerate((0.7, 0.8)):
        finished(tmp_path / str(seed), seed=seed, test=test)
    drawn = {plot.caption: plot.page for plot in plots(groups_of(tmp_path), files=False)}
    assert "sparsity 0.75, seed 1: 80</title>" in drawn[SCORES]
    page = drawn["dev loss against step"]
    assert 'data-series="lezo, mean of 2"' in page and 'data-method="lezo"' in page
    found = re.search(r'data-plot="([^"]*)"', page)
    line = re.search(r'data-series="lezo, mean of 2"[^>]*>\s*<path d="M ([\d.]+) ([\d.]+)', page)
    assert found is not None and line is not None
    scales = json.loads(found[1].replace("&quot;", '"'))
    values = [
        scale["is"][0]
        + (float(at) - scale["at"][0]) / (scale["at"][1] - scale["at"][0]) * (scale["is"][1] - scale["is"][0])
        for scale, at in zip((scales["x"], scales["y"]), line.groups(), strict=True)
    ]
    assert values == pytest.approx([0, 0.7], abs=1e-4)


def test_the_smoothed_loss_is_a_mean_and_a_drawn_line_has_few_points(tmp_path: Path) -> None:
    row = {"seconds": 1.0, "skipped": False, "phases": {}}
    flat = [row | {"step": step, "loss": 2.0} for step in range(1, 5001)]
    folder = write(tmp_path / "a", config(), flat)
    assert [loss for _, loss in train_loss(read_run(folder))] == pytest.approx([2.0] * 5000)
    (line,) = sheets(tmp_path)["train loss against step"].axes.lines
    x = line.get_xdata()
    assert len(x) < 500 and x[-1] == 5000


@pytest.mark.parametrize(("longest", "unit"), [(10, "seconds"), (3000, "minutes"), (99999, "hours")])
def test_time_has_the_unit_that_fits(longest: float, unit: str) -> None:
    assert time_unit(longest)[1] == unit


def test_of_several_seeds_mean_band_and_each_run_are_drawn_of_one_its_line(tmp_path: Path) -> None:
    finished(tmp_path / "a", (0.7, 0.6, 0.5))
    finished(tmp_path / "alone", (0.7, 0.6, 0.5), optim__eps=0.5)
    assert _shapes(tmp_path) == ([0, 2], 0)
    finished(tmp_path / "b", (0.7, 0.65, 0.6), seed=1)
    assert _shapes(tmp_path) == ([2, 2], 1)
    write(tmp_path / "c", config(seed=2), rows((0.7, 0.6)))  # is not finished: a faint line, in no mean
    assert _shapes(tmp_path) == ([3, 2], 1)


def test_a_mean_is_one_line_as_far_as_all_finished_runs_go(tmp_path: Path) -> None:
    finished(tmp_path / "a", (0.7, 0.6, 0.5))
    finished(tmp_path / "b", (0.7, 0.6, 0.5, 0.4, 0.3), seed=1)
    axes = sheets(tmp_path)["dev loss against step"].axes
    (mean,) = (line for line in axes.lines if line.get_alpha() is None)
    assert [list(line.get_xdata())[-1] for line in axes.lines] == [4, 8, 4] and mean is axes.lines[-1]


def _shapes(folder: Path) -> tuple[list[int], int]:
    """In the plot of dev loss against steps: lines that are faint and that are not, and bands."""
    axes = sheets(folder)["dev loss against step"].axes
    faint = [line for line in axes.lines if line.get_alpha() == 0.35]
    return [len(faint), len(axes.lines) - len(faint)], len(axes.collections)


def test_of_a_rate_that_is_not_chosen_only_faint_lines_are_drawn_and_cut_off_where_they_leave(
    tmp_path: Path,
) -> None:
    for rate, loss in ((0.1, 0.5), (0.2, 60.0)):
        settings = config(optim__name="mezo", optim__lr=rate)
        write(tmp_path / str(rate), settings, rows((0.7, loss)), result(dev_loss=loss))
    assert _shapes(tmp_path) == ([1, 1], 0)
    assert sheets(tmp_path)["dev loss against step"].axes.get_ylim()[1] < 1


def test_against_forwards_each_method_has_its_own_steps_cost_and_unknown_ones_are_left_out(
    tmp_path: Path,
) -> None:
    finished(tmp_path / "a", (0.7, 0.6, 0.5), optim__name="fo-sgd")
    finished(tmp_path / "b", (0.7, 0.6, 0.5), optim__name="mezo")
    finished(tmp_path / "c", (0.7, 0.6, 0.5), optim__name="gone")
    axes = sheets(tmp_path)["dev loss against training forwards"].axes
    assert [list(line.get_xdata()) for line in axes.lines] == [[0, 6, 12], [0, 4, 8]]


@pytest.mark.parametrize(
    ("losses", "top"),
    [((0.7, 0.6, 9.0), 0.72), ((0.7, 0.6, 0.705), 0.72), ((0.7, 0.6, 0.5), None)],
    ids=["rises far", "rises a little", "falls"],
)
def test_a_loss_that_rises_above_its_beginning_leaves_the_others_their_height(
    losses: tuple[float, ...], top: float | None, tmp_path: Path
) -> None:
    """The picture ends a tenth of its height above where training began, and its caption says what it leaves out."""
    finished(tmp_path / "a", (0.7, 0.6, 0.5))
    finished(tmp_path / "b", losses, optim__name="mezo")
    found = sheets(tmp_path)
    words = "dev loss against step, as far as where training began"
    assert (words in found) == (losses[-1] == 9.0)
    drawn = found[words if losses[-1] == 9.0 else "dev loss against step"]
    assert drawn.axes.get_ylim()[1] == pytest.approx(top or 0.71, abs=0.011)


def test_a_score_that_rises_is_all_in_the_picture(tmp_path: Path) -> None:
    finished(tmp_path / "a", (0.7, 0.6, 0.5))
    assert sheets(tmp_path)["dev score against step"].axes.get_ylim()[1] >= 70
