"""Weights that come one tensor at a time are those that transformers loads at once, and their hash comes along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, MixtralConfig, OPTForCausalLM

from lezo.model import tensor_stream
from lezo.model.hashes import tensor_hash, weights_hash
from lezo.model.load import Source, load, load_config, load_hashed, rebase
from lezo.model.placement import Placement
from lezo.model.tensor_stream import outline
from lezo.model.weights import WeightFiles, find_weights
from tests.lezo.small_models import CONFIGS, CPU, llama_like, small_model

HALF = torch.float16


def saved(model: Any, folder: Path, shard: str = "12KB") -> Path:
    model.generation_config = GenerationConfig(eos_token_id=[2, 7], max_new_tokens=9)
    model.save_pretrained(folder, max_shard_size=shard)
    assert (folder / "model.safetensors.index.json").exists()
    return folder


def hashed(folder: Path, dtype: torch.dtype = HALF) -> tuple[Any, Any]:
    source = Source(str(folder))
    return load_hashed(source, load_config(source), dtype=dtype, placement=Placement((CPU,)), seed=0)


@pytest.mark.parametrize("dtype", [HALF, torch.float32], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_model_is_the_one_that_transformers_loads_at_once(
    name: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_stream, "OPENED", 1000)  # files are opened several times
    folder = saved(small_model(name), tmp_path)
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    monkeypatch.setattr("lezo.model.load.read_weights", None)  # which loads at once
    model, known = hashed(folder, dtype)
    for kind in ("named_parameters", "named_buffers"):
        want, got = (dict(getattr(m, kind)(remove_duplicate=False)) for m in (expected, model))
        assert want.keys() == got.keys()
        for key, tensor in want.items():
            assert torch.equal(tensor, got[key]) and tensor.dtype == got[key].dtype, key
            assert tensor.requires_grad == got[key].requires_grad
    assert [p for p, _ in expected.named_parameters()] == [
        p for p, _ in model.named_parameters()
    ]  # tied alike
    assert model.config.to_dict() == expected.config.to_dict()
    assert model.generation_config.to_dict() == expected.generation_config.to_dict()
    assert model.name_or_path == model.config.name_or_path == str(folder)
    assert not model.training
    assert known == {p: tensor_hash(p) for p in model.parameters()}
    assert weights_hash(model, known) == weights_hash(expected)


def test_a_known_hash_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    known = {p: tensor_hash(p) for p in model.parameters()}
    left, asked = next(iter(known)), list[nn.Parameter]()
    digest, expected = known.pop(left), weights_hash(model)
    monkeypatch.setattr("lezo.model.hashes.tensor_hash", lambda p: asked.append(p) or digest)
    assert weights_hash(model, known) == expected
    assert len(asked) == 1 and asked[0] is left


def test_files_of_names_without_the_models_prefix(tmp_path: Path) -> None:
    """As the body alone is saved; what is tied to it comes with it."""
    whole = small_model()
    saved(whole.model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["OPTForCausalLM"]}))
    model, known = hashed(tmp_path, torch.float32)
    assert len(known) == len(list(model.parameters()))
    assert weights_hash(model) == weights_hash(whole) == weights_hash(model, known)


def test_tensors_that_are_more_than_renamed_are_left_to_transformers(tmp_path: Path) -> None:
    """Each expert of a file is a part of one tensor of the model."""
    small = {"num_local_experts": 2, "num_experts_per_tok": 1}
    model = AutoModelForCausalLM.from_config(llama_like(MixtralConfig, **small))
    folder = saved(model, tmp_path)
    config = load_config(Source(str(folder)))
    assert outline(find_weights(str(folder), None), config, HALF) is None
    again, known = hashed(folder, torch.float32)
    assert not known and weights_hash(again) == weights_hash(model)


@pytest.mark.parametrize("kept", [torch.tensor([300, -1]), torch.tensor([1e-9, 0.1])], ids=["whole", "fp32"])
def test_a_buffer_of_a_dtype_of_its_own_is_left_to_transformers(
    kept: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = OPTForCausalLM.__init__

    def init(model: Any, config: Any) -> None:
        real(model, config)
        model.register_buffer("kept", torch.zeros(kept.shape, dtype=kept.dtype))

    monkeypatch.setattr(OPTForCausalLM, "__init__", init)
    model = small_model()
    model.kept.copy_(kept)
    again, known = hashed(saved(model, tmp_path))
    assert torch.equal(again.kept, kept) and again.kept.dtype == kept.dtype
    assert not known and again.lm_head.weight.dtype == HALF


def test_pickles_are_left_to_transformers() -> None:
    assert outline(WeightFiles(Path(), ("pytorch_model.bin",)), CONFIGS["opt"], HALF) is None


def test_a_tensor_left_over_is_left_out(tmp_path: Path) -> None:
    folder = saved(small_model("llama"), tmp_path)
    file = sorted(folder.glob("*.safetensors"))[0]
    save_file({**load_file(file), "rotary_emb.inv_freq": torch.ones(3)}, file, metadata={"format": "pt"})
    made = outline(find_weights(str(folder), None), load_config(Source(str(folder))), HALF)
    assert made is not None and "rotary_emb.inv_freq" not in made.names
    assert len(hashed(folder)[1]) == len(made.names)


def test_going_back_reads_into_the_weights_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(str(saved(small_model(), tmp_path)))
    config = load_config(source)
    model = load(source, config, dtype=HALF, device=CPU, seed=0)
    first, places = weights_hash(model), [p.data_ptr() for p in model.parameters()]
    with torch.no_grad():
        for theta in model.parameters():
            theta.add_(1)
    monkeypatch.setattr("lezo.model.load.load_hashed", None)  # nothing is loaded beside it
    rebase(model, source, config, 0, first)
    assert weights_hash(model) == first and [p.data_ptr() for p in model.parameters()] == places
