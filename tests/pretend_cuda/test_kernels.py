"""The kernels compile for the GPUs that there are, with every Triton that torch brings, and nothing in them is fused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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
    wrong = {name: made for name, made in found["kernels"].items() if made["contracted"] or made["spilled"]}
    assert found["kernels"] and not wrong


def test_every_kind_of_kernel_compiles_and_is_exact() -> None:
    pytest.importorskip("triton", reason="Triton is not installed (it comes with lezo[test], on Linux)")
    found = compiled("80", "90")
    assert_exact(found)
    assert {name.split()[0] for name in found["kernels"]} == {"sm_80", "sm_90"}


def test_a_fused_one_is_noticed() -> None:
    pytest.importorskip("triton", reason="Triton is not installed (it comes with lezo[test], on Linux)")
    found = compiled("90", "fused", "one")
    with pytest.raises(AssertionError):
        assert_exact(found)
    assert all("fma.rn.f32" in made["contracted"] for made in found["kernels"].values())


@pytest.mark.parametrize("folder", os.environ.get(FOLDERS, "").split(os.pathsep))
def test_with_other_tritons_too(folder: str) -> None:
    if not (Path(folder) / "triton").is_dir():
        pytest.skip(f"no Triton in {folder!r}: {FOLDERS} names folders with one unpacked")
    found = compiled("80", "90", "all", triton=folder)
    assert_exact(found)
