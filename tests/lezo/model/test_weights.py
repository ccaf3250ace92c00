"""Weights as they are published: which files are read, what of them, and what is refused."""

import builtins
import io
import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import Gemma3Config, LlamaConfig, Qwen3_5Config

from lezo.cli import replay
from lezo.model.adapter import Adapter, attach
from lezo.model.hashes import weights_hash
from lezo.model.layout import layout
from lezo.model.load import (
    TINY,
    ModelError,
    Source,
    dequantised,
    load,
    load_config,
    load_tokenizer,
    rebase,
    skeleton,
)
from tests.lezo.gguf_files import TOKENS, small_llama, write_gguf
from tests.lezo.hub import CONVERTED, ID, MAIN, OLDER, Hub, served
from tests.lezo.refusals import refused
from tests.lezo.small_models import CONFIGS, llama_like, small_model, weights
from tests.lezo.whole_runs import typed

CPU = {"dtype": torch.float32, "device": torch.device("cpu"), "seed": 0}
FC1, EMBEDDINGS = "model.decoder.layers.2.fc1.weight", "model.decoder.embed_tokens.weight"


def loaded(path, revision=None):
    """The model of a folder, file or hub id in fp32 on the CPU."""
    source = Source(str(path), revision)
    return load(source, load_config(source), **CPU)


def assert_refused(path, *named: str) -> None:
    """The weights cannot be used: the error says where they are, and names these."""
    with refused(ModelError, str(path), *named):
        loaded(path)


def state(name="opt", seed=0):
    """A small model's tensors by the names that transformers gives them."""
    return {key: value.clone() for key, value in small_model(name, seed=seed).state_dict().items()}


