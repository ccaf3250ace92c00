"""Where do a model's blocks live? On the device, in host memory, or in a file; from elsewhere they visit the device.

What stands outside the blocks is always on the device, and so are adapters: at home is what blocks hold when they are
loaded. Outside a visit a block's modules hold its tensors at home, plain tensors of the CPU, which is what hashes,
checkpoints, loading and saving read and write. Within one they hold those on the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from lezo.model.berths import Berth
from lezo.model.placement import Placement, placement_of, settle

Slot = tuple[str, nn.Module, str]
"""A tensor's name in the model, a module that holds it, and its name there."""


def slots(model: nn.Module, names: Iterable[str]) -> list[Slot]:
    """Of tensors by their names."""
    split = [(name, *name.rpartition(".")[::2]) for name in names]
    return [(name, model.get_submodule(path), leaf) for name, path, leaf in split]


class Home:
    """The blocks live on the device, or on those of ``placement``: nothing moves."""

    def __init__(self, placement: Placement) -> None:
        self.placement, self.device = placement, placement.home

    @property
    def keeps_pages(self) -> bool:
        """Whether what is received may lie in the pages of the file it was read from."""
        return self.device.type == "cpu"

    def receive(self, name: str, stand_in: Tensor, value: Tensor) -> Tensor:
        """``value`` where the tensor of this name belongs, which has ``stand_in`` in its place."""
        return value.to(self.placement.device(name))

    def empty(self, name: str, stand_in: Tensor) -> Tensor:
        """Memory for the tensor of this name, which has ``stand_in`` in its place, where it belongs."""
        return torch.empty(stand_in.shape, dtype=stand_in.dtype, device=self.placement.device(name))

    def take(self, model: nn.Module) -> None:
        """The model has all its tensors: move those that nothing was received for, and begin visits."""
        settle(model, self.placement)

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


def home_of(model: nn.Module) -> Home:
    """Where the model's blocks live."""
    told = model.__dict__.get("lezo_home")
    return told if isinstance(told, Home) else Home(placement_of(model))


class Elsewhere(Home):
    """Blocks that live in ``berths`` and visit; what a visit is, subclasses say."""

    def __init__(self, device: torch.device, berths: Sequence[Berth], *, paged: bool = True) -> None:
        """``paged``: the berths are a file's."""
        super().__init__(Placement((device,)))
        self.berths, self.paged = berths, paged
        self._rooms = {
            id(seat.held): (berth, place) for berth in berths for place, seat in enumerate(berth.seats)
        }
        # Of each block, as its modules hold them outside visits; by their identities the block's number and the seat's.
        self.thetas: list[list[Tensor]] = []
        self._of: dict[int, tuple[int, int]] = {}

    @property
    def keeps_pages(self) -> bool:
        """Nothing does."""
        return False

    def empty(self, name: str, stand_in: Tensor) -> Tensor:
        """At home, if the tensor is a block's."""
        if (room := self._rooms.get(id(stand_in))) is None:
            return super().empty(name, stand_in)
        return room[0].tensors[room[1]]

    def receive(self, name: str, stand_in: Tensor, value: Tensor) -> Tensor:
        """A copy, at home if the tensor is a block's."""
        if (room := self._rooms.get(id(stand_in))) is None:
            return value.to(self.device, copy=True)
        return self._moved_in(*room, value)

    @torch.no_grad()
    def take(self, model: nn.Module) -> None:
        """See `Home.take`: from now on a block that is called is on the device meanwhile."""
        self._rooms = {}
        for berth in self.berths:
            for place, (seat, tensor) in enumerate(zip(berth.seats, berth.tensors, strict=True)):
                if seat.held.data_ptr() != tensor.data_ptr():  # a model that was read all at once
                    own = self._moved_in(berth, place, seat.held)
                    seat.hold(nn.Parameter(own, seat.held.requires_grad))
        self.thetas = [[seat.held for seat in berth.seats] for berth in self.berths]
        for number, berth in enumerate(self.berths):
            self._of |= {id(theta): (number, place) for place, theta in enumerate(self.thetas[number])}
            berth.block.register_forward_pre_hook(lambda *_, number=number: self.begin(number))
            berth.block.register_forward_hook(lambda *_, number=number: self.end(number), always_call=True)
        self._move_rest(model)
        model.lezo_home = self  # type: ignore[assignment]

    def _moved_in(self, berth: Berth, place: int, value: Tensor) -> Tensor:
        """The tensor of a seat, with this value."""
        tensor = berth.tensors[place].copy_(value)
        if self.paged:
            berth.let_go(berth.seats[place])
        return tensor

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
