"""Which home does a run want for its blocks, and how is it made?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from lezo.model.berths import make_berths
from lezo.model.home import Home, Mapped
from lezo.model.placement import Placement
from lezo.model.visits import Visiting


@dataclass(frozen=True)
class Place:
    """Where a run wants its blocks; ``folder``: for the file of ``disk``, None the system's for such files."""

    kind: Literal["device", "host", "disk"] = "device"
    folder: Path | None = None

    def home(self, model: nn.Module, placement: Placement) -> Home:
        """A home for the blocks of ``model``, which need no memory yet. On a CPU host memory is the device's.

        Raises ModelError where there is no room.
        """
        device = placement.home
        if self.kind == "device" or not self.is_elsewhere(device):
            return Home(placement)
        berths, paged = make_berths(model, self.kind, self.folder), self.kind == "disk"
        return Mapped(device, berths) if device.type == "cpu" else Visiting(device, berths, paged=paged)

    def is_elsewhere(self, device: torch.device) -> bool:
        """Whether that is another place than the memory of the device."""
        return self.kind != "device" and not (self.kind == "host" and device.type == "cpu")
