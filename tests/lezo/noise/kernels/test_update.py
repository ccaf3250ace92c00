import pytest
import torch

from lezo.noise import philox
from lezo.noise.operands import Step
from tests.lezo.noise.kernels.agreement import (
    DTYPES,
    KEY,
    assert_a_null_step_leaves_the_bits,
    assert_updates_alike,
    assert_updates_many_alike,
    same_bits,
    weights,
)


@pytest.fixture
def update(device):
    from lezo.noise.kernels.update import update

    return update


@pytest.mark.parametrize("size", [1, 1025, 20_003], ids=["one", "two chunks", "several programs"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_the_twin(update, device, size, dtype):
    """Stochastically where there are several chunks: the path without it is the shorter one."""
    assert_updates_alike(update, weights(size, dtype=dtype, device=device), stochastic=size > 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_the_twin_rounded_to_nearest_and_without_decay(update, device, dtype):
    theta = weights(2000, dtype=dtype, device=device)
    assert_updates_alike(update, theta, stochastic=False)
    assert_updates_alike(update, theta, stochastic=False, decay=0.0)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's, of infinities
@pytest.mark.parametrize(("dtype", "stochastic"), [(DTYPES[0], False), (DTYPES[1], True)])
def test_a_null_step_leaves_the_bits(update, device, dtype, stochastic):
    theta = weights(2000, dtype=dtype, device=device)
    assert_a_null_step_leaves_the_bits(update, theta, stochastic=stochastic)


def test_programs_of_any_size_agree(update, device, monkeypatch):
    from lezo.noise.kernels import normal

    monkeypatch.setattr(normal, "GROUPS", 256)
    assert_updates_alike(update, weights(5000, dtype=DTYPES[1], device=device), stochastic=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_tensors_agree_with_the_twin(update, device, dtype):
    assert_updates_many_alike(update, dtype, device)


def test_tensors_that_begin_anywhere_agree(update, device):
    """Where no wide access may be made."""
    given, expected = (weights(5001, dtype=DTYPES[1], device=device) for _ in range(2))
    for made, theta in ((update, given), (philox.update, expected)):
        made([Step(theta[1:], KEY, 0.0)], torch.tensor(3e-3, device=device), False)
    assert same_bits(given, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_signs_agree_with_the_twin(update, device, dtype):
    theta = weights(33 * 1024 + 5, dtype=dtype, device=device)
    assert_updates_alike(update, theta, stochastic=True, draw=philox.SIGNS)
    assert_updates_many_alike(update, dtype, device, philox.SIGNS)
