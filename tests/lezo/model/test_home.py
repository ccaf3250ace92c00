"""Blocks that live in a file run, are updated, hashed, saved and brought back there, to the bits of blocks on the device."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BloomConfig

from lezo.cli.replay import main as replay
from lezo.model import berths, home
from lezo.model.hashes import weights_hash
from lezo.model.home import home_of
from lezo.model.load import Source, load_config, load_hashed, rebase
from lezo.model.place import Place
from lezo.model.placement import Placement
from lezo.model.weights import ModelError
from tests.lezo.small_models import CONFIGS, CPU, small_model
from tests.lezo.whole_runs import Ran, Runner, little_model, timeless, typed

HERE = Placement((CPU,))

DISK = "model.home=disk"


def same(one: Ran, other: Ran) -> None:
    """Both ran to the same end: weights, journal, rows, predictions."""
    assert (one.code, other.code) == (0, 0), (one.err, other.err)
    keys = ("weights", "test", "dev", "dev_loss", "best_step", "rows", "origin")
    assert {key: one.result[key] for key in keys} == {key: other.result[key] for key in keys}
    for name in ("journal.bin", "predictions.jsonl"):
        pair = [ran.folder / name for ran in (one, other)]
        assert pair[0].exists() == pair[1].exists()
        assert not pair[0].exists() or pair[0].read_bytes() == pair[1].read_bytes()
    assert [*map(timeless, one.rows("metrics.jsonl"))] == [*map(timeless, other.rows("metrics.jsonl"))]


SHORT = ["task.num_train=12", "task.num_dev=4", "task.num_test=4", "train.steps=2", "train.eval_every=1"]
FP16 = ["optim=mezo", "model.dtype=float16", "optim.rounding=stochastic", "train.micro_batch_size=5"]
RUNS = {
    "lezo": ["optim.sparsity=0.5", "optim.weight_decay=0.01", "save_model=true"],
    "mezo in fp16": [*FP16, "task=copa"],
    "answers that are generated": ["task=squad", "train.steps=1"],
    "lora": ["peft=lora", "task=copa"],
}
MORE = {
    "prefix": ["peft=prefix", "task=copa", "optim.sparsity=0.5"],
    "the metric": ["optim=mezo", "optim.objective=metric", "task=sst2"],
    "a fitted head": ["optim=lp"],
}
SLOW = [pytest.param(words, marks=pytest.mark.slow) for words in MORE.values()]


@pytest.mark.parametrize("words", [*RUNS.values(), *SLOW], ids=[*RUNS, *MORE])
def test_a_run_is_the_one_on_the_device(lezo_run: Runner, words: list[str]) -> None:
    one = lezo_run(*SHORT, *words, folder="device")
    other = lezo_run(*SHORT, *words, DISK, folder="disk")
    same(one, other)
    if "save_model=true" in words:
        files = [
            {file.name: file.read_bytes() for file in (ran.folder / "model").iterdir()}
            for ran in (one, other)
        ]
        cards = [found.pop("README.md").replace(b" model.home=disk", b"") for found in files]
        assert files[0] == files[1] and cards[0] == cards[1]


def test_plain_rows_are_those_on_the_device(lezo_run: Runner) -> None:
    """Of a model that cannot be packed, whose probe perturbs each block when it is called."""
    little_model("bloom")
    config = BloomConfig(vocab_size=1024, hidden_size=32, n_layer=3, n_head=2)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained("bloom")
    words = [*SHORT, "model=hf", "model.path=bloom", "data=sample", "optim.lr=1e-3", "optim.sparsity=0.5"]
    one, other = lezo_run(*words, folder="device"), lezo_run(*words, DISK, folder="disk")
    same(one, other)
    assert other.result["rows"].startswith("plain")
    assert "copies" in other.out


def test_a_run_goes_on_where_its_blocks_lived_elsewhere(
    lezo_run: Runner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a checkpoint and from the journal, back to the best step, and replayed by the run's own configuration."""
    words = [*SHORT, "train.checkpoint_every=2", "task=copa"]
    whole = lezo_run(*words, "train.steps=5", folder="whole")
    lezo_run(*words, DISK, "train.steps=3")
    lezo_run(*words, "train.steps=4", "resume=auto")
    ended = lezo_run(*words, DISK, "train.steps=5", "resume=auto")
    assert whole.result["weights"] == ended.result["weights"]
    homes = watched(monkeypatch)
    code, out, err = typed("lezo-replay", replay, monkeypatch, capsys)("out", "replay.verify=true")
    assert (code, "everything is right" in out, homes) == (0, True, ["Mapped"]), err
    options = ["replay.home=device", "replay.out=model"]
    assert typed("lezo-replay", replay, monkeypatch, capsys)("out", *options)[0] == 0 and homes[1:] == [
        "Home"
    ]


