"""Blocks over two devices that are not there: what is where, what is moved, and that no step waits in between."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

import lezo
from lezo.cli.replay import main as replay
from lezo.data.pack import candidate_batch
from lezo.model import placement
from lezo.model.evaluate import Evaluator
from lezo.model.forward import Network
from lezo.model.placement import Placement, follow, placed, settle
from lezo.zo.lanes import Lanes
from lezo.zo.streams import Streams
from tests.lezo.small_models import examples, small_model
from tests.lezo.whole_runs import Ran, typed
from tests.pretend_cuda.conftest import assert_right
from tests.pretend_cuda.test_runs import _for_three_tokens

pytestmark = pytest.mark.pretend_cuda

OnGpu = Callable[..., tuple[Ran, Any]]
Family = Callable[..., list[str]]
BOTH = ["model.devices=auto"]


@pytest.fixture
def on_two(on_gpu: OnGpu) -> OnGpu:
    """A short run over both of two devices."""

    def run(*words: str, folder: str = "out") -> tuple[Ran, Any]:
        return on_gpu(*words, *BOTH, visible=2, folder=folder)

    return run


@pytest.mark.parametrize("name", [pytest.param("opt", marks=pytest.mark.slow), "llama"])
def test_steps_in_micro_batches(on_two: OnGpu, family: Family, name: str) -> None:
    ran, gpu = on_two(*family(name), "train.micro_batch_size=1", "train.steps=4")
    assert_right(ran, gpu, steps=4)
    assert "float16 on cuda:0 (blocks 0-0), cuda:1 (blocks 1-1)" in ran.out.replace("\n", " ")
    assert gpu.used == gpu.timed == {0, 1} and gpu.replays


@pytest.mark.slow
def test_mezo_in_bf16_on_longer_answers(on_two: OnGpu, family: Family) -> None:
    ran, gpu = on_two(
        *family("neox", "mezo"), "task=copa", "model.dtype=bfloat16", "optim.rounding=stochastic"
    )
    assert_right(ran, gpu)
    assert gpu.used == {0, 1} and not gpu.steps_masks_made


def test_answers_that_are_generated(on_two: OnGpu, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values of a block are where the block is."""
    monkeypatch.setattr(Evaluator, "_continued", _for_three_tokens(Evaluator._continued))
    assert_right(*on_two(*family("qwen2"), "task=squad"))


@pytest.mark.parametrize(("name", "adapter"), [("llama", "lora"), ("opt", "prefix")])
def test_adapters(on_two: OnGpu, family: Family, name: str, adapter: str) -> None:
    assert_right(
        *on_two(*family(name), f"peft={adapter}", "task=squad" if adapter == "prefix" else "task=copa")
    )