def published(folder, tensors, shards=1, name="opt"):
    """A folder as OPT is published: a configuration, and pickles, with an index where there are several."""
    folder.mkdir(exist_ok=True)
    CONFIGS[name].save_pretrained(folder)
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return folder
    names = [f"pytorch_model-{n + 1:05d}-of-{shards:05d}.bin" for n in range(shards)]
    places = {key: names[place % shards] for place, key in enumerate(tensors)}
    for file in names:
        torch.save({key: tensors[key] for key in tensors if places[key] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def same(model, name="opt", seed=0) -> bool:
    expected = dict(small_model(name, seed=seed).named_parameters())
    got = dict(model.named_parameters())
    return expected.keys() == got.keys() and all(torch.equal(expected[n], got[n]) for n in expected)


HEADS = {"alone": "model.decoder.embed_tokens.weight", "twice": None, "absent": "lm_head.weight"}


@pytest.mark.parametrize(
    ("head", "prefix", "shards"),
    [("alone", "model.", 1), ("alone", "", 3), ("twice", "", 1), ("twice", "model.", 3), ("absent", "", 3)],
)
def test_pickles_in_all_their_layouts(head, prefix, shards, tmp_path):
    tensors = {
        k.removeprefix("model.") if not prefix else k: v for k, v in state().items() if k != HEADS[head]
    }
    assert same(loaded(published(tmp_path / "model", tensors, shards)))


def test_an_untied_head_is_read_and_missed(tmp_path):
    tensors = state("llama")
    assert same(loaded(published(tmp_path / "both", tensors, name="llama")), "llama")
    tensors.pop("lm_head.weight")
    assert_refused(published(tmp_path / "one", tensors, name="llama"), "lm_head.weight")


def test_a_head_that_differs_from_tied_embeddings_is_refused(tmp_path):
    tensors = state()
    tensors["lm_head.weight"] += 1
    assert_refused(published(tmp_path / "model", tensors), '"tie_word_embeddings": false')


def test_a_tied_head_that_transformers_leaves_apart_is_tied(tmp_path, monkeypatch):
    """As its first releases of version 5 do where a pickle holds both."""
    monkeypatch.setattr("transformers.modeling_utils._tied_params_are_equal", lambda *_: False, raising=False)
    model = loaded(published(tmp_path / "model", state()))
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_safetensors_come_before_pickles(tmp_path):
    folder, written = published(tmp_path / "model", state(seed=1)), small_model()
    written.save_pretrained(folder)
    found = dict(loaded(folder).named_parameters())
    assert [name for name, p in written.named_parameters() if not torch.equal(p, found[name])] == []


def test_tensors_that_lie_in_one_memory_are_parted(tmp_path):
    """A pickle keeps what was tied, or turned, as it lay; steps write to each tensor alone and in its own order."""
    tensors = state("llama")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    turned = "model.layers.0.mlp.up_proj.weight"
    tensors[turned] = tensors[turned].T.contiguous().T
    model = loaded(published(tmp_path / "model", tensors, name="llama"))
    model.lm_head.weight.data.add_(1)
    assert torch.equal(model.model.embed_tokens.weight, tensors["model.embed_tokens.weight"])
    assert all(theta.is_contiguous() for theta in model.parameters())
    assert torch.equal(model.get_parameter(turned), tensors[turned])


def test_a_model_of_pickles_goes_back_to_its_first_weights(tmp_path):
    source = Source(str(published(tmp_path / "model", state(), 2)))
    config = load_config(source)
    model = load(source, config, **CPU)
    first, expected = weights(model), weights_hash(model)
    model.get_parameter(FC1).data.zero_()
    rebase(model, source, config, 0, expected)
    assert all(torch.equal(theta, first[name]) for name, theta in model.named_parameters())
    published(tmp_path / "model", state(seed=1), 2)
    with refused(ModelError, source.path, "resume=auto"):
        rebase(model, source, config, 0, expected)


class Payload:
    """What runs code when a pickle is read without care."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def rewritten(change):
    """A damage to a file's bytes."""
    return lambda file: file.write_bytes(change(file.read_bytes()))


DAMAGES = {
    "cut in the middle": (
        rewritten(lambda data: data[: len(data) // 2]),
        "torch.save",
    ),
    "empty": (rewritten(lambda data: b""), "(EOFError)"),
    "text": (rewritten(lambda data: b"version https://git-lfs\n"), "(UnpicklingError)"),
    "a list": (lambda file: torch.save([torch.ones(2)], file), "state_dict"),
    "nested": (lambda file: torch.save({"model": {FC1: torch.ones(2)}}, file), "state_dict"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_pickle_is_named(damage, tmp_path):
    folder = published(tmp_path / "model", state(), 2)
    file = folder / "pytorch_model-00002-of-00002.bin"
    damaged, expected = DAMAGES[damage]
    damaged(file)
    assert_refused(folder, f"{file}: ", expected)


@pytest.mark.parametrize("old", [True, False])
def test_a_malicious_pickle_is_named_and_does_not_run(old, tmp_path):
    mark, folder = tmp_path / "ran", published(tmp_path / "model", state())
    file = folder / "pytorch_model.bin"
    torch.save({**state(), "more": Payload(mark)}, file, _use_new_zipfile_serialization=not old)
    assert_refused(folder, f"{file}: ", "posix.mkdir")
    assert not mark.exists()
    if old:
        pickle.loads(pickle.dumps(Payload(mark)))
        assert mark.exists()  # as it would have


@pytest.mark.parametrize("name", ["../outside.bin", "/outside.bin", "a/b.bin", "..", 3])
def test_an_index_of_pickles_elsewhere_is_refused(name, tmp_path):
    folder = published(tmp_path / "model", state())
    (folder / "pytorch_model.bin").rename(tmp_path / "outside.bin")
    index = {"weight_map": dict.fromkeys(state(), name)}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_refused(folder, "index.json", repr(name))


def test_an_index_of_missing_pickles_names_one(tmp_path):
    folder = published(tmp_path / "model", state(), 2)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    assert_refused(folder, "pytorch_model-00002-of-00002.bin")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop(FC1), FC1),
        (lambda t: t.update({FC1: t[FC1][:, :10].clone()}), f"{FC1} is of shape [32, 10]"),
        (lambda t: t.update({FC1.replace("2", "4"): t[FC1]}), "4 blocks"),
        (lambda t: t[FC1].fill_(torch.nan), f"{FC1} holds NaN"),
        (lambda t: (t.pop(FC1), t.update({FC1.replace("weight", "qweight"): t[EMBEDDINGS]})), "gptq or awq"),
    ],
)
def test_pickles_of_other_weights_are_refused(change, named, tmp_path):
    tensors = state()
    change(tensors)
    assert_refused(published(tmp_path / "model", tensors), named)


@pytest.mark.parametrize("rows", [53, 64])
def test_resized_embeddings_name_the_size(rows, tmp_path):
    tensors = state()
    tensors[EMBEDDINGS] = tensors["lm_head.weight"] = torch.zeros(rows, 16)
    assert_refused(published(tmp_path / "model", tensors), f"{rows} rows", "vocab_size is 61")
    settings = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**settings, "vocab_size": rows}))
    assert len(loaded(tmp_path / "model").get_input_embeddings().weight) == rows


