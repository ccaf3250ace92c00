import pytest
import torch

from tests.lezo.noise.kernels.agreement import DTYPES, assert_perturbs_alike, weights


@pytest.fixture
def perturb(device):
    from lezo.noise.kernels.perturb import perturb

    return perturb


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
