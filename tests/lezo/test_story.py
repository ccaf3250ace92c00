"""What a person reads: numbers, and progress where there is no terminal."""

import io

import pytest
from rich.console import Console

from lezo import story
from lezo.evaluate import Evaluation
from lezo.optim import StepReport


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (story.count(999), "999"),
        (story.count(125_239_296), "125.2M"),
        (story.count(12_853_473_280), "12.9B"),
        (story.size(512 * 2**10), "512 KiB"),
        (story.size(1.5 * 2**30), "1.5 GiB"),
        (story.clock(59.6), "1:00"),
        (story.clock(3725), "1:02:05"),
        (story.score(None), "-"),
        (story.score(0.93444), "0.9344"),
        (story.table({"a": "1", "long": "2"}, "title"), "title\n  a     1\n  long  2"),
    ],
)
def test_numbers_and_tables(shown: str, expected: str):
    assert shown == expected


def test_off_a_terminal_progress_is_lines_with_the_time_left():
    out = io.StringIO()
    shown = story.ProgressStory(Console(file=out, width=200), 40, "accuracy")
    shown.evaluated(0, 0.0, Evaluation(0.7, 0.5))
    for step in range(1, 41):
        shown.trained(step, step / 2, StepReport(1.0 if step == 1 else 0.5, True))
    shown.close()
    lines = out.getvalue().splitlines()
    assert lines[0] == "step 0/40  dev_loss 0.7000  dev accuracy 0.5000"
    assert lines[1] == "step 2/40  loss 0.9750  2.0 steps/s  0:19 left"
    assert len(lines) == 1 + 20


def test_a_skipped_step_does_not_spoil_the_average():
    out = io.StringIO()
    shown = story.ProgressStory(Console(file=out, width=200), 2, "accuracy")
    shown.trained(1, 1.0, StepReport(float("nan"), False))
    shown.trained(2, 2.0, StepReport(0.5, True))
    assert out.getvalue().splitlines()[-1].startswith("step 2/2  loss 0.5000")
