"""Checkpoints: the same bits come back, only whole ones count, and damage is named."""

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lezo.records.checkpoint import Checkpoint, Checkpoints, find_checkpoints, remove
from lezo.records.files import FolderError
from lezo.records.rows import DevRow, TrainRow
from lezo.records.schema import Provenance
from lezo.zo.first_order import FirstOrder
from lezo.zo.timeline import Timeline, model_state
from tests.lezo.refusals import refused
from tests.lezo.small_models import Bowl, weights
from tests.lezo.whole_runs import limited

ORIGIN = Provenance("w" * 64, "t" * 64, "d" * 64, "float32", 1, "c" * 64, "0.1.0")
STATE = {"model.a": torch.arange(6.0).view(2, 3), "model.b": torch.tensor(2.0)}


class Writer(Checkpoints):
    """Checkpoints of ``tensors``; ``best_step`` is what the run says is best."""

    def __init__(self, folder: Path, tensors: Mapping[str, Tensor] = STATE, **changes: Any) -> None:
        self.tensors, self.best_step = tensors, None  # type: Mapping[str, Tensor], int | None
        settings = {"every": None, "keep": 2, "at_evaluations": False} | changes
        super().__init__(folder, ORIGIN, lambda: self.tensors, best=lambda: self.best_step, **settings)

    @property
    def steps(self) -> list[int]:
        return [checkpoint.step for checkpoint in find_checkpoints(self.folder)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def only(folder: Path) -> Checkpoint:
    (found,) = find_checkpoints(folder)
    return found


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_same_bits_come_back(dtype: torch.dtype, folder: Path) -> None:
    draw = torch.Generator().manual_seed(1)
    tensors = {
        "model.matrix": torch.randn(5, 7, generator=draw).to(dtype),
        "model.odd": torch.tensor([float("nan"), float("inf"), -0.0, 1e-7]).to(dtype),
        "model.transposed": torch.randn(4, 3, generator=draw).to(dtype).T,
        "model.empty": torch.zeros(0, 3, dtype=dtype),
        "optimizer.0.step": torch.tensor(7.0),  # without dimensions
    }
    Writer(folder, tensors).save(3)
    found = dict(only(folder).tensors())
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert bits(found[name]) == bits(tensor)


def first_order(model: torch.nn.Module, algorithm: str, momentum: float) -> FirstOrder:
    def objective(batch: float) -> Iterator[Tensor]:
        yield model(batch)

    return FirstOrder(model, objective, algorithm=algorithm, lr=0.05, momentum=momentum)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("algorithm", "momentum", "dtype"),
    [("sgd", 0.0, torch.float32), ("sgd", 0.9, torch.bfloat16), ("adamw", 0.0, torch.float32)],
)
def test_a_first_order_run_goes_on_to_the_same_bits(
    algorithm: str, momentum: float, dtype: torch.dtype, folder: Path
) -> None:
    whole = Bowl(dtype)
    optimizer = first_order(whole, algorithm, momentum)
    for step in range(4):
        optimizer.step(step, 1.0)
    Writer(folder, model_state(whole, optimizer)).save(4)
    for step in range(4, 8):
        optimizer.step(step, 1.0)
    again = Bowl(dtype)
    other = first_order(again, algorithm, momentum)
    Timeline(again, lambda: None, None).bring_to(4, None, find_checkpoints(folder), other)
    for step in range(4, 8):
        other.step(step, 1.0)
    assert all(torch.equal(p, weights(again)[name]) for name, p in weights(whole).items())
    left, right = optimizer.state(), other.state()
    assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
    assert bool(left) == (algorithm == "adamw" or momentum > 0)


@pytest.mark.parametrize(("shard", "files"), [(2**30, 1), (24, 2), (1, 2), (28, 1)])
def test_tensors_are_spread_over_files(shard: int, files: int, folder: Path) -> None:
    Writer(folder, shard=shard).save(1)
    found = only(folder)
    names = [f"{number:05d}.safetensors" for number in range(files)]
    assert sorted(found.files) == names == sorted(file.name for file in found.path.glob("*.safetensors"))
    assert {name: tensor.tolist() for name, tensor in found.tensors()} == {
        name: tensor.tolist() for name, tensor in STATE.items()
    }
    assert found.damage() is None


