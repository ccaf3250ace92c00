"""How long a batch takes to pack, beside packing as it was first written, token by token.

    python -m tests.pretend_cuda.packing [task ...]

prints medians over the first steps, in turns, of what the interpreter does: all but the mask, which CUDA makes itself. The rows are those of
a CPU, on which this runs; of CUDA's, the time that laying them out takes is told apart. Original data and the OPT tokenizer in
../shared, or the embedded ones.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any
from unittest import mock

import torch

from lezo.config.compose import compose
from lezo.data import pack as packing
from lezo.data.batches import batch_indices
from lezo.data.pack import Request, pack, unit_length
from lezo.data.rows import cheapest_rows, rows_of_few_shapes
from lezo.runs.plan import make_plan
from tests.lezo.data import token_by_token
from tests.pretend_cuda.shapes import SHARED, real

STEPS, BATCH_SIZE = 60, 16


def requests_of(words: Sequence[str]) -> tuple[Any, list[list[Request]]]:
    """The kind of loss, and what is packed in each of a run's first steps."""
    plan = make_plan(compose([*words, "model.device=cpu"]).config)
    lm = plan.parts.task.loss == "lm"
    every = [(e, e.gold[:1] if lm else range(len(e.input_ids))) for e in plan.train]
    steps = (batch_indices(0, step, examples=len(every), batch_size=BATCH_SIZE) for step in range(STEPS))
    return plan.parts.task.loss, [[every[i] for i in chosen] for chosen in steps]


def medians(made: Sequence[Callable[[Any], object]], given: Sequence[Any]) -> list[float]:
    """Milliseconds that each takes for one of ``given``, taken in turns."""
    taken: list[list[float]] = [[] for _ in made]
    for one in given:
        for times, function in zip(taken, made, strict=True):
            start = time.perf_counter()
            function(one)
            times.append(1e3 * (time.perf_counter() - start))
    return [median(times) for times in taken]


def main(tasks: Sequence[str]) -> int:
    """Measure and print."""
    torch.set_num_threads(1)
    settings = {"pad": 1, "device": torch.device("cpu")}
    no_mask = mock.Mock(return_value=None)
    print(f"medians of {STEPS} steps, ms | token by token | now | times faster | rows: of a CPU | of CUDA")
    print("---|---|---|---|---|---")
    for task in tasks or ("rte", "sst2", "copa", "squad"):
        kind, steps = requests_of(real(task) if SHARED.is_dir() else [f"task={task}"])
        with (
            mock.patch.object(token_by_token, "_mask", no_mask),
            mock.patch.object(packing, "_mask", no_mask),
        ):
            both = [lambda given, of=of: of(given, kind, **settings) for of in (token_by_token.pack, pack)]  # noqa: B023
            before, now = medians(both, steps)
        sizes = [[unit_length(*request) for request in step] for step in steps]
        rows, few = medians([cheapest_rows, rows_of_few_shapes], sizes)
        print(f"{task} | {before:.2f} | {now:.2f} | {before / now:.1f} | {rows:.2f} | {few:.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
