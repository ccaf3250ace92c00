"""A CUDA driver for Triton that is not there: kernels are compiled to machine code, launches checked and counted.

The general suite runs the kernels in Triton's interpreter, which is chosen where they are defined; here they are
defined anew, to be compiled.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import triton
from torch._subclasses.fake_tensor import FakeTensor
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

import lezo.noise.kernels
from tests.pretend_cuda.ahead_of_time import SPARED, described
from tests.pretend_cuda.gpu import PretendGpu
from tests.pretend_cuda.order import where

with contextlib.suppress(
    ImportError
):  # a launch imports it, which fails where the interpreter was on before and is off then
    import triton.experimental.gluon  # noqa: F401

NAMES = ("normal", "table", "perturb", "update")
LONGEST_GRID = 2**31 - 1  # programs in a launch


@contextlib.contextmanager
def installed(gpu: PretendGpu) -> Iterator[None]:
    """While it lasts, lezo's kernels go to ``gpu``."""
    config = triton.runtime.driver
    active = "_active" if hasattr(config, "_active") else "active"  # before Triton 3.5
    judged, kernels = _judged(triton.compiler.compile), defined_once()
    with (
        mock.patch.object(config, active, _Driver(gpu)),
        mock.patch.object(triton.compiler, "compile", judged),
        mock.patch.object(
            kernels["perturb"], "_launch", _perturbing(gpu, vars(kernels["perturb"])["_launch"])
        ),
        mock.patch.object(kernels["update"], "update", _updating(gpu, vars(kernels["update"])["update"])),
        compiling(kernels),
    ):
        yield


def _perturbing(gpu: PretendGpu, launch: Any) -> Any:
    """What a launch uses by its table of addresses."""

    def launched(group: Any, rows: torch.Tensor, *rest: Any) -> None:
        launch(group, rows, *rest)
        chosen = [copies.rows for copies in group if copies.rows is not None]
        thetas = [copies.theta for copies in group]
        gpu.order.given([rows, *chosen, *thetas], [t for c in group for t in (c.plus, c.minus)])

    return launched


def _updating(gpu: PretendGpu, update: Any) -> Any:
    def updated(steps: Any, coefficient: torch.Tensor, *rest: Any) -> None:
        update(steps, coefficient, *rest)
        gpu.order.given([coefficient], [step.theta for step in steps])

    return updated


@contextlib.contextmanager
def compiling(kernels: dict[str, ModuleType]) -> Iterator[None]:
    """While it lasts, ``kernels`` are lezo's, and Triton compiles; where one is missing, an import defines it anew."""
    package, names = vars(lezo.noise.kernels), [f"lezo.noise.kernels.{name}" for name in NAMES]
    imported = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    known = {name: package.pop(name) for name in NAMES if name in package}
    interpreted = os.environ.pop("TRITON_INTERPRET", None)
    sys.modules.update({f"lezo.noise.kernels.{name}": module for name, module in kernels.items()})
    package.update(kernels)
    try:
        yield
    finally:
        for name in NAMES:
            sys.modules.pop(f"lezo.noise.kernels.{name}", None)
            package.pop(name, None)
        sys.modules.update(imported)
        package.update(known)
        if interpreted is not None:
            os.environ["TRITON_INTERPRET"] = interpreted


def defined_anew() -> dict[str, ModuleType]:
    """lezo's kernels, to be compiled whatever those are that others have imported."""
    with compiling({}):
        return {name: importlib.import_module(f"lezo.noise.kernels.{name}") for name in NAMES}


defined_once = cache(defined_anew)  # they remember what was compiled


def _judged(compile_: Any) -> Any:
    def judged(*args: Any, **kwargs: Any) -> Any:
        made = compile_(*args, **kwargs)
        found = described(made)
        assert not found["contracted"], f"{made.name}: {', '.join(found['contracted'])} in its PTX"
        assert found["spilled"] <= SPARED, f"{made.name}: {found['spilled']} bytes of registers spilled"
        return made

    return judged


class _Driver(DriverBase):
    """Devices of compute capability 9.0."""

    def __init__(self, gpu: PretendGpu) -> None:
        self.gpu, self.utils, self.launcher_cls = gpu, _Utils(), _Launcher

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", self.gpu.current)

    def get_benchmarker(self) -> Any:
        raise NotImplementedError

    def get_current_device(self) -> int:
        return self.gpu.current

    def get_current_stream(self, device: int) -> int:
        return 0


class _Utils:
    """What a driver says of a device and of a kernel that it loads: an H100's numbers."""

    def load_binary(
        self, name: str, binary: bytes, shared: int, device: int
    ) -> tuple[None, int, int, int, int]:
        """No module, which Triton would unload at the process's end, when this driver is gone; function and the rest.

        Registers and spills are looked at ahead of time.
        """
        return None, 2, 40, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32}

    def unload_module(self, *_: Any) -> None:
        pass


class _Launcher:
    """Launches nothing, but refuses what Triton's own launcher and the device would."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.name = source.name

    def __call__(self, first: int, second: int, third: int, *rest: Any) -> None:
        gpu: PretendGpu = triton.runtime.driver.active.gpu
        for argument in rest:
            if isinstance(argument, torch.Tensor):
                here = isinstance(argument, FakeTensor) and argument.device.index == gpu.current
                assert here, (
                    f"{self.name}: a tensor on {argument.device}, launched on cuda:{gpu.current} at {where()}"
                )
                assert argument.is_contiguous(), f"{self.name}: strides {argument.stride()} at {where()}"
        assert 0 < first < LONGEST_GRID and (second, third) == (1, 1), (self.name, first, second, third)
        gpu.operators += 1
        gpu.launches.append((self.name, first))
