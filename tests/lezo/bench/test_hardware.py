"""Clocks, power and waits, with a driver, a command and warnings that are made here."""

import subprocess
import sys
import time
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lezo.bench.hardware import Gauges, driver, waits_counted

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    properties = SimpleNamespace(uuid="1234")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return CUDA


def nvml(power: Any) -> SimpleNamespace:
    """pynvml, as far as it is asked; ``power()``: milliwatts."""
    return SimpleNamespace(
        NVML_CLOCK_SM=0,
        NVML_CLOCK_MEM=1,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlSystemGetDriverVersion=lambda: b"570.1",
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetClockInfo=lambda handle, which: {b"GPU-1234": (1700, 2600)}[handle][which],
        nvmlDeviceGetPowerUsage=lambda handle: power(),
        nvmlDeviceGetTemperature=lambda handle, which: 50,
        nvmlDeviceGetMaxClockInfo=lambda handle, which: 1980,
        nvmlDeviceGetEnforcedPowerLimit=lambda handle: 700_000,
    )


def test_a_driver_is_read_by_its_library(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    powers = iter([100_000, *[300_000] * 1000])
    monkeypatch.setitem(sys.modules, "pynvml", nvml(lambda: next(powers)))
    with Gauges(device) as gauges:
        time.sleep(0.05)
    found = gauges.summary()
    assert found["sm_mhz"] == {"min": 1700, "median": 1700, "max": 1700}
    assert (found["watts"]["median"], found["watts_limit"]["max"]) == (300.0, 700.0)
    assert driver(device) == "570.1"


def test_without_the_library_its_command_is_asked(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **_: Any) -> Any:
        assert command[0] == "nvidia-smi" and "--id=GPU-1234" in command
        return SimpleNamespace(
            stdout="570.1\n" if "driver" in command[1] else "1700, 2600, [N/A], 50, 1980, 700.00\n"
        )

    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(subprocess, "run", run)
    with Gauges(device) as gauges:
        time.sleep(0.05)
    found = gauges.summary()
    assert found["memory_mhz"]["median"] == 2600 and "watts" not in found
    assert driver(device) == "570.1"


def test_what_is_absent_or_breaks_is_said(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    with Gauges(CPU) as gauges:
        pass
    assert gauges.summary() == {"absent": "no clocks or power are read on a CPU"} and driver(CPU) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("PATH", "")
    with Gauges(device) as gauges:
        pass
    assert "nvml: " in gauges.summary()["absent"] and "smi: FileNotFoundError" in gauges.summary()["absent"]
    assert driver(device) is None


def test_the_hosts_waits_are_counted_and_other_warnings_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[Any] = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with waits_counted(CUDA) as waits:
        for message in ("called a synchronizing CUDA operation (from somewhere)", "a prototype feature"):
            warnings.warn(message, stacklevel=1)
            warnings.warn(message, stacklevel=1)
    assert len(waits) == 2 and modes == ["warn", 0]
