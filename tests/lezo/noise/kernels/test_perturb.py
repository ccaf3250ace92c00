import pytest
import torch

from lezo.noise import philox
from tests.lezo.noise.kernels.agreement import (
    DTYPES,
    assert_perturbs_alike,
    assert_perturbs_many_alike,
    weights,
)


@pytest.fixture
def perturb(device):
    from lezo.noise.kernels.perturb import perturbations

    return perturbations


@pytest.mark.parametrize("size", [1, 1025, 20_003], ids=["one", "two chunks", "several programs"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_the_twin(perturb, device, size, dtype):
    assert_perturbs_alike(perturb, weights(size, dtype=dtype, device=device))


@pytest.mark.parametrize(
    ("columns", "dtype"), [(1, None), (100, torch.float32), (1024, None), (3000, torch.float32)]
)
def test_rows_agree_with_the_twin(perturb, device, columns, dtype):
    theta = weights(9, columns, dtype=torch.float16, device=device)
    assert_perturbs_alike(perturb, theta, rows=torch.tensor([8, 0, 3, 3], device=device), dtype=dtype)


@pytest.mark.parametrize("columns", [100, 3000])
def test_programs_of_any_size_agree(perturb, device, columns, monkeypatch):
    from lezo.noise.kernels import normal

    monkeypatch.setattr(normal, "GROUPS", 256)
    theta = weights(3, columns, dtype=torch.float32, device=device)
    assert_perturbs_alike(perturb, theta)
    assert_perturbs_alike(perturb, theta, rows=torch.tensor([2, 1], device=device))


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_tensors_agree_with_the_twin(perturb, device, dtype):
    assert_perturbs_many_alike(perturb, dtype, device)


def test_tensors_that_begin_anywhere_agree(perturb, device):
    """Where no wide access may be made."""
    theta = weights(5001, dtype=torch.float16, device=device)[1:]
    assert_perturbs_alike(perturb, theta)


@pytest.mark.parametrize("dtype", DTYPES)
def test_signs_agree_with_the_twin(perturb, device, dtype):
    """Beyond the chunks that share words, and of rows that begin within one."""
    assert_perturbs_alike(perturb, weights(33 * 1024 + 5, dtype=dtype, device=device), draw=philox.SIGNS)
    theta = weights(40, 1500, dtype=dtype, device=device)
    rows = torch.tensor([39, 0, 3], device=device)
    assert_perturbs_alike(perturb, theta, rows=rows, dtype=torch.float32, draw=philox.SIGNS)