def test_a_checkpoint_says_its_step_and_origin_and_others_can_read_it(folder: Path) -> None:
    Writer(folder).save(3)
    found = only(folder)
    assert (found.step, found.origin, found.path) == (3, asdict(ORIGIN), folder / "step-3")
    for file in found.path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) & 0o444 == 0o444
    assert sorted(file.name for file in folder.iterdir()) == ["step-3"]


def test_the_newest_are_kept(folder: Path) -> None:
    writer, steps = Writer(folder, every=3, keep=2), []
    for step in range(1, 13):
        writer.trained(TrainRow(step, 0.0, 0.5))
        writer.evaluated(DevRow(step, 0.0, 0.5, 0.5))  # a zeroth-order run's journal has these
        steps.append(writer.steps)
    assert steps[1::3] == [[], [3], [6, 3], [9, 6]] and steps[-1] == [12, 9]


def test_none_is_written_where_none_is_wanted(folder: Path) -> None:
    writer = Writer(folder)
    writer.trained(TrainRow(1, 0.0, 0.5))
    writer.evaluated(DevRow(1, 0.0, 0.5, 0.5))
    assert not folder.exists() and find_checkpoints(folder) == []


def test_the_best_evaluation_is_kept_besides_the_newest(folder: Path) -> None:
    writer, kept = Writer(folder, keep=1, at_evaluations=True), []
    for step, best in [(0, None), (2, 2), (4, 2), (6, 6), (8, 6), (10, 6)]:
        writer.best_step = best
        writer.evaluated(DevRow(step, 0.0, 0.5, 0.5))
        kept.append(writer.steps)
    assert kept == [[], [2], [4, 2], [6], [8, 6], [10, 6]]


def test_a_checkpoint_that_is_there_is_not_written_again(folder: Path) -> None:
    writer = Writer(folder, every=2, at_evaluations=True)
    writer.trained(TrainRow(2, 0.0, 0.5))
    before = (folder / "step-2").stat().st_ino
    writer.evaluated(DevRow(2, 0.0, 0.5, 0.5))
    assert (folder / "step-2").stat().st_ino == before


@pytest.mark.parametrize("keep", [1, 2])
def test_what_a_kill_left_half_made_or_half_deleted_is_removed_and_made_again(
    keep: int, folder: Path
) -> None:
    writer = Writer(folder, keep=keep)
    writer.save(1)
    for name in (".step-2.partial", ".step-0.gone", ".step-1.gone"):
        (folder / name).mkdir()
        (folder / name / "00000.safetensors").write_bytes(b"half")
    assert writer.steps == [1]
    assert [file.name for file in folder.iterdir()] == ["step-1"]
    for name in (".step-2.partial", ".step-1.gone"):  # or met by a run that goes on
        (folder / name).mkdir()
        (folder / name / "00000.safetensors").write_bytes(b"half")
    writer.save(2)
    assert writer.steps == [2, 1][:keep]
    assert only(folder).damage() is None if keep == 1 else True


def test_what_is_no_checkpoint_is_left_alone(folder: Path) -> None:
    Writer(folder).save(3)
    others = ["notes.txt", "step-3.bak", "step-03", "step-", "step-x", "step-٣", "step--1"]
    for name in others:
        (folder / name).mkdir()
    (folder / "step-4").write_text("a file")
    assert only(folder).step == 3
    assert {file.name for file in folder.iterdir()} == {"step-3", "step-4", *others}


def test_a_removed_checkpoint_is_never_half_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Writer(folder).save(3)
    monkeypatch.setattr("shutil.rmtree", lambda path, ignore_errors: None)  # a kill before it
    remove(folder / "step-3")
    assert [file.name for file in folder.iterdir()] == [".step-3.gone"]
    monkeypatch.undo()
    assert find_checkpoints(folder) == [] and list(folder.iterdir()) == []


def test_a_checkpoint_that_cannot_be_removed_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(folder, keep=1)
    writer.save(1)
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        if str(target).endswith(".gone"):
            raise PermissionError(1, "Operation not permitted")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with refused(FolderError, str(folder / "step-1"), "Operation not permitted"):
        writer.save(2)
    assert writer.steps == [2, 1]


