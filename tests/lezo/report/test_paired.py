"""Paired differences, their t-test beside scipy's, and which scores are bold."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lezo.records.reader import Reader
from lezo.report.groups import group_runs
from lezo.report.paired import best, paired, two_sided
from tests.lezo.run_folders import finished


def by_seed(values: Sequence[float], start: int = 0) -> dict[tuple[str, str], float]:
    return {(str(seed), "0"): value for seed, value in enumerate(values, start=start)}


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 10, 30, 31])
def test_p_is_scipys(freedom: int) -> None:
    stats: Any = pytest.importorskip("scipy.stats")
    for t in (0.0, 0.1, -1.0, 2.5, 4.0, 12.0):
        assert two_sided(t, freedom) == pytest.approx(2 * stats.t.sf(abs(t), freedom), abs=1e-12)


def test_pairs_are_of_seeds_that_both_have() -> None:
    found = paired(by_seed([0.1, 0.2, 0.3]), by_seed([0.5, 0.9], start=1))
    assert found.n == 2 and found.difference is not None and found.difference.std is not None
    assert found.difference.mean == pytest.approx(0.45)
    assert found.difference.std == pytest.approx(0.15 * math.sqrt(2))
    assert found.p == pytest.approx(two_sided(3, 1))


def test_without_two_pairs_there_is_no_test_and_equal_differences_are_certain() -> None:
    assert paired(by_seed([0.1]), by_seed([0.2])).p is None
    nothing = paired(by_seed([0.1]), by_seed([0.2], start=1))
    assert (nothing.n, nothing.difference, nothing.p) == (0, None, None)
    assert paired(by_seed([0.25, 0.5]), by_seed([0.25, 0.5])).p == 1
    assert paired(by_seed([0.25, 0.5]), by_seed([0.5, 0.75])).p == 0


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (
            {"mezo": (0.80, 0.82, 0.84), "lezo": (0.79, 0.83, 0.82), "fo-sgd": (0.50, 0.52, 0.53)},
            {"mezo", "lezo"},
        ),
        ({"mezo": (0.80,), "lezo": (0.80, 0.79)}, {"mezo"}),  # one common seed, and one seed may be the best
        (
            {"mezo": (0.76, 0.75), "lezo": (0.78, 0.69), "fo-sgd": (0.92, 0.90)},
            {"fo-sgd"},
        ),  # two tell nothing
        ({"mezo": (0.80, 0.82)}, set()),  # nothing to compare with
    ],
)
def test_the_best_and_what_does_not_differ_from_it_are_bold(
    tmp_path: Path, scores: dict[str, Sequence[float]], expected: set[str]
) -> None:
    for method, values in scores.items():
        for seed, test in enumerate(values):
            finished(tmp_path / f"{method}{seed}", optim__name=method, seed=seed, test=test)
    groups = group_runs(Reader().runs([tmp_path]))
    bold = {group.method for group, marked in zip(groups, best(groups), strict=True) if marked}
    assert bold == expected


def test_a_rate_that_dev_losses_did_not_choose_is_not_bold_and_of_perplexities_the_lowest_is(
    tmp_path: Path,
) -> None:
    finished(tmp_path / "a", (0.7, 0.5), optim__lr=1e-3, test=0.6)
    finished(tmp_path / "b", (0.7, 0.5), optim__name="mezo", test=0.7)
    rejected = finished(tmp_path / "c", (0.7, 0.5), optim__lr=1e-2, test=0.9)
    file = rejected / "result.json"
    file.write_text(file.read_text().replace('"dev_loss": 0.5', '"dev_loss": 0.9'))
    groups = group_runs(Reader().runs([tmp_path]))
    bold = [g.runs[0].folder[-1] for g, marked in zip(groups, best(groups), strict=True) if marked]
    assert bold == ["b"]
    for file in tmp_path.glob("*/result.json"):
        file.write_text(file.read_text().replace('"status"', '"metric": "perplexity", "status"'))
    groups = group_runs(Reader().runs([tmp_path]))
    bold = [g.runs[0].folder[-1] for g, marked in zip(groups, best(groups), strict=True) if marked]
    assert bold == ["a"]
