"""What a test arranges for a run to meet, at doors of the engine that stay where they are: batches and evaluations."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any, Literal

import pytest

from lezo.data.batches import Batches
from lezo.data.dataset import EvalSet
from lezo.model.evaluate import Evaluation, Evaluator


def ctrl_c_in_step(patch: pytest.MonkeyPatch, number: int, sent: signal.Signals = signal.SIGINT) -> None:
    """Ctrl-C, or another signal, as it arrives, while step ``number`` is made."""
    real = Batches.__call__

    def asked(batches: Batches, step: int) -> Any:
        if step + 1 == number:
            os.kill(os.getpid(), sent)
        return real(batches, step)

    patch.setattr(Batches, "__call__", asked)


def when_evaluated(patch: pytest.MonkeyPatch, happens: Callable[[], object], number: int = 1) -> None:
    """Something happens before evaluation ``number``: the first is of test, the second of dev."""
    real, numbers = Evaluator.__call__, count(1)

    def evaluated(evaluator: Evaluator, split: EvalSet) -> Evaluation:
        if next(numbers) == number:
            happens()
        return real(evaluator, split)

    patch.setattr(Evaluator, "__call__", evaluated)


def ctrl_c_in_evaluation(patch: pytest.MonkeyPatch, number: int) -> None:
    """Ctrl-C twice, which stops at once, in evaluation ``number``."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    when_evaluated(patch, interrupt, number)


def best_is(patch: pytest.MonkeyPatch, which: Literal["first", "last"], *, scored: bool = True) -> None:
    """Losses of evaluations that rise, so that the first step evaluated is the best one, or that fall.

    The rest of an evaluation is as it is, or not ``scored``.
    """
    real, numbers = Evaluator.__call__, count(1)

    def evaluated(evaluator: Evaluator, split: EvalSet) -> Evaluation:
        number = next(numbers)
        found = real(evaluator, split) if scored else Evaluation(None, 0.5)
        return replace(found, loss=float(number) if which == "first" else 1 / number)

    patch.setattr(Evaluator, "__call__", evaluated)
