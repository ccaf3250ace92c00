import pytest
import torch
from torch import nn

from lezo.data.pack import candidate_batch
from lezo.model import forward as module
from lezo.model.forward import Network, additive, captured, replaced
from lezo.model.load import ModelError
from tests.lezo.refusals import refused
from tests.lezo.small_models import CPU, examples, small_model


def test_a_model_without_a_linear_head_is_refused():
    model = small_model()
    model.lm_head = nn.Identity()
    with refused(ModelError, "OPTForCausalLM", "Identity"):
        Network(model)


@pytest.mark.parametrize("chunk", [7, 61, 1000])
def test_the_normaliser_does_not_depend_on_the_chunk(chunk, monkeypatch):
    monkeypatch.setattr(module, "VOCABULARY_CHUNK", chunk)
    model = small_model(dtype=torch.float64)
    network = Network(model)
    with torch.no_grad():
        hidden = network.hidden(candidate_batch(examples(), pad=1, device=CPU))
        expected = model.lm_head(hidden).logsumexp(-1)
        torch.testing.assert_close(network.normalisers(hidden), expected, atol=1e-12, rtol=0)


def test_capturing_and_replacing_leave_a_module_as_it_was():
    layer, x = nn.Linear(2, 3), torch.ones(4, 2)
    before = layer(x)
    with pytest.raises(RuntimeError), replaced(layer, lambda x: x + 1):
        with captured(layer) as seen:
            assert layer(x).shape == (4, 1)
        assert (seen[0] is x, torch.equal(layer(x), x + 1)) == (True, True)
        raise RuntimeError
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_what_is_added_for_a_mask_hides_what_it_hides(dtype):
    mask = candidate_batch(examples(), pad=1, device=CPU).mask
    added = additive(mask, dtype)
    assert (added.dtype, added.shape, added.is_contiguous()) == (dtype, mask.shape, True)
    assert torch.equal(added == 0, mask)
    assert torch.equal(added.isneginf(), ~mask)
    assert mask.any(-1).all()  # a place that saw nothing, of padding even, would be no number


def test_on_a_cpu_the_mask_stays_as_it_is():
    batch = candidate_batch(examples(), pad=1, device=CPU)
    assert Network(small_model()).mask(batch) is batch.mask
