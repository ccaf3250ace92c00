import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from lezo.model import (
    ModelError,
    Source,
    layout,
    load,
    load_config,
    load_tokenizer,
    positions,
    save_model,
    set_dropout,
    skeleton,
)
from tests.lezo.small_models import CONFIGS, small_model

CPU = {"dtype": torch.float32, "device": torch.device("cpu"), "seed": 0}


@pytest.fixture
def folder(tmp_path):
    small_model().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", CONFIGS)
def test_layout_sorts_every_trainable_tensor(name):
    model = small_model(name)
    found = layout(model)
    assert len(found.blocks) == CONFIGS[name].num_hidden_layers
    assert len({len(block) for block in found.blocks}) == 1
    assert sorted(found.active(range(len(found.blocks)))) == sorted(n for n, _ in model.named_parameters())
    assert any("embed" in n for n in found.always)


def test_tied_head_appears_once():
    assert "lm_head.weight" not in layout(small_model("opt")).always
    assert "lm_head.weight" in layout(small_model("llama")).always


def test_frozen_tensors_take_no_part():
    model = small_model()
    model.get_input_embeddings().weight.requires_grad_(False)
    assert not any("embed_tokens" in name for name in layout(model).always)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ModelError, match="Linear: no list of .*decoder blocks found.*OPT, LLaMA or Qwen"):
        layout(torch.nn.Linear(2, 2))


def test_published_sizes_have_the_published_number_of_parameters():
    shape = {"hidden_size": 2048, "ffn_dim": 8192, "num_hidden_layers": 24, "num_attention_heads": 32}
    source = Source("facebook/opt-1.3b", shape={**shape, "word_embed_proj_dim": 2048}, random_weights=True)
    model = skeleton(load_config(source))
    assert sum(p.numel() for p in model.parameters()) == 1_315_758_080
    assert all(p.is_meta for p in model.parameters())


def test_random_weights_follow_the_seed_and_leave_the_global_generator_alone(folder):
    source = Source(str(folder), random_weights=True)
    state = torch.random.get_rng_state()
    first, again = (load(source, load_config(source), **CPU) for _ in range(2))
    other = load(source, load_config(source), **{**CPU, "seed": 1})
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first.get_input_embeddings().weight, again.get_input_embeddings().weight)
    assert not torch.equal(first.get_input_embeddings().weight, other.get_input_embeddings().weight)


def test_loads_safetensors_in_eval_mode_and_in_the_dtype(folder):
    source = Source(str(folder))
    model = load(source, load_config(source), dtype=torch.bfloat16, device=torch.device("cpu"), seed=0)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_missing_weights_are_an_error_not_a_random_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.decoder.layers.0.fc1.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lack model.decoder.layers.0.fc1.weight"):
        load(Source(str(folder)), load_config(Source(str(folder))), **CPU)


def test_damaged_weights_are_an_error(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="cannot read the weights of"):
        load(Source(str(folder)), load_config(Source(str(folder))), **CPU)


def test_pickled_weights_are_refused(folder):
    torch.save(small_model().state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot read the weights of .*safetensors"):
        load(Source(str(folder)), load_config(Source(str(folder))), **CPU)


def test_a_folder_without_tokenizer_or_configuration_says_so(tmp_path, folder):
    with pytest.raises(ModelError, match="cannot read a tokenizer of .*model.tokenizer=DIR"):
        load_tokenizer(str(folder))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ModelError, match="cannot read the configuration of"):
        load_config(Source(str(empty)))


def test_positions_and_dropout():
    model = small_model()
    assert positions(model.config) == 64
    set_dropout(model, 0.3)
    assert {layer.dropout for layer in model.model.decoder.layers} == {0.3}
    assert {layer.self_attn.dropout for layer in model.model.decoder.layers} == {0.3}


class Words:
    """A tokenizer that writes ``content``, or fails as tokenizers does."""

    def __init__(self, content):
        self.content = content

    def save_pretrained(self, folder):
        if self.content is None:
            raise Exception("No space left on device (os error 28)")
        (folder / "words").write_text(self.content)


def test_a_saved_model_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced, real = [], os.fsync

    def fsync(number):
        real(number)
        synced.append(os.fstat(number).st_ino)

    monkeypatch.setattr(os, "fsync", fsync)
    for content in ("first", "second"):
        save_model(small_model(), Words(content), tmp_path / "model")
        assert (tmp_path / "model" / "words").read_text() == content
    model = tmp_path / "model"
    assert {file.stat().st_ino for file in model.iterdir()} <= set(synced)
    assert synced[-2:] == [model.stat().st_ino, tmp_path.stat().st_ino]
    assert {"model.safetensors", "config.json", "words"} <= {file.name for file in model.iterdir()}
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_model_that_cannot_be_written_leaves_what_was_there(renames, tmp_path, monkeypatch):
    """The disk is full for the tokenizer, or one of the two renames is refused."""
    save_model(small_model(), Words("first"), tmp_path / "model")
    real = type(tmp_path).rename

    def rename(path, target):
        nonlocal renames
        renames -= 1
        if renames == 0:
            raise OSError(5, "Input/output error")
        return real(path, target)

    words = Words("second" if renames else None)
    monkeypatch.setattr(type(tmp_path), "rename", rename)
    with pytest.raises(
        ModelError, match=r"model: cannot write the model there \(.+\); make room and write it"
    ):
        save_model(small_model(), words, tmp_path / "model")
    assert (tmp_path / "model" / "words").read_text() == "first"
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
