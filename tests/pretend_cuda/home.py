"""What OPT's large models take on a device where their blocks live in host memory, and what a step moves; a program.

    python -m tests.pretend_cuda.home [opt-13b opt-30b opt-66b opt-175b]

prints a row a model: the peak of a LeZO(0.75) and of a MeZO step on one text of 2,048 tokens in fp16, every token of it
scored, as counted on pretended CUDA; what the plan expects; what zo2 reports (arXiv 2503.12668); bytes that a step moves,
and seconds at 25 GB/s, about what a pinned copy reaches over 16 lanes of PCIe 4. All blocks share one piece of host memory.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest import mock

from lezo.config.compose import compose
from lezo.data.batches import Batches
from lezo.data.encode import Encoded
from lezo.model import berths, load
from lezo.model.forward import Network
from lezo.model.place import Place
from lezo.model.visits import FromHost
from lezo.runs.build import BaseModel, make_optimizer
from lezo.runs.plan import ForwardSize, make_plan
from tests.pretend_cuda.gpu import PretendGpu
from tests.pretend_cuda.live import Live

REPORTED = {"opt-13b": 6.18, "opt-30b": 8.86, "opt-66b": 12.07, "opt-175b": 18.04}
"""GB of zo2's MeZO at batch size 1."""
TOKENS, RATE, GB = 2048, 25e9, 1e9


@contextmanager
def without_weights() -> Iterator[None]:
    """While it lasts, memory at home is made once for each size, and nobody fills it or checks what there is."""
    make = cache(lambda size: mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    shared = mock.patch.object(berths, "anonymous", lambda sizes: [make(size) for size in sizes])
    roomy = mock.patch.object(berths, "available", lambda: float("inf"))
    unwritten = mock.patch.object(FromHost, "store", lambda *_: None)
    with shared, roomy, unwritten, mock.patch.object(load, "_fill", lambda *_: None):
        yield


def counted(model: str, *words: str) -> Iterator[tuple[str, int, int, Any]]:
    """(method, bytes at the peak of a step, bytes expected, the plan's visits) of LeZO and MeZO."""
    given = [
        f"model={model}",
        "model.random_weights=true",
        f"model.tokenizer={load.TINY}",
        "model.device=cuda",
    ]
    given += [
        "model.home=host",
        "task=squad",
        "data=sample",
        "task.num_train=1",
        "task.num_dev=1",
        "task.num_test=1",
    ]
    text = Encoded(0, (tuple(4 + i % 900 for i in range(TOKENS)),), (TOKENS - 1,), (0,))
    base: BaseModel | None = None
    with PretendGpu(), Live() as live, without_weights():
        for method, more in (("lezo", ["optim.sparsity=0.75"]), ("mezo", [])):
            config = compose([*given, f"optim={method}", *more, "train.batch_size=1", *words]).config
            plan = make_plan(config)
            parts, place = plan.parts, Place("host")
            if base is None:
                options: dict[str, Any] = {
                    "dtype": plan.dtype,
                    "placement": plan.placement,
                    "seed": 0,
                    "place": place,
                }
                base = BaseModel(parts.source, parts.model_config, parts.tokenizer, **options)
            batch = _batch([text], plan)
            optimizer = make_optimizer(config, Network(base.model), plan.layout, plan.blocks)
            live.peak = 0
            optimizer.step(0, batch)
            size = ForwardSize(parts.model_config, plan.dtype, len(plan.layout.blocks))
            forward = size.training([text], gradients=False, skips=bool(more))
            yield method, live.peak, plan.memory.weights + plan.memory.update + forward, plan.visits
            del optimizer, batch


def _batch(texts: Sequence[Encoded], plan: Any) -> Any:
    given: dict[str, Any] = {"seed": 0, "batch_size": 1, "micro_batch_size": None, "pad": plan.parts.pad}
    return Batches(texts, loss="lm", device=plan.device, **given).make(0)


def main(models: Sequence[str]) -> None:
    """Print the table."""
    print("| model | zo2 | mezo counted | planned | lezo counted | planned | a mezo step moves | lezo |")
    print("|---|---|---|---|---|---|---|---|")
    for model in models or REPORTED:
        found = {method: rest for method, *rest in counted(model)}
        cells = [model, f"{REPORTED[model]:.2f} GB"]
        for method in ("mezo", "lezo"):
            peak, expected, _ = found[method]
            cells += [f"{peak / GB:.2f} GB", f"{expected / GB:.2f}"]
        for method in ("mezo", "lezo"):
            visits = found[method][2]
            seconds = (visits.there + visits.back) / RATE
            cells.append(f"{visits.there / GB:.0f} GB there, {visits.back / GB:.0f} back, {seconds:.1f} s")
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
