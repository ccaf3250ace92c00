"""A run's whole state on disk: weights and optimizer, as safetensors, complete or not there."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, asdict, dataclass
from pathlib import Path
from typing import Any

from msgspec import convert
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lezo.records.files import FolderError, remove_folder, replaced_folder, sync
from lezo.records.rows import DevRow, TrainRow
from lezo.records.schema import CheckpointFile, Provenance, decoded


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder, the step after which it was made, the origin of its run, its files' hashes."""

    path: Path
    step: int
    origin: Mapping[str, Any]
    files: Mapping[str, str]

    def damage(self) -> str | None:
        """What is wrong with its files; None: they are as they were written."""
        for name, expected in self.files.items():
            try:
                digest = _file_hash(self.path / name)
            except OSError as error:
                return f"{self.path / name}: cannot read it ({error.strerror})"
            if digest != expected:
                return f"{self.path / name}: not as it was written (its SHA-256 differs)"
        return None

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Its tensors by name, one at a time, on the CPU. Raises FolderError where they cannot be read."""
        for name in self.files:
            try:
                with safe_open(self.path / name, framework="pt") as file:
                    for key in file.keys():  # noqa: SIM118 - not a dict
                        yield key, file.get_tensor(key)
            except (SafetensorError, OSError) as error:
                raise FolderError(f"{self.path / name}: cannot read the checkpoint ({error})") from error


@dataclass
class Checkpoints:
    """Writes and prunes ``folder``'s checkpoints. ``state`` gives the tensors; ``every``: steps, None for never.

    ``at_evaluations``: also at every dev evaluation after step 0, and then that of the ``best`` step so far is kept too.
    ``shard``: the bytes that a file holds, as many as are copied to host memory at a time.
    """

    folder: Path
    origin: Provenance
    state: Callable[[], Mapping[str, Tensor]]
    _: KW_ONLY
    every: int | None
    keep: int
    at_evaluations: bool
    best: Callable[[], int | None]
    shard: int = 2**30

    def trained(self, row: TrainRow) -> None:
        """Write one where it is time."""
        if self.due(row.step):
            self.save(row.step)

    def due(self, step: int) -> bool:
        """Whether it is time for one, evaluations apart."""
        return self.every is not None and step % self.every == 0

    def evaluated(self, row: DevRow) -> None:
        """Write one, if evaluations do."""
        if self.at_evaluations and row.step > 0:
            self.save(row.step)

    def save(self, step: int) -> None:
        """Write the checkpoint of ``step``, if there is none yet, and prune. Raises FolderError."""
        if not _path(self.folder, step).exists():
            self._write(step)
        self.prune()

    def _write(self, step: int) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            sync(self.folder.parent)
            with replaced_folder(_path(self.folder, step)) as partial:
                for number, tensors in enumerate(_shards(self.state(), self.shard)):
                    on_host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
                    save_file(on_host, partial / f"{number:05d}.safetensors")
                _describe(partial, step, self.origin)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            ways = "earlier ones stay; make room, or lower train.keep_checkpoints"
            raise FolderError(
                f"{self.folder}: cannot write the checkpoint of step {step} ({reason}); {ways}"
            ) from error

    def prune(self) -> None:
        """Remove all but the newest ``keep``, and the best."""
        best = self.best() if self.at_evaluations else None
        for step in sorted(_steps(self.folder))[: -self.keep]:
            if step != best:
                remove(_path(self.folder, step))


def remove(path: Path) -> None:
    """Delete a checkpoint's folder, of which none is ever half there. Raises FolderError."""
    try:
        remove_folder(path)
    except OSError as error:
        ways = "expected a folder of one's own"
        raise FolderError(f"{path}: cannot remove it ({error.strerror}); {ways}") from error


def find_checkpoints(folder: Path) -> list[Checkpoint]:
    """The complete checkpoints of a folder, the newest first. What a killed process left unfinished is removed."""
    if not folder.is_dir():
        return []
    for name in folder.glob(".step-*"):
        shutil.rmtree(name, ignore_errors=True)
    return [_read(folder, step) for step in sorted(_steps(folder), reverse=True)]


def _steps(folder: Path) -> Iterator[int]:
    for path in folder.glob("step-*"):
        if re.fullmatch(r"step-[1-9][0-9]*", path.name) and path.is_dir():
            yield int(path.name.removeprefix("step-"))


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step}"


def _read(folder: Path, step: int) -> Checkpoint:
    file = _path(folder, step) / "checkpoint.json"
    try:
        content = decoded(file.read_bytes())
        if content.pop("sha256", None) != _content_hash(content):
            raise ValueError("its own SHA-256 differs")
        described = convert(content, CheckpointFile)
        if described["step"] != step:
            raise ValueError(f"it is of step {described['step']}")
        return Checkpoint(file.parent, step, described["origin"], described["files"])
    except (OSError, ValueError) as error:
        ways = f"remove the folder {file.parent} to go on from an earlier one"
        reason = error.strerror if isinstance(error, OSError) else error
        raise FolderError(f"{file}: not the description of a checkpoint ({reason}); {ways}") from None


def _describe(folder: Path, step: int, origin: Provenance) -> None:
    files = sorted(folder.iterdir())
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), "hash") as threads:
        digests = dict(zip((file.name for file in files), threads.map(_file_hash, files), strict=True))
    content = {"step": step, "origin": asdict(origin), "files": digests}
    text = json.dumps({**content, "sha256": _content_hash(content)}, indent=2) + "\n"
    (folder / "checkpoint.json").write_text(text, encoding="utf-8")


def _content_hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _shards(tensors: Mapping[str, Tensor], most: int) -> Iterator[dict[str, Tensor]]:
    """The tensors in parts of at most ``most`` bytes, or one tensor."""
    part: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if part and sum(t.nbytes for t in part.values()) + tensor.nbytes > most:
            yield part
            part = {}
        part[name] = tensor
    if part:
        yield part


def _file_hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
