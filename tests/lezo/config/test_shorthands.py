"""Budgets and multiples become steps, intervals and rates, and the run is the one that says these itself."""

import pytest

from lezo.config.compose import Composed, compose
from lezo.config.methods import METHODS
from lezo.config.schema import ConfigError
from lezo.sweeps.jobs import jobs
from tests.lezo.refusals import refused


def of(words: str) -> Composed:
    return compose(words.split())


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("optim=mezo train.forwards=2000", "optim=mezo train.steps=1000"),
        ("optim=fo-adamw train.forwards=2000", "optim=fo-adamw train.steps=666"),
        ("train.forwards=1", "train.steps=1"),
        ("optim=none train.forwards=10", "optim=none"),
        (
            "optim=fo-sgd train.forwards=999 train.evaluations=5",
            "optim=fo-sgd train.steps=333 train.eval_every=67",
        ),
        ("train.steps=7 train.evaluations=9", "train.steps=7 train.eval_every=1"),
        ("optim.lr_scale=0.1", "optim.lr=3e-5"),
        ("optim=mezo peft=lora optim.lr_scale=3", "optim=mezo peft=lora optim.lr=6e-2"),
        ("optim.lr=1e-3 optim.lr_scale=0.3", "optim.lr=3e-4"),
        ("train.forwards=null train.evaluations=null optim.lr_scale=null", ""),
    ],
)
def test_a_shorthand_is_what_it_stands_for(short: str, long: str) -> None:
    assert of(short).yaml == of(long).yaml
    assert of(short).job_name == of(long).job_name


def test_jobs_folders_that_users_name_are_by_what_a_shorthand_stands_for() -> None:
    folder = "hydra.sweep.subdir=x-${lezo_job:}"
    assert of(f"{folder} train.forwards=20").job_name == f"x-{of('train.steps=10').job_name}"


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_that_takes_steps_says_what_one_costs(name: str) -> None:
    config = of(f"optim={name} train.forwards=1000").config
    steps, cost = config.train.steps, config.method.forwards_a_step(config.optim)
    assert not config.trains or steps * cost <= 1000 < (steps + 1) * cost
    assert not config.first_order or cost == 3


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("train.forwards=0", ["train.forwards=0: ", "from 1"]),
        ("optim.lr_scale=0", ["optim.lr_scale=0.0: ", "above 0"]),
        ("train.steps=5 train.forwards=8", ["train.steps: ", "train.forwards=8", "train.forwards=null"]),
        ("train.evaluations=2 train.eval_every=3", ["train.eval_every: ", "train.evaluations=2"]),
        ("train.forwards=many", ["train.forwards=many: ", "a whole number"]),
        ("optim=none optim.lr_scale=2", ["optim.lr_scale=2: unknown key"]),
    ],
)
def test_what_cannot_be_is_named(words: str, named: list[str]) -> None:
    with refused(ConfigError, *named):
        of(words)


def test_a_sweep_gives_all_methods_the_same_forwards() -> None:
    swept = jobs(["optim=fo-sgd,mezo", "optim.lr_scale=1,3", "train.forwards=60", "train.evaluations=2"])
    settings = [(job.composed.config.train.steps, job.composed.config.train.eval_every) for job in swept]
    assert settings == [(20, 10)] * 2 + [(30, 15)] * 2
    with refused(ConfigError, "the same run twice"):
        jobs(["optim.lr_scale=1,1.0"])
