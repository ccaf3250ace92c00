"""What torch is told while a GPU is pretended: its own functions that ask a driver, answered without one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.cuda._utils import _get_device_index

from lezo.bench import textbook
from tests.pretend_cuda.gpu import Graph, PretendGpu
from tests.pretend_cuda.order import Event, Stream

_PROPERTIES = SimpleNamespace(
    total_memory=80 * 2**30, major=9, minor=0, multi_processor_count=132, uuid="pretended"
)


@contextlib.contextmanager
def installed(gpu: PretendGpu) -> Iterator[None]:
    """While it lasts, torch has ``gpu``."""
    lifted = torch._C._only_lift_cpu_tensors()
    flags = _flags()
    with contextlib.ExitStack() as stack:
        for owner, name, instead in _replaced(gpu):
            stack.enter_context(mock.patch.object(owner, name, instead, create=not hasattr(owner, name)))
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") begins on the CPU
        try:
            yield
        finally:
            torch._C._set_only_lift_cpu_tensors(lifted)
            _flags(flags)


def _flags(new: tuple[bool, bool, bool] | None = None) -> tuple[bool, bool, bool]:
    """The choices for CUDA that lezo makes in torch's global state; with ``new``, made anew."""
    matmul, attention = torch.backends.cuda.matmul, torch.backends.cuda
    if new is not None:
        matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction = new[:2]
        attention.enable_cudnn_sdp(new[2])
    halves = matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction
    return bool(halves[0]), bool(halves[1]), attention.cudnn_sdp_enabled()


def _replaced(gpu: PretendGpu) -> Iterator[tuple[Any, str, Any]]:
    """Whose attribute gets which value."""
    yield from ((torch.cuda, name, answer) for name, answer in _cuda(gpu).items())
    yield from ((Tensor, name, answer) for name, answer in _tensor(gpu).items())
    yield FakeTensor, "data_ptr", lambda tensor: 2**20 + tensor.storage_offset() * tensor.element_size()
    yield FakeTensor, "tolist", lambda tensor: tensor.cpu().tolist()  # one copy, not one for each number
    yield FakeTensorMode, "avoid_device_init", True
    yield fake_tensor, "init_gpu_context", lambda device: None
    yield nn.Module, "_apply", _applied
    yield (
        nn.functional,
        "scaled_dot_product_attention",
        _attention(gpu, nn.functional.scaled_dot_product_attention),
    )
    yield torch.random, "fork_rng", _forked(gpu, torch.random.fork_rng)
    yield ThreadPoolExecutor, "submit", _submitted(gpu, ThreadPoolExecutor.submit)
    yield textbook, "torch", _TextbooksTorch(gpu)


def _cuda(gpu: PretendGpu) -> dict[str, Any]:
    """torch.cuda: as strict as the real one about what names a device."""

    def chosen(device: Any) -> None:
        index = _get_device_index(device)
        assert index < gpu.visible, f"invalid device ordinal {index}"
        gpu.thread.device = index

    pools = count()

    def index(device: Any) -> int:
        return gpu.current if device is None else int(_get_device_index(device))

    return {
        "_lazy_init": lambda: None,
        "is_available": lambda: gpu.visible > 0,
        "device_count": lambda: gpu.visible,
        "set_device": chosen,
        "current_device": lambda: gpu.current,
        "current_stream": lambda device=None: gpu.stream(index(device)),
        "Stream": Stream,
        "CUDAGraph": Graph,
        "graph_pool_handle": lambda: next(pools),
        "stream": gpu.asking,
        "cudart": lambda: SimpleNamespace(cudaHostRegister=gpu.order.pin, cudaHostUnregister=gpu.order.unpin),
        "is_current_stream_capturing": lambda: False,
        "device_of": lambda tensor: gpu.on(tensor.device.index),
        "synchronize": lambda device=None: gpu.synchronize(index(device)),
        "Event": Event,
        "get_device_name": lambda device=None: "pretended",
        "get_device_properties": lambda device=None: _PROPERTIES,
        "get_sync_debug_mode": lambda: 0,
        "set_sync_debug_mode": lambda mode: None,
        "max_memory_allocated": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
        "max_memory_reserved": lambda device=None: 0,
        "mem_get_info": lambda device=None: (gpu.free, gpu.free),
        "reset_peak_memory_stats": lambda device=None: None,
    }


