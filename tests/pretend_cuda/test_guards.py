"""The other tests of this folder would notice: each fault that they are there for, put in, is one that fails."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures.thread import BrokenThreadPool
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lezo.data import pack, rows
from lezo.data.batches import Batches
from lezo.zo.zeroth_order import ZerothOrder
from tests.lezo.small_models import examples
from tests.lezo.whole_runs import Ran
from tests.pretend_cuda.conftest import assert_right

pytestmark = pytest.mark.pretend_cuda

OnGpu = Callable[..., tuple[Ran, Any]]
Family = Callable[..., list[str]]


@pytest.fixture
def failed(on_gpu: OnGpu, family: Family) -> Callable[..., str]:
    """What is said where a run that a test asks for is not right."""

    def run(*words: str, visible: int = 1) -> str:
        ran, gpu = on_gpu(*family("opt", "mezo"), *words, visible=visible)
        with pytest.raises(AssertionError) as caught:
            assert_right(ran, gpu)
        return f"{ran.err}\n{caught.value}"

    return run


def test_a_device_without_an_index(failed: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lezo.runs.plan.devices_of", lambda config: (torch.device("cuda"),))
    assert "a CUDA device without an index at" in failed()


def test_a_device_without_an_index_where_a_thread_chooses_it(
    pretended: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it was found: the second step's batch is the first that the thread makes."""
    monkeypatch.setattr("lezo.data.batches.candidate_batch", lambda chosen, **_: chosen)
    settings = {"seed": 0, "batch_size": 2, "micro_batch_size": None, "pad": 1}
    with pretended():
        batches = Batches(examples(), loss="candidates", **settings, device=torch.device("cuda"))  # type: ignore[arg-type]
        assert len(batches(0)) == 1
        with pytest.raises(BrokenThreadPool):
            batches(1)


def test_a_tensor_on_the_wrong_device(failed: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    moved = pack.moved
    left = lambda arrays: {"position_ids": torch.from_numpy(arrays["position_ids"])}  # noqa: E731
    monkeypatch.setattr(pack, "moved", lambda arrays, device: moved(arrays, device) | left(arrays))
    assert re.search(r"two (different )?devices", failed())


def test_a_kernel_launched_where_its_tensors_are_not(
    failed: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.pretend_cuda.gpu import PretendGpu

    monkeypatch.setattr(PretendGpu, "on", lambda gpu, number: nullcontext())
    for module in ("plan", "begin"):
        monkeypatch.setattr(f"lezo.runs.{module}.devices_of", lambda config: (torch.device("cuda", 1),))
    assert "a tensor on cuda:1, launched on cuda:0" in failed(visible=2)


def test_a_second_wait_in_a_step(failed: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    measure = ZerothOrder.measure

    def looked_at(self: ZerothOrder, step: int, batch: Any) -> Tensor:
        losses = measure(self, step, batch)
        assert float(losses[0]) == 0
        return losses

    monkeypatch.setattr(ZerothOrder, "measure", looked_at)
    assert "a value is read" in failed()


def test_a_batch_whose_making_waits(failed: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    there = lambda arrays, device: {n: torch.from_numpy(a).to(device) for n, a in arrays.items()}  # noqa: E731
    monkeypatch.setattr(pack, "moved", there)
    assert "memory that is not pinned" in failed()


@pytest.mark.parametrize(
    ("fault", "instead"),
    [
        ("lezo.model.forward.additive", lambda mask, dtype: mask),
        ("lezo.data.pack.rows_of_few_shapes", rows.cheapest_rows),
    ],
)
def test_a_mask_that_attention_makes_anew(
    on_gpu: OnGpu, family: Family, monkeypatch: pytest.MonkeyPatch, fault: str, instead: Any
) -> None:
    monkeypatch.setattr(fault, instead)
    _, gpu = on_gpu(*family("opt", "mezo"))
    assert gpu.steps_masks_made


def test_a_kernel_with_a_fused_multiply_add(
    failed: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.pretend_cuda import pretend_driver

    kernels = pretend_driver.defined_anew()
    monkeypatch.setattr(kernels["normal"], "LAUNCH", {"enable_fp_fusion": True})
    monkeypatch.setattr(pretend_driver, "defined_once", lambda: kernels)
    assert "in its PTX" in failed()


def test_a_kernel_that_does_not_compile(
    failed: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What it is written with is not in Triton, as `sanitize_overflow` was not before 3.6."""
    import triton.language as tl

    from tests.pretend_cuda import pretend_driver

    kernels = pretend_driver.defined_anew()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delattr(tl, "sqrt_rn")
    monkeypatch.setattr(pretend_driver, "defined_once", lambda: kernels)
    assert "sqrt_rn" in failed()
