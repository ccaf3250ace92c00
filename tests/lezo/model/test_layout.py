"""Blocks of modules of all kinds: found in lists, given by name or themselves, and refused with a way out."""

import pytest
import torch
from torch import nn

from lezo.model.layout import found, layout, layout_of, named, trainable
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
    known, made = layout(model), layout_of(model, found(model))
    assert (made.non_block, made.blocks) == (known.non_block, known.blocks)
    assert found(model) == tuple(f"{known.path}.{i}" for i in range(len(known.blocks)))


def test_blocks_are_the_trainable_entries_of_the_longest_list_a_module_list_first():
    assert found(Deep()) == ("layers.0", "layers.1", "layers.2")
    assert found(mlp()) == ("0", "2", "4")
    assert found(nn.Sequential(mlp(2), mlp(4), nn.Linear(4, 1))) == ("1.0", "1.2", "1.4", "1.6")
    frozen = Deep()
    frozen.layers[1].requires_grad_(False)
    assert found(frozen) == ("layers.0", "layers.2")


def test_of_lists_the_one_of_as_many_blocks_as_the_configuration_says():
    model = Deep()
    model.longer = nn.ModuleList(nn.Linear(1, 1) for _ in range(5))
    assert len(found(model)) == 5
    model.config = type("Config", (), {"num_hidden_layers": 3})
    assert found(model) == ("layers.0", "layers.1", "layers.2")


def test_a_layout_has_each_trainable_tensor_once():
    model = Deep()
    model.layers[2][0].bias.requires_grad_(False)
    made = layout_of(model, ("layers.0", "layers.2"))
    assert made.blocks == (
        ("layers.0.0.weight", "layers.0.0.bias", "layers.0.2.weight", "layers.0.2.bias"),
        ("layers.2.0.weight", "layers.2.2.weight", "layers.2.2.bias"),
    )
    others = ("layers.1.0.weight", "layers.1.0.bias", "layers.1.2.weight", "layers.1.2.bias")
    assert made.non_block == ("stem.weight", *others, "head.bias")


def test_a_tensor_that_two_blocks_share_is_the_first_ones():
    model = Deep()
    assert layout_of(model, ("stem", "head")).blocks == (("stem.weight",), ("head.bias",))
    assert layout_of(model, ("head",)).blocks == (("stem.weight", "head.bias"),)


def test_blocks_are_given_by_name_or_themselves():
    model = Deep()
    assert named(model, [model.layers[2], "stem"]) == ("layers.2", "stem")


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        (["layers.3"], "block 'layers.3' is no module of the Deep; expected .*layers.2"),
        (["zzz"], "expected names from named_modules.., such as stem, layers, head"),
        ([nn.Linear(1, 1)], "a Linear of blocks is no module of the Deep"),
        (["layers", "layers.1"], "blocks overlap: 'layers.1' is inside 'layers'"),
        (["layers.1", ""], "blocks overlap: 'layers.1' is inside ''"),
        (["stem", "stem"], "blocks overlap: 'stem' is given twice"),
        (["layers.0.1"], "block 'layers.0.1' holds no trainable tensor of its own; leave it out"),
    ],
)
def test_blocks_that_are_not_the_models_are_refused(blocks, said):
    model = Deep()
    with pytest.raises(ValueError, match=said):
        layout_of(model, named(model, blocks))


def test_a_model_without_a_list_is_told_how_to_name_blocks():
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.act, self.two = nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)

    with pytest.raises(
        ValueError, match=r"Flat: no list of blocks found .* blocks=\['one', 'two'\], or use lezo.MeZO"
    ):
        found(Flat())


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(ValueError, match="Linear has no trainable tensors; expected .*requires_grad=True"):
        trainable(nn.Linear(2, 2).requires_grad_(False))
    odd = nn.Linear(2, 2)
    odd.phase = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="phase is of complex64; expected one of float16, bfloat16"):
        trainable(odd)
    odd.phase.requires_grad_(False)
    assert set(trainable(odd)) == {"weight", "bias"}