def test_a_folder_without_weights_says_what_is_looked_for(tmp_path):
    CONFIGS["opt"].save_pretrained(tmp_path)
    assert_refused(
        tmp_path,
        "model.safetensors, model.safetensors.index.json, pytorch_model.bin, pytorch_model.bin.index.json",
    )


def test_a_configuration_names_its_file_of_weights_beside_it(tmp_path):
    folder = published(tmp_path / "model", state(seed=1))
    small_model().save_pretrained(folder)
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    says(folder, transformers_weights="other.safetensors")
    assert same(loaded(folder))
    says(folder, transformers_weights="../other.safetensors")
    assert_refused(folder, "'../other.safetensors'")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """OPT as published, an older revision, and a pull request with other weights, which nobody asks for."""
    commits = {
        MAIN: published(tmp_path / "main", state(), 2),
        OLDER: published(tmp_path / "older", state(seed=1)),
        CONVERTED: tmp_path / "converted",
    }
    small_model(seed=2).save_pretrained(commits[CONVERTED])
    for folder in commits.values():
        shutil.copy(TINY / "tokenizer.json", folder)
    monkeypatch.setenv("DISABLE_SAFETENSORS_CONVERSION", "0")
    names = {"main": MAIN, "refs/pr/1": CONVERTED}
    with served(Hub(commits, names), tmp_path / "cache", monkeypatch) as hub:
        yield hub


def test_a_hub_of_pickles_once_fetched_is_read_offline(hub, monkeypatch):
    assert same(loaded(ID))
    words = load_tokenizer(ID)("a word")["input_ids"]
    fetched = [path for path in hub.asked if "/resolve/" in path]
    assert fetched and not any("discussions" in path or "commits" in path for path in hub.asked)
    hub.asked.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert same(loaded(ID)) and load_tokenizer(ID)("a word")["input_ids"] == words
    assert not hub.asked


@pytest.mark.parametrize(("revision", "seed"), [(MAIN, 0), (OLDER, 1), ("refs/pr/1", 2), (None, 0)])
def test_the_weights_are_those_of_the_revision(revision, seed, hub):
    assert same(loaded(ID, revision), seed=seed)


def test_files_that_the_cache_lacks_offline_say_so(hub, monkeypatch):
    load_config(Source(ID))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_refused(ID, "model.safetensors", "connect to the Hugging Face hub")


@pytest.mark.parametrize("where", [Source("nobody/nothing"), Source(ID, "deadbeef" * 5)])
def test_what_the_hub_does_not_have_is_no_matter_of_the_connection(where, hub):
    with refused(ModelError, where.path, "the hub has no such id or revision"):
        load_config(where)


