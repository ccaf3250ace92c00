import pytest
import torch

from lezo import noise
from lezo.encode import candidate_batch
from lezo.model import layout
from lezo.objective import loss
from lezo.probe import two_point
from tests.lezo.small_models import CONFIGS, small_model, weights
from tests.lezo.test_objective import CPU, examples

EPS = 1e-3


def probe(model, active, batch, eps=EPS):
    return two_point(model, active, lambda forward: loss(forward, batch), seed=5, eps=eps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_theta_is_bit_identical_after_a_probe(dtype):
    model = small_model(dtype=dtype)
    before = weights(model)
    probe(model, layout(model).active(range(4)), candidate_batch(examples(), pad=1, device=CPU))
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_theta_is_untouched_when_the_forward_fails():
    model = small_model()
    before = weights(model)
    with pytest.raises(ZeroDivisionError):
        two_point(model, layout(model).always, lambda forward: 1 / 0, seed=5, eps=EPS)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


@pytest.mark.parametrize("name", CONFIGS)
def test_losses_are_those_of_models_moved_by_hand(name):
    """Tied heads move with their embedding; skipped blocks stay."""
    batch = candidate_batch(examples(), pad=1, device=CPU)
    model = small_model(name, torch.float64)
    active = layout(model).active([1])
    expected = []
    for sign in (1, -1):
        moved = small_model(name, torch.float64)
        with torch.no_grad():
            for tensor in active:
                theta = moved.get_parameter(tensor)
                theta += sign * EPS * noise.normal(5, tensor, theta)
            expected.append(loss(moved, batch).item())
    assert [value.item() for value in probe(model, active, batch)] == pytest.approx(expected, abs=1e-12)
    assert expected[0] != expected[1]
