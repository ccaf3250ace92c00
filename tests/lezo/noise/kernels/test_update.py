import pytest

from tests.lezo.noise.kernels.agreement import (
    DTYPES,
    LARGE,
    SIZES,
    assert_a_null_step_leaves_the_bits,
    assert_updates_alike,
    weights,
)


@pytest.fixture
def update(device):
    from lezo.noise.kernels.update import update

    return update


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_the_twin(update, device, size, dtype, stochastic):
    assert_updates_alike(update, weights(size, dtype=dtype, device=device), stochastic=stochastic)


@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_the_twin_without_decay(update, device, dtype):
    assert_updates_alike(update, weights(2000, dtype=dtype, device=device), stochastic=False, decay=0.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_the_twin_on_large_tensors(update, device, dtype):
    assert_updates_alike(update, weights(LARGE, dtype=dtype, device=device), stochastic=True)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's, of infinities
@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_null_step_leaves_the_bits(update, device, dtype, stochastic):
    theta = weights(2000, dtype=dtype, device=device)
    assert_a_null_step_leaves_the_bits(update, theta, stochastic=stochastic)


def test_programs_of_any_size_agree(update, device, monkeypatch):
    from lezo.noise.kernels import normal

    monkeypatch.setattr(normal, "GROUPS", 256)
    assert_updates_alike(update, weights(5000, dtype=DTYPES[1], device=device), stochastic=True)
