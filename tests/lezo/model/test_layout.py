"""Blocks of modules of all kinds: found in lists, given by name or themselves, and refused with a way out."""

import pytest
import torch
from torch import nn

from lezo.model.layout import ModelError, layout, layout_of, trainable, trainable_blocks
from tests.lezo.refusals import refused
from tests.lezo.small_models import CONFIGS, small_model


class Deep(nn.Module):
    """A stem, a list of three blocks that hold lists themselves, and a head that is tied to the stem."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4, bias=False)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)) for _ in range(3)
        )
        self.head = nn.Linear(4, 4)
        self.head.weight = self.stem.weight


def mlp(depth: int = 3) -> nn.Sequential:
    return nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(4, 4), nn.Tanh())))


@pytest.mark.parametrize("name", CONFIGS)
def test_blocks_of_a_language_model_are_its_decoder_blocks(name):
    model = small_model(name)
    sorted_by_block = layout(model)
    assert sorted_by_block == layout_of(model, trainable_blocks(model))
    assert len(sorted_by_block.blocks) == CONFIGS[name].num_hidden_layers
    assert len({len(block) for block in sorted_by_block.blocks}) == 1
    everything = sorted_by_block.active(range(len(sorted_by_block.blocks)))
    assert sorted(everything) == sorted(n for n, _ in model.named_parameters())
    assert any("embed" in n for n in sorted_by_block.non_block)


def test_a_tied_head_appears_once_and_frozen_tensors_take_no_part():
    model = small_model("opt")
    assert "lm_head.weight" not in layout(model).non_block
    assert "lm_head.weight" in layout(small_model("llama")).non_block
    model.get_input_embeddings().weight.requires_grad_(False)
    model.model.decoder.layers[1].requires_grad_(False)
    assert not any("embed_tokens" in name for name in layout(model).non_block)
    assert [len(block) > 0 for block in layout(model).blocks] == [True, False, True, True]


def test_blocks_are_the_trainable_entries_of_the_longest_list_a_module_list_first():
    assert trainable_blocks(Deep()) == ("layers.0", "layers.1", "layers.2")
    assert trainable_blocks(mlp()) == ("0", "2", "4")
    assert trainable_blocks(nn.Sequential(mlp(2), mlp(4), nn.Linear(4, 1))) == ("1.0", "1.2", "1.4", "1.6")
    frozen = Deep()
    frozen.layers[1].requires_grad_(False)
    assert trainable_blocks(frozen) == ("layers.0", "layers.2")


def test_of_lists_the_one_of_as_many_blocks_as_the_configuration_says():
    model = Deep()
    model.longer = nn.ModuleList(nn.Linear(1, 1) for _ in range(5))
    assert len(trainable_blocks(model)) == 5
    model.config = type("Config", (), {"num_hidden_layers": 3})
    assert trainable_blocks(model) == layout(model).modules == ("layers.0", "layers.1", "layers.2")


def test_where_the_configuration_counts_other_layers_the_blocks_are_the_outermost_list_not_experts():
    model = Deep()
    model.layers[1].experts = nn.ModuleList(nn.Linear(1, 1) for _ in range(5))
    model.config = type("Config", (), {"num_hidden_layers": 6})
    assert trainable_blocks(model) == layout(model).modules == ("layers.0", "layers.1", "layers.2")


def test_a_layout_has_each_trainable_tensor_once():
    model = Deep()
    model.layers[2][0].bias.requires_grad_(False)
    sorted_by_block = layout_of(model, ("layers.0", "layers.2"))
    assert sorted_by_block.blocks == (
        ("layers.0.0.weight", "layers.0.0.bias", "layers.0.2.weight", "layers.0.2.bias"),
        ("layers.2.0.weight", "layers.2.2.weight", "layers.2.2.bias"),
    )
    others = ("layers.1.0.weight", "layers.1.0.bias", "layers.1.2.weight", "layers.1.2.bias")
    assert sorted_by_block.non_block == ("stem.weight", *others, "head.bias")


def test_a_tensor_that_two_blocks_share_is_the_first_ones():
    model = Deep()
    assert layout_of(model, ("stem", "head")).blocks == (("stem.weight",), ("head.bias",))
    assert layout_of(model, ("head",)).blocks == (("stem.weight", "head.bias"),)


def test_blocks_are_given_by_name_or_themselves():
    model = Deep()
    assert layout_of(model, [model.layers[2], "stem"]).modules == ("layers.2", "stem")


@pytest.mark.parametrize(
    ("blocks", "named"),
    [
        (["layers.3"], ["'layers.3'", "layers.2"]),
        (["zzz"], ["'zzz'", "stem, layers, head"]),
        ([nn.Linear(1, 1)], ["a Linear"]),
        (["layers", "layers.1"], ["'layers.1' is inside 'layers'"]),
        (["layers.1", ""], ["'layers.1' is inside ''"]),
        (["stem", "stem"], ["'stem'"]),
        (["layers.0.1"], ["'layers.0.1'"]),
        ("layers", ["blocks='layers'"]),
    ],
)
def test_blocks_that_are_not_the_models_are_refused(blocks, named):
    with refused(ValueError, *named):
        layout_of(Deep(), blocks)


def test_a_model_without_a_list_is_told_how_to_name_blocks():
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.act, self.two = nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)

    with refused(ValueError, "Flat", "blocks=['one', 'two']", "lezo.MeZO"):
        trainable_blocks(Flat())
    with refused(ModelError, "Flat"):
        layout(Flat())


def test_what_cannot_be_trained_is_refused():
    with refused(ValueError, "Linear", "requires_grad=True"):
        trainable(nn.Linear(2, 2).requires_grad_(False))
    odd = nn.Linear(2, 2)
    odd.phase = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    with refused(ValueError, "phase", "complex64", "float16, bfloat16"):
        trainable(odd)
    odd.phase.requires_grad_(False)
    assert set(trainable(odd)) == {"weight", "bias"}