def watched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of homes that are made from here on."""
    kinds, made = list[str](), Place.home

    def seen(place: Place, model: nn.Module, device: torch.device) -> home.Home:
        found = made(place, model, device)
        kinds.append(type(found).__name__)
        return found

    monkeypatch.setattr(Place, "home", seen)
    return kinds


def at_home(folder: Path, name: str = "opt", dtype: torch.dtype = torch.float32) -> tuple[Any, Any, Source]:
    """A saved small model, loaded to the device and to a file."""
    small_model(name).save_pretrained(folder / "saved", max_shard_size="12KB")
    source = Source(str(folder / "saved"))
    options: dict[str, Any] = {"dtype": dtype, "placement": HERE, "seed": 0}
    models = [
        load_hashed(source, load_config(source), **options, place=Place(k, folder))
        for k in ("device", "disk")
    ]
    assert models[0][1].values() and [*models[0][1].values()] == [*models[1][1].values()]
    return models[0][0], models[1][0], source


@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_of_a_block_is_in_the_file_and_no_other(name: str, tmp_path: Path) -> None:
    device, disk, _ = at_home(tmp_path, name, torch.float16)
    assert weights_hash(device) == weights_hash(disk)
    mapped = [range(p.data_ptr(), p.data_ptr() + p.nbytes) for p in disk.parameters() if is_mapped(p)]
    assert len(mapped) == sum(len(list(block.parameters())) for block in blocks(disk))
    assert sum(map(len, mapped)) == sum(p.nbytes for block in blocks(disk) for p in block.parameters())
    assert not [file for file in tmp_path.iterdir() if file.name != "saved"]  # the file has no name


def blocks(model: nn.Module) -> list[nn.Module]:
    return [berth.block for berth in home_of(model).berths]  # type: ignore[attr-defined]


def is_mapped(theta: torch.Tensor) -> bool:
    """Whether Linux says that its first byte lies in pages shared with a file without a name."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(end, 16) for end in line.split()[0].split("-"))
        if low <= theta.data_ptr() < high:
            return line.split()[1] == "rw-s" and line.endswith("(deleted)")
    return False


def test_pages_that_are_let_go_of_keep_what_was_written(tmp_path: Path) -> None:
    device, disk, source = at_home(tmp_path)
    first = weights_hash(disk)
    with torch.no_grad():
        for theta in (*device.parameters(), *disk.parameters()):
            theta.add_(1)
    for berth in home_of(disk).berths:  # type: ignore[attr-defined]
        berth.let_go()
        assert resident(berth.memory) == 0
        berth.ask()
    assert weights_hash(disk) == weights_hash(device) != first
    rebase(disk, source, disk.config, 0, first)


def resident(memory: mmap.mmap) -> int:
    """Bytes of a mapping that this process has in memory, as Linux counts them."""
    address, size = torch.frombuffer(memory, dtype=torch.uint8).data_ptr(), 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if (
            "-" in line.split()[0]
            and line.split()[0].replace("-", "").isalnum()
            and ":" not in line.split()[0]
        ):
            low, high = (int(end, 16) for end in line.split()[0].split("-"))
            inside = low <= address < high
        elif inside and line.startswith("Rss:"):
            size = int(line.split()[1]) * 1024
    return size


def test_a_block_that_has_run_is_let_go_of(tmp_path: Path) -> None:
    _, disk, _ = at_home(tmp_path)
    ids = torch.arange(4)[None]
    with torch.no_grad():
        before = disk(input_ids=ids).logits
    # berths share pages with their neighbours in /proc where the kernel has joined their mappings
    assert sum(resident(berth.memory) for berth in home_of(disk).berths) == 0  # type: ignore[attr-defined]
    with torch.no_grad():
        assert torch.equal(before, disk(input_ids=ids).logits)


def test_random_weights_are_those_on_the_device(tmp_path: Path) -> None:
    CONFIGS["qwen2-tied"].save_pretrained(tmp_path)
    source = Source(str(tmp_path), random_weights=True)
    options: dict[str, Any] = {"dtype": torch.float16, "placement": HERE, "seed": 3}
    models = [
        load_hashed(source, load_config(source), **options, place=Place(k, tmp_path))[0]
        for k in ("device", "disk")
    ]
    device, disk = models
    assert weights_hash(device) == weights_hash(disk)
    assert disk.get_output_embeddings().weight is disk.get_input_embeddings().weight
    for name, buffer in device.named_buffers():
        assert torch.equal(buffer, disk.get_buffer(name))
    ids = torch.arange(4)[None]
    with torch.no_grad():
        assert torch.equal(device(input_ids=ids).logits, disk(input_ids=ids).logits)
        for theta in disk.parameters():
            theta.add_(1)
    rebase(disk, source, disk.config, 3, weights_hash(device))


def test_host_is_the_device_on_a_cpu() -> None:
    assert type(Place("host").home(small_model(), HERE)) is home.Home


def test_a_tensor_that_is_used_outside_its_block_stays_on_the_device(tmp_path: Path) -> None:
    model = small_model()
    first, second, *_ = model.model.decoder.layers
    second.fc1.weight = first.fc1.weight
    found = Place("disk", tmp_path).home(model, HERE)
    seats = [len(berth.seats) for berth in found.berths]  # type: ignore[attr-defined]
    assert seats == [15, 15, 16, 16]


def test_a_disk_without_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ModelError, match="No space left.*model.home_dir=DIR"):
        Place("disk", tmp_path).home(small_model(), HERE)


def test_host_memory_without_room_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(berths, "available", lambda: 1e3)
    with pytest.raises(ModelError, match="0.0 GB available.*model.home=disk"):
        Place("host").home(small_model(), Placement((torch.device("cuda", 0),)))
