import json
import os
import struct
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BartConfig, BertConfig, LlamaConfig, T5Config, ViTConfig

from lezo.model.load import (
    ModelError,
    Source,
    load,
    load_config,
    load_tokenizer,
    positions,
    save_model,
    set_dropout,
    skeleton,
)
from tests.lezo.refusals import refused
from tests.lezo.small_models import CONFIGS, llama_like, opt_config, small_model

CPU = {"dtype": torch.float32, "device": torch.device("cpu"), "seed": 0}


@pytest.fixture
def folder(tmp_path):
    small_model().save_pretrained(tmp_path)
    return tmp_path


def test_published_sizes_have_the_published_number_of_parameters():
    shape = {"hidden_size": 2048, "ffn_dim": 8192, "num_hidden_layers": 24, "num_attention_heads": 32}
    source = Source("facebook/opt-1.3b", shape={**shape, "word_embed_proj_dim": 2048}, random_weights=True)
    model = skeleton(load_config(source), torch.float16)
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
    assert_refused(folder, "model.decoder.layers.0.fc1.weight")


def loaded(folder):
    """The model of a folder in fp32 on the CPU."""
    return load(Source(str(folder)), load_config(Source(str(folder))), **CPU)


def assert_refused(folder, *named: str) -> None:
    """The folder cannot be loaded: the error names it, and these."""
    with refused(ModelError, str(folder), *named):
        loaded(folder)


def header_changed(data: bytes, **changes: object) -> bytes:
    """A safetensors file whose first tensor's header entry says something else."""
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    name = next(key for key in header if key != "__metadata__")
    header[name] |= changes
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


DAMAGES = {
    "cut in the middle": lambda data: data[: len(data) // 2],
    "cut in the header's length": lambda data: data[:4],
    "empty": lambda data: b"",
    "header's length flipped": lambda data: bytes([data[0] ^ 0xFF]) + data[1:],
    "header's text flipped": lambda data: data[:40] + bytes([data[40] ^ 0xFF]) + data[41:],
    "header of an exabyte": lambda data: struct.pack("<Q", 2**60) + data[8:],
    "tensor of an absurd shape": partial(header_changed, shape=[2**40, 2**20]),
    "tensor that ends beyond the file": partial(header_changed, data_offsets=[0, 2**50]),
    "tensor of no known dtype": partial(header_changed, dtype="F99"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_an_error(damage, folder):
    file = folder / "model.safetensors"
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    assert_refused(folder, "the weights of", "safetensors")


FC1 = "model.decoder.layers.2.fc1.weight"


@pytest.fixture
def changed(folder):
    """Change the folder's tensors, and save them again."""

    def change(how):
        tensors = load_file(folder / "model.safetensors")
        how(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return change


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (FC1, float("nan")),
        ("model.decoder.embed_tokens.weight", float("inf")),
        ("model.decoder.layers.0.fc1.bias", -float("inf")),
    ],
)
def test_weights_that_are_not_finite_are_refused(name, value, changed):
    assert_refused(changed(lambda tensors: tensors[name].view(-1)[-1].fill_(value)), name, "float32")


def test_weights_too_large_for_the_dtype_are_refused_with_a_wider_one(changed):
    folder = changed(lambda tensors: tensors[FC1][0, 0].fill_(1e5))
    source = Source(str(folder))
    with refused(ModelError, FC1, "float16", "model.dtype=bfloat16"):
        load(source, load_config(source), **{**CPU, "dtype": torch.float16})
    assert loaded(folder).get_parameter(FC1)[0, 0] == 1e5


def test_weights_of_another_shape_are_named(changed):
    folder = changed(lambda tensors: tensors.update({FC1: tensors[FC1][:10].clone()}))
    assert_refused(folder, FC1, "[10, 16]", "[32, 16]")


def test_a_configuration_with_fewer_blocks_than_the_weights_is_refused(folder):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 3}))
    assert_refused(folder, "model.decoder.layers.3.fc1.bias", "3 blocks")


def test_tensors_beside_the_model_do_no_harm(changed):
    assert loaded(changed(lambda tensors: tensors.update({"model.decoder.layers.0.old": torch.ones(1)})))


def sharded(folder, index) -> None:
    """Move the weights out of the folder, and let an index say where they are."""
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        index if isinstance(index, str) else json.dumps(index)
    )


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/outside.safetensors", "a/b.safetensors", "..", "", 3]
)
def test_an_index_that_names_files_elsewhere_is_refused(name, tmp_path):
    folder = tmp_path / "model"
    small_model().save_pretrained(folder)
    names = load_file(folder / "model.safetensors").keys()
    sharded(folder, {"weight_map": dict.fromkeys(names, name)})
    assert_refused(folder, "index.json", repr(name))


def test_an_index_of_missing_files_names_one(tmp_path):
    folder = tmp_path / "model"
    small_model().save_pretrained(folder)
    sharded(folder, {"metadata": {}, "weight_map": {FC1: "model-00001-of-00002.safetensors"}})
    assert_refused(folder, "model-00001-of-00002.safetensors")


