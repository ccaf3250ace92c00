"""CUDA devices that are not there: the host's work is real, tensors on them have shapes, dtypes and devices but no data.

Inside ``PretendGpu()`` torch believes in ``visible`` devices. An operator whose operands are not all where they must
be raises, as on a GPU; a device without an index, or of a number that is not visible, does so too, which torch is less
strict about. Triton's kernels are compiled for real (``pretend_driver``). What is copied to the host are zeros, and a
bool that is read is True, so that a whole run goes on from there. Streams are ordered by what waits for what
(``order``). Not pretended: values, memory, time, autograd.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.pretend_cuda.order import Actor, Memory, Order, Stream, where

aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)


@dataclass(frozen=True)
class Wait:
    """Where the host stood still until the device was done, and in which thread."""

    what: str
    where: str
    thread: str


class Graph:
    """torch.cuda.CUDAGraph: while it is captured nothing may wait for the device.

    ``reads`` and ``writes``: what it used, and what the graphs of its pool share.
    """

    def __init__(self) -> None:
        self.gpu = PretendGpu.present
        self.reads, self.writes = set[Memory](), set[Memory]()

    def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
        """From here on nothing is computed."""
        gpu, self.device, self.thread = self.gpu, self.gpu.current, threading.get_ident()
        assert gpu.capturing is None and capture_error_mode == "thread_local"  # another thread packs batches
        assert gpu.stream(self.device).side, "a capture in a default stream"
        of, shared = gpu.pools.setdefault(pool, (self.device, Memory(f"pool {pool} of graphs")))
        assert of == self.device, "a pool of another device"
        self.writes.add(shared)
        gpu.capturing = self

    def capture_end(self) -> None:
        """Until here."""
        self.gpu.capturing = None

    def replay(self) -> None:
        """It is computed."""
        self.gpu.replays += 1
        self.gpu.operators += 1
        self.gpu.order.use(self.gpu.stream(self.device), self.reads, self.writes)


class PretendGpu:
    """``visible`` CUDA devices of compute capability 9.0, for as long as the context lasts.

    ``waits``: every time the host waits for a device, in order; ``steps``: those of each step. ``launches``: Triton's kernels by name, with their
    grid. ``operators``: how many operators and kernels the devices were given; ``replays``: of graphs; ``used``: the numbers of those that
    hold a result. ``masks_made``: masks that attention would make anew in each call, boolean ones or of rows
    whose length is no multiple of 8; ``steps_masks_made``: those of steps.
    """

    present: PretendGpu
    """The one of the context that lasts."""

    def __init__(self, visible: int = 1) -> None:
        self.visible, self.operators = visible, 0
        self.used: set[int | None] = set()
        self.waits: list[Wait] = []
        self.steps: list[list[Wait]] = []
        self.launches: list[tuple[str, int]] = []
        self.masks_made: list[str] = []
        self.steps_masks_made: list[str] = []
        self.free = 80 * 10**9  # bytes that it says are free
        self.truths: Iterator[bool] | None = None  # what bools that are read say; None: all True
        self.mode = _SharedMode()
        self.lock, self.thread = threading.RLock(), threading.local()  # one fake mode serves all threads
        self.stack = contextlib.ExitStack()
        self.order = Order(self)
        self.capturing: Graph | None = None
        self.pools: dict[Any, tuple[int, Memory]] = {}  # by device
        self.carried: list[tuple[Any, ...]] = []  # copies between devices: from, to, shape
        self.timed: set[int | None] = set()  # numbers of devices on which phases were timed
        self.streams: dict[int, Stream] = {}  # those that a device has without being asked
        self.replays = 0

    def __enter__(self) -> PretendGpu:
        from tests.pretend_cuda import pretend_driver, pretend_torch

        PretendGpu.present, enter = self, self.stack.enter_context
        enter(warnings.catch_warnings())
        enter(_device_guard())
        enter(pretend_torch.installed(self))
        enter(pretend_driver.installed(self))
        enter(_Dispatch(self))
        return self

    def __exit__(self, *exception: Any) -> None:
        self.stack.close()

    @property
    def current(self) -> int:
        """The number of this thread's device."""
        return getattr(self.thread, "device", 0)

    @contextlib.contextmanager
    def on(self, number: int) -> Iterator[None]:
        """This thread's device is another one."""
        before, self.thread.device = self.current, number
        try:
            yield
        finally:
            self.thread.device = before

    @contextlib.contextmanager
    def asking(self, stream: Stream) -> Iterator[None]:
        """This thread's device is the stream's, whose current stream it is."""
        number, own = stream.device.index, self._own_streams()
        before = own.get(number)
        with self.on(number):
            own[number] = stream
            try:
                yield
            finally:
                own.pop(number)
                if before is not None:
                    own[number] = before

    def stream(self, number: int) -> Stream:
        """The current stream of a device in this thread."""
        if number not in self.streams:
            self.streams[number] = Stream(torch.device("cuda", number), side=False)
        return self._own_streams().get(number, self.streams[number])

    def _own_streams(self) -> dict[int, Stream]:
        if not hasattr(self.thread, "streams"):
            self.thread.streams = {}
        return self.thread.streams  # type: ignore[no-any-return]

    def checked(self, device: Any) -> torch.device:
        """The device, if it is one that lezo may name."""
        device = torch.device(device)
        if device.type == "cuda":
            assert device.index is not None, f"a CUDA device without an index at {where()}"
            assert device.index < self.visible, f"{device} at {where()}, and {self.visible} are visible"
        return device

    def wait(self, what: str, known: dict[Actor, int]) -> None:
        """The host waits until all that is known to a stream, or was when an event was recorded, is done."""
        assert self.capturing is None, f"{what} while a graph is captured, at {where()}"
        self.order.host.learns(known)
        self.waits.append(Wait(what, where(), threading.current_thread().name))

    def synchronize(self, number: int) -> None:
        """The host waits for all streams of a device."""
        self.wait("synchronize", {})
        for stream in self.order.streams(number):
            self.order.host.learns(stream.known)

    def captured(self) -> Graph | None:
        """The graph that this thread captures."""
        graph = self.capturing
        return graph if graph is not None and graph.thread == threading.get_ident() else None

    def inside(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """``work``, for a thread of its own: modes hold for one thread."""

        def run(*args: Any, **kwargs: Any) -> Any:
            with _Dispatch(self):
                return work(*args, **kwargs)

        return run

    def run(self, operator: Any, args: Any, kwargs: Any) -> Any:
        """An operator on the device: real operands become pretended ones that are on the CPU."""
        with self.lock, self.mode:
            if any(
                type(leaf) is not FakeTensor and isinstance(leaf, Tensor)
                for leaf in tree_leaves((args, kwargs))
            ):
                args, kwargs = tree_map(self.pretended, (args, kwargs))
            result = operator(*args, **kwargs)
        self.operators += 1
        self.order.ran(operator, args, kwargs, result)
        made = (leaf.device for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        numbers = {device.index for device in made if device.type == "cuda"}
        graph = self.captured()
        assert graph is None or numbers <= {graph.device}, f"captured on {graph.device}: {numbers}"
        self.used |= numbers
        return result

    def pretended(self, value: Any) -> Any:
        """The same without data, where it is a tensor."""
        real = isinstance(value, Tensor) and not isinstance(value, FakeTensor)
        return self.mode.from_tensor(value) if real else value

    def copied(self, operator: Any, args: Any, kwargs: Any) -> Any:
        """A copy between host and device, or within the device."""
        source = args[0] if operator is aten._to_copy.default else args[1]
        target = (
            kwargs.get("device") or source.device if operator is aten._to_copy.default else args[0].device
        )
        flying = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
        if target.type == "cpu":
            return self._brought(operator, args, kwargs, source, flying)
        if source.device.type == "cuda" and source.device != target:
            self.carried.append((source.device.index, target.index, tuple(source.shape)))
        if source.device.type == "cpu":
            stream = self.stream(target.index)
            pinned = getattr(source, "pinned", False) or self.order.region(source) is not None
            if not (flying and pinned):
                self.wait("copy from memory that is not pinned, or without non_blocking", stream.known)
            self.order.at_home(source, writes=False, actor=stream)
        return self.run(operator, args, kwargs)

    def _brought(self, operator: Any, args: Any, kwargs: Any, source: Tensor, flying: Any) -> Tensor:
        """A copy to the host."""
        new = operator is aten._to_copy.default
        if not new:
            self.order.at_home(args[0], writes=True, actor=self.stream(source.device.index))
        if not new and flying and self.order.region(args[0]) is not None:
            self.operators += 1
            self.order.given([source], [])
        else:
            self._asked([source], "copy to the host")
        made = torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype)
        return made if new else args[0].copy_(made)

    def read(self, tensor: Tensor) -> bool | int | float:
        """A value that the host asks for."""
        self._asked([tensor], "a value is read")
        if tensor.dtype == torch.bool:
            return True if self.truths is None else next(self.truths)
        return 0.0 if tensor.is_floating_point() else 0

    def compared(self, tensors: Sequence[Tensor]) -> bool:
        """Whether two are equal, which the host asks for."""
        self._asked(tensors, "tensors are compared")
        return True

    def _asked(self, tensors: Sequence[Tensor], what: str) -> None:
        self.order.given(tensors, [])
        self.wait(what, self.stream(tensors[0].device.index).known)


class _SharedMode(FakeTensorMode):
    """A fake mode for several threads: whether one is inside an operator is its own affair."""

    def __init__(self) -> None:
        self._own = threading.local()
        super().__init__()

    @property
    def in_kernel_invocation(self) -> bool:
        return getattr(self._own, "inside", False)

    @in_kernel_invocation.setter
    def in_kernel_invocation(self, inside: bool) -> None:
        self._own.inside = inside


class _Dispatch(TorchDispatchMode):
    """Sends each operator to where its operands and its result are."""

    def __init__(self, gpu: PretendGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpu, kwargs, leaves = self.gpu, kwargs or {}, tree_leaves((args, kwargs))
        devices = [gpu.checked(leaf) for leaf in leaves if isinstance(leaf, torch.device)]
        here = any(isinstance(leaf, FakeTensor) for leaf in leaves)
        if not here and all(device.type != "cuda" for device in devices):
            if operator is aten.copy_.default:
                gpu.order.at_home(args[0], writes=True)
                gpu.order.at_home(args[1], writes=False)
            return operator(*args, **kwargs)
        if operator in COPIES:
            return gpu.copied(operator, args, kwargs)
        if operator is aten._local_scalar_dense.default:
            return gpu.read(args[0])
        if operator is aten.equal.default:
            return gpu.compared(args)
        return gpu.run(operator, args, kwargs)


@contextlib.contextmanager
def _device_guard() -> Iterator[None]:
    """What torch's C++ asks about the current CUDA device, which no CPU build can answer, the meta device answers."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    cuda, meta = 1, 14  # numbers of torch's DeviceType
    table = (ctypes.c_void_p * (meta + 1)).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    before, table[cuda] = table[cuda], table[meta]
    try:
        yield
    finally:
        table[cuda] = before
