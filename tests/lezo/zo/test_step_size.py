"""How far a step goes: schedules, warm-up and clipping, by themselves and in steps of a run."""

import math

import pytest
import torch

from lezo.config.compose import compose
from lezo.config.methods import Part, Schedule, ZerothOrderConfig, step_size
from lezo.config.schema import ConfigError
from lezo.model.layout import layout
from lezo.zo.blocks import AllBlocks
from lezo.zo.parts import STEP_SIZES
from lezo.zo.probe import PlainProbe
from lezo.zo.step_size import Linear, Scheduled
from lezo.zo.zeroth_order import ZerothOrder
from tests.lezo.small_models import Bowl
from tests.lezo.whole_runs import SMALL, Runner


def shares(part: Scheduled, steps: int) -> list[float]:
    return [part.share(step) for step in range(steps)]


def test_a_linear_schedule_is_the_one_of_before() -> None:
    assert shares(Scheduled("linear", 7), 7) == [Linear(7).share(step) for step in range(7)]


def test_a_warm_up_begins_at_its_first_share_and_the_schedule_takes_the_rest_of_the_steps() -> None:
    assert shares(Scheduled(warmup=4), 6) == [0.25, 0.5, 0.75, 1, 1, 1]
    assert shares(Scheduled("linear", 6, warmup=2), 6) == [0.5, 1, 1, 0.75, 0.5, 0.25]


def test_a_cosine_falls_from_all_to_nothing_and_is_a_number_of_32_bits() -> None:
    found = shares(Scheduled("cosine", 8, warmup=0), 9)
    expected = [(1 + math.cos(math.pi * step / 8)) / 2 for step in range(9)]
    assert found == pytest.approx(expected, abs=2**-32)
    assert all((share * 2**32).is_integer() for share in found)
    assert (found[0], found[4], found[8]) == (1, 0.5, 0)


@pytest.mark.parametrize(
    "settings",
    [{"schedule": "steps"}, {"schedule": "cosine"}, {"schedule": "linear", "steps": 5, "warmup": 5}],
)
def test_a_schedule_that_cannot_be_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        STEP_SIZES["scheduled"](**settings)


def test_a_part_says_only_what_was_asked_for_so_that_headers_of_before_stay() -> None:
    assert step_size(ZerothOrderConfig(), 9) == Part("constant")
    assert step_size(ZerothOrderConfig(warmup=3), 9) == Part("scheduled", {"warmup": 3})
    asked = ZerothOrderConfig(schedule=Schedule.cosine, clip=2.0)
    assert step_size(asked, 9) == Part("scheduled", {"schedule": "cosine", "steps": 9, "clip": 2.0})


def step(
    clip: float | None, scale: float = 1.0
) -> tuple[Bowl, ZerothOrder, dict[str, float], tuple[float, ...]]:
    model = Bowl()
    probe = PlainProbe(model, lambda forward, batch: forward(batch))
    size = Scheduled(clip=clip)
    optimizer = ZerothOrder(
        model, layout(model), AllBlocks(4), probe, step_size=size, lr=0.1, eps=1e-3, seed=3
    )
    report = optimizer.step(0, scale)
    return model, optimizer, dict(report.measures), report.coefficients


def test_a_slope_beyond_the_clip_is_taken_at_it_with_its_sign_and_both_are_told() -> None:
    *_, free, taken = step(None)
    g = free["g"]
    assert "g_clipped" not in free and taken == pytest.approx((0.1 * g,))
    for scale in (1.0, -1.0):  # a bowl upside down slopes the other way
        *_, clipped, taken = step(abs(g) / 2, scale)
        assert clipped["g"] == pytest.approx(scale * g)
        assert clipped["g_clipped"] == pytest.approx(scale * g / 2) and taken == pytest.approx(
            (0.05 * scale * g,)
        )
    *_, within, taken = step(abs(g) * 2)
    assert within["g_clipped"] == within["g"] == g and taken == pytest.approx((0.1 * g,))


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_clipping_makes_no_step_of_a_loss_that_is_not_finite(bad: float) -> None:
    model, *_, taken = step(1.0, bad)
    assert not math.isfinite(taken[0])
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), Bowl().parameters(), strict=True))


def test_more_steps_than_the_warm_up_are_asked_for_where_a_schedule_ends() -> None:
    with pytest.raises(ConfigError, match=r"optim\.warmup=9: expected fewer than the 9 steps"):
        compose(["train.steps=9", "optim.warmup=9", "optim.schedule=cosine"])
    compose(["train.steps=9", "optim.warmup=9"])
    with pytest.raises(ConfigError, match=r"optim\.warmup=9"):
        compose(["train.steps=9", "optim=fo-sgd", "optim.warmup=9", "optim.schedule=linear"])


def test_a_run_tells_and_takes_what_was_set(lezo_run: Runner) -> None:
    ran = lezo_run(*SMALL, "optim.schedule=cosine", "optim.warmup=2", "optim.clip=0.5", "optim.lr=1e-3")
    assert ran.code == 0, ran.err
    assert "lr 0.001 cosine after 2 steps of warm-up, eps 0.001, |g| at most 0.5" in ran.out
    rows = ran.training()
    assert [row["lr"] for row in rows] == pytest.approx([5e-4, 1e-3, 1e-3, 5e-4])
    for row in rows:
        assert row["g_clipped"] == pytest.approx(max(-0.5, min(0.5, row["g"])))
    more = lezo_run(
        *SMALL,
        "optim.schedule=cosine",
        "optim.warmup=2",
        "optim.clip=0.5",
        "optim.lr=1e-3",
        "train.steps=5",
        "resume=auto",
    )
    more.refused("train.steps")


def test_first_order_runs_take_warm_up_and_cosine_too(lezo_run: Runner) -> None:
    ran = lezo_run(*SMALL, "optim=fo-sgd", "optim.schedule=cosine", "optim.warmup=2", "optim.lr=1e-3")
    assert [row["lr"] for row in ran.training()] == pytest.approx([5e-4, 1e-3, 1e-3, 5e-4])
    assert "fo-sgd: lr 0.001 cosine after 2 steps of warm-up" in ran.out
