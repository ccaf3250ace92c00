"""Which models are packed, which are not and why; each check finds its fault."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from lezo.data.pack import candidate_batch
from lezo.model.forward import Network, PlainRows
from lezo.model.layout import layout
from lezo.model.load import ModelError
from lezo.model.loss import answer_scores
from lezo.zo import packing_check
from lezo.zo.packing_check import network_for
from tests.lezo import zoo
from tests.lezo.refusals import refused
from tests.lezo.small_models import CPU, as_on_cuda, examples, small_model

HEADS = "its logits are not its head's output"


def run(model, longest=12, **options):
    return network_for(model, layout(model), longest=longest, **options)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *(("opt", dtype) for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)),
        ("opt-350m-style", torch.float16),
        ("llama", torch.bfloat16),
        ("qwen2-tied", torch.float16),
        ("neox", torch.float32),
    ],
)
def test_models_that_follow_mask_positions_and_head_are_packed(name, dtype, monkeypatch):
    network = run(small_model(name, dtype))
    assert (type(network), network.plain) == (Network, False)
    as_on_cuda(monkeypatch)
    assert not run(small_model(name, dtype)).plain


@pytest.mark.parametrize(
    ("family", "dtype", "why"),
    [
        ("bloom", torch.bfloat16, "it does not take packed rows"),
        ("mamba", torch.float16, "its blocks hold convolutions"),
        ("cohere", torch.float32, HEADS),
        # Off by a 250th of the scores' spread: 16 bits would not show it.
        *(("nanochat", dtype, HEADS) for dtype in (torch.float32, torch.float16, torch.bfloat16)),
        ("mistral", torch.float16, "its attention has a window of 8 tokens, and the longest sequence has 12"),
        *(
            ("mpt", dtype, "it does not follow mask and positions")
            for dtype in (torch.float32, torch.bfloat16)
        ),
    ],
)
def test_what_cannot_be_packed_is_run_in_plain_rows_in_every_dtype(family, dtype, why):
    network = run(zoo.small(family).to(dtype))
    assert isinstance(network, PlainRows)
    assert network.rows.startswith(f"plain: {why}")


def test_a_window_that_holds_the_longest_sequence_does_no_harm():
    assert run(zoo.small("mistral"), longest=zoo.WINDOW).rows == "packed"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_that_read_what_another_computed_are_found_by_the_probe_alone(dtype):
    config = deepcopy(zoo.small("gemma3n_text").config)
    config.sliding_window = 64
    object.__setattr__(config, "final_logit_softcapping", None)  # which its own check does not allow
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().to(dtype)
    assert run(model, probes=False).rows == "packed"
    assert run(model).rows.startswith("plain: both signs")


def test_sequences_that_see_each_other_a_little_are_found_in_16_bits(monkeypatch):
    # private: the one place where states of packed rows can be made to leak
    model, states = small_model(dtype=torch.float16), Network._states

    def leaking(self, *inputs):
        found = states(self, *inputs)
        return found + 0.04 * found.mean(1, keepdim=True)

    monkeypatch.setattr(Network, "_states", leaking)
    assert run(model, probes=False).rows.startswith(
        "plain: packed sequences see each other (scores off by 0.0"
    )


def test_a_head_that_is_no_linear_layer_is_the_models_own_affair():
    model = small_model()
    model.lm_head = nn.Sequential(model.lm_head)
    network = run(model)
    assert network.plain and "OPTForCausalLM: its head is Sequential" in network.rows
    batch = candidate_batch(examples(), pad=1, device=CPU, plain=True)
    assert answer_scores(network, batch).isfinite().all()
    with refused(ModelError, "OPTForCausalLM", "Sequential"):
        network.hidden(batch)


def test_a_model_that_looks_ahead_is_refused(monkeypatch):
    logits = PlainRows.logits

    def looking_ahead(self, ids, columns=None):
        return logits(self, ids, columns) * ids.sum(1)[:, None, None] / 100

    monkeypatch.setattr(PlainRows, "logits", looking_ahead)
    with refused(ModelError, "OPTForCausalLM"):
        run(small_model())


def test_memory_that_runs_out_in_the_check_is_no_fault_of_the_model(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Network, "_states", full)
    with pytest.raises(torch.OutOfMemoryError):
        run(small_model())


def test_the_check_leaves_the_model_as_it_was():
    model = small_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    run(model)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert not any(module._forward_hooks or "forward" in vars(module) for module in model.modules())


def test_the_check_copies_about_a_block():
    """All vectors, and one matrix of each kind in another block: no second model, which might not fit."""
    model = small_model()
    blocks = layout(model)
    chosen = packing_check._sample(model, blocks)  # private: the check's copies show nowhere else
    where = [name.split(".", 4)[3:] for name in chosen if name not in blocks.non_block]
    assert len(where) == len({tuple(place) for place in where})
    matrices = [
        (block, kind)
        for block, kind in where
        if model.get_submodule(blocks.modules[int(block)]).get_parameter(kind).ndim > 1
    ]
    first = model.get_submodule(blocks.modules[0])
    of_a_block = [kind for kind, p in first.named_parameters() if p.ndim > 1]
    assert sorted(kind for _, kind in matrices) == sorted(of_a_block)
    assert {block for block, _ in where} == {block for block, _ in matrices} == {"0", "1", "2", "3"}


def test_the_check_moves_every_block_though_its_only_vectors_are_gains_of_16_bit_norms():
    model = small_model("llama", torch.float16)
    chosen = packing_check._sample(model, layout(model))  # private, as above
    assert {name.split(".")[2] for name in chosen if ".layers." in name} == {"0", "1", "2"}
    assert not any("norm" in name for name in chosen if ".layers." in name)


def test_plain_rows_ask_for_the_logits_that_are_read_only():
    network, asked = PlainRows(small_model(), "for the test"), []
    network.model.lm_head.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0].shape))
    batch = candidate_batch(examples(3, longest=1), pad=1, device=CPU, plain=True)
    with torch.no_grad():
        answer_scores(network, batch)
    columns = (batch.read % batch.input_ids.shape[1]).unique()
    assert asked == [(len(batch.input_ids), len(columns), 16)]
    assert len(columns) < batch.input_ids.shape[1]