@pytest.mark.parametrize(
    "text", ["{not", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": []}}', "[" * 9999]
)
def test_an_index_that_is_none_says_what_one_is(text, tmp_path):
    folder = tmp_path / "model"
    small_model().save_pretrained(folder)
    sharded(folder, text)
    assert_refused(folder, "index.json", '{"weight_map":')


def test_weights_behind_a_symbolic_link_are_read(tmp_path):
    small_model().save_pretrained(tmp_path / "model")
    kept = (tmp_path / "model" / "model.safetensors").rename(tmp_path / "kept")
    (tmp_path / "model" / "model.safetensors").symlink_to(kept)
    assert torch.equal(loaded(tmp_path / "model").get_parameter(FC1), load_file(kept)[FC1])


def test_an_adapter_is_not_followed_to_its_base(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/elsewhere"}))
    assert_refused(folder, "adapter_config.json")


def test_memory_that_runs_out_while_loading_is_no_damage(folder, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("lezo.model.tensor_stream.read", full)
    with pytest.raises(torch.OutOfMemoryError):
        loaded(folder)


def test_a_folder_without_tokenizer_or_configuration_says_so(tmp_path, folder):
    with refused(ModelError, str(folder), "model.tokenizer=DIR"):
        load_tokenizer(str(folder))
    empty = tmp_path / "empty"
    empty.mkdir()
    with refused(ModelError, str(empty)):
        load_config(Source(str(empty)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{not", "not a valid JSON file"),
        ("[]", "Should have a `model_type` key in its config.json"),
        ("3", "TypeError: "),
        ("{}", "Should have a `model_type` key in its config.json"),
        ('{"model_type": "nosuch"}', "model type `nosuch`"),
        ('{"model_type": ["opt"]}', "TypeError: unhashable type: 'list'"),
        ('{"model_type": "opt", "hidden_size": "big"}', "'hidden_size': TypeError: Field 'hidden_size' expected int"),
        ('{"model_type": "opt", "dtype": "float99"}', "AttributeError: "),
    ],
)  # fmt: skip
def test_a_configuration_that_is_none_says_why(text, reason, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with refused(ModelError, f"the configuration of {tmp_path}", reason, "config.json"):
        load_config(Source(str(tmp_path)))


OTHERS = {
    "bert": BertConfig(),
    "bart": BartConfig(),
    "t5": T5Config(),
    "vit": ViTConfig(),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_encoders_and_models_of_other_things_are_refused(kind, tmp_path):
    OTHERS[kind].save_pretrained(tmp_path)
    with refused(ModelError, str(tmp_path), f"model_type {kind}"):
        load_config(Source(str(tmp_path)))


@pytest.mark.parametrize("name", CONFIGS)
def test_decoders_are_taken(name, tmp_path):
    CONFIGS[name].save_pretrained(tmp_path)
    assert load_config(Source(str(tmp_path))).model_type == CONFIGS[name].model_type


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (opt_config(num_attention_heads=3), "embed_dim must be divisible by num_heads"),
        (opt_config(activation_function="nosuch"), "KeyError: 'nosuch'"),
        (llama_like(LlamaConfig, hidden_act="nosuch"), "KeyError: 'nosuch'"),
    ],
)
def test_a_configuration_that_makes_no_model_is_named(config, reason):
    with refused(ModelError, type(config).__name__, reason):
        skeleton(config, torch.float32)


@pytest.mark.parametrize(
    "text", ["{not", "[]", "{}", "", '{"model": {"type": "BPE", "vocab": {}, "merges": []}}']
)
def test_a_tokenizer_that_is_none_says_so(text, tmp_path):
    (tmp_path / "tokenizer.json").write_text(text)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    with refused(ModelError, str(tmp_path), "model.tokenizer=DIR"):
        load_tokenizer(str(tmp_path))


def test_what_the_hub_does_not_give_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with refused(ModelError, "no-owner/no-model", "connect to the Hugging Face hub"):
        load_config(Source("no-owner/no-model"))
    with refused(ModelError, "no-owner/no-model", "connect to the Hugging Face hub", "model.tokenizer="):
        load_tokenizer("no-owner/no-model")


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
        save_model(small_model().save_pretrained, Words(content), tmp_path / "model")
        assert (tmp_path / "model" / "words").read_text() == content
    model = tmp_path / "model"
    assert {file.stat().st_ino for file in model.iterdir()} <= set(synced)
    assert synced[-2:] == [model.stat().st_ino, tmp_path.stat().st_ino]
    assert {"model.safetensors", "config.json", "words"} <= {file.name for file in model.iterdir()}
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_model_that_cannot_be_written_leaves_what_was_there(renames, tmp_path, monkeypatch):
    """The disk is full for the tokenizer, or one of the two renames is refused."""
    save_model(small_model().save_pretrained, Words("first"), tmp_path / "model")
    real = os.replace

    def replace(path, target):
        nonlocal renames
        renames -= 1
        if renames == 0:
            raise OSError(5, "Input/output error")
        return real(path, target)

    words = Words("second" if renames else None)
    monkeypatch.setattr(os, "replace", replace)
    with refused(ModelError, str(tmp_path / "model"), "make room"):
        save_model(small_model().save_pretrained, words, tmp_path / "model")
    assert (tmp_path / "model" / "words").read_text() == "first"
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
