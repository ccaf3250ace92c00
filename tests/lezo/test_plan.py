"""What a plan counts and expects, on the embedded model."""

import pytest
import torch

from lezo.compose import compose
from lezo.plan import make_plan

SMALL = ["task.num_train=32", "task.num_dev=8", "task.num_test=8", "model.device=cpu"]


def plan(*overrides: str):
    return make_plan(compose([*SMALL, *overrides]).config)


def test_forwards_are_counted() -> None:
    """100 steps, an evaluation before, every 30 and after; two candidates an example, 32 rows a forward."""
    two_sided = ["train.steps=100", "train.eval_every=30", "train.micro_batch_size=4", "optim=mezo"]
    assert plan(*two_sided).forwards == {"training": 100 * 2 * 4, "dev": 5, "test": 2}
    assert plan(*two_sided[:-1], "optim=fo-sgd").forwards["training"] == 100 * 4
    assert plan("optim=none").forwards == {"training": 0, "dev": 1, "test": 1}


def test_a_generated_tasks_dev_examples_count_once_when_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lezo.prepare.MAX_LENGTH", 62)  # 12 tokens are left beside the generation's 50
    assert plan("task=squad").truncated == 32 + 8 + 8


def test_memory_counts_weights_and_what_the_optimizer_adds() -> None:
    mezo, lezo, adamw = (plan(f"optim={name}") for name in ("mezo", "lezo", "fo-adamw"))
    weights = 4 * mezo.parameters
    assert [p.memory.weights for p in (mezo, lezo, adamw)] == [weights] * 3
    assert mezo.memory.update == lezo.memory.update  # two copies of one of 8 blocks
    assert weights / 8 < mezo.memory.update < weights / 4
    assert adamw.memory.update == 3 * weights
    assert adamw.memory.activations > mezo.memory.activations
    assert mezo.dtype == torch.float32
