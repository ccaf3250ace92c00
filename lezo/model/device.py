"""Which device does a run compute on, and how exactly does it compute there?"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lezo.model.load import ModelError


def named_device(name: str, key: str) -> torch.device:
    """The device that the option ``key`` names, made ready; auto is the first CUDA device, else the CPU.

    A CUDA device has an index, for torch takes none without one where a thread chooses its device, and is the
    current one. Raises ModelError where it is not there.
    """
    device = (
        torch.device("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else torch.device(name)
    )
    if device.type != "cuda":
        return device
    device, visible = torch.device("cuda", device.index or 0), torch.cuda.device_count()
    if device.index >= visible:
        found = f"{visible} CUDA device{' is' if visible == 1 else 's are'} visible"
        last = f"{key}=cuda:{visible - 1} at most, or " if visible else ""
        raise ModelError(f"{key}={name}: {found}; expected {last}{key}=cpu")
    torch.cuda.set_device(device)  # events, memory statistics and kernels mean the current one
    _compute_alike()
    return device


def named_devices(names: str | Sequence[str], key: str) -> tuple[torch.device, ...]:
    """The devices that the option ``key`` names, all made ready, the first one the current; auto: all CUDA devices, else the CPU.

    Raises ModelError where one is not there.
    """
    visible = torch.cuda.device_count()
    if names == "auto":
        names = [f"cuda:{number}" for number in range(visible)] or ["cpu"]
    for name in names:
        if name.startswith("cuda:") and int(name.removeprefix("cuda:")) >= visible:
            found = f"{visible} CUDA device{' is' if visible == 1 else 's are'} visible"
            raise ModelError(
                f"{key}: {name} is named, and {found}; expected visible ones, or {key}=auto for all"
            )
    return tuple([named_device(name, key) for name in reversed(names)][::-1])


def _compute_alike() -> None:
    """Choose what torch leaves open on CUDA.

    Products of 16-bit matrices may be cut along the sum, and torch lets the pieces' sums be rounded to 16 bits before
    they are added; g, a small difference of two losses, is all noise then: the sums stay in fp32.

    From torch 2.11 on cuDNN's attention comes first on Hopper, and plans anew for each shape: tenths of a second, and
    most batches have a shape of their own.
    """
    matmul = torch.backends.cuda.matmul
    matmul.allow_fp16_reduced_precision_reduction = False
    matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.enable_cudnn_sdp(False)
