"""What do a model's blocks take, and in what memory outside the device do they lie? Each side by side, in whole pages."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from lezo.model.layout import decoder_blocks
from lezo.model.weights import ModelError

_STRIDE = 256  # bytes; every tensor begins at a multiple, as torch's own allocations do


@dataclass(frozen=True)
class Seat:
    """A tensor of a block: the modules that hold it, by its names there, and where it lies in the block's memory."""

    holders: tuple[tuple[nn.Module, str], ...]
    shape: torch.Size
    dtype: torch.dtype
    start: int

    @property
    def nbytes(self) -> int:
        """Without what lies between it and the next."""
        return self.shape.numel() * self.dtype.itemsize

    def within(self, memory: Tensor) -> Tensor:
        """This tensor in a copy of the block's memory, (n,) uint8."""
        return memory[self.start : self.start + self.nbytes].view(self.dtype).view(self.shape)

    @property
    def held(self) -> Tensor:
        """What its modules hold at present."""
        module, leaf = self.holders[0]
        theta = module._parameters[leaf]
        assert theta is not None
        return theta

    def hold(self, tensor: Tensor) -> None:
        """Let the modules hold ``tensor``, a parameter."""
        for module, leaf in self.holders:
            module._parameters[leaf] = tensor  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class Berth:
    """A block's tensors side by side in ``memory`` outside the device: each a tensor of the CPU of its own storage."""

    block: nn.Module
    seats: Sequence[Seat]
    memory: mmap.mmap
    tensors: Sequence[Tensor]

    @property
    def whole(self) -> Tensor:
        """All of it: (n,) uint8."""
        return torch.frombuffer(self.memory, dtype=torch.uint8)

    def ask(self) -> None:
        """Let its pages be read ahead."""
        _advise(self.memory, mmap.MADV_WILLNEED, 0, len(self.memory))

    def let_go(self, seat: Seat | None = None) -> None:
        """Its pages, or those of one tensor, may leave memory; what was written to a file's is the file's already."""
        first, length = (0, len(self.memory)) if seat is None else (seat.start, seat.nbytes)
        _advise(self.memory, mmap.MADV_DONTNEED, first, length)


def make_berths(model: nn.Module, kind: Literal["host", "disk"], folder: Path | None) -> list[Berth]:
    """Room for the blocks of ``model``, which are of the right shapes and dtypes and need no memory of their own.

    ``folder``: of the file of ``disk``, None the system's for such files. Raises ModelError where there is no room.
    """
    plans = _plans(model)
    sizes = [_size(seats) for _, seats in plans]
    memories = _of_host(sizes) if kind == "host" else _of_file(sizes, folder)
    return [_berth(*plan, memory) for plan, memory in zip(plans, memories, strict=True)]


def block_bytes(model: nn.Module) -> list[int]:
    """What each block of a model just made takes at home, in bytes."""
    return [_size(seats) for _, seats in _plans(model)]


def _plans(model: nn.Module) -> list[tuple[nn.Module, list[Seat]]]:
    """The blocks that have tensors of their own, and these."""
    plans = [(model.get_submodule(name), _seats(model, name)) for name in decoder_blocks(model)]
    return [(block, seats) for block, seats in plans if seats]


def _seats(model: nn.Module, block: str) -> list[Seat]:
    """The block's parameters that nothing outside it holds too."""
    own = model.get_submodule(block)
    inside, holders, elsewhere = set(own.modules()), dict[int, list[tuple[nn.Module, str]]](), set[int]()
    for module in model.modules():
        for leaf, theta in module._parameters.items():
            if theta is not None and module in inside:
                holders.setdefault(id(theta), []).append((module, leaf))
            elif theta is not None:
                elsewhere.add(id(theta))
    thetas = [theta for theta in own.parameters() if theta.numel() and id(theta) not in elsewhere]
    starts = accumulate((-(-theta.nbytes // _STRIDE) * _STRIDE for theta in thetas), initial=0)
    return [
        Seat(tuple(holders[id(theta)]), theta.shape, theta.dtype, start)
        for theta, start in zip(thetas, starts, strict=False)
    ]


def _berth(block: nn.Module, seats: Sequence[Seat], memory: mmap.mmap) -> Berth:
    """Each tensor with a storage of its own: to transformers tensors of one storage are tied."""
    tensors = [
        torch.frombuffer(memory, dtype=seat.dtype, count=seat.shape.numel(), offset=seat.start).view(
            seat.shape
        )
        for seat in seats
    ]
    return Berth(block, seats, memory, tensors)


def _size(seats: Sequence[Seat]) -> int:
    """Bytes in whole pages, so that each block's memory can be mapped and let go of alone."""
    unit = mmap.ALLOCATIONGRANULARITY
    return -(-(seats[-1].start + seats[-1].nbytes) // unit) * unit


def _of_host(sizes: Sequence[int]) -> list[mmap.mmap]:
    """Not torch's own pinned memory, which comes in powers of two."""
    needed, free = sum(sizes), available()
    if needed > free:
        raise ModelError(
            f"model.home=host: the blocks take {needed / 1e9:.1f} GB and host memory has {free / 1e9:.1f} GB available; "
            "expected more memory, a narrower model.dtype, or model.home=disk"
        )
    return anonymous(sizes)


def anonymous(sizes: Sequence[int]) -> list[mmap.mmap]:
    """Host memory of exactly so many bytes each."""
    return [mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for size in sizes]


def available() -> float:
    """Bytes of host memory that can be had; infinity where only Linux can say that."""
    file = Path("/proc/meminfo")
    lines = file.read_text().splitlines() if file.exists() else []
    found = (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return next(found, math.inf)


def _of_file(sizes: Sequence[int], folder: Path | None) -> list[mmap.mmap]:
    """Parts of one file, which has no name: it is gone when nobody has it mapped, however the process ends.

    Its room is taken now: a full disk would otherwise end the process in the middle of a write.
    """
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(prefix=".lezo-blocks-", dir=folder) as file:
            _take_room(file.fileno(), sum(sizes))
            starts = accumulate(sizes, initial=0)
            return [
                mmap.mmap(file.fileno(), size, offset=start)
                for size, start in zip(sizes, starts, strict=False)
            ]
    except OSError as error:
        where = folder or tempfile.gettempdir()
        raise ModelError(
            f"model.home=disk: cannot make a file of {sum(sizes) / 1e9:.1f} GB in {where} ({error.strerror}); make room, or "
            "name another folder with model.home_dir=DIR"
        ) from error


def _take_room(file: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.ftruncate(file, size)


def _advise(memory: mmap.mmap, advice: int, start: int, length: int) -> None:
    """Of all pages that hold some of these bytes."""
    first = start // mmap.PAGESIZE * mmap.PAGESIZE
    memory.madvise(advice, first, start + length - first)
