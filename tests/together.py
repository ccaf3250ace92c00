"""Would more probes in one forward pay? Times an unperturbed forward over so many times a batch's rows.

    python -m tests.together [task ...] [key=value ...]

prints a row a task for opt-125m with random weights (or what the words say, such as model=opt-1.3b): milliseconds of a forward
over two streams, as a probe has it, and over four and eight, each per probe, as a share of the first. What is saved is the most that
travelling together can gain: all probes' own copies and blocks come on top. Medians of turns, on a CPU of the processor's own
seconds, which do not count what other programs take; the original data and the OPT
tokenizer are those in ../shared, beside the repository.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch

from lezo.bench.timing import loaded
from lezo.bench.variants import typical_work
from lezo.config.compose import compose
from lezo.runs.build import make_batches
from lezo.runs.plan import make_plan
from tests.pretend_cuda.shapes import real

STREAMS, TURNS = (2, 4, 8), 3


def times(overrides: Sequence[str]) -> tuple[int, dict[int, float]]:
    """Tokens of the task's typical batch, and the median seconds of a forward of it by the number of streams."""
    config = compose([*overrides]).config
    plan = make_plan(config)
    network, device = loaded(config, plan), plan.device
    (batch,) = make_batches(config, plan).make(typical_work(config, plan).place)
    mask = network.mask(batch)
    assert mask is not None  # plain rows have no streams

    def forward(streams: int) -> Callable[[], object]:
        ids, positions, seen = (
            torch.cat([tensor] * streams) for tensor in (batch.input_ids, batch.position_ids, mask)
        )
        return lambda: network._states(ids, positions, seen)  # private: all but the head

    clock = time.perf_counter if device.type == "cuda" else time.process_time
    calls = {streams: forward(streams) for streams in STREAMS}
    seconds: dict[int, list[float]] = {streams: [] for streams in STREAMS}
    with torch.inference_mode():
        for turn in range(TURNS + 1):
            for streams, call in calls.items():
                start = clock()
                call()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if turn:  # the first of each is warm-up
                    seconds[streams].append(clock() - start)
    return batch.tokens, {streams: statistics.median(own) for streams, own in seconds.items()}


def main(words: Sequence[str]) -> None:
    """Print the table."""
    overrides = ["model=opt-125m", *(word for word in words if "=" in word)]
    print("| task | tokens of a stream | 2 streams, ms | 4: a probe's share | 8: a probe's share |")
    print("|:-|-:|-:|-:|-:|", flush=True)
    for task in [word for word in words if "=" not in word] or ("sst2", "rte"):
        tokens, found = times([*real(task), *overrides])
        shares = [f"{2 * found[streams] / streams / found[2]:.2f}" for streams in STREAMS[1:]]
        print(f"| {task} | {tokens} | {1000 * found[2]:.0f} | {' | '.join(shares)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
