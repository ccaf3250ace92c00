"""Medians, ratios, table and picture from samples that are known."""

from typing import Any

import pytest

from lezo.bench.table import RATIOS, Peak, Sample, findings, gauges_line, markdown, picture, spread_of
from lezo.config.schema import BenchVariant

SECONDS = {
    BenchVariant.floor: [1.0, 3.0, 2.0],
    BenchVariant.textbook_mezo: [40.0],
    BenchVariant.textbook_lezo: [20.0, 24.0],
    BenchVariant.textbook_foreach: [30.0],
    BenchVariant.published: [44.0],
    BenchVariant.mezo: [6.0, 5.0, 50.0],
    BenchVariant.lezo: [4.0, 4.0, 5.0],
}
MEDIANS = {"floor": 2.0, "textbook_mezo": 40.0, "textbook_lezo": 22.0, "textbook_foreach": 30.0}
MEDIANS |= {"published": 44.0, "mezo": 6.0, "lezo": 4.0}
DESCRIBED = {
    "title": "rte (sample)",
    "model": "tiny",
    "random_weights": True,
    "dtype": "float32",
    "device": "a device",
    "blocks": "6 of 8 blocks skipped",
    "batch": {"examples": 16, "tokens": {"padded": 1280, "real": 982, "ours": 500}},
}


def samples(name: BenchVariant) -> list[Sample]:
    """A quarter of each step is the forward, half of it the update."""
    return [Sample(name, i, s, {"forward": s / 4, "update": s / 2}) for i, s in enumerate(SECONDS[name], 1)]


def found(*absent: BenchVariant) -> dict[str, Any]:
    made = [sample for name in BenchVariant if name not in absent for sample in samples(name)]
    peaks = {name: Peak(2**30, 1.0, "out of memory" if name in absent else None) for name in BenchVariant}
    return DESCRIBED | findings(made, peaks)


def test_a_variant_has_its_medians_and_its_spread() -> None:
    variants = found()["variants"]
    assert {name: v["step_seconds"] for name, v in variants.items()} == MEDIANS
    assert variants["mezo"]["spread"] == {"min": 5.0, "median": 6.0, "max": 50.0}
    assert variants["mezo"]["phases"] == {
        "data": 0.0,
        "forward": 1.5,
        "perturb": 0.0,
        "update": 3.0,
        "other": 1.5,
    }
    assert [v["steps"] for v in variants.values()] == [3, 1, 2, 1, 1, 3, 3]
    assert {v["peak_bytes"] for v in variants.values()} == {2**30}


def test_the_phases_are_those_of_the_median_step_and_add_up_to_it() -> None:
    phases = [{"forward": 4.0}, {"forward": 1.0, "update": 1.0}, {"forward": 0.5, "perturb": 0.5}]
    timed = [
        Sample(BenchVariant.lezo, i, s, p)
        for i, (s, p) in enumerate(zip((9.0, 3.0, 2.0), phases, strict=True))
    ]
    odd, even = (
        findings(made, {BenchVariant.lezo: Peak()})["variants"]["lezo"] for made in (timed, timed[1:])
    )
    assert odd["phases"] == {"data": 0.0, "forward": 1.0, "perturb": 0.0, "update": 1.0, "other": 1.0}
    assert even["phases"] == {"data": 0.0, "forward": 0.75, "perturb": 0.25, "update": 0.5, "other": 1.0}
    assert [sum(found["phases"].values()) for found in (odd, even)] == [3.0, 2.5]


def test_ratios_are_of_the_medians() -> None:
    assert found()["ratios"] == {
        "textbook_mezo/lezo": 10.0,
        "textbook_lezo/lezo": 5.5,
        "textbook_mezo/mezo": pytest.approx(40 / 6),
        "textbook_foreach/lezo": 7.5,
        "textbook_foreach/mezo": 5.0,
        "published/mezo": pytest.approx(44 / 6),
        "lezo/floor": 2.0,
        "mezo/floor": 3.0,
    }


