"""What loading a device's weights and making steps again ask of the host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lezo.config.compose import compose
from lezo.model import hashes
from lezo.model.layout import layout
from lezo.runs.banner import banner
from lezo.runs.plan import make_plan
from lezo.zo.blocks import UniformBlocks
from lezo.zo.zeroth_order import SeededUpdate
from tests.lezo.small_models import small_model
from tests.pretend_cuda.memory import LARGE, MB, SMALL, compared, in_a_process, opt_folder

pytestmark = pytest.mark.pretend_cuda

WITHIN = 0.1
FOUR_BLOCKS = {**LARGE, "num_hidden_layers": 4}


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of what is copied from the host to a pretended device."""
    from tests.pretend_cuda.gpu import PretendGpu

    made: list[torch.Size] = []
    copied = PretendGpu.copied

    def seen(gpu: PretendGpu, operator: Any, args: Any, kwargs: Any) -> Any:
        result = copied(gpu, operator, args, kwargs)
        if [leaf.device.type for leaf in args if isinstance(leaf, Tensor)][-1] == "cpu":
            made.append(result.shape)
        return result

    monkeypatch.setattr(PretendGpu, "copied", seen)
    return made


def test_a_replay_uploads_its_coefficients_once_and_never_waits(
    pretended: Callable[..., Any], uploads: list[torch.Size]
) -> None:
    """Of two directions a step but the last, which has one."""
    past = [(step, (0.5, -0.25)[: 2 if step < 7 else 1]) for step in range(8)]
    with pretended() as gpu:
        model = small_model("opt", torch.float16).to(torch.device("cuda", 0))
        update = SeededUpdate(model, layout(model), UniformBlocks(4, 0.5), seed=3)
        waits, launches = len(gpu.waits), len(gpu.launches)
        uploads.clear()
        made = [(step, len(gpu.launches)) for step in update.replay(past)]
    assert [step for step, _ in made] == list(range(8))
    assert launches < made[0][1] < made[-1][1]  # updates are made as they are asked for
    assert len(gpu.waits) == waits, gpu.waits[waits:]
    tables = [shape for shape in uploads if len(shape) == 2]  # one an update, of the tensors that it writes
    assert len(tables) == 15 and uploads == [torch.Size([15]), *tables], uploads


def test_host_memory_holds_a_tensor_of_a_model_that_is_loaded(tmp_path: Path, _nothing_real: None) -> None:
    """200 MB in fp32 for a device in fp16, where a process may allocate and map 98 MB more than it has."""
    small, large = (
        opt_folder(tmp_path / name, **shape) for name, shape in (("small", SMALL), ("large", FOUR_BLOCKS))
    )
    assert large[1] > 200 * MB
    in_a_process("load_on_pretended_cuda", small[0], large[0], False, 98 * MB)


@pytest.mark.parametrize(
    ("task", "visible"), [("rte", 1), ("rte", 2), pytest.param("squad", 1, marks=pytest.mark.slow)]
)
def test_a_plan_expects_what_is_counted(task: str, visible: int, _nothing_real: None) -> None:
    """Beside the weights too, of which a small model has few; `python -m tests.pretend_cuda.memory` has large ones.

    Of each device by itself, where the blocks are over two.
    """
    for work, weights, expected, counted in compared("opt-125m", task, visible=visible):
        assert expected == pytest.approx(counted, rel=WITHIN), work
        assert expected - weights == pytest.approx(counted - weights, rel=WITHIN), work


def test_fewer_prompts_are_continued_at_a_time_where_the_device_has_no_room(
    pretended: Callable[..., Any],
) -> None:
    config = compose(["task=squad", "data=sample", "model=tiny", "optim=none", "model.device=auto"]).config
    with pretended() as gpu:
        assert (roomy := make_plan(config)).prompts_at_once == 32
        gpu.free = int((roomy.memory.weights + roomy.memory.activations / 3) / 0.95)
        tight = make_plan(config)
    assert tight.prompts_at_once == 8
    assert tight.memory.total < roomy.memory.total and tight.forwards["test"] > 3 * roomy.forwards["test"]
    said = "prompts are generated for at a time"
    assert f"8 {said}" in banner(config, tight, Path()) and said not in banner(config, roomy, Path())


def test_a_devices_tensor_is_hashed_in_small_pieces(
    pretended: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is copied to the host are zeros."""
    monkeypatch.setattr(hashes, "PIECE", 512)
    expected = hashes.tensor_hash(torch.zeros(10, 100, dtype=torch.float16))
    with pretended() as gpu:
        tensor = torch.zeros(10, 100, dtype=torch.float16, device=torch.device("cuda", 0))
        assert hashes.tensor_hash(tensor) == expected
        assert [wait.what for wait in gpu.waits] == ["copy to the host"] * 4  # 2000 bytes
