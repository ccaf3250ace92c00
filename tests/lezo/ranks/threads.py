"""Several ranks as threads of this process: what they say to each other goes through JSON, as between processes."""

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from lezo.config.compose import compose
from lezo.ranks.ranks import Ranks, in_order
from lezo.records.journal import read_journal
from lezo.runs import begin, follow, session
from lezo.runs.together import END

WAIT = 30.0  # seconds; a rank that died leaves the others waiting


class Hub:
    """Where the ranks meet: each brings something, and leaves with what all have brought."""

    def __init__(self, size: int) -> None:
        self._brought: list[Any] = [None] * size
        self._barrier = threading.Barrier(size, timeout=WAIT)
        self.tensors = 0  # gathered from each rank

    def meet(self, rank: int, brought: Any) -> list[Any]:
        self._brought[rank] = brought
        self._barrier.wait()
        found = list(self._brought)
        self._barrier.wait()
        return found

    def leave(self) -> None:
        self._barrier.abort()


class Threaded(Ranks):
    """A rank that is a thread."""

    def __init__(self, hub: Hub, rank: int, size: int) -> None:
        self.hub, self.rank, self.size = hub, rank, size

    def name(self, rank: int) -> str:
        return f"rank {rank}"

    def lost(self) -> str | None:
        return None

    def tell(self, word: Any) -> None:
        assert self.rank == 0
        self.hub.meet(0, json.dumps(word))

    def hear(self) -> Any:
        return json.loads(self.hub.meet(self.rank, None)[0])

    def exchange(self, value: Any, *, patient: bool = False) -> list[Any]:
        return [json.loads(text) for text in self.hub.meet(self.rank, json.dumps(value))]

    def gather(self, parts: Tensor, count: int) -> Tensor:
        most = -(-count // self.size)
        padded = torch.cat([parts, parts.new_full((most - len(parts), *parts.shape[1:]), torch.nan)])
        self.hub.tensors += self.rank == 0
        return in_order(torch.cat(self.hub.meet(self.rank, padded)), self.size, count)

    def send(self, tensors: Iterable[Tensor]) -> None:
        own = list(tensors)
        for tensor, value in zip(own, self.hub.meet(self.rank, [t.clone() for t in own])[0], strict=True):
            tensor.copy_(value)


@contextmanager
def _loading_in_turn() -> Iterator[None]:
    """transformers makes models by ways of its own that threads would share."""
    lock = threading.Lock()

    def in_turn(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            with lock:
                return real(*given)

        return call

    with ExitStack() as stack:
        for module, name in ((follow, "make_plan"), (follow, "load_model"), (begin, "load_model")):
            stack.enter_context(mock.patch.object(module, name, in_turn(getattr(module, name))))
        yield


def run_by(size: int, overrides: Sequence[str], others: Sequence[str] = ()) -> int:
    """A run of so many ranks. Returns rank 0's exit code. ``others``: what the other ranks are given besides.

    Raises what another rank fails by.
    """
    hub, first_composed, composed = Hub(size), compose(overrides), compose([*overrides, *others])

    def other(rank: int) -> int:
        try:
            return follow.followed(composed, Threaded(hub, rank, size))
        except BaseException:
            time.sleep(0.5)  # so that the others have left where they met last
            hub.leave()
            raise

    with ThreadPoolExecutor(size) as threads, _loading_in_turn():
        following = [threads.submit(other, rank) for rank in range(1, size)]
        first = Threaded(hub, 0, size)
        code = session.run(first_composed, "lezo-run", first)
        if code:
            hub.leave()
        else:
            first.tell([END, 0])
    for each in following:
        each.result()
    return code


def left(folder: Path) -> dict[str, Any]:
    """What a run left that does not depend on time."""
    result = json.loads((folder / "result.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "memory", "eval_seconds", "phases", "forward", "perturb", "update", "data")
    journal = folder / "journal.bin"
    return {
        "journal": _told(journal) if journal.exists() else None,
        "predictions": (folder / "predictions.jsonl").read_text(),
        "rows": [{k: v for k, v in row.items() if not k.endswith(timed)} for row in rows],
        **{key: result[key] for key in ("weights", "best_step", "test", "dev", "dev_loss", "zero_shot")},
    }


def _told(journal: Path) -> tuple[Any, ...]:
    """All but the code's version, of which one test's processes may see another than its own."""
    read = read_journal(journal)
    return replace(read.header.origin, code=""), read.header.recipe, read.records
