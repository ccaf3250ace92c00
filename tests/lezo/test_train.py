"""The loop, with an optimizer that does nothing and evaluations that are told in advance."""

import math
import time
from collections.abc import Sequence
from typing import Any

import pytest

from lezo.evaluate import Evaluation
from lezo.optim import StepReport
from lezo.train import DivergedError, Progress, train


class Trained:
    """A training of ``steps`` with these dev losses; ``bad`` steps, counted from 0, have no finite loss."""

    def __init__(
        self, dev_losses: Sequence[float], *, bad: Sequence[int] = (), pause: float = 0.0, **settings: Any
    ) -> None:
        self.dev_losses, self.bad, self.pause = iter(dev_losses), bad, pause
        self.progress, self.told, self.kept = Progress(), [], []  # type: Progress, list[Any], list[int]
        limits = {"steps": 6, "eval_every": 2, "max_seconds": None, "max_bad_steps": 3} | settings
        train(self, lambda step: step, self.evaluate, self.keep, self, self.progress, **limits)

    def step(self, step: int, batch: int) -> StepReport:
        assert batch == step
        time.sleep(self.pause)
        return StepReport(math.nan if step in self.bad else 1.0, step not in self.bad, {"g": 0.5})

    def evaluate(self) -> Evaluation:
        return Evaluation(next(self.dev_losses), 0.5)

    def keep(self) -> None:
        self.kept.append(self.progress.step)

    def trained(self, step: int, seconds: float, report: StepReport) -> None:
        self.told.append(step)

    def evaluated(self, step: int, seconds: float, dev: Evaluation) -> None:
        self.told.append(f"dev {step}")


def test_evaluations_come_first_in_between_and_last() -> None:
    done = Trained([1, 1, 1], steps=3)
    assert done.told == ["dev 0", 1, 2, "dev 2", 3, "dev 3"]
    assert Trained([1, 1], steps=2).told == ["dev 0", 1, 2, "dev 2"]  # the last one is not done twice


@pytest.mark.parametrize(
    ("dev_losses", "best", "kept"),
    [
        ([0, 3, 2, 1], 6, [2, 4, 6]),
        ([0, 1, 2, 3], 2, [2]),  # step 0 is lower and never best
        ([9, 2, 1, 1], 4, [2, 4]),  # the earliest of equals
        ([9, math.nan, 1, math.nan], 4, [4]),
        ([9, math.nan, math.nan, math.nan], None, []),
    ],
)
def test_the_lowest_dev_loss_is_best_and_kept(
    dev_losses: list[float], best: int | None, kept: list[int]
) -> None:
    done = Trained(dev_losses)
    assert (done.progress.best_step, done.kept) == (best, kept)


def test_too_many_bad_steps_in_a_row_stop_the_run() -> None:
    with pytest.raises(DivergedError, match=r"step 5: 3 non-finite losses in a row \(loss nan, g 0.5\)"):
        Trained([1] * 4, bad=[2, 3, 4])


def test_bad_steps_apart_are_skipped_and_counted() -> None:
    done = Trained([1] * 4, bad=[0, 1, 3, 4])
    assert (done.progress.step, done.progress.skipped) == (6, 4)


def test_the_time_limit_ends_with_an_evaluation() -> None:
    done = Trained([1] * 4, steps=1000, eval_every=1000, max_seconds=0.02, pause=0.005)
    assert 1 <= done.progress.step < 10
    assert done.told[-1] == f"dev {done.progress.step}"
    assert done.progress.train_seconds == pytest.approx(sum(done.progress.step_seconds))
