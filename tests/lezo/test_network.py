import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BloomConfig, Gemma2Config, MambaConfig, MistralConfig

from lezo import network as module
from lezo.model import ModelError
from lezo.network import Network, captured, check, replaced
from lezo.pack import candidate_batch
from tests.lezo.small_models import CONFIGS, CPU, VOCABULARY, examples, llama_like, small_model

FOLLOWS = "expected a model that follows a 4-D attention mask and position ids"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_models_that_follow_mask_positions_and_head_pass(name, dtype):
    check(Network(small_model(name, dtype)), vocabulary=VOCABULARY)


def test_a_model_that_ignores_positions_is_refused():
    bloom = AutoModelForCausalLM.from_config(
        BloomConfig(vocab_size=61, hidden_size=16, n_layer=2, n_head=2)
    ).eval()
    with pytest.raises(ModelError, match=f"BloomForCausalLM: .*; {FOLLOWS}"):
        check(Network(bloom), vocabulary=61)


def test_a_model_that_cannot_take_the_mask_is_refused():
    config = MambaConfig(vocab_size=61, hidden_size=16, num_hidden_layers=2, state_size=4)
    mamba = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(
        ModelError, match=rf"MambaForCausalLM: cannot score packed sequences \(.*\); {FOLLOWS}"
    ):
        check(Network(mamba), vocabulary=61)


def test_memory_that_runs_out_in_the_check_is_no_fault_of_the_model(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Network, "_states", full)
    with pytest.raises(torch.OutOfMemoryError):
        check(Network(small_model()), vocabulary=VOCABULARY)


def test_a_model_that_changes_logits_after_the_head_is_refused():
    config = llama_like(Gemma2Config, head_dim=8, final_logit_softcapping=0.5)
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(
        ModelError, match="Gemma2ForCausalLM: packed sequences score differently.*4-D attention"
    ):
        check(Network(model), vocabulary=VOCABULARY)


def test_a_window_shorter_than_the_longest_sequence_is_refused():
    model = AutoModelForCausalLM.from_config(llama_like(MistralConfig, sliding_window=8)).eval()
    check(Network(model), vocabulary=VOCABULARY, longest=8)
    with pytest.raises(
        ModelError, match="sliding window of 8 tokens, and the longest sequence has 9; expected full"
    ):
        check(Network(model), vocabulary=VOCABULARY, longest=9)


def test_a_model_without_a_linear_head_is_refused():
    model = small_model()
    model.lm_head = nn.Identity()
    with pytest.raises(
        ModelError, match="its head is Identity; expected a causal language model's nn.Linear"
    ):
        Network(model)


@pytest.mark.parametrize("chunk", [1, 7, 61, 1000])
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
