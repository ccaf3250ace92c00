"""Blocks that visit a pretended device, and what keeps a visit from reading or writing too early."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lezo.cli.replay import main as replay
from lezo.model import visits
from lezo.model.hashes import weights_hash
from lezo.model.layout import layout
from lezo.model.load import Source, load_config, load_hashed
from lezo.model.place import Place
from lezo.model.placement import Placement
from lezo.model.visits import FromDisk, FromHost
from lezo.zo.blocks import AllBlocks
from lezo.zo.zeroth_order import SeededUpdate
from tests.lezo.small_models import CONFIGS
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
    assert gpu.order.overlapping and gpu.launches and not gpu.replays


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
    assert gpu.order.overlapping and gpu.launches


def _skips(patch: pytest.MonkeyPatch, *, side: bool) -> None:
    """A fault: side streams, or default ones, do not wait for events."""
    from tests.pretend_cuda.order import Stream

    wait_event = Stream.wait_event

    def waits(stream: Stream, event: Any) -> None:
        if stream.side != side:
            wait_event(stream, event)

    patch.setattr(Stream, "wait_event", waits)


FAULTS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None], str]] = {
    "a block runs before its copy is there": (
        "host",
        lambda p: _skips(p, side=False),
        "read by the default stream",
    ),
    "a buffer is copied into while a block runs on it": (
        "host",
        lambda p: _skips(p, side=True),
        r"by stream \d",
    ),
    "the same from disk": ("disk", lambda p: _skips(p, side=True), r"by stream \d"),
    "a staged block is written while it is copied": (
        "disk",
        lambda p: p.setattr(visits, "_event", lambda: _Deaf()),
        "may still use it",
    ),
}


@pytest.mark.parametrize("kind", ["host", "disk"])
def test_an_update_ends_when_home_is_written(
    pretended: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: Any
) -> None:
    CONFIGS["opt"].save_pretrained(tmp_path)
    source, carrier = Source(str(tmp_path), random_weights=True), FromHost if kind == "host" else FromDisk
    with pretended():
        device = torch.device("cuda", 0)
        where: dict[str, Any] = {"placement": Placement((device,)), "place": Place(kind, tmp_path)}
        model = load_hashed(source, load_config(source), dtype=torch.float16, seed=0, **where)[0]
        update = SeededUpdate(model, layout(model), AllBlocks(4), seed=3)
        coefficients = torch.zeros(1, device=device)
        update.apply(0, coefficients)
        weights_hash(model)
        if kind == "host":  # of a file what the thread has not yet written is not looked after
            monkeypatch.setattr(carrier, "settle", lambda _: None)
            update.apply(1, coefficients)
            with pytest.raises(AssertionError, match="host memory .* read by the host"):
                weights_hash(model)


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
