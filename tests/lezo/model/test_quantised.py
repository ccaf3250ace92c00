"""A base whose weights stay quantised: what it computes, weighs and hashes to; what is refused, and when."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lezo.config.compose import compose
from lezo.config.schema import ConfigError
from lezo.model import quantised
from lezo.model.hashes import weights_hash
from lezo.model.load import TINY, ModelError, Source, load, load_config, load_hashed
from lezo.model.place import Place
from lezo.model.placement import Placement
from lezo.model.quantised import quantised_layers, scales
from lezo.runs.plan import make_plan
from tests.lezo.quantised_folders import needs_bitsandbytes, saved
from tests.lezo.refusals import refused
from tests.lezo.whole_runs import SMALL

CPU = {"dtype": torch.float32, "device": torch.device("cpu"), "seed": 0}


def loaded(source):
    return load(source, load_config(source), **CPU)


def base(kind):
    return loaded(Source(str(TINY), quantization=kind))


def plain_weight(layer):
    """What the bits stand for, by bitsandbytes' own functions."""
    from bitsandbytes import functional

    if (state := getattr(layer.weight, "quant_state", None)) is not None:
        return functional.dequantize_4bit(layer.weight.data, state)
    held = layer.state.SCB if layer.weight.SCB is None else layer.weight.SCB
    return functional.int8_vectorwise_dequant(layer.weight.data, held)


@pytest.fixture(scope="module", params=["8bit", "4bit"])
def kind(request):
    needs_bitsandbytes()
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return saved(kind, tmp_path_factory.mktemp("saved") / kind)


def test_it_computes_what_its_bits_stand_for_each_row_alone(kind):
    model, plain = base(kind), loaded(Source(str(TINY)))
    for name, layer in list(quantised_layers(model)):
        with torch.no_grad():
            plain.get_submodule(name).weight.copy_(plain_weight(layer))
    ids = torch.randint(8, 1000, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(ids).logits
        assert torch.equal(logits, plain(ids).logits)
        assert torch.allclose(model(ids[1:2]).logits, logits[1:2], atol=1e-5)
    assert len(list(quantised_layers(model))) == 8 * 6
    assert not any(layer.weight.requires_grad for _, layer in quantised_layers(model))


def test_its_hash_stays_and_knows_the_scales(kind):
    model = base(kind)
    first = weights_hash(model)
    with torch.no_grad():
        model(torch.arange(8, 16)[None])
    assert weights_hash(model) == first == weights_hash(base(kind))
    next(scale for name, scale in scales(model) if "SCB" in name or "absmax" in name)[0] += 1
    assert weights_hash(model) != first


def test_a_checkpoint_of_bitsandbytes_is_such_a_base(kind, folder):
    source = Source(str(folder))
    model = loaded(source)
    assert len(list(quantised_layers(model))) == 8 * 6
    assert weights_hash(model) == weights_hash(loaded(source))
    for name, layer in quantised_layers(model):
        assert torch.isfinite(plain_weight(layer)).all(), name
    if kind == "4bit":
        assert any("nested_absmax" in name for name, _ in scales(model))


def test_bits_without_their_scales_are_refused(kind, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "damaged")
    file = tmp_path / "damaged" / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if name.endswith(("weight", "bias"))}
    save_file(tensors, file, metadata={"format": "pt"})
    with refused(ModelError, "damaged"):
        loaded(Source(str(tmp_path / "damaged")))


def test_the_plan_weighs_what_is_loaded(kind):
    words = [*SMALL, "peft=lora", f"model.quantization={kind}"]
    plan, plain = (make_plan(compose(given).config) for given in (words, words[:-1]))
    model = base(kind)
    held = sum(p.nbytes for p in model.parameters()) + sum(scale.nbytes for _, scale in scales(model))
    lora, largest = 8 * 4 * 8 * (64 + 64) * 2, 4 * 64 * 256
    assert plan.memory.weights == pytest.approx(held + lora + largest, rel=0.02)
    assert plan.memory.weights < 0.5 * plain.memory.weights
    assert (plan.layout, plan.parameters, plan.trained) == (plain.layout, plain.parameters, plain.trained)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["model.quantization=4bit"], ["peft=none", "peft=lora or peft=prefix"]),
        (["model.quantization=8bit", "peft=head", "optim=mezo"], ["peft=head"]),
        (["model.quantization=8bit", "optim=fo-sgd"], ["peft=none"]),
        (["model.quantization=8bit", "optim=lp"], ["fits the head"]),
        (["model.quantization=3bit"], ["none, 8bit or 4bit"]),
        (["model.quantization=4bit", "peft=lora", "model.home=disk"], ["model.home"]),
        (["model.quantization=4bit", "peft=lora", "model.devices=[cpu,cpu]"], ["model.devices"]),
        (["model.quantization=4bit", "peft=lora", "model.compile=true"], ["model.compile"]),
        (["model.quantization=4bit", "peft=lora", "model.random_weights=true"], ["random_weights"]),
    ],
)
def test_what_it_does_not_go_with_is_refused_before_anything_is_read(words, named):
    with refused(ConfigError, *named):
        compose(words)


def test_without_the_extra_it_is_named_before_weights_are_read(monkeypatch, tmp_path):
    monkeypatch.setattr(quantised, "find_spec", lambda _: None)
    source = Source(str(TINY), quantization="4bit")
    with refused(ModelError, "bitsandbytes", "lezo[bitsandbytes]"):
        load_config(source)
    shutil.copytree(TINY, tmp_path / "model", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    settings = json.loads((tmp_path / "model" / "config.json").read_text())
    settings["quantization_config"] = {"load_in_4bit": True}
    (tmp_path / "model" / "config.json").write_text(json.dumps(settings))
    with refused(ModelError, "lezo[bitsandbytes]"):
        load_config(Source(str(tmp_path / "model")))
    load_config(replace(source, quantization=None))


@pytest.mark.parametrize(("devices", "home"), [(2, "device"), (1, "disk")])
def test_a_replay_elsewhere_is_refused(devices, home, kind):
    source, cpu = Source(str(TINY), quantization=kind), torch.device("cpu")
    placement = Placement((cpu,) * devices, ("a",) * devices, (0, 1)[:devices])
    with refused(ModelError, "one device", home if devices == 1 else "2 devices"):
        load_hashed(
            source, load_config(source), dtype=torch.float32, placement=placement, seed=0, place=Place(home)
        )


def test_a_plain_model_has_no_quantised_layers():
    assert list(quantised_layers(nn.Sequential(nn.Linear(2, 2)))) == []