@pytest.mark.parametrize("place", [0, 9, 100, -1])
def test_a_flipped_byte_of_the_tensors_is_named(place: int, folder: Path) -> None:
    Writer(folder).save(3)
    file = folder / "step-3" / "00000.safetensors"
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    assert str(file) in (only(folder).damage() or "")


def test_files_that_are_gone_or_no_tensors_are_named(folder: Path) -> None:
    Writer(folder).save(3)
    file = folder / "step-3" / "00000.safetensors"
    file.write_bytes(b"\xff" * 100)
    with refused(FolderError, str(file)):
        list(only(folder).tensors())
    file.unlink()
    assert f"{file}: " in (only(folder).damage() or "")
    with refused(FolderError, str(file)):
        list(only(folder).tensors())


def described(folder: Path, **changes: Any) -> Path:
    """A checkpoint of step 3 whose description says something else, with the hash that belongs to it."""
    Writer(folder).save(3)
    file = folder / "step-3" / "checkpoint.json"
    content = json.loads(file.read_text()) | changes
    del content["sha256"]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    file.write_text(json.dumps({**content, "sha256": digest}))
    return file


FILE_NAME = "' - at `key` in `$.files`"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"step": 4}, "it is of step 4"),
        ({"step": "3\n"}, "Expected `int`, got `str` - at `$.step`"),
        ({"files": {"../00000.safetensors": "0"}}, FILE_NAME),
        ({"files": {"..": "0"}}, FILE_NAME),
        ({"files": {"/etc/passwd": "0"}}, FILE_NAME),
        ({"files": {"": "0"}}, FILE_NAME),
        ({"files": {"0\0.safetensors": "0"}}, FILE_NAME),
        ({"files": ["00000.safetensors"]}, "Expected `object`, got `array` - at `$.files`"),
        ({"files": None}, "Expected `object`, got `null` - at `$.files`"),
        ({"origin": None}, "Expected `object`, got `null` - at `$.origin`"),
        ({"origin": "weights"}, "Expected `object`, got `str` - at `$.origin`"),
    ],
)
def test_a_description_that_says_something_else_is_refused(
    changes: dict[str, Any], reason: str, folder: Path
) -> None:
    file = described(folder, **changes)
    with refused(FolderError, str(file), reason, f"remove the folder {file.parent}"):
        find_checkpoints(folder)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Input data was truncated"),
        (b"\0" * 200, "JSON is malformed"),
        (b"[]", "Expected `object`, got `array`"),
        (b"{}", "its own SHA-256 differs"),
        (b"7", "Expected `object`, got `int`"),
        (b"\xff\xfe{", "JSON is malformed"),
        (b'{"a":' * 100_000, "maximum recursion depth exceeded"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_what_is_no_description_is_refused(content: bytes, reason: str, folder: Path) -> None:
    file = described(folder)
    file.write_bytes(content)
    with refused(FolderError, str(file), reason):
        find_checkpoints(folder)


def test_a_flipped_byte_of_the_description_is_refused(folder: Path) -> None:
    file = described(folder)
    text = file.read_text()
    for part in ("float32", "w" * 64, "0.1.0", '"files"', "00000"):
        file.write_text(text.replace(part, part.replace(part[1], chr(ord(part[1]) ^ 1)), 1))
        with refused(FolderError, str(file), "SHA-256"):
            find_checkpoints(folder)


def test_a_description_that_is_not_there_is_refused(folder: Path) -> None:
    file = described(folder)
    file.unlink()
    with refused(FolderError, str(file), f"remove the folder {file.parent}"):
        find_checkpoints(folder)


@pytest.mark.parametrize("room", [10, 300])
def test_a_full_disk_is_said_and_earlier_ones_stay(room: int, folder: Path) -> None:
    """10 bytes are too few for the tensors, 300 for the description."""
    writer = Writer(folder, keep=1)
    writer.save(3)
    with refused(FolderError, str(folder), "step 4", "train.keep_checkpoints"), limited(room):
        writer.save(4)
    assert [file.name for file in folder.iterdir()] == ["step-3"]
    assert only(folder).damage() is None


def test_a_folder_that_cannot_be_written_is_said(folder: Path) -> None:
    folder.write_text("a file in its place")
    with refused(FolderError, str(folder), "step 1"):
        Writer(folder).save(1)
    assert find_checkpoints(folder) == []