def _tensor(gpu: PretendGpu) -> dict[str, Any]:
    """Methods of tensors."""

    def pinned(tensor: Tensor, *_: Any) -> Tensor:
        made: Any = tensor.clone()
        made.pinned = True
        return made  # type: ignore[no-any-return]

    def read(tensor: Tensor, *given: Any, **named: Any) -> Any:
        if tensor.device.type == "cpu":
            gpu.order.at_home(tensor, writes=False)
        return numpy(tensor, *given, **named)

    numpy = Tensor.numpy
    return {"pin_memory": pinned, "numpy": read}


def _applied(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """nn.Module.to and its like: what is tied stays tied, which torch sees to only where tensors have data."""
    known: dict[int, Any] = {}
    for owner in module.modules():
        for table in (owner._parameters, owner._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    table[name] = known.setdefault(id(tensor), _changed(tensor, change))  # type: ignore[arg-type]
    return module


def _changed(tensor: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    with torch.no_grad():
        made = change(tensor)
    if made is tensor or not isinstance(tensor, nn.Parameter):
        return made
    return nn.Parameter(made.detach(), tensor.requires_grad)


def _attention(gpu: PretendGpu, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What CUDA's attention asks of its operands, and whether it takes the mask as it is; which of its kernels runs is not pretended."""

    def attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any, **named: Any
    ) -> Tensor:
        if not isinstance(query, FakeTensor):
            return original(query, key, value, attn_mask, *rest, **named)
        masks = [] if attn_mask is None else [attn_mask]
        devices = {tensor.device for tensor in (query, key, value, *masks)}
        assert len(devices) == 1, f"attention between {devices}"
        assert query.dtype == key.dtype == value.dtype, (
            f"attention between {query.dtype}, {key.dtype}, {value.dtype}"
        )
        for mask in masks:
            assert mask.dtype in (torch.bool, query.dtype), f"a mask of {mask.dtype} on {query.dtype}"
            torch.broadcast_shapes(mask.shape, (*query.shape[:-1], key.shape[-2]))
            taken = mask.is_contiguous() and mask.shape[-1] % 8 == 0 and mask.dtype == query.dtype
            gpu.masks_made += [] if taken else [f"of {mask.dtype}, {tuple(mask.shape)}"]
        gpu.order.given([query, key, value, *masks], [])
        return query.new_empty((*query.shape[:-1], value.shape[-1]))

    return attention


def _forked(gpu: PretendGpu, original: Any) -> Callable[..., Any]:
    """torch.random.fork_rng of the CPU's generator, for devices that must be there."""

    def fork(devices: Any = (), **named: Any) -> Any:
        for device in devices:
            gpu.checked(device)
        return original(devices=[], **named)

    return fork


def _submitted(gpu: PretendGpu, submit: Any) -> Callable[..., Any]:
    def submitted(pool: ThreadPoolExecutor, work: Any, /, *args: Any, **named: Any) -> Any:
        return submit(pool, gpu.inside(work), *args, **named)

    return submitted


class _TextbooksTorch:
    """torch for lezo.bench.textbook: a CUDA generator, and inference mode, in a build without them."""

    def __init__(self, gpu: PretendGpu) -> None:
        self.gpu, self.inference_mode = gpu, torch.no_grad

    def Generator(self, device: torch.device) -> torch.Generator:
        """One of the CPU in its place, whose numbers nobody sees."""
        assert self.gpu.checked(device).type == "cuda"
        return torch.Generator()

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)
