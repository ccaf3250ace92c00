"""What a CUDA device says of itself while something runs: clocks, power, heat, and how often the host waits for it."""

from __future__ import annotations

import importlib
import statistics
import subprocess
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

Reading = dict[str, float]
_SMI = {
    "sm_mhz": "clocks.sm",
    "memory_mhz": "clocks.mem",
    "watts": "power.draw",
    "celsius": "temperature.gpu",
    "sm_mhz_limit": "clocks.max.sm",
    "watts_limit": "power.limit",
}
_EVERY = {"nvml": 0.5, "smi": 3.0}  # seconds between two readings; nvidia-smi is a process each time
_WAITS = "synchronizing CUDA operation"  # how torch's warning begins to say that the host waited


class Gauges:
    """Reads clocks, power and heat of ``device`` now and then while it is entered; of what is absent, it says why.

    Readings: MHz, watts, degrees Celsius. NVML by nvidia-ml-py where it is installed, else nvidia-smi.
    """

    def __init__(self, device: torch.device) -> None:
        self.readings: list[Reading] = []
        self.absent: str | None = None
        self._every, self._over = 0.0, threading.Event()
        self._read = self._reader(device)
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Gauges:
        self._over.clear()
        if self._read is not None:
            self._thread = threading.Thread(target=self._watch, name="gauges", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def summary(self) -> dict[str, Any]:
        """Lowest, median and highest of each reading, or ``absent`` with the reason."""
        if not self.readings:
            return {"absent": self.absent or "nothing was read"}
        values = {key: [r[key] for r in self.readings if key in r] for key in self.readings[0]}
        return {
            key: {"min": min(of), "median": statistics.median(of), "max": max(of)}
            for key, of in values.items()
        }

    def _watch(self) -> None:
        assert self._read is not None
        while True:
            try:
                self.readings.append(self._read())
            except Exception as error:  # a sensor that fails must not end what it watches
                self.absent = f"{type(error).__name__}: {error}"
                return
            if self._over.wait(self._every):
                return

    def _reader(self, device: torch.device) -> Callable[[], Reading] | None:
        if device.type != "cuda":
            self.absent = "no clocks or power are read on a CPU"
            return None
        reasons = []
        for name, make in (("nvml", _by_nvml), ("smi", _by_smi)):
            try:
                read = make(device)
                read()
                self._every = _EVERY[name]
                return read
            except Exception as error:
                reasons.append(f"{name}: {type(error).__name__}: {error}")
        self.absent = "; ".join(reasons)
        return None


def driver(device: torch.device) -> str | None:
    """The driver's version, None where nothing says it."""
    if device.type != "cuda":
        return None
    with suppress(Exception):
        nvml = _nvml()
        version = nvml.nvmlSystemGetDriverVersion()
        return version.decode() if isinstance(version, bytes) else str(version)
    with suppress(Exception):
        return _smi(device, ["driver_version"])[0]
    return None


@contextmanager
def waits_counted(device: torch.device) -> Iterator[list[str]]:
    """Fills the list with torch's words for each operation in which the host waits for the device meanwhile."""
    waits: list[str] = []
    if device.type != "cuda":
        yield waits
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode(before)
    waits += [str(warning.message) for warning in caught if _WAITS in str(warning.message)]


def _nvml() -> Any:
    nvml = importlib.import_module("pynvml")
    nvml.nvmlInit()
    return nvml


def _by_nvml(device: torch.device) -> Callable[[], Reading]:
    nvml = _nvml()
    handle = nvml.nvmlDeviceGetHandleByUUID(_uuid(device).encode())

    def read() -> Reading:
        return {
            "sm_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "watts": nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            "celsius": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "sm_mhz_limit": nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
            "watts_limit": nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
        }

    return read


def _by_smi(device: torch.device) -> Callable[[], Reading]:
    def read() -> Reading:
        found: Reading = {}
        for key, text in zip(_SMI, _smi(device, list(_SMI.values())), strict=True):
            with suppress(ValueError):  # "[N/A]"
                found[key] = float(text)
        if not found:
            raise RuntimeError("it gave no number")
        return found

    return read


def _smi(device: torch.device, fields: list[str]) -> list[str]:
    """What nvidia-smi says of these fields."""
    query = [f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", f"--id={_uuid(device)}"]
    done = subprocess.run(["nvidia-smi", *query], capture_output=True, text=True, timeout=10, check=True)
    return [text.strip() for text in done.stdout.strip().split(",")]


def _uuid(device: torch.device) -> str:
    """By which the driver knows the device, whichever devices the process may see."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def profiled(step: Callable[[int], object], device: torch.device) -> dict[str, Any]:
    """One step: how often the host ``waits``, the ``kernels`` it launches, ``busy_ms`` that the device computes.

    Without a profiler there is ``error`` in the place of the last two.
    """
    step(0)
    torch.cuda.synchronize(device)
    with waits_counted(device) as waits:
        step(1)
    found: dict[str, Any] = {"waits": len(waits), "waiting": waits}
    try:
        return found | _kernels(step, device)
    except Exception as error:  # where the driver refuses counters, all else still stands
        return found | {"error": f"{type(error).__name__}: {error}"}


def _kernels(step: Callable[[int], object], device: torch.device) -> dict[str, Any]:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    if missing := {*activities} - torch.profiler.supported_activities():  # type: ignore[no-untyped-call]
        raise RuntimeError(f"this torch profiles no {' and no '.join(one.name for one in missing)}")
    with torch.profiler.profile(activities=activities) as profiler:
        step(2)
        torch.cuda.synchronize(device)
    events = [event for event in profiler.events() or () if event.device_type.name == "CUDA"]
    kernels = [event for event in events if not event.name.startswith(("Memcpy", "Memset"))]
    if not kernels:
        raise RuntimeError("the profiler saw no kernel")
    busy = sum(event.time_range.elapsed_us() for event in events) / 1000
    return {"kernels": len(kernels), "copies": len(events) - len(kernels), "busy_ms": busy}
