"""Which device has which blocks, and what becomes of a model that is told so. "meta" stands for another device."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lezo.model.hashes import weights_hash
from lezo.model.layout import layout
from lezo.model.load import TINY, ModelError, Source, load_config, load_hashed, skeleton
from lezo.model.placement import Placement, _cut, follow, placed, settle
from lezo.zo.packing_check import network_for
from tests.lezo.refusals import refused
from tests.lezo.small_models import CPU, small_model

META = torch.device("meta")


@pytest.mark.parametrize(
    ("sizes", "outside", "devices", "places"),
    [
        ([1] * 4, 0, 2, [0, 0, 1, 1]),
        ([1] * 10, 0, 4, [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]),
        ([1] * 5, 1, 3, [0, 1, 1, 2, 2]),
        (
            [1] * 8,
            100,
            4,
            [0, 1, 1, 2, 2, 2, 3, 3],
        ),  # one at least beside large embeddings, and the others alike
        ([5, 1, 1, 1, 1, 1], 0, 2, [0, 1, 1, 1, 1, 1]),
        ([1, 1, 1, 1, 1, 50], 0, 3, [0, 0, 0, 0, 1, 2]),
        ([1, 1], 0, 2, [0, 1]),
    ],
)
def test_blocks_are_cut_by_their_bytes(
    sizes: list[int], outside: int, devices: int, places: list[int]
) -> None:
    assert list(_cut(sizes, outside, devices)) == places


def test_a_name_is_that_of_a_block_or_of_what_is_in_it() -> None:
    where = Placement((CPU, META), tuple(f"layers.{i}" for i in range(12)), (0,) * 2 + (1,) * 10)
    assert [where.place(f"layers.{name}") for name in ("1", "10", "1.attention.weight", "11.bias")] == [
        0,
        1,
        0,
        1,
    ]
    assert where.device("embeddings.weight") == where.device("layers") == CPU
    assert where.is_outside("layers") and not where.is_outside("layers.1")


def test_fewer_blocks_than_devices_are_refused() -> None:
    with refused(ModelError, "5 devices", "4 blocks"):
        placed(small_model("opt"), [CPU] * 5)


def test_tensors_settle_where_they_belong_and_tied_ones_stay_tied() -> None:
    model = small_model("qwen2-tied")
    where = placed(model, [CPU, META])
    settle(model, where)
    assert {name: p.device for name, p in model.named_parameters()} == {
        name: where.device(name) for name, _ in model.named_parameters()
    }
    assert {p.device for p in model.parameters()} == {CPU, META}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert isinstance(model.model.layers[-1].mlp.up_proj.weight, nn.Parameter)


@pytest.mark.parametrize("random", [False, True])
def test_weights_are_the_same_wherever_they_are_put(random: bool) -> None:
    source = Source(str(TINY), random_weights=random)
    config = load_config(source)
    hashes, bones = set(), skeleton(config, torch.float32)
    for devices in (1, 2, 3):
        where = placed(bones, [CPU] * devices)
        model, known = load_hashed(source, config, dtype=torch.float32, placement=where, seed=5)
        hashes |= {weights_hash(model), weights_hash(model, known)}
        assert [p for p, _ in model.named_parameters()] == [p for p, _ in bones.named_parameters()]
    assert len(hashes) == 1


def test_random_weights_are_never_all_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lezo.model.load._fill", lambda *_: None)
    source = Source(str(TINY), random_weights=True)
    config = load_config(source)
    where = placed(skeleton(config, torch.float32), [CPU, META])
    model, _ = load_hashed(source, config, dtype=torch.float32, placement=where, seed=5)
    assert all(p.device == where.device(name) for name, p in model.named_parameters())


def test_one_device_has_no_hooks() -> None:
    model = small_model("opt")
    follow(model, Placement((CPU,)))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_a_forward_that_does_not_get_from_device_to_device_is_refused() -> None:
    """Nothing comes back from meta."""
    model = small_model("opt")
    where = placed(model, [CPU, META])
    follow(settle(model, where), where)
    with refused(ModelError, "OPTForCausalLM", "several devices", "model.devices"):
        network_for(model, layout(model))
