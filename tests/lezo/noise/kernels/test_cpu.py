import numpy as np
import pytest
import torch
from numba import njit

from lezo.noise import philox
from lezo.noise.kernels import cpu
from lezo.noise.operands import Copies
from tests.lezo.noise.kernels.agreement import (
    DTYPES,
    KEY,
    LARGE,
    SIZES,
    assert_a_null_step_leaves_the_bits,
    assert_perturbs_alike,
    assert_perturbs_many_alike,
    assert_updates_alike,
    assert_updates_many_alike,
    weights,
)


@pytest.fixture(params=[1, 2])
def on_threads(request):
    """The kernels, run by one and by two threads."""

    def on_threads(kernel):
        def run(*arguments):
            before = torch.get_num_threads()
            torch.set_num_threads(request.param)
            try:
                made = kernel(*arguments)
                for call in made or []:
                    call()
                return [lambda: None for _ in made or []]
            finally:
                torch.set_num_threads(before)

        return run

    return on_threads


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_perturbs_as_the_twin(size, dtype):
    assert_perturbs_alike(cpu.perturbations, weights(size, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_perturbs_large_tensors_as_the_twin(dtype, on_threads):
    assert_perturbs_alike(on_threads(cpu.perturbations), weights(LARGE, dtype=dtype))


@pytest.mark.parametrize("columns", [1, 100, 768, 1024, 3000])
def test_perturbs_rows_as_the_twin(columns, on_threads):
    theta, rows = weights(70, columns, dtype=torch.float32), torch.tensor([69, 0, 3, 3, *range(10, 50)])
    assert_perturbs_alike(on_threads(cpu.perturbations), theta, rows=rows)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_perturbs_to_fp32_as_the_twin(dtype):
    assert_perturbs_alike(cpu.perturbations, weights(2000, dtype=dtype), dtype=torch.float32)
    assert_perturbs_alike(
        cpu.perturbations, weights(9, 200, dtype=dtype), rows=torch.tensor([8, 5]), dtype=torch.float32
    )


def test_elements_beyond_31_bits_are_the_twins():
    """The largest embeddings have 463 million elements; a stack of layers may have more than 2^32."""
    first = 2**33 + 700
    theta, plus, minus = np.zeros((3, 2000), np.float32)
    # private: tensors of that many elements, whose end it is about, are too large to make
    cpu._perturb(philox.NORMALS, KEY, np.array([first]), 2000, theta, np.float32(1), plus, minus)
    expected = philox.normals(KEY, torch.arange(first, first + 2000))
    assert torch.equal(torch.from_numpy(plus), expected)
    assert torch.equal(torch.from_numpy(minus), -expected)


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_updates_as_the_twin(size, dtype, decay, stochastic):
    assert_updates_alike(cpu.update, weights(size, dtype=dtype), decay=decay, stochastic=stochastic)


@pytest.mark.parametrize("dtype", DTYPES)
def test_updates_large_tensors_as_the_twin(dtype, on_threads):
    assert_updates_alike(on_threads(cpu.update), weights(LARGE, dtype=dtype), stochastic=True)


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_null_step_leaves_the_bits(dtype, stochastic):
    assert_a_null_step_leaves_the_bits(cpu.update, weights(2000, dtype=dtype), stochastic=stochastic)


@pytest.mark.parametrize("row", [-1, 5])
def test_a_row_out_of_range_is_refused(row):
    theta = torch.zeros(5, 4)
    with pytest.raises((IndexError, RuntimeError), match="out of range"):
        cpu.perturbations([[Copies(theta, KEY, torch.tensor([row]), *torch.empty(2, 1, 4))]], 1e-3)[0]()


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_many_tensors_agree_with_the_twin(dtype, on_threads):
    if dtype != torch.float64:  # whose copies are no narrower
        assert_perturbs_many_alike(on_threads(cpu.perturbations), dtype, "cpu")
    assert_updates_many_alike(on_threads(cpu.update), dtype, "cpu")


LONG = 33 * 1024 + 5
"""Beyond the chunks whose signs are bits of the same words."""


@pytest.mark.parametrize("size", [1, 1025, LONG])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_draws_signs_as_the_twin(size, dtype, on_threads):
    theta = weights(size, dtype=dtype)
    assert_perturbs_alike(on_threads(cpu.perturbations), theta, draw=philox.SIGNS)
    for stochastic in (False, True):
        assert_updates_alike(on_threads(cpu.update), theta, stochastic=stochastic, draw=philox.SIGNS)


def test_draws_signs_of_rows_and_of_many_tensors_as_the_twin(on_threads):
    theta, rows = weights(70, 1000, dtype=torch.float32), torch.tensor([69, 0, 3, 3, *range(10, 50)])
    assert_perturbs_alike(on_threads(cpu.perturbations), theta, rows=rows, draw=philox.SIGNS)
    assert_perturbs_many_alike(on_threads(cpu.perturbations), torch.float32, "cpu", philox.SIGNS)
    assert_updates_many_alike(on_threads(cpu.update), torch.float32, "cpu", philox.SIGNS)


def test_what_cannot_be_cached_is_compiled_all_the_same(monkeypatch):
    """Where neither the package's folder nor the home can be written to, numba refuses to cache."""

    def refusing(loop, *, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(loop, **options)

    monkeypatch.setattr(cpu.numba, "njit", refusing)
    assert cpu.compiled(lambda x: x + 1)(1) == 2


def test_the_loops_are_vectorised_and_nothing_is_fused():
    """Machine code, compiled anew: packed products and square roots, no fused multiply-add."""
    words, numbers = np.zeros((4, 256), np.uint32), np.zeros((4, 256), np.float32)
    number = np.float32(1)
    for kernel, arguments, packed in (
        (cpu._box_muller, (words[0], words[1], numbers[0], numbers[1]), ("mulps", "sqrtps")),
        (cpu._plus_minus, (numbers[0], numbers[1], number, numbers[2], numbers[3]), ("mulps",)),
        (cpu._step, (numbers[0], numbers[1], number, number), ("mulps",)),
    ):
        code = assembly(kernel, arguments)
        if "xmm" not in code:
            pytest.skip("reads x86 assembly only")
        assert all(instruction in code for instruction in packed)
        assert "fmadd" not in code
        assert "fmsub" not in code


def assembly(kernel, arguments):
    anew = njit(nogil=True)(kernel.py_func)
    anew(*arguments)
    (code,) = anew.inspect_asm().values()
    return code
