"""The kernels compile for the GPUs that there are, with every Triton that torch brings, and nothing in them is fused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.pretend_cuda.ahead_of_time import SPARED, contracted, kernels

pytestmark = pytest.mark.pretend_cuda

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = "LEZO_TRITONS"
"""An environment variable: folders, each with a Triton unpacked (the folder that holds `triton`), between colons."""


def compiled(*words: str, triton: str | None = None) -> dict[str, Any]:
    """What the program ahead_of_time prints, of the Triton in a folder or the one installed."""
    own = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    own["PYTHONPATH"] = os.pathsep.join(filter(None, [triton, str(ROOT)]))
    command = [sys.executable, "-m", "tests.pretend_cuda.ahead_of_time", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=own, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def assert_exact(found: dict[str, Any]) -> None:
    """No variant spills its registers or rounds otherwise than the twin."""
    wrong = {
        name: made
        for name, made in found["kernels"].items()
        if made["contracted"] or made["spilled"] > SPARED
    }
    assert found["kernels"] and not wrong


def test_every_kind_of_kernel_compiles_and_is_exact() -> None:
    """For sm_80; for sm_90 those of the runs are compiled and judged where they are launched."""
    pytest.importorskip("triton", reason="Triton is not installed (it comes with lezo[test], on Linux)")
    from tests.pretend_cuda import pretend_driver

    with pretend_driver.compiling(pretend_driver.defined_once()):
        found = {"kernels": kernels("80")}
    assert_exact(found)
    assert len(found["kernels"]) == 17


@pytest.mark.parametrize(
    "line",
    [
        "fma.rn.f32 %f1, %f2, %f3, %f4;",
        "mul.f32 %f1, %f2, %f3;",
        "sqrt.approx.ftz.f32 %f1, %f2;",
        "mad.f32 %f1, %f2;",
    ],
)
def test_what_rounds_otherwise_is_noticed(line: str) -> None:
    exact = "mul.rn.f32 %f1, %f2, %f3;\nadd.f32 %f1, %f2, %f3;\nmad.lo.s32 %r1, %r2, %r3, %r4;\nsqrt.rn.f32 %f1, %f2;\n"
    assert contracted(exact) == []
    assert contracted(exact + line) == [line.split()[0]]
    with pytest.raises(AssertionError):
        assert_exact({"kernels": {"one": {"contracted": contracted(exact + line), "spilled": 0}}})


def test_spilled_registers_are_noticed() -> None:
    with pytest.raises(AssertionError):
        assert_exact({"kernels": {"one": {"contracted": [], "spilled": SPARED + 1}}})


@pytest.mark.parametrize("folder", os.environ.get(FOLDERS, "").split(os.pathsep))
def test_with_other_tritons_too(folder: str) -> None:
    if not (Path(folder) / "triton").is_dir():
        pytest.skip(f"no Triton in {folder!r}: {FOLDERS} names folders with one unpacked")
    found = compiled("80", "90", "all", triton=folder)
    assert_exact(found)