def test_an_index_of_the_hub_names_no_files_elsewhere(hub):
    index = hub.commits[MAIN] / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {FC1: "../../secret.bin"}}))
    with refused(ModelError, "index.json", "'../../secret.bin'"):
        loaded(ID)


def test_a_branch_that_moves_between_two_files_is_read_at_one_commit(hub):
    answer = hub.answer

    def moved(path):
        reply = answer(path)
        if sum(asked.endswith("pytorch_model.bin.index.json") for asked in hub.asked) == 2:  # HEAD and GET
            hub.names["main"] = OLDER
        return reply

    hub.answer = moved
    assert same(loaded(ID)) and hub.names["main"] == OLDER


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    """A GGUF file of Q8_0, and what its tensors are."""
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    return path, write_gguf(path, small_llama(), "Q8_0")


@pytest.mark.parametrize(("kind", "dtype"), [("F16", torch.float16), ("Q8_0", torch.float32)])
def test_a_gguf_file_is_read_dequantised(kind, dtype, tmp_path):
    expected = write_gguf(tmp_path / "a.gguf", small_llama(), kind)
    source = Source(str(tmp_path / "a.gguf"))
    config = load_config(source)
    model = load(source, config, **{**CPU, "dtype": dtype})
    assert dequantised(source, config) == f"gguf {kind}"
    assert dict(model.named_parameters()).keys() == expected.keys()
    for name, theta in model.named_parameters():
        assert torch.equal(theta, expected[name].to(dtype)) and theta.requires_grad
    assert layout(model) == layout(skeleton(config, dtype))
    first = weights_hash(model)
    model.lm_head.weight.data.zero_()
    rebase(model, source, config, 0, first)


