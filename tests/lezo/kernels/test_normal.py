"""What the interpreter cannot show: the kernels compile for a GPU (none is needed), with nothing fused."""

import os
import subprocess
import sys

import pytest

COMPILE = """
import re, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lezo.kernels.normal import EXACT, GROUPS
from lezo.kernels.perturb import _perturb
from lezo.kernels.update import _update

def ptx(kernel, signature, constants):
    constants["GROUPS"] = GROUPS
    types = {name: "constexpr" if name in constants else signature[name] for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=types, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", 80, 32), options=EXACT).asm["ptx"]

results = {"theta": "*fp16", "plus": "*fp16", "minus": "*fp32", "key": "i64", "eps": "fp32", "pieces": "i32"}
updated = {"coefficient": "*fp32", "key": "i64", "decay": "fp32", "numel": "i64"}
for code in (
    ptx(_perturb, {**results, "columns": "i32"}, {"rows": None, "SELECTED": False}),
    ptx(_perturb, {**results, "rows": "*i64"}, {"SELECTED": True, "columns": 1, "pieces": 1}),
    ptx(_update, {**updated, "theta": "*fp16"}, {"STOCHASTIC": True}),
    ptx(_update, {**updated, "theta": "*bf16"}, {"STOCHASTIC": False, "numel": 1}),
):
    print(sorted(set(re.findall(r"(?:fma|mad|mul|sqrt|div|ex2|lg2|sin|cos)\\S*f32", code))))
"""


def test_the_kernels_compile_for_cuda_and_nothing_is_fused(tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed (it comes with lezo[test], on Linux)")
    compiled = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    compiled["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=compiled)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["['mul.rn.f32', 'sqrt.rn.f32']"] * 4