def test_weights_of_a_file_and_going_on_and_replaying(
    on_two: OnGpu,
    on_gpu: OnGpu,
    family: Family,
    pretended: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On two devices, then on one, and both ways of replaying."""
    words = family("saved opt")
    assert_right(*on_two(*words, "train.steps=3"), steps=3)
    ran, gpu = on_gpu(*words, "train.steps=4", "resume=auto", visible=2)
    assert_right(ran, gpu, steps=1)
    assert gpu.used == {0}
    for words in (["replay.devices=[cuda:1,cuda:0]"], ["replay.device=cuda:1"]):
        with pretended(2) as gpu:
            call = typed("lezo-replay", replay, monkeypatch, capsys)
            code, out, err = call("out", "replay.verify=true", *words)
        assert code == 0 and "everything is right" in out, (out, err)
        assert gpu.used == ({0, 1} if "devices" in words[0] else {1})


def over_two(name: str) -> tuple[Any, Placement]:
    """A small model of four blocks over two pretended devices."""
    model = small_model(name, torch.float16)
    where = placed(model, [torch.device("cuda", 0), torch.device("cuda", 1)])
    model = settle(model, where)
    follow(model, where)
    return model, where


def test_masks_and_positions_go_once_to_a_device(pretended: Callable[..., Any]) -> None:
    with pretended(2) as gpu:
        model, where = over_two("llama")
        assert where.places.count(1) > 1
        batch = candidate_batch(examples(3), pad=1, device=where.home)
        gpu.carried.clear()
        for _ in range(2):
            Network(model).hidden(batch)
        rows, length = batch.input_ids.shape
        states = (rows, length, model.config.hidden_size)
        there = [shape for source, _, shape in gpu.carried if source == 0]
        assert there.count(states) == 2 and len(there) <= 2 * 5, there  # mask, ids of positions, cosine, sine
        assert [shape for source, _, shape in gpu.carried if source == 1] == [states] * 2


def test_an_argument_that_stays_behind_is_noticed(
    on_two: OnGpu, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement._Carried, "_once", lambda carried, tensor, device: tensor)
    ran, gpu = on_two(*family("opt"))
    assert ran.code == 1 and gpu.used == {0, 1}


def test_a_coefficient_that_stays_behind_is_noticed(
    on_two: OnGpu, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lezo.noise.directions._copied", lambda coefficient, theta: coefficient.float())
    ran, gpu = on_two(*family("opt", "mezo"))
    assert "a tensor on cuda:0, launched on cuda:1" in ran.err


def test_devices_that_are_not_there_are_named(on_gpu: OnGpu) -> None:
    on_gpu("model.devices=[cuda:0,cuda:2]", visible=2)[0].refused("model.devices: cuda:2", "2 CUDA devices")


LANES = ["train.micro_batch_size=1", "train.steps=4", "train.eval_every=4", "optim.sparsity=0"]


def test_micro_batches_overlap_and_nothing_is_used_too_early(
    on_two: OnGpu, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.pretend_cuda.order import Stream

    entered = Counter[int | None]()
    monkeypatch.setattr(Stream, "wait_event", _counted(Stream.wait_event, entered))
    ran, gpu = on_two(*family("opt"), *LANES)
    assert_right(ran, gpu, steps=4)
    assert gpu.order.overlapping and gpu.replays
    assert entered == {0: 7, 1: 7}  # after the one before: of 3, 3, 2 and 3 micro-batches all but the first


def _counted(wait: Callable[..., None], entered: Counter[int | None]) -> Callable[..., None]:
    def counted(stream: Any, mark: Any) -> None:
        entered[stream.device.index] += 1
        wait(stream, mark)

    return counted


@pytest.mark.parametrize(
    ("fault", "by", "other"),
    [("_join", "the default stream", r"stream \d+"), ("_part", r"stream \d+", "the default stream")],
    ids=["_join", "_part"],
)
def test_lanes_that_do_not_wait_are_noticed(
    on_two: OnGpu, family: Family, monkeypatch: pytest.MonkeyPatch, fault: str, by: str, other: str
) -> None:
    """They still are made, but begin at once, or are not waited for."""
    from tests.pretend_cuda.order import Stream

    right = getattr(Lanes, fault)

    def wrong(*given: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Stream, "wait_stream", lambda stream, other: None)
            right(*given)

    monkeypatch.setattr(Lanes, fault, wrong)
    ran, _ = on_two(*family("opt"), *LANES)
    said = rf"by {by} of cuda:\d at .* while {other} of cuda:\d may still use it"
    assert ran.code == 1 and re.search(said, ran.err), ran.err


def test_lanes_that_share_copies_are_noticed(
    on_two: OnGpu, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = r"written by stream \d+ of cuda:\d at noise/.* while stream \d+ of cuda:\d may still use it"
    monkeypatch.setattr(Streams, "_copies_at", lambda streams: streams._copies[0])
    ran, _ = on_two(*family("opt"), *LANES)
    assert ran.code == 1 and re.search(said, ran.err), ran.err


def test_an_optimizer_of_ones_own_loop(pretended: Callable[..., Any]) -> None:
    with pretended(2) as gpu:
        model, where = over_two("opt")
        ids = torch.zeros(2, 5, dtype=torch.int64, device=where.home)
        optimizer = lezo.LeZO(model, lr=1e-3, sparsity=0.5)
        optimizer.step(lambda: model(input_ids=ids).logits.float().mean())
    assert [name for name, _ in gpu.launches].count("_update") == 2
