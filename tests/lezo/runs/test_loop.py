"""The loop, with an optimizer that does nothing and evaluations that are told in advance."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from lezo.model.evaluate import Evaluation
from lezo.records.rows import DevRow, TrainRow
from lezo.runs.loop import AlikeError, DivergedError, Progress, train
from lezo.zo.step import StepReport


class Trained:
    """A training of ``steps`` with these dev losses; ``bad`` steps, counted from 0, have no finite loss."""

    def __init__(
        self, dev_losses: Sequence[float], *, bad: Sequence[int] = (), pause: float = 0.0, **settings: Any
    ) -> None:
        self.dev_losses, self.bad, self.pause = iter(dev_losses), bad, pause
        self.progress, self.told = settings.pop("progress", Progress()), []  # type: Progress, list[Any]
        limits = {"steps": 6, "eval_every": 2, "max_seconds": None, "max_bad_steps": 3} | settings
        train(self, lambda step: step, self.evaluate, [self], self.progress, **limits)

    def step(self, step: int, batch: int) -> StepReport:
        assert batch == step
        time.sleep(self.pause)
        return StepReport(math.nan if step in self.bad else 1.0, step not in self.bad, {"g": 0.5})

    def evaluate(self) -> Evaluation:
        return Evaluation(next(self.dev_losses), 0.5)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Any) -> None:
        assert not state

    def trained(self, row: TrainRow) -> None:
        self.told.append(row.step)

    def evaluated(self, row: DevRow) -> None:
        self.told.append(f"dev {row.step}")


def test_evaluations_come_first_in_between_and_last() -> None:
    done = Trained([1, 1, 1], steps=3)
    assert done.told == ["dev 0", 1, 2, "dev 2", 3, "dev 3"]
    assert Trained([1, 1], steps=2).told == ["dev 0", 1, 2, "dev 2"]  # the last one is not done twice


@pytest.mark.parametrize(
    ("dev_losses", "best"),
    [
        ([0, 3, 2, 1], 6),
        ([0, 1, 2, 3], 2),  # step 0 is lower and never best
        ([9, 2, 1, 1], 4),  # the earliest of equals
        ([9, math.nan, 1, math.nan], 4),
        ([9, math.nan, math.nan, math.nan], None),
    ],
)
def test_the_lowest_dev_loss_is_best(dev_losses: list[float], best: int | None) -> None:
    assert Trained(dev_losses).progress.best_step == best


def test_training_goes_on_from_its_progress() -> None:
    before = Progress(
        step=3, bad=2, evaluated_at=2, best_step=2, best=DevRow(2, 1.0, 0.1, 0.5), elapsed=100.0
    )
    done = Trained([1, 1], bad=[4], progress=before)
    assert done.told == [4, "dev 4", 5, 6, "dev 6"]
    assert (done.progress.best_step, done.progress.bad, done.progress.skipped) == (2, 0, 1)
    again = Trained([1, 1], progress=Progress(step=4, evaluated_at=4))
    assert again.told == [5, 6, "dev 6"]  # what was evaluated is not evaluated twice
    assert Trained([], progress=Progress(step=6, evaluated_at=6)).told == []


def test_earlier_seconds_count_against_the_limit() -> None:
    done = Trained([1], progress=Progress(step=3, elapsed=100.0), max_seconds=50.0)
    assert done.told == ["dev 3"]


def test_a_diverged_run_does_not_go_on() -> None:
    with pytest.raises(DivergedError, match="step 5: 3 non-finite losses"):
        Trained([], progress=Progress(step=5, bad=3))


def test_a_step_and_all_that_hear_of_it_are_held_together() -> None:
    order: list[Any] = []

    @contextmanager
    def held() -> Iterator[None]:
        order.append("(")
        yield
        order.append(")")

    class Listening(Trained):
        def trained(self, row: TrainRow) -> None:
            order.append(row.step)

        def evaluated(self, row: DevRow) -> None:
            order.append(f"dev {row.step}")

    Listening([1, 1], steps=1, held=held)
    assert order == ["(", "dev 0", ")", "(", 1, ")", "(", "dev 1", ")"]


def test_a_steps_phases_are_all_of_its_time() -> None:
    done = Trained([1] * 4, pause=0.002)
    assert set(done.progress.phases) == {"data", "forward"}
    assert done.progress.train_seconds == pytest.approx(sum(done.progress.phases.values()))
    assert done.progress.phases["forward"] >= 6 * 0.002


def test_too_many_bad_steps_in_a_row_stop_the_run() -> None:
    with pytest.raises(DivergedError, match=r"step 5: 3 non-finite losses in a row \(loss nan, g 0.5\)"):
        Trained([1] * 4, bad=[2, 3, 4])


@pytest.mark.parametrize(("rate", "alike"), [(math.inf, True), (1e38, False)])
def test_only_a_step_divided_by_no_deviation_is_said_to_have_losses_all_alike(
    rate: float, alike: bool
) -> None:
    """An update may overflow along losses that are finite and differ."""

    class Bad(Trained):
        def step(self, step: int, batch: int) -> StepReport:
            return StepReport(0.7, False, {"g": 2.0, "lr": rate})

    with pytest.raises(DivergedError) as caught:
        Bad([1] * 4)
    assert isinstance(caught.value, AlikeError) is alike
    assert ("3 steps in a row whose losses were all alike (loss 0.7" in str(caught.value)) is alike


def test_bad_steps_apart_are_skipped_and_counted() -> None:
    done = Trained([1] * 4, bad=[0, 1, 3, 4])
    assert (done.progress.step, done.progress.skipped) == (6, 4)


def test_the_time_limit_ends_with_an_evaluation() -> None:
    done = Trained([1] * 4, steps=1000, eval_every=1000, max_seconds=0.02, pause=0.005)
    assert 1 <= done.progress.step < 10
    assert done.told[-1] == f"dev {done.progress.step}"
    assert done.progress.train_seconds == pytest.approx(sum(done.progress.step_seconds))
