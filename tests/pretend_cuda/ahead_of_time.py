"""The kernels compiled for GPUs that are not there; run as a program, for each Triton in a process of its own.

    python -m tests.pretend_cuda.ahead_of_time 80 90 [all]

prints {"triton": version, "kernels": {"sm_90 update fp16 ...": {"contracted": [instructions], "spilled": bytes}}}.
Each kind of kernel is compiled once, with one or the other kind of size; "all": with each.
"""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WIDTHS = {"fp16": "*fp16", "bf16": "*bf16", "fp32": "*fp32"}
RESULTS = [("fp16", "fp16"), ("fp16", "fp32"), ("bf16", "bf16"), ("bf16", "fp32"), ("fp32", "fp32")]
SPARED = 8
"""Bytes of a thread's stack that do no harm: Triton 3.6 and 3.7 lay one register there for a tensor of one element."""
SIZES = {"32-bit": ("i32", None), "64-bit": ("i64", None), "of one": (None, 1)}
"""Types of a size argument as a launch specialises them, and its value where that is compiled in."""


def variants() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any]]]:
    """A name, the kernel, the types of its arguments and the values of those that are compiled in."""
    from lezo.noise.kernels.perturb import (
        _perturb,  # the kernels themselves, which are private to their launchers
    )
    from lezo.noise.kernels.update import _update

    for theta, result in RESULTS:
        for selected in (False, True):
            for size, (columns, value) in SIZES.items():
                types = {
                    "theta": WIDTHS[theta],
                    "plus": WIDTHS[result],
                    "minus": WIDTHS[result],
                    "rows": "*i64",
                }
                types |= {"key": "i64", "eps": "fp32", "columns": columns or "i32", "pieces": "i32"}
                fixed: dict[str, Any] = {"SELECTED": selected} | ({} if selected else {"rows": None})
                fixed |= {} if value is None else {"columns": value, "pieces": value}
                yield (
                    f"perturb {theta} to {result}{', rows' * selected}, sizes {size}",
                    _perturb,
                    types,
                    fixed,
                )
    for theta in WIDTHS:
        for stochastic in (False, True):
            for size, (numel, value) in SIZES.items():
                types = {"theta": WIDTHS[theta], "coefficient": "*fp32", "key": "i64", "decay": "fp32"}
                fixed = {"STOCHASTIC": stochastic} | ({} if value is None else {"numel": value})
                name = f"update {theta}{', stochastic' * stochastic}, sizes {size}"
                yield name, _update, {**types, "numel": numel or "i32"}, fixed


def compiled(kernel: Any, types: dict[str, str], fixed: dict[str, Any], arch: int) -> Any:
    """What Triton makes of it, whatever its version calls things."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from lezo.noise.kernels.normal import EXACT, GROUPS

    fixed = {**fixed, "GROUPS": GROUPS}
    if "constexprs" in inspect.signature(ASTSource).parameters:
        signature = {name: "constexpr" if name in fixed else types[name] for name in kernel.arg_names}
        source = ASTSource(fn=kernel, signature=signature, constexprs=fixed)
    else:  # before Triton 3.3
        signature = {name: types[name] for name in kernel.arg_names if name not in fixed}
        source = ASTSource(fn=kernel, signature=signature, constants=fixed)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=EXACT)


def described(made: Any) -> dict[str, Any]:
    """What the tests judge. Spilled registers lie in a thread's stack or local memory."""
    from triton.backends import nvidia

    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        done = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    spilled = re.search(r"STACK:(\d+) .*LOCAL:(\d+)", done.stdout)
    assert spilled, done.stdout[:500]
    return {"contracted": contracted(made.asm["ptx"]), "spilled": sum(map(int, spilled.groups()))}


def contracted(ptx: str) -> list[str]:
    """The instructions of ``ptx`` that round otherwise than the twin does: fused, approximate, or free to be fused.

    A square root that flushes subnormal numbers, as Triton before 3.6 has it, is the twin's too: of -2 ln u, which is
    0 or above 1e-8.
    """
    floats = r"\b(?:fma|mad|mul|div|rcp|sqrt|rsqrt|ex2|lg2|sin|cos)\.\S*f(?:16|16x2|32|64)\b"
    return sorted(set(re.findall(floats, ptx)) - {"mul.rn.f32", "sqrt.rn.f32", "sqrt.rn.ftz.f32"})


def chosen(words: list[str]) -> list[Any]:
    """The variants that the words ask for."""
    found = list(variants())
    if "all" in words:
        return found
    return [found[at + at // len(SIZES) % len(SIZES)] for at in range(0, len(found), len(SIZES))]


def main(words: list[str]) -> None:
    """Compile and print what came out."""
    import triton

    kernels = {
        f"sm_{arch} {name}": described(compiled(kernel, types, fixed, int(arch)))
        for arch in filter(str.isdecimal, words)
        for name, kernel, types, fixed in chosen(words)
    }
    print(json.dumps({"triton": triton.__version__, "kernels": kernels}))


if __name__ == "__main__":
    main(sys.argv[1:])
