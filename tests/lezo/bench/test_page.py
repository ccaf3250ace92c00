"""The page of known findings: what it says of bars, memory and failures, and its picture."""

import json
from typing import Any

import pytest

from lezo.bench.page import BARS, Page, Section, markdown, met, picture
from lezo.bench.table import Peak, Sample, findings
from lezo.config.schema import BenchVariant

DEVICE = {"device": "a GPU", "driver": "570.1", "at rest": None}
SECONDS = {"floor": 0.04, "lezo": 0.05, "mezo": 0.1, "textbook_mezo": 0.5}
ONE = {"title": "sst2", "dtype": "float16", "batch": {"examples": 16}}


def timed(model: str, task: str, used: int | None = 10 * 2**30, **changed: float) -> Section:
    seconds = {BenchVariant[name]: one for name, one in (SECONDS | changed).items()}
    peaks = {name: Peak(2**30, reserved=2**31) for name in seconds}
    made = [Sample(name, 1, one, {"forward": one / 2}) for name, one in seconds.items()]
    windows = {BenchVariant.lezo: [0.06, 0.07]}
    data: dict[str, Any] = ONE | {"model": model, "task": task, "title": task}
    data |= findings(made, peaks, windows)
    profiles = {"lezo": {"waits": 1, "kernels": 900, "busy_ms": 41.0}, "mezo": {"waits": 1, "error": "none"}}
    data |= {"profiles": profiles, "gauges": {"absent": "no NVML"}}
    data |= {"memory": {"expected": 11 * 2**30, "used": used}}
    return Section("times", f"{model} {task}", True, "said", data=data)


def cells(text: str, first: str) -> list[list[str]]:
    rows = [line for line in text.splitlines() if line.startswith(f"| {first} ")]
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]


def test_ratios_stand_beside_what_they_should_be() -> None:
    sections = [timed("opt-13b", "sst2"), timed("opt-13b", "rte", lezo=0.1), timed("tiny", "rte")]
    found = {(one["task"], one["ratio"]): one["met"] for one in met([s.data for s in sections])}
    assert found == {
        ("sst2", "textbook_mezo/lezo"): False,
        ("sst2", "lezo/floor"): True,
        ("rte", "textbook_mezo/lezo"): False,
        ("rte", "lezo/floor"): False,
    }
    text = markdown(Page(DEVICE, "lezo-qualify", sections))
    assert ["opt-13b sst2", "lezo/floor", "1.25", "at most 1.35", "met"] in cells(text, "opt-13b sst2")
    assert ["opt-13b sst2", "textbook_mezo/lezo", "10.0", "at least 12", "not met"] in cells(
        text, "opt-13b sst2"
    )


def test_a_bar_without_a_measurement_is_neither_met_nor_missed() -> None:
    (bar,) = met([{"model": "opt-1.3b", "task": "rte", "ratios": {}}])
    assert (bar["value"], bar["met"], bar["bar"]) == (
        None,
        None,
        BARS["opt-1.3b", "rte"]["textbook_mezo/lezo"],
    )


def test_times_are_milliseconds_and_memory_is_beside_its_plan() -> None:
    rows = cells(markdown(Page(DEVICE, "lezo-qualify", [timed("opt-1.3b", "rte")])), "opt-1.3b rte")
    assert ["opt-1.3b rte", "40.0", "50.0", "100", "500", "10.0", "1.25"] in rows
    assert ["opt-1.3b rte", "65.0", "65.0", "70.0", "70.0", "-", "-", "-", "-", "2"] in rows
    assert [*["opt-1.3b rte"], *["1.00"] * 4, "2.00", "11.00", "10.00", "+10.0 %"] in rows
    assert ["opt-1.3b rte", "mezo", "1", "none", "-", ""] in rows


def test_without_a_device_memory_is_left_out() -> None:
    assert "## Memory" not in markdown(Page(DEVICE, "lezo-qualify", [timed("tiny", "rte", used=None)]))


def test_a_failure_is_in_the_heading_in_the_list_and_in_full() -> None:
    sections = [Section("bits", "noise", False, error="first line\nsecond"), timed("tiny", "rte")]
    page = Page(DEVICE, "lezo-qualify", sections, seconds=61.0, over=True)
    text = markdown(page)
    assert not page.ok and text.startswith("# a GPU: NOT ALL RIGHT, 1:01\n")
    assert ["noise", "FAILED", "first line", "0:00"] in cells(text, "noise")
    assert text.endswith("## FAILED: noise\n\n```text\nfirst line\nsecond\n```\n")
    assert json.loads(json.dumps(page.plain()))["ok"] is False


def test_a_page_that_is_not_over_says_so() -> None:
    page = Page(DEVICE, "lezo-qualify", [Section("load", "opt-30b loads", None, "does not fit")])
    assert page.ok and markdown(page).startswith("# a GPU: all right so far; not over yet\n")


@pytest.mark.parametrize("keys", [[], [("opt-13b", "rte")], [("opt-1.3b", "sst2"), ("opt-13b", "rte")]])
def test_the_picture_is_a_png_whatever_is_missing(keys: list[tuple[str, str]]) -> None:
    drawn = picture(Page(DEVICE, "lezo-qualify", [timed(*key) for key in keys]))
    assert drawn.startswith(b"\x89PNG") and drawn.endswith(b"IEND\xaeB`\x82")
