"""How many kernels of ours a step launches, and how long the host takes to ask for all of it.

    python -m tests.pretend_cuda.launches [opt-1.3b opt-13b ...]

prints a row a model: Triton launches of a LeZO(0.75) and of a MeZO step, on pretended CUDA in fp16, at the model's full
shapes; "one a tensor": the same where no launch works on several, as before. "host" is another measurement: a step's CPU time where nothing is computed, of a model of as many blocks and the
least width on the CPU, its launches going to a driver that does nothing, and the replays of its blocks to nothing at
all; a real driver adds some 2 to 4 us a launch, and 10 a replay. "without graphs": the blocks' own forwards in place of
replays, which here also compute.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any
from unittest import mock

import torch
import triton
from transformers import OPTConfig

from lezo.config.compose import compose
from lezo.config.schema import RunConfig
from lezo.model import load as loading
from lezo.model.forward import Network
from lezo.model.load import TINY
from lezo.noise import directions
from lezo.runs.build import make_batches, make_optimizer
from lezo.runs.plan import make_plan
from lezo.zo.blocks import AllBlocks
from lezo.zo.direction import GAUSSIAN, Direction
from lezo.zo.graphs import Recordings
from lezo.zo.zeroth_order import ZerothOrder

NARROW = {"hidden_size": 32, "ffn_dim": 64, "num_attention_heads": 2, "word_embed_proj_dim": 32}
"""A shape in which a forward computes next to nothing."""


MODELS = ("opt-1.3b", "opt-13b", "opt-30b")
STEPS = 40  # of which the median of the last half counts: every block was met by then


def config_of(model: str, optim: str, *more: str) -> RunConfig:
    """A run of the model's published shape, on the embedded data."""
    words = [f"model={model}", "model.random_weights=true", f"model.tokenizer={TINY}", f"optim={optim}"]
    words += ["task=sst2", "data=sample", "task.num_dev=2", "task.num_test=2"]
    return compose([*words, *more]).config


def prepared(config: RunConfig, shape: Any = None) -> tuple[ZerothOrder, Any]:
    """The run's optimizer and its first batch; ``shape``: another configuration of the model than its own."""
    plan = make_plan(config)
    model_config = shape or plan.parts.model_config
    model = loading.load(plan.parts.source, model_config, dtype=plan.dtype, device=plan.device, seed=0)
    batch = make_batches(config, plan).make(0)
    return make_optimizer(config, Network(model), plan.layout, plan.blocks), batch


def narrow(config: RunConfig) -> OPTConfig:
    """The model with all its blocks, and of the least width."""
    assert config.model.shape is not None
    return OPTConfig(**{**config.model.shape, **NARROW})


class OneByOne:
    """The Gaussian noise of one tensor at a time."""

    perturb = staticmethod(directions.perturb)
    update_ = staticmethod(directions.update_)


def launches(
    model: str,
    shape: Callable[[RunConfig], Any] = lambda config: None,
    *,
    direction: Direction = GAUSSIAN,
) -> list[int]:
    """Triton launches of a LeZO and of a MeZO step at the model's shapes, or ``shape``'s, on a pretended device."""
    from tests.pretend_cuda.gpu import PretendGpu

    config = config_of(model, "lezo", "model.device=cuda")
    along = mock.patch("lezo.runs.build.direction_of", lambda parts: direction)
    unfilled = mock.patch.object(loading, "_fill", lambda *_: None)  # weights without data
    with PretendGpu() as gpu, along, unfilled:
        lezo, batch = prepared(config, shape(config))
        mezo = ZerothOrder(
            lezo.update.model,
            lezo.update.layout,
            AllBlocks(len(lezo.update.layout.blocks)),
            lezo.estimator,
            direction=direction,
            lr=0.0,
            eps=1e-3,
        )
        marks = [len(gpu.launches)]
        for optimizer in (lezo, mezo):
            optimizer.step(0, batch)
            marks.append(len(gpu.launches))
        return [after - before for before, after in pairwise(marks)]


def host_ms(model: str, optim: str, *, graphs: bool) -> float:
    """Milliseconds of CPU time of a step on one example, of which nothing is computed but a narrow forward, in fp32."""
    config = config_of(model, optim, "model.device=cpu", "model.dtype=float32", "train.batch_size=1")
    optimizer, batch = prepared(config, narrow(config))
    if graphs:  # private: a run makes them on CUDA alone
        optimizer.estimator.streams._recordings = lambda *_: Recordings(_replaying_nothing)  # type: ignore[attr-defined]
    seconds = []
    with _idle_kernels():
        for step in range(STEPS):
            start = time.process_time()
            optimizer.step(step, batch)
            seconds.append(time.process_time() - start)
    return 1000 * statistics.median(seconds[STEPS // 2 :])


def _replaying_nothing(run: Callable[[], None]) -> Callable[[], None]:
    run()
    return lambda: None


@contextmanager
def _idle_kernels() -> Iterator[None]:
    """While it lasts, tensors on the CPU are perturbed and updated by Triton launches that do nothing."""
    from tests.pretend_cuda import pretend_driver
    from tests.pretend_cuda.gpu import PretendGpu

    driver, config = pretend_driver._Driver(PretendGpu()), triton.runtime.driver
    driver.launcher_cls = _Nothing
    kernels = pretend_driver.defined_anew()
    backend = directions.Backend(kernels["perturb"].perturbations, kernels["update"].update)
    active = "_active" if hasattr(config, "_active") else "active"  # before Triton 3.5
    with (
        mock.patch.object(config, active, driver),
        mock.patch.object(directions, "_backend", lambda theta: backend),
        pretend_driver.compiling(kernels),
    ):
        yield


class _Nothing:
    def __init__(self, source: Any, metadata: Any) -> None:
        pass

    def __call__(self, *arguments: Any) -> None:
        pass


def main(models: list[str]) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    each = "launches | one a tensor | host | without graphs"
    print(f"| model | lezo: {each} | mezo: {each} |\n|:-" + "|-:" * 8 + "|")
    for model in models or MODELS:
        counts = launches(model), launches(model, direction=OneByOne())
        cells = [
            f"{now} | {before} | "
            + " | ".join(f"{host_ms(model, o, graphs=g):.1f} ms" for g in (True, False))
            for o, now, before in zip(("lezo", "mezo"), *counts, strict=True)
        ]
        print(f"| {model} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main(sys.argv[1:])
