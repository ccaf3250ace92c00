"""What a user sees: numbers, tables, and progress on and off a terminal."""

import io
import math
import re

import pytest
from rich.console import Console

from lezo.records import format as written
from lezo.records.rows import DevRow, TrainRow
from lezo.runs import console


def told(steps: int, *, terminal: bool, skipped: tuple[int, ...] = (), each: float = 0.1) -> str:
    """The progress of a run of ``steps`` of so many seconds ``each``, whose losses are 2, 1, 1..., with a dev evaluation half-way and at the end."""
    file = io.StringIO()
    out = Console(file=file, force_terminal=terminal, width=100, highlight=False, color_system=None)
    shown = console.ConsoleSink(out, steps, "accuracy")
    for step in range(1, steps + 1):
        bad = step in skipped
        loss = math.nan if bad else 2.0 if step == 1 else 1.0
        shown.trained(TrainRow(step, step * each, loss, skipped=bad))
        if step == steps // 2 + 1 or step == steps:
            shown.evaluated(DevRow(step, step * each, 0.25, 0.75))
    shown.close()
    return file.getvalue()


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (written.count(999), "999"),
        (written.count(498_432), "498.4k"),
        (written.count(125_239_296), "125.2M"),
        (written.count(12_853_473_280), "12.9B"),
        (written.size(0), "0 KiB"),
        (written.size(776 * 2**10), "776 KiB"),
        (written.size(1.5 * 2**20), "1.5 MiB"),
        (written.size(24 * 2**30), "24.0 GiB"),
        (written.clock(0.4), "0:00"),
        (written.clock(59.6), "1:00"),
        (written.clock(3599.7), "1:00:00"),
        (written.clock(100_000), "27:46:40"),
        (written.duration(0.0164), "16.4 ms"),
        (written.duration(4.312), "4.31 s"),
        (written.duration(100), "1:40"),
        (written.pace(1 / 12), "12.0 steps/s"),
        (written.pace(1.5), "1.5 s a step"),
        (written.pace(47.25), "47.2 s a step"),
        (written.score(None), "-"),
        (written.score(0.5), "0.5000"),
    ],
)
def test_numbers_read_as_people_write_them(said: str, text: str) -> None:
    assert said == text


def test_a_table_aligns_its_values() -> None:
    assert written.table({"a": "1", "long": "2"}, "head") == "head\n  a     1\n  long  2"


def test_off_a_terminal_a_run_is_twenty_lines_and_its_evaluations() -> None:
    lines = told(1000, terminal=False).splitlines()
    assert len(lines) == 22
    assert lines[0] == "step 50/1000  loss 1.0810  10.0 steps/s  1:35 left"
    assert lines[-1] == "step 1000/1000  dev_loss 0.2500  dev accuracy 0.7500"


def test_a_slow_models_steps_are_told_in_seconds() -> None:
    assert told(40, terminal=False, each=31.5).splitlines()[0].endswith("  31.5 s a step  19:57 left")
    assert re.search(r"31\.5 s a step 0:00 left", told(40, terminal=True, each=31.5))


def test_a_short_run_off_a_terminal_shows_every_step() -> None:
    assert len(told(3, terminal=False).splitlines()) == 5


@pytest.mark.parametrize(("skipped", "loss"), [((), 1.8145), ((1,), 1.0), ((2, 3), 1.9025), ((5,), 1.8574)])
def test_a_skipped_step_has_no_part_in_the_average_loss(skipped: tuple[int, ...], loss: float) -> None:
    assert f"step 5/5  loss {loss:.4f}" in told(5, terminal=False, skipped=skipped)


def test_on_a_terminal_a_bar_shows_loss_score_speed_and_time_left() -> None:
    shown = re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", told(30, terminal=True)).replace("\r", "\n")
    assert re.search(r"30/30 loss 1\.2259 dev 0\.750 10\.0 steps/s 0:00 left", shown)
    assert "step 30/30  dev_loss 0.2500  dev accuracy 0.7500\n" in shown


def test_off_a_terminal_nothing_is_wrapped_or_coloured(capsys: pytest.CaptureFixture[str]) -> None:
    console.console().print("[red]" + "word " * 100)
    assert capsys.readouterr().out == "[red]" + "word " * 100 + "\n"


def shown(text: str, *, terminal: bool, width: int = 40) -> list[str]:
    file = io.StringIO()
    console.print_table(
        Console(file=file, force_terminal=terminal, width=width, color_system=None, soft_wrap=True), text
    )
    return file.getvalue().splitlines()


ROWS = {
    "task": "a few words that need more than one line",
    "files": "/x" * 30,
    "repeat": "lezo-run " + "a=1 " * 20,
}


def test_on_a_terminal_a_table_ends_its_lines_between_words() -> None:
    head, *lines = shown(written.table(ROWS, "lezo"), terminal=True)
    assert lines[:2] == ["  task    a few words that need more", "          than one line"]
    assert [line for line in lines if len(line) > 40 and "/x" not in line] == [f"  repeat  {ROWS['repeat']}"]
    assert f"{'/x' * 30}" in "".join(lines) and head == "lezo"  # what can be copied stays whole


def test_off_a_terminal_a_line_stays_whole() -> None:
    assert "\n".join(shown(written.table(ROWS, "lezo"), terminal=False)) == written.table(ROWS, "lezo")
