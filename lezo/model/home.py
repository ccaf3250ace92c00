"""Where do a model's blocks live? On the device, in host memory, or in a file; from elsewhere they visit the device.

What stands outside the blocks is always on the device, and so are adapters: at home is what blocks hold when they are
loaded. Outside a visit a block's modules hold its tensors at home, plain tensors of the CPU, which is what hashes,
checkpoints, loading and saving read and write. Within one they hold those on the device.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from lezo.model.layout import decoder_blocks
from lezo.model.weights import ModelError

Slot = tuple[str, nn.Module, str]
"""A tensor's name in the model, a module that holds it, and its name there."""

_STRIDE = 256  # bytes; every tensor begins at a multiple, as torch's own allocations do


def slots(model: nn.Module, names: Iterable[str]) -> list[Slot]:
    """Of tensors by their names."""
    split = [(name, *name.rpartition(".")[::2]) for name in names]
    return [(name, model.get_submodule(path), leaf) for name, path, leaf in split]


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


@dataclass(frozen=True)
class Place:
    """Where a run wants its blocks; ``folder``: for the file of ``disk``, None the system's for such files."""

    kind: Literal["device", "host", "disk"] = "device"
    folder: Path | None = None

    def home(self, model: nn.Module, device: torch.device) -> Home:
        """Room for the blocks of ``model``, which are of the right shapes and dtypes and need no memory of their own.

        On a CPU host memory is the device's. Raises ModelError where there is no such room.
        """
        if not self.is_elsewhere(device):
            return Home(device)
        plans = _plans(model)
        memories = self._memories([_size(seats) for _, seats in plans])
        berths = [_berth(*plan, memory) for plan, memory in zip(plans, memories, strict=True)]
        if device.type == "cpu":
            return Mapped(device, berths, paged=True)
        from lezo.model.visits import Visiting

        return Visiting(device, berths, paged=self.kind == "disk")

    def is_elsewhere(self, device: torch.device) -> bool:
        """Whether that is another place than the memory of the device."""
        return self.kind != "device" and not (self.kind == "host" and device.type == "cpu")

    def _memories(self, sizes: Sequence[int]) -> list[mmap.mmap]:
        return _of_host(sizes) if self.kind == "host" else _of_file(sizes, self.folder)


class Home:
    """The blocks live on the device: nothing moves."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device

    @property
    def keeps_pages(self) -> bool:
        """Whether what is received may lie in the pages of the file it was read from."""
        return self.device is not None and self.device.type == "cpu"

    def receive(self, stand_in: Tensor, value: Tensor) -> Tensor:
        """``value`` where the tensor belongs that has ``stand_in`` in its place."""
        return value.to(self.device)

    def empty(self, stand_in: Tensor) -> Tensor:
        """Memory for the tensor that has ``stand_in`` in its place, where it belongs."""
        return torch.empty(stand_in.shape, dtype=stand_in.dtype, device=self.device)

    def take(self, model: nn.Module) -> None:
        """The model has all its tensors: move those that nothing was received for, and begin visits."""
        model.to(self.device)

    def on_device(self) -> AbstractContextManager[None]:
        """While it lasts, modules hold the tensors of visits: devices and addresses are right, values are not."""
        return nullcontext()

    def apart(self, slots: Iterable[Slot]) -> tuple[list[Slot], dict[nn.Module, list[Slot]]]:
        """Those whose tensors are always on the device; those of each block that visits it."""
        return list(slots), {}

    def updates(self, thetas: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
        """All ``thetas`` on the device, some at a time, to be written before the next are asked for.

        When all have been, home is up to date, in host memory too.
        """
        yield thetas

    def let_go(self, theta: Tensor) -> None:
        """Nobody needs the tensor for now: its pages may leave memory."""


_ON_DEVICE = Home()


def home_of(model: nn.Module) -> Home:
    """Where the model's blocks live."""
    return getattr(model, "lezo_home", _ON_DEVICE)  # type: ignore[return-value]


