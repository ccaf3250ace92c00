"""What is timed: a typical batch, and steps that move what their names say."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from lezo.bench.timing import loaded
from lezo.bench.variants import (
    Setup,
    Work,
    heaviest,
    lezo_blocks,
    make_variant,
    typical_work,
    variants_of,
    window,
)
from lezo.config.compose import compose
from lezo.config.schema import BenchVariant, RunConfig
from lezo.model.evaluate import Evaluator
from lezo.model.forward import Network
from lezo.noise import seeds
from lezo.runs.plan import Plan, make_plan
from lezo.zo.blocks import UniformBlocks
from lezo.zo.zeroth_order import ZerothOrder
from tests.lezo.small_models import weights

SMALL = [
    "model.device=cpu",
    "task.num_train=40",
    "task.num_dev=4",
    "task.num_test=4",
    "train.batch_size=4",
    "optim.sparsity=0.5",
]


@pytest.fixture(scope="module")
def planned() -> tuple[RunConfig, Plan]:
    config = compose([*SMALL, "task=copa"]).config
    return config, make_plan(config)


def test_the_typical_batch_is_the_one_nearest_the_medians(planned: tuple[RunConfig, Plan]) -> None:
    config, plan = planned
    work = typical_work(config, plan)
    drawn = seeds.permutation(config.seed, 0, len(plan.train))
    of_place = [[plan.train[i] for i in drawn[at : at + 4]] for at in range(0, len(drawn), 4)]
    real = sorted(sum(len(ids) for e in examples for ids in e.input_ids) for examples in of_place)
    assert work.examples == of_place[work.place]
    assert real[1] <= work.real <= real[-2]
    assert work.padded == len(work.lengths) * (-(-max(work.lengths) // 8) * 8)


def test_the_unusual_batch_is_not_chosen(planned: tuple[RunConfig, Plan]) -> None:
    config, plan = planned
    usual = typical_work(config, plan)
    long = [replace(e, input_ids=tuple(ids * 20 for ids in e.input_ids)) for e in usual.examples]
    changed = [long[usual.examples.index(e)] if e in usual.examples else e for e in plan.train]
    assert typical_work(config, replace(plan, train=changed)).place != usual.place


def test_few_examples_are_one_batch(planned: tuple[RunConfig, Plan]) -> None:
    config, plan = planned
    work = typical_work(config, replace(plan, train=plan.train[:3]))
    assert (work.place, len(work.examples)) == (0, 3)


@pytest.fixture(scope="module")
def network(planned: tuple[RunConfig, Plan]) -> Network:
    return loaded(*planned)


@pytest.mark.parametrize("name", [name for name in BenchVariant if name is not BenchVariant.published])
def test_a_step_moves_the_blocks_its_name_says(
    name: BenchVariant, planned: tuple[RunConfig, Plan], network: Network
) -> None:
    config, plan = planned
    work = typical_work(config, plan)
    before, model = weights(network.model), network.model
    variant = make_variant(Setup(config, plan, work, network), name)
    variant.step(1)
    changed = {n for n, theta in weights(model).items() if not torch.equal(theta, before[n])}
    share = UniformBlocks(plan.blocks.total, 0.5 if "lezo" in name.value else 0.0)
    chosen = share(1, seeds.step_seed(config.seed, 1))
    assert changed == (set() if name is BenchVariant.floor else set(plan.layout.active(chosen)))
    assert set(variant.watch.lap()) == _phases(name)


def _phases(name: BenchVariant) -> set[str]:
    """The floor's batch is ready before."""
    return {"forward"} if name is BenchVariant.floor else {"data", "forward", "perturb", "update"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["bench.mezo_path=DIR"], set(BenchVariant)),
        (["peft=lora"], {*BenchVariant} - {BenchVariant.published}),
        (["optim.objective=metric"], {BenchVariant.floor, BenchVariant.mezo, BenchVariant.lezo}),
    ],
)
def test_what_can_be_timed(words: list[str], expected: set[BenchVariant]) -> None:
    assert {*variants_of(compose([*SMALL, *words]).config)} == expected


@pytest.mark.parametrize(
    "words", [["peft=lora"], ["peft=prefix"], ["optim.objective=metric", "optim.lr=1e-2"]], ids=" ".join
)
def test_adapters_and_metrics_are_timed_too(words: list[str]) -> None:
    """A step moves the adapter alone, in each variant; a metric is evaluated."""
    config = compose([*SMALL, "task=copa", *words]).config
    plan = make_plan(config)
    network = loaded(config, plan)
    setup = Setup(config, plan, typical_work(config, plan), network)
    assert setup.work.ours > 0
    for name in variants_of(config):
        before = weights(network.model)
        make_variant(setup, name).step(1)
        changed = {n for n, theta in weights(network.model).items() if not torch.equal(theta, before[n])}
        assert changed <= set(plan.layout.active(range(plan.blocks.total))), name
        assert bool(changed) == (name is not BenchVariant.floor) or config.minimises_metric, name


def test_the_window_takes_a_runs_own_steps(
    planned: tuple[RunConfig, Plan], network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each on its own batch, one after the other, as lezo-run does; the first two do not count."""
    seen: list[tuple[int, int]] = []
    setup = Setup(*planned, typical_work(*planned), network)
    expected = [sum(part.tokens for part in setup.batches.make(step)) for step in range(5)]
    real = ZerothOrder.step

    def step(optimizer: ZerothOrder, number: int, batch: Any) -> Any:
        seen.append((number, sum(part.tokens for part in batch)))
        return real(optimizer, number, batch)

    monkeypatch.setattr(ZerothOrder, "step", step)
    assert len(window(setup, BenchVariant.lezo, 3)) == 3
    assert seen == list(enumerate(expected)) and len({*expected}) > 1


def test_the_heaviest_are_a_step_and_evaluations_of_the_longest(
    planned: tuple[RunConfig, Plan], network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, plan = planned
    evaluated: list[int] = []
    monkeypatch.setattr(Evaluator, "__call__", lambda _, split: evaluated.append(len(split)))
    stepped: list[int] = []
    monkeypatch.setattr(ZerothOrder, "step", lambda _, number, batch: stepped.append(len(batch)))
    heaviest(Setup(config, plan, typical_work(config, plan), network))
    assert (stepped, evaluated) == ([1], [len(plan.dev), len(plan.test)])


def test_lezos_own_sparsity_stands_in_where_mezo_has_none(planned: tuple[RunConfig, Plan]) -> None:
    _, plan = planned
    given = lezo_blocks(planned[0], plan)
    absent = lezo_blocks(compose([*SMALL[:-1], "optim=mezo"]).config, plan)
    assert (given.sparsity, absent.sparsity) == (0.5, 0.75)


def test_a_work_counts_every_candidate() -> None:
    config = compose([*SMALL, "task=cb"]).config
    work: Work = typical_work(config, make_plan(config))
    assert len(work.lengths) == 3 * len(work.examples)
