"""Are a device's numbers those of the CPU, bit for bit? Noise against the slow twin, steps against their replay."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from torch import Tensor

from lezo.bench.hardware import waits_counted
from lezo.config.compose import Composed
from lezo.config.schema import ReplayConfig
from lezo.model.hashes import weights_hash
from lezo.noise import directions, philox
from lezo.noise.operands import Copies, Step
from lezo.noise.seeds import derive
from lezo.records.files import remove_folder
from lezo.records.journal import Journal
from lezo.runs.build import load_model, make_batches, make_header, make_optimizer
from lezo.runs.loop import train_row
from lezo.runs.plan import make_plan
from lezo.runs.replay import Replay

_SEED, _NAME = 5, "layers.0.weight"
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_SIZES = (1, 1023, 1025, 5000, 200_003)  # around a chunk of the kernels, and of several programs
_MATRIX, _ROWS = (301, 769), (300, 0, 3, 3, 17)
_C, _DECAY, _EPS = 3e-3, 0.01, 1e-3


@dataclass(frozen=True)
class Check:
    """Whether two things have the same bits; ``what`` they are, in words."""

    what: str
    same: bool


@dataclass(frozen=True)
class Stepped:
    """Steps of ``method`` on a device: their weights' hash, that of their replay on each device, and its waits.

    ``waits``: torch's words for each of the host's waits in one step, None where nobody counts them.
    ``batch_waits``: the same while its batch is made.
    """

    method: str
    dtype: str
    steps: int
    weights: str
    moved: bool
    replayed: dict[str, str]
    waits: list[str] | None
    batch_waits: list[str] | None

    @property
    def same(self) -> bool:
        """Whether all weights are the same, and not those of the start."""
        return self.moved and set(self.replayed.values()) == {self.weights}


def noise_checks(device: torch.device) -> Iterator[Check]:
    """The kernels on ``device`` against the twin on the CPU: to perturb and to update, whole tensors and rows."""
    for dtype in _DTYPES:
        name = str(dtype).removeprefix("torch.")
        for size in _SIZES:
            yield Check(f"perturb {name}, {size} elements", _perturbs_alike(_weights(size, dtype), device))
        matrix = _weights(_MATRIX, dtype)
        rows, wide = torch.tensor(_ROWS), torch.float32
        yield Check(f"perturb {name}, rows to fp32", _perturbs_alike(matrix, device, rows, wide))
        yield Check(f"perturb {name}, rows", _perturbs_alike(matrix, device, rows))
        for rounding in ("nearest", "stochastic"):
            for size in _SIZES:
                same = _updates_alike(_weights(size, dtype), device, rounding)
                yield Check(f"update {name} to {rounding}, {size} elements", same)


def stepped(composed: Composed, steps: int, folder: Path) -> Stepped:
    """Take a run's first steps, and replay their journal from the base weights, on the device and on the CPU."""
    config, plan = composed.config, make_plan(composed.config)
    loaded = load_model(config, plan, lambda _: None, None)
    network = loaded.network
    optimizer = make_optimizer(config, network, plan.layout, plan.blocks)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "journal.bin"
    waits: list[str] = []
    batch_waits: list[str] = []
    header = make_header(composed.yaml, config, loaded)
    with (
        closing(make_batches(config, plan, plain=network.plain)) as batches,
        closing(Journal(file, header)) as journal,
    ):
        for step in range(steps):
            with waits_counted(plan.device) as batch_waits:
                batch = batches.make(step)
            with waits_counted(plan.device) as waits:
                report = optimizer.step(step, batch)
            journal.trained(train_row(step + 1, 0.0, report))
    weights = weights_hash(network.model)
    devices = dict.fromkeys([str(plan.device), "cpu"])
    replayed = {device: _replayed(file, device) for device in devices}
    remove_folder(folder)
    counted = plan.device.type == "cuda"
    return Stepped(
        config.optim.name,
        plan.dtype_name,
        steps,
        weights,
        weights != header.origin.weights,
        replayed,
        waits if counted else None,
        batch_waits if counted else None,
    )


def _replayed(journal: Path, device: str) -> str:
    """The hash of the weights that the journal makes."""
    replay = Replay(journal, ReplayConfig(verify=True, device=device), Console(quiet=True))
    replay.timeline.bring_to(replay.journal.step, replay.journal, [])
    return weights_hash(replay.base.model)


def _weights(shape: int | tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Of sizes from 1e-9, which is subnormal in fp16, to about 10, and zeros of both signs."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.Size(shape if isinstance(shape, tuple) else [shape])
    numbers = torch.randn(sizes, generator=generator)
    numbers *= 10 ** (10 * torch.rand(sizes, generator=generator) - 9)
    numbers.view(-1)[::13], numbers.view(-1)[5::17] = 0.0, -0.0
    return numbers.to(dtype)


def _perturbs_alike(
    theta: Tensor, device: torch.device, rows: Tensor | None = None, dtype: torch.dtype | None = None
) -> bool:
    """Both signs, and theta is left alone."""
    there = theta.to(device, copy=True)
    where = None if rows is None else rows.to(device)
    given = directions.perturb(there, _SEED, _NAME, _EPS, rows=where, dtype=dtype)
    shape = theta.shape if rows is None else (len(rows), theta.shape[1])
    plus, minus = (torch.empty(shape, dtype=dtype or theta.dtype) for _ in range(2))
    copies = Copies(theta, derive(_SEED, _NAME), rows, plus, minus)
    philox.perturbations([[copies]], philox.fp32(_EPS))[0]()
    return _same(given[0], plus) and _same(given[1], minus) and _same(there, theta)


def _updates_alike(theta: Tensor, device: torch.device, rounding: Literal["nearest", "stochastic"]) -> bool:
    there, here = theta.to(device, copy=True), theta.clone()
    c = torch.tensor(_C)
    directions.update_(there, _SEED, _NAME, c.to(device), _DECAY, rounding=rounding)
    step = Step(here, derive(_SEED, _NAME), philox.fp32(_DECAY))
    philox.update([step], c, rounding == "stochastic")
    return _same(there, here) and not _same(here, theta)


def _same(given: Tensor, expected: Tensor) -> bool:
    given = given.cpu()
    return given.dtype == expected.dtype and torch.equal(given.view(torch.uint8), expected.view(torch.uint8))
