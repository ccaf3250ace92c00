"""The kernels compiled for GPUs that are not there; run as a program, for each Triton in a process of its own.

    python -m tests.pretend_cuda.ahead_of_time 80 90 [all]

prints {"triton": version, "kernels": {"sm_90 update fp16 ...": {"contracted": [instructions], "spilled": bytes}}}.
"all": also of the variants for tensors that begin anywhere those of other dtypes than fp16, and all that draw signs.
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

import torch

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
SPARED = 8
"""Bytes of a thread's stack that do no harm: Triton 3.6 and 3.7 lay one register there for a tensor of one element."""
ROOT = r"\s*".join(
    [
        r"rsqrt\.approx\.ftz\.f32 estimate, (%\w+);",
        r"mul\.rn\.f32 near, \1, estimate;",
        r"mul\.rn\.f32 half, estimate, 0f3F000000;",
        r"neg\.f32 rest, near;",
        r"fma\.rn\.f32 rest, rest, near, \1;",
        r"fma\.rn\.f32 %\w+, rest, half, near;",
    ]
)
"""The square root of lezo.noise.kernels.normal, as PTX has it."""


def variants() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any]]]:
    """A name, the kernel, the types of its arguments and the values of those that are compiled in."""
    from lezo.noise.kernels import perturb, update

    kinds = {name: perturb.DTYPES[dtype] for name, dtype in DTYPES.items()}
    for name, dtype in kinds.items():
        for wide in (False, True) if name != "fp32" else (False,):
            for aligned in (True, False):
                types = {"tensors_table": "*i64", "tensors": "i32", "eps": "fp32"}
                fixed = {"DTYPE": dtype, "WIDE": wide, "ALIGNED": aligned, "COLUMNS": perturb.COLUMNS}
                words = f"perturb {name}{' and fp32' * wide}{'' if aligned else ', not aligned'}"
                for signs in (False, True):  # private to its launcher
                    yield words + ", signs" * signs, perturb._perturb, types, {**fixed, "SIGNS": signs}
    for name, dtype in kinds.items():
        for stochastic in (False, True):
            for aligned in (True, False):
                types = {"tensors_table": "*i64", "tensors": "i32", "coefficient": "*fp32"}
                fixed = {
                    "DTYPE": dtype,
                    "STOCHASTIC": stochastic,
                    "ALIGNED": aligned,
                    "COLUMNS": update.COLUMNS,
                }
                words = f"update {name}{', stochastic' * stochastic}{'' if aligned else ', not aligned'}"
                for signs in (False, True):
                    yield words + ", signs" * signs, update._update, types, {**fixed, "SIGNS": signs}


def compiled(kernel: Any, types: dict[str, str], fixed: dict[str, Any], arch: int) -> Any:
    """What Triton makes of it, whatever its version calls things."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from lezo.noise.kernels.normal import GROUPS, LAUNCH

    fixed = {**fixed, "GROUPS": GROUPS}
    if "constexprs" in inspect.signature(ASTSource).parameters:
        signature = {name: "constexpr" if name in fixed else types[name] for name in kernel.arg_names}
        source = ASTSource(fn=kernel, signature=signature, constexprs=fixed)
    else:  # before Triton 3.3
        signature = {name: types[name] for name in kernel.arg_names if name not in fixed}
        source = ASTSource(fn=kernel, signature=signature, constants=fixed)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=LAUNCH)


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
    0 or above 1e-8. So is the one that lezo.noise.kernels.normal writes out, which tests try of every such number on a
    GPU.
    """
    ptx = re.sub(ROOT, "", re.sub(r"^\s*(?:\.loc|//).*\n", "", ptx, flags=re.MULTILINE))
    floats = r"\b(?:fma|mad|mul|div|rcp|sqrt|rsqrt|ex2|lg2|sin|cos)\.\S*f(?:16|16x2|32|64)\b"
    return sorted(set(re.findall(floats, ptx)) - {"mul.rn.f32", "sqrt.rn.f32", "sqrt.rn.ftz.f32"})


def chosen(words: list[str]) -> list[Any]:
    """The variants that the words ask for."""
    few = [found for found in variants() if "fp16" in found[0] or found[3]["ALIGNED"]]
    return [*variants()] if "all" in words else [found for found in few if not _spared(found[0])]


def _spared(name: str) -> bool:
    """Of signs, which take fewer operations than normals, one variant of each kernel is enough."""
    return "signs" in name and name not in ("perturb fp16 and fp32, signs", "update fp16, stochastic, signs")


def kernels(*words: str) -> dict[str, dict[str, Any]]:
    """What comes out of compiling the variants for the GPUs that the words ask for, by their names."""
    return {
        f"sm_{arch} {name}": described(compiled(kernel, types, fixed, int(arch)))
        for arch in filter(str.isdecimal, words)
        for name, kernel, types, fixed in chosen([*words])
    }


def main(words: list[str]) -> None:
    """Compile and print what came out."""
    import triton

    print(json.dumps({"triton": triton.__version__, "kernels": kernels(*words)}))


if __name__ == "__main__":
    main(sys.argv[1:])
