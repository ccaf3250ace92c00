"""Blocks that visit a pretended device, and what keeps a visit from reading or writing too early."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from lezo.cli.replay import main as replay
from lezo.model import visits
from lezo.model.visits import FromHost, Visiting
from tests.lezo.whole_runs import Ran, typed

pytestmark = pytest.mark.pretend_cuda

OnGpu = Callable[..., tuple[Ran, Any]]
Family = Callable[..., list[str]]


def right(ran: Ran, gpu: Any, *, steps: int = 2) -> None:
    """As `assert_right`, and the only other wait of a step is for what it wrote home."""
    assert ran.code == 0, ran.err
    assert len(gpu.steps) == steps
    for waits in gpu.steps:
        own = [wait for wait in waits if not wait.where.startswith("model/visits.py")]
        assert (len(own), len(waits) <= 2) == (1, True), waits
    assert not [wait for wait in gpu.waits if wait.thread.startswith("batches")]
    assert gpu.order.shared and gpu.launches and not gpu.replays


@pytest.mark.parametrize(
    ("name", "optim", "home", "words"),
    [
        ("saved opt", "mezo", "host", ["task=copa", "train.micro_batch_size=2"]),
        ("opt", "lezo", "disk", ["peft=lora", "task=copa"]),
        pytest.param("llama", "lezo", "disk", ["train.steps=4"], marks=pytest.mark.slow),
        pytest.param("qwen2", "lezo", "host", ["task=squad"], marks=pytest.mark.slow),
    ],
)
def test_a_run(on_gpu: OnGpu, family: Family, name: str, optim: str, home: str, words: list[str]) -> None:
    ran, gpu = on_gpu(*family(name, optim), *words, f"model.home={home}")
    right(ran, gpu, steps=4 if "train.steps=4" in words else 2)


def test_it_goes_on_and_is_replayed(
    on_gpu: OnGpu,
    family: Family,
    pretended: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [*family("saved opt"), "model.home=host", "train.checkpoint_every=2"]
    right(*on_gpu(*words, "train.steps=3"), steps=3)
    right(*on_gpu(*words, "train.steps=4", "resume=auto"), steps=1)
    with pretended():
        call = typed("lezo-replay", replay, monkeypatch, capsys)
        code, out, err = call("out", "replay.verify=true", "replay.device=auto")
    assert code == 0 and "everything is right" in out, (out, err)


@pytest.mark.slow
def test_a_metric_as_objective(on_gpu: OnGpu, family: Family) -> None:
    ran, gpu = on_gpu(*family("opt", "mezo"), "optim.objective=metric", "task=sst2", "model.home=host")
    assert ran.code == 0, ran.err
    assert gpu.order.shared and gpu.launches


def _skips(patch: pytest.MonkeyPatch, name: str) -> None:
    """A fault: the streams of this name do not wait for events."""
    from tests.pretend_cuda.order import Stream

    wait_event = Stream.wait_event

    def waits(stream: Stream, event: Any) -> None:
        if stream.name[0] != name:
            wait_event(stream, event)

    patch.setattr(Stream, "wait_event", waits)


def _ahead(patch: pytest.MonkeyPatch) -> None:
    """A fault: the next block is copied into the buffer of the one that runs."""
    fetch = Visiting._fetch
    patch.setattr(Visiting, "_fetch", lambda self, number, buffer: fetch(self, number, 0))


FAULTS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None], str]] = {
    "a block runs before its copy is there": ("host", lambda p: _skips(p, "default"), r"read by \('default'"),
    "a buffer is copied into while a block runs on it": ("host", lambda p: _skips(p, "side"), r"by \('side'"),
    "the same from disk": ("disk", lambda p: _skips(p, "side"), r"by \('side'"),
    "home is read before it is written back": (
        "host",
        lambda p: p.setattr(FromHost, "settle", lambda _: None),
        "host memory .* read by the host",
    ),
    "a staged block is written while it is copied": (
        "disk",
        lambda p: p.setattr(visits, "_event", lambda: _Deaf()),
        "may still use it",
    ),
}


class _Deaf:
    """An event that nobody can wait for."""

    def record(self, stream: Any = None) -> None:
        self.known: dict[Any, int] = {}

    def synchronize(self) -> None:
        pass

    known: dict[Any, int] = {}


@pytest.mark.parametrize(("home", "fault", "said"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_noticed(
    on_gpu: OnGpu,
    family: Family,
    monkeypatch: pytest.MonkeyPatch,
    home: str,
    fault: Callable[[pytest.MonkeyPatch], None],
    said: str,
) -> None:
    fault(monkeypatch)
    ran, _ = on_gpu(*family("opt", "mezo"), f"model.home={home}")
    assert ran.code == 1
    assert re.search(said, ran.err), ran.err