def test_a_gguf_file_brings_its_own_words_whatever_lies_beside_it(gguf_file, tmp_path):
    file = shutil.copy(gguf_file[0], tmp_path)
    shutil.copy(TINY / "tokenizer.json", tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/elsewhere"}))
    (tmp_path / "config.json").write_text("{}")
    tokenizer = load_tokenizer(str(file))
    ids = tokenizer("ab\n")["input_ids"]
    assert [TOKENS[number] for number in ids] == ["<s>", "▁", "a", "b", "<0x0A>"]
    assert tokenizer.eos_token_id == 2 and load_config(Source(str(file))).vocab_size == len(TOKENS)


def test_a_gguf_file_trains_and_replays(gguf_file, lezo_run, monkeypatch, capsys):
    ran = lezo_run(
        *(
            "task=sst2",
            "data=sample",
            "model=hf",
            f"model.path={gguf_file[0]}",
            "optim=lezo",
            "optim.lr=1e-3",
        ),
        "optim.sparsity=0.5",
    )
    assert ran.code == 0, ran.err
    assert ran.result["dequantised"] == "gguf Q8_0"
    assert "weights dequantised from gguf Q8_0" in ran.out
    call = typed("lezo-replay", replay.main, monkeypatch, capsys)
    code, out, err = call(str(ran.folder), "replay.verify=true", f"replay.out={ran.folder / 'again'}")
    assert code == 0 and "everything is right" in out, err
    again = loaded(ran.folder / "again")
    assert weights_hash(again) == ran.result["weights"]
    assert dequantised(Source(str(ran.folder / "again")), again.config) is None


@pytest.mark.parametrize(
    "change", [lambda data: data[: len(data) // 2], lambda data: b"GGUX" + data[4:], lambda _: b""]
)
def test_a_damaged_gguf_file_is_refused(change, gguf_file, tmp_path):
    file = tmp_path / "damaged.gguf"
    file.write_bytes(change(gguf_file[0].read_bytes()))
    assert_refused(file, "GGUF")


def hide(monkeypatch, *names):
    """Make packages look as if they were not installed."""
    from importlib.util import find_spec

    monkeypatch.setattr(
        "lezo.model.weights.find_spec", lambda name: None if name in names else find_spec(name)
    )
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("name", ["gguf", "accelerate"])
def test_a_gguf_file_without_the_extra_names_it(name, gguf_file, monkeypatch):
    monkeypatch.setattr("lezo.model.weights.find_spec", lambda asked: None if asked == name else asked)
    assert_refused(gguf_file[0], "lezo[gguf]")
    with refused(ModelError, "lezo[gguf]"):
        load_tokenizer(str(gguf_file[0]))


@pytest.fixture
def fp8(tmp_path):
    """A folder of fine-grained FP8 weights, and what its tensors are."""
    size, tensors, expected = 16, {}, {}
    model = small_llama()
    model.save_pretrained(tmp_path / "fp8")
    for name, theta in model.state_dict().items():
        tensors[name] = expected[name] = theta
        if "proj" in name:
            rows, columns = theta.shape
            parts = theta.view(rows // size, size, columns // size, size)
            scale = parts.abs().amax((1, 3)) / 448
            tensors[name] = (parts / scale[:, None, :, None]).to(torch.float8_e4m3fn).reshape(theta.shape)
            tensors[name.replace("weight", "weight_scale_inv")] = scale
            stored = tensors[name].float().view(parts.shape)
            expected[name] = (stored * scale[:, None, :, None]).view(theta.shape)
    save_file(tensors, tmp_path / "fp8" / "model.safetensors", metadata={"format": "pt"})
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [size, size]}
    says(tmp_path / "fp8", quantization_config=settings)
    return tmp_path / "fp8", expected


def says(folder, **settings) -> None:
    """Let a folder's configuration say something more."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def test_fp8_weights_are_read_dequantised(fp8, tmp_path):
    folder, expected = fp8
    source = Source(str(folder))
    config = load_config(source)
    model = load(source, config, **CPU)
    assert dequantised(source, config) == "fp8"
    assert dict(model.named_parameters()).keys() == expected.keys()
    assert all(torch.equal(theta, expected[name]) for name, theta in model.named_parameters())
    assert layout(model) == layout(skeleton(config, torch.float32))
    rebase(model, source, config, 0, weights_hash(model))
    model.save_pretrained(tmp_path / "saved")
    assert dequantised(Source(str(tmp_path / "saved")), load_config(Source(str(tmp_path / "saved")))) is None


def test_fp8_weights_without_the_extra_name_it(fp8, monkeypatch):
    monkeypatch.setattr("lezo.model.weights.find_spec", lambda _: None)
    assert_refused(fp8[0], "(fp8)", "lezo[fp8]")


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"quant_method": "mine"}, "mine"),
    ],
)
def test_other_quantised_weights_are_refused_by_name(settings, method, tmp_path):
    published(tmp_path / "model", state())
    says(tmp_path / "model", quantization_config=settings)
    assert_refused(tmp_path / "model", f"({method})")


@pytest.fixture
def asks_nothing(monkeypatch):
    """The terminal answers yes to whatever it is asked, and a test in which it is asked fails."""
    asked = []
    monkeypatch.setattr(builtins, "input", lambda text="": asked.append(text) or "y")
    yield
    assert not asked


CODE = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"
MAPS = {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Mine", "AutoTokenizer": ["mine.Mine", None]}


def with_code(folder) -> Path:
    """Code of its own, which every file of the folder asks for. Returns the mark that it leaves."""
    (folder / "mine.py").write_text(CODE)
    says(folder, auto_map=MAPS)
    shutil.copy(TINY / "tokenizer.json", folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": MAPS, "tokenizer_class": "Mine"}))
    return folder / "ran"


def test_a_folder_whose_code_is_not_needed_is_read_without_it(tmp_path, asks_nothing):
    folder = published(tmp_path / "model", state())
    mark = with_code(folder)
    assert same(loaded(folder)) and skeleton(load_config(Source(str(folder))), torch.float32)
    assert load(Source(str(folder), random_weights=True), load_config(Source(str(folder))), **CPU)
    assert not mark.exists()


def test_a_folder_that_needs_code_is_refused_without_a_question(tmp_path, asks_nothing):
    folder = published(tmp_path / "model", state())
    mark = with_code(folder)
    says(folder, model_type="mine")
    with pytest.raises(ModelError, match="asks for code of its own") as caught:
        loaded(folder)
    assert "trust_remote_code" not in str(caught.value)  # transformers' way out is none here
    with refused(ModelError, str(folder), "asks for code of its own"):
        load_tokenizer(str(folder))
    assert not mark.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "experts_implementation"])
def test_a_configuration_that_names_kernels_of_the_hub_is_refused(key, tmp_path):
    folder = published(tmp_path / "model", state())
    says(folder, **{key: "somebody/kernel"})
    assert_refused(folder, f"{key}: somebody/kernel")


@pytest.fixture(scope="module")
def sentencepiece_folder(tmp_path_factory):
    """A folder with a tokenizer.model and no tokenizer.json."""
    from sentencepiece import SentencePieceTrainer

    folder, model = tmp_path_factory.mktemp("pieces"), io.BytesIO()
    text = ["it was great", "it was terrible", "a great film", "a terrible film"]
    SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=model,
        vocab_size=290,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    llama_like(LlamaConfig).save_pretrained(folder)
    return folder


def test_a_sentencepiece_folder_is_read(sentencepiece_folder):
    from sentencepiece import SentencePieceProcessor

    own = SentencePieceProcessor(model_file=str(sentencepiece_folder / "tokenizer.model"))
    tokenizer = load_tokenizer(str(sentencepiece_folder))
    for text in ("it was great", "a film\nit was"):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == own.encode(text)
        assert tokenizer.decode(own.encode(text)) == text


def test_a_sentencepiece_folder_without_the_extra_names_it(sentencepiece_folder, monkeypatch):
    hide(monkeypatch, "sentencepiece", "tiktoken")
    with refused(ModelError, "lezo[sentencepiece]"):
        load_tokenizer(str(sentencepiece_folder))


TEXT = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SEES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def seeing(name):
    """A small model that sees, too: its language model stands alone, or is part of the whole."""
    if name == "qwen3_5":
        linear = {f"linear_{n}": 2 for n in ("num_value_heads", "num_key_heads")}
        widths = {f"linear_{n}": 8 for n in ("key_head_dim", "value_head_dim")}
        text = {**TEXT, **linear, **widths, "layer_types": ["linear_attention", "full_attention"]}
        sees = {
            "depth": 1,
            "hidden_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
            "num_position_embeddings": 16,
        }
        return Qwen3_5Config(text_config=text, vision_config={**sees, "intermediate_size": 16})
    vision = {**SEES, "model_type": "siglip_vision_model", "image_size": 16, "patch_size": 8}
    return Gemma3Config(text_config=TEXT, vision_config=vision, mm_tokens_per_image=4)


@pytest.mark.parametrize("name", ["gemma3", "qwen3_5"])
def test_of_a_model_that_sees_the_language_model_is_trained(name, tmp_path):
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    whole = AutoModelForImageTextToText.from_config(seeing(name)).eval()
    whole.save_pretrained(tmp_path)
    model = loaded(tmp_path)
    found, ids = layout(model), torch.arange(3, 13)[None]
    assert torch.equal(model(input_ids=ids).logits, whole(input_ids=ids).logits)
    model.save_pretrained(tmp_path / "saved")
    assert len(found.blocks) == 2 and not any("vision" in n or "visual" in n for n in found.active([0, 1]))
    assert found == layout(skeleton(load_config(Source(str(tmp_path))), torch.float32))
    attach(model, Adapter("lora", rank=2, targets=("q_proj", "v_proj")))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all(name.startswith(found.modules) for name in trained)
    if name == "gemma3":
        model.eyes = torch.nn.ModuleList([torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)])
        assert layout(model).modules == found.modules