class Elsewhere(Home):
    """Blocks that live in ``berths`` and visit; what a visit is, subclasses say."""

    def __init__(self, device: torch.device, berths: Sequence[Berth], *, paged: bool) -> None:
        """``paged``: the berths are a file's."""
        super().__init__(device)
        self.device: torch.device = device
        self.berths, self.paged = berths, paged
        self._rooms = {
            id(seat.held): tensor
            for berth in berths
            for seat, tensor in zip(berth.seats, berth.tensors, strict=True)
        }
        self.thetas: list[list[Tensor]] = []  # of each block, as its modules hold them outside visits
        self._of: dict[
            int, tuple[int, int]
        ] = {}  # such a parameter's identity -> its block's number and its seat's

    @property
    def keeps_pages(self) -> bool:
        """Nothing does."""
        return False

    def empty(self, stand_in: Tensor) -> Tensor:
        """At home, if the tensor is a block's."""
        own = self._rooms.get(id(stand_in))
        return super().empty(stand_in) if own is None else own

    def receive(self, stand_in: Tensor, value: Tensor) -> Tensor:
        """A copy, at home if the tensor is a block's."""
        own = self._rooms.get(id(stand_in))
        return value.to(self.device, copy=True) if own is None else own.copy_(value)

    @torch.no_grad()
    def take(self, model: nn.Module) -> None:
        """See `Home.take`: from now on a block that is called is on the device meanwhile."""
        self._rooms = {}
        for berth in self.berths:
            for seat, tensor in zip(berth.seats, berth.tensors, strict=True):
                if seat.held.data_ptr() != tensor.data_ptr():
                    seat.hold(nn.Parameter(tensor.copy_(seat.held), seat.held.requires_grad))
        self.thetas = [[seat.held for seat in berth.seats] for berth in self.berths]
        for number, berth in enumerate(self.berths):
            self._of |= {id(theta): (number, place) for place, theta in enumerate(self.thetas[number])}
            berth.block.register_forward_pre_hook(lambda *_, number=number: self.begin(number))
            berth.block.register_forward_hook(lambda *_, number=number: self.end(number), always_call=True)
        self._move_rest(model)
        model.lezo_home = self  # type: ignore[assignment]

    def begin(self, number: int) -> None:
        """A block is about to run. The next to run is the one after it."""
        raise NotImplementedError

    def end(self, number: int) -> None:
        """All that reads the block has been asked for."""
        raise NotImplementedError

    def apart(self, slots: Iterable[Slot]) -> tuple[list[Slot], dict[nn.Module, list[Slot]]]:
        """See `Home.apart`."""
        here, visiting = list[Slot](), dict[nn.Module, list[Slot]]()
        for slot in slots:
            _, module, leaf = slot
            if (found := self._of.get(id(module._parameters[leaf]))) is None:
                here.append(slot)
            else:
                visiting.setdefault(self.berths[found[0]].block, []).append(slot)
        return here, visiting

    def _by_block(self, thetas: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[int, dict[str, int]]]:
        """Those always on the device; of each block the seats of the others."""
        here, seats = dict[str, Tensor](), dict[int, dict[str, int]]()
        for name, theta in thetas.items():
            if (found := self._of.get(id(theta))) is None:
                here[name] = theta
            else:
                seats.setdefault(found[0], {})[name] = found[1]
        return here, seats

    def _move_rest(self, model: nn.Module) -> None:
        """What is neither at home nor on the device: buffers that are computed, parameters read all at once."""
        moved: dict[int, Tensor] = {}
        for module in model.modules():
            for table in (module._parameters, module._buffers):
                for leaf, tensor in table.items():
                    if tensor is not None and id(tensor) not in self._of and tensor.device != self.device:
                        table[leaf] = moved.setdefault(id(tensor), self._moved(tensor))  # type: ignore[assignment]

    def _moved(self, tensor: Tensor) -> Tensor:
        there = tensor.detach().to(self.device)
        return nn.Parameter(there, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else there

    def let_go(self, theta: Tensor) -> None:
        """See `Home.let_go`."""
        if self.paged and (found := self._of.get(id(theta))) is not None:
            self.berths[found[0]].let_go(self.berths[found[0]].seats[found[1]])


class Mapped(Elsewhere):
    """On a CPU blocks run, and are updated, where they are: in a file that is mapped into memory.

    A block's pages are asked for while the block before it runs, and let go of when it has run.
    """

    def begin(self, number: int) -> None:
        """Ask for the next block's pages."""
        if number + 1 < len(self.berths):
            self.berths[number + 1].ask()

    def end(self, number: int) -> None:
        """Let go of the block's."""
        self.berths[number].let_go()

    def updates(self, thetas: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
        """See `Home.updates`."""
        here, blocks = self._by_block(thetas)
        if here:
            yield here
        for number, then in with_next(list(blocks)):
            if then is not None:
                self.berths[then].ask()
            yield {name: thetas[name] for name in blocks[number]}
            self.end(number)


def with_next(numbers: Sequence[int]) -> Iterator[tuple[int, int | None]]:
    """Each number with the one after it."""
    return zip(numbers, [*numbers[1:], None], strict=False)  # none of none


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
