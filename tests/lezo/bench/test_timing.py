"""Turns, and what becomes of variants that fail, with variants that are not real."""

import sys
import time
from collections.abc import Callable

import pytest
import torch
from rich.console import Console

from lezo.bench.table import Peak, Sample
from lezo.bench.timing import (
    SLOW,
    ChildError,
    Rounds,
    Turn,
    measured_in_a_child,
    peak_of,
    schedule,
    settled,
    timed,
)
from lezo.bench.variants import Variant
from lezo.config.schema import BenchConfig, BenchVariant
from lezo.zo.step import Stopwatch
from tests.lezo.refusals import refused

CPU = torch.device("cpu")
FLOOR, MEZO, LEZO = BenchVariant.floor, BenchVariant.mezo, BenchVariant.lezo
TEXTBOOK = BenchVariant.textbook_mezo
FAST = {FLOOR: 0.1, TEXTBOOK: 1.0, LEZO: 0.2}


def by_variant(turns: list[Turn]) -> dict[BenchVariant, list[int]]:
    return {name: [turn.step for turn in turns if turn.variant is name] for name in FAST}


def test_everyone_warms_up_and_then_takes_turns() -> None:
    assert schedule(FAST, 2, None) == [Turn(name, step) for step in (0, 1, 2) for name in FAST]


@pytest.mark.parametrize(
    ("slow", "textbook_repeats", "expected"),
    [
        ([], None, {FLOOR: [0, 1, 2, 3], TEXTBOOK: [0, 1, 2, 3], LEZO: [0, 1, 2, 3]}),
        ([], 2, {FLOOR: [0, 1, 2, 3], TEXTBOOK: [0, 1, 3], LEZO: [0, 1, 2, 3]}),
        ([TEXTBOOK], None, {FLOOR: [0, 1, 2, 3], TEXTBOOK: [2], LEZO: [0, 1, 2, 3]}),
        ([TEXTBOOK], 2, {FLOOR: [0, 1, 2, 3], TEXTBOOK: [1, 3], LEZO: [0, 1, 2, 3]}),
        ([TEXTBOOK], 5, {FLOOR: [0, 1, 3, 5], TEXTBOOK: [1, 2, 3, 4, 5], LEZO: [0, 1, 3, 5]}),
        ([LEZO], None, {FLOOR: [0, 1, 2, 3], TEXTBOOK: [0, 1, 2, 3], LEZO: [1, 2, 3]}),
    ],
)
def test_slow_variants_do_not_warm_up_and_a_slow_textbook_is_timed_once_amid_the_others(
    slow: list[BenchVariant], textbook_repeats: int | None, expected: dict[BenchVariant, list[int]]
) -> None:
    first = {name: 2 * SLOW if name in slow else seconds for name, seconds in FAST.items()}
    assert by_variant(schedule(first, 3, textbook_repeats)) == expected


@pytest.mark.parametrize(("repeats", "times"), [(3, 3), (20, 5)])
def test_a_quick_textbook_is_timed_five_times_at_most(repeats: int, times: int) -> None:
    assert len(by_variant(schedule(FAST, repeats, None))[TEXTBOOK]) == 1 + times
    assert len(by_variant(schedule(FAST, repeats, 7))[TEXTBOOK]) == 8


@pytest.mark.parametrize(("device", "repeats", "window"), [("cpu", 5, 4), ("cuda:0", 20, 40)])
def test_how_often_follows_from_the_device_unless_it_is_given(device: str, repeats: int, window: int) -> None:
    found = settled(BenchConfig(), torch.device(device))
    assert (found.repeats, found.window) == (repeats, window)
    given = settled(BenchConfig(repeats=2, window=0), torch.device(device))
    assert (given.repeats, given.window) == (2, 0)


def test_nothing_to_time_is_no_turns() -> None:
    assert schedule({}, 3, None) == []


def variant(name: BenchVariant, step: Callable[[int], object]) -> Variant:
    return Variant(name, step, Stopwatch(CPU))


def test_a_sample_is_one_steps_seconds_and_phases() -> None:
    watch = Stopwatch(CPU)

    def step(_: int) -> None:
        with watch("forward"):
            time.sleep(0.02)
        time.sleep(0.01)

    with watch("forward"):  # what happened before does not count
        time.sleep(0.05)
    sample = timed(Variant(LEZO, step, watch), 3, CPU)
    assert (sample.variant, sample.step) == (LEZO, 3)
    assert sample.seconds >= 0.03 and 0.02 <= sample.phases["forward"] < sample.seconds - 0.01


def rounds(steps: dict[BenchVariant, Callable[[int], object]]) -> tuple[Rounds, list[Sample], str]:
    console = Console(width=200)
    peaks = {name: Peak(100, 0.001) for name in steps} | {MEZO: Peak(error="out of memory")}
    taking = Rounds(CPU, lambda name: variant(name, steps[name]), peaks)
    with console.capture() as captured:
        samples = list(taking(BenchConfig(repeats=2), console))
    return taking, samples, captured.get()


def test_every_variant_steps_in_turn_and_one_without_memory_is_not_tried() -> None:
    taken: list[tuple[str, int]] = []
    steps = {
        FLOOR: lambda step: taken.append(("floor", step)),
        LEZO: lambda step: taken.append(("lezo", step)),
    }
    _, samples, out = rounds(steps)
    assert taken == [(name, step) for step in (0, 1, 2) for name in ("floor", "lezo")]
    assert [(s.variant.value, s.step) for s in samples] == taken
    assert out.splitlines()[-1].startswith("timing 6/6: lezo step 2, about 0:00 left")


def test_a_variant_that_runs_out_of_memory_is_left_out_from_then_on() -> None:
    tried = []

    def step(number: int) -> None:
        tried.append(number)
        if number == 1:
            raise torch.OutOfMemoryError("no more")

    taking, samples, _ = rounds({FLOOR: lambda _: None, LEZO: step})
    assert tried == [0, 1]
    assert [(s.variant, s.step) for s in samples] == [(FLOOR, 0), (LEZO, 0), (FLOOR, 1), (FLOOR, 2)]
    assert taking.peaks[LEZO] == Peak(100, 0.001, "out of memory beside the other variants")
    assert taking.peaks[FLOOR].error is None


def test_a_trace_of_a_variant_without_memory_is_empty_and_no_failure() -> None:
    def step(_: int) -> None:
        raise torch.OutOfMemoryError("no more")

    taking, samples, _ = rounds({LEZO: step})
    assert (samples, taking.take(Turn(LEZO, 0))) == ([], [])


def test_what_is_no_want_of_memory_is_not_hidden() -> None:
    def step(_: int) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        rounds({LEZO: step})


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ('print("noise"); print(\'{"bytes": 7, "seconds": 0.5, "error": null}\')', Peak(7, 0.5)),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            Peak(error="killed, as for want of memory"),
        ),
    ],
)
def test_a_child_says_its_peak_or_was_killed(code: str, expected: Peak) -> None:
    assert measured_in_a_child([sys.executable, "-c", code]) == expected


def test_a_child_that_fails_is_quoted() -> None:
    with refused(ChildError, "error: no such weights"):
        measured_in_a_child([sys.executable, "-c", "import sys; sys.exit('error: no such weights')"])


def test_a_variant_whose_only_step_finds_no_memory_has_no_peak() -> None:
    def step(_: int) -> None:
        raise torch.OutOfMemoryError("no more")

    assert peak_of(lambda name: variant(name, step), LEZO, CPU) == Peak(error="out of memory")
    assert peak_of(lambda name: variant(name, lambda _: None), LEZO, CPU).bytes