def test_what_a_missing_variant_would_say_is_null() -> None:
    result = found(BenchVariant.textbook_mezo)
    missing = result["variants"]["textbook_mezo"]
    assert (missing["step_seconds"], missing["spread"], missing["phases"]) == (None, None, {})
    assert [name for name, ratio in result["ratios"].items() if ratio is None] == [
        "textbook_mezo/lezo",
        "textbook_mezo/mezo",
    ]
    assert "- textbook_mezo: out of memory" in markdown(result).splitlines()


def test_the_table_has_a_row_a_variant_and_a_line_a_ratio() -> None:
    lines = markdown(found()).splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    assert {row[0]: row[1] for row in rows[2:]} == {
        "published": "44.0",
        "textbook_mezo": "40.0",
        "textbook_foreach": "30.0",
        "textbook_lezo": "22.0",
        "mezo": "6.00",
        "lezo": "4.00",
        "floor": "2.00",
    }
    assert {len(row) for row in rows} == {12}
    assert len({len(line) for line in lines if line.startswith("|")}) == 1
    assert "- textbook_mezo/lezo: 10.0" in lines
    assert len([line for line in lines if line.startswith("- ") and "rough" not in line]) == len(RATIOS)
    assert "random weights" in lines[0] and "6 of 8 blocks skipped" in lines[0]


def test_steps_that_differ_much_are_said_to_be_rough() -> None:
    steady = {name: [2.0, 2.9] for name in BenchVariant}
    busy = steady | {BenchVariant.mezo: [2.0, 3.1]}
    (calm, rough) = (
        markdown(DESCRIBED | findings([Sample(n, 1, s, {}) for n in t for s in t[n]], {n: Peak() for n in t}))
        for t in (steady, busy)
    )
    assert "rough" not in calm
    assert "- rough, of mezo the slowest step took more than 1.5 times the fastest" in rough


def test_a_variant_that_was_not_tried_is_no_row_and_no_ratio() -> None:
    peaks = {name: Peak() for name in SECONDS if name is not BenchVariant.published}
    made = [sample for name in peaks for sample in samples(name)]
    assert "published" not in markdown(DESCRIBED | findings(made, peaks))


def test_consecutive_steps_have_a_table_of_their_own() -> None:
    windows = {BenchVariant.lezo: [0.1] * 8 + [0.2, 0.9], BenchVariant.mezo: []}
    result = DESCRIBED | findings([], {name: Peak() for name in SECONDS}, windows)
    assert result["window"] == {"lezo": spread_of([0.1] * 8 + [0.2, 0.9])}
    found = {"median": 0.1, "mean": pytest.approx(0.19), "p90": 0.2, "max": 0.9, "steps": 10}
    assert result["window"]["lezo"] == found
    row = markdown(result).splitlines()[-1]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        "lezo",
        "0.100",
        "0.190",
        "0.200",
        "0.900",
        "10",
    ]
    assert spread_of([0.5])["p90"] == 0.5


def test_memory_has_what_is_allocated_and_what_is_reserved() -> None:
    peaks = {name: Peak(2**30, 1.0, reserved=3 * 2**30) for name in SECONDS}
    (row,) = [x for x in markdown(DESCRIBED | findings([], peaks)).splitlines() if x.startswith("| lezo ")]
    assert [cell.strip() for cell in row.split("|")][-4:-2] == ["1.0 GiB", "3.0 GiB"]


def test_clocks_are_said_or_said_to_be_absent() -> None:
    spread = {"min": 1400.0, "median": 1700.0, "max": 1980.0}
    gauges = {"sm_mhz": spread, "watts": dict.fromkeys(spread, 640.0)}
    assert gauges_line(gauges) == "SM 1700 (1400 to 1980) MHz, 640 W"
    result = DESCRIBED | findings([], {}) | {"gauges": {"absent": "no driver"}}
    assert "- clocks and power: absent (no driver)" in markdown(result)


@pytest.mark.parametrize("absent", [[], [BenchVariant.textbook_mezo], list(BenchVariant)])
def test_the_picture_is_a_png_whatever_is_missing(absent: list[BenchVariant]) -> None:
    drawn = picture(found(*absent))
    assert drawn.startswith(b"\x89PNG") and drawn.endswith(b"IEND\xaeB`\x82")
